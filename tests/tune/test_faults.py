"""A crasher, a hanger, a wrong answer, a glutton: each is a row, and the search goes on."""

from dataclasses import replace

import pytest
from toy_kernel import Config, Misbehaving, Problem, Toy, make_binary

from ferrum_numba import gpu, results, tune
from ferrum_numba.compile import Binary
from ferrum_numba.gpu import KNOWN
from ferrum_numba.measure import Policy
from ferrum_numba.results.store import Store
from ferrum_numba.tune.search import search
from ferrum_numba.tune.worker import Outcome, Worker

POLICY = Policy()


class Faulty(Toy):
    deeds = ("work", "die", "hang", "raise", "wrong", "glutton", "work")
    space = tuple(Config(speed, deed) for speed, deed in enumerate(deeds, start=1))


class Measures(Misbehaving):
    def open(self, kernel, problem, *_):
        super().open(kernel, problem)

    def round(self, candidates, turn, samples):
        return None

    def run(self, candidate, best_us):
        if candidate.config.deed == "wrong":
            return Outcome("wrong", "relative error 1", rel_error=1.0)
        return replace(super().run(candidate, best_us), us=(100.0,) * 5)


EXPECTED = {
    "die": ("failed", "died with exit code 3"),
    "hang": ("timeout", "no answer within 2 s"),
    "raise": ("failed", "ValueError: of no use"),
    "wrong": ("wrong", "relative error 1"),
    "glutton": ("pruned", "needs 1048576 bytes of shared memory a block; NVIDIA H200 has"),
}


def binary_of(config):
    return make_binary(smem_bytes=1 << 20) if config.deed == "glutton" else make_binary()


def test_every_fault_is_a_row_and_the_others_are_measured(tmp_path):
    kernel = Faulty()
    path = tmp_path / "toy.json"
    task = tune.SearchTask((kernel,), (Problem(2), Problem(3)), KNOWN["h200"], POLICY, path)
    binaries = {(kernel.name, config): binary_of(config) for config in kernel.space}
    assert all(isinstance(binary, Binary) for binary in binaries.values())
    with Worker(Measures, run_timeout_s=2.0) as worker:
        rows = search(task, worker, binaries=binaries)
    by_deed = {(row.problem["M"], row.config["speed"]): row for row in rows}
    for m in (2, 3):
        for speed, deed in enumerate(kernel.deeds, start=1):
            row = by_deed[m, speed]
            status, reason = EXPECTED.get(deed, ("measured", ""))
            assert row.status == status, row.reason
            assert reason in row.reason, row
            assert row.ok == (deed == "work")
    with Store(tmp_path / "tuning.sqlite") as store:
        assert {(row.status, row.key) for row in store.rows("toy")} == {
            (row.status, row.key) for row in rows
        }
    assert {winner.row.config["deed"] for winner in results.winners(rows)} == {"work"}


def test_faults_that_are_known_are_not_tried_again(tmp_path):
    kernel = Faulty()
    task = tune.SearchTask((kernel,), (Problem(2),), KNOWN["h200"], POLICY, tmp_path / "toy.json")
    binaries = {(kernel.name, config): binary_of(config) for config in kernel.space}
    with Worker(Measures, run_timeout_s=2.0) as worker:
        first = search(task, worker, binaries=binaries)

    class Refuses:
        def run(self, candidate, best_us):
            raise AssertionError("all is known")

        def round(self, candidates, turn, samples):
            return None

    again = search(task, Refuses(), binaries=binaries)
    assert [row.status for row in again] == [row.status for row in first]


@pytest.mark.gpu
@pytest.mark.timing
def test_faults_on_a_gpu_are_rows_and_the_search_goes_on(tmp_path):
    from axpy import Problem as Sized
    from faulty import Faulty as OnGpu

    rows = tune.tune(
        [OnGpu()], [Sized(65536), Sized(4096)], gpu.live(), policy=POLICY,
        store_path=tmp_path / "axpy.json", timeout_s=5.0,
    )  # fmt: skip
    found = {
        (row.problem["n"], row.config["num_threads"], row.config["fault"]): row for row in rows
    }
    for n in (65536, 4096):
        assert found[n, 64, ""].status == "measured"
        assert found[n, 128, ""].status == "measured"
        assert found[n, 64, "crash"].status == "failed"
        assert "CUDA_ERROR_ILLEGAL_ADDRESS" in found[n, 64, "crash"].reason
        assert found[n, 64, "hang"].status == "timeout"
        assert found[n, 64, "wrong"].status == "wrong"
        assert found[n, 64, "glutton"].status in ("pruned", "build failed")
        assert "shared memory" in found[n, 64, "glutton"].reason
    assert len(results.load(tmp_path / "axpy.json").rows) == len(rows) == 12
