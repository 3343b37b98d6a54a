"""The model of what all launches show: waves, padding, issue slots; a kernel's own before it."""

import importlib
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from toy_kernel import Problem, Toy, make_binary

from ferrum_numba.contract import Launch, Work
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels import PACKED, RAW
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.tune.expected import expected_s
from ferrum_numba.tune.model import CLASS, estimate_us, idle_factor, issue_us, ranked
from ferrum_numba.tune.plan import plan

H200 = KNOWN["h200"]


@pytest.mark.parametrize(
    ("blocks", "resident", "factor"),
    [
        (132, 1, 1.0),  # a block for each SM
        (66, 1, 2.0),  # half of the SMs idle
        (133, 2, 264 / 133),  # one SM has two blocks
        (264, 2, 1.0),
        (265, 2, 528 / 265),  # a second wave for one block
    ],
)
def test_what_is_not_full_idles(blocks, resident, factor):
    assert idle_factor(blocks, resident, H200) == pytest.approx(factor)


def test_instructions_take_issue_slots_where_they_were_counted():
    work = Work(flops=4096 * 1000, bytes=0)
    # a thousand products, and ten instructions for each of them
    us = issue_us(work, {"HMMA": 10, "IADD": 90}, H200)
    assert us == pytest.approx(10_000 / (4 * 132 * 1980.0))
    assert issue_us(work, {}, H200) == 0.0
    assert issue_us(work, {"IADD": 5}, H200) == 0.0


@dataclass(frozen=True)
class Tiled:
    tile_m: int


class Rows(Toy):
    """A kernel without a model, whose grid is its tiles."""

    config = Tiled
    space = tuple(Tiled(rows) for rows in (64, 16, 1))
    op = SimpleNamespace(work=lambda problem: Work(flops=10**9 * problem.M, bytes=10**8))

    def launch(self, config, problem, gpu):
        return Launch((132, 1, 1), {})


def test_rows_of_zeros_and_classes():
    times = {c.tile_m: estimate_us(Rows(), c, Problem(65), H200) for c in Rows.space}
    # 65 rows are two tiles of 64, five of 16
    assert times[64] > times[16] >= times[1]
    classes = {round(us, 6) for us in times.values()}
    assert all(min(abs(us - CLASS**i) for i in range(60)) < 1e-5 for us in classes)


def test_within_a_class_the_kernels_own_order_holds():
    order = ranked(Rows(), list(Rows.space), Problem(64), H200)
    assert order == list(Rows.space)


def test_a_kernels_own_model_comes_first():
    class Own(Rows):
        def estimate_us(self, config, problem, gpu):
            return 1.0 / config.tile_m

    assert estimate_us(Own(), Tiled(64), Problem(1), H200) == 1 / 64
    assert ranked(Own(), list(Rows.space)[::-1], Problem(1), H200) == list(Rows.space)


@pytest.mark.parametrize("kernel", [*RAW, *PACKED], ids=lambda kernel: kernel.name)
def test_designs_tell_a_time_of_every_config_that_fits(kernel):
    for M in (1, 33, 4096):
        problem = W4A16Problem(M, 28672, 4096)
        times = [kernel.estimate_us(c, problem, H200) for c in kernel.fitting(problem, H200)]
        assert all(1.0 < us < 1e5 for us in times)
    # on a GPU of half the memory bandwidth and clock a token takes longer
    slow = KNOWN["a100"]
    token = W4A16Problem(1, 28672, 4096)
    if kernel.runs_on(slow):
        here, there = (min(kernel.estimate_us(c, token, gpu) for c in kernel.fitting(token, gpu))
                       for gpu in (H200, slow))  # fmt: skip
        assert there > here


def test_a_plan_expects_more_of_more(monkeypatch):
    # the package exports the function under the module's name
    module = importlib.import_module("ferrum_numba.tune.plan")
    monkeypatch.setattr(
        module,
        "build_space",
        lambda pairs, arch, progress: {(k.name, c): make_binary() for k, c in pairs},
    )
    one = plan([Toy()], [Problem(2)], H200)
    two = plan([Toy()], [Problem(2), Problem(3)], H200)
    assert 0 < expected_s(one) < expected_s(two)
    assert expected_s(one, "model") <= expected_s(one, "exhaustive")
