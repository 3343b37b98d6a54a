"""A plan as a folder: written without a GPU, gone on with, refused where it does not fit, tuned."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from toy_kernel import Problem, Toy, make_binary

from ferrum_numba import results
from ferrum_numba.errors import BuildError, StoreError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.decode.kernel import Decode
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.measure import Policy
from ferrum_numba.perf.readme_table import RESULTS
from ferrum_numba.tune import SearchTask, planned
from ferrum_numba.tune.plan import plan_into
from ferrum_numba.tune.planned import MANIFEST, PROGRAMS, Plan
from ferrum_numba.tune.replay import ReplayMeasurer
from ferrum_numba.tune.search import search

GPU = KNOWN["h200"]
DECODE = Decode()
TOKEN = W4A16Problem(1, 4096, 4096)


@pytest.fixture
def compiler(monkeypatch):
    """Stand in for the compiler: every speed is a program, and `built` says which were made."""
    built, fails = [], set()

    def build_many(jobs, progress=None, executor=None):
        for done, job in enumerate(jobs, start=1):
            speed = job.config.speed
            built.append(speed)
            if progress:
                progress(done, len(jobs))
            yield job, BuildError("ptxas said no") if speed in fails else make_binary(f"f{speed}")

    def program_of(kernel, config, arch):
        return f"f{config.speed}"

    monkeypatch.setattr(planned, "build_many", build_many)
    monkeypatch.setattr(planned, "program_of", program_of)
    monkeypatch.setattr("ferrum_numba.tune.space.program_of", program_of)
    return built, fails


@pytest.fixture
def compiler_and_folder(compiler, tmp_path):
    return *compiler, tmp_path / "plan"


def test_a_plan_comes_back_as_it_was_made(compiler_and_folder):
    _, fails, folder = compiler_and_folder
    fails.add(3)
    rows = plan_into(folder, [Toy()], [Problem(2), Problem(1)], GPU)
    plan = Plan.read(folder, [Toy()])
    plan.refuse(GPU)
    assert plan.problems == [Problem(2), Problem(1)]
    assert {config.speed: type(b) for (_, config), b in plan.binaries.items()} == {
        1: type(make_binary()), 2: type(make_binary()), 3: BuildError, 4: type(make_binary())
    }  # fmt: skip
    assert str(plan.binaries["toy", Toy.space[2]]) == "ptxas said no"
    assert plan.binaries["toy", Toy.space[1]].fingerprint == "f2"
    assert plan.estimates["toy", Problem(2), Toy.space[0]] > 0
    # what was pruned is there with its reason
    listed = json.loads((folder / MANIFEST).read_text())["candidates"]
    assert [row["reason"] for row in listed][-1] == "too fast for one row"
    assert len(listed) == len(rows) == 8
    assert len(list((folder / PROGRAMS).iterdir())) == 3


def test_a_plan_that_was_interrupted_is_no_plan_and_is_gone_on_with(
    compiler_and_folder, monkeypatch
):
    built, _, folder = compiler_and_folder

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(planned, "write_json", interrupted)
        with pytest.raises(KeyboardInterrupt):
            plan_into(folder, [Toy()], [Problem(2)], GPU)
    with pytest.raises(StoreError, match="is no plan, or one that was not finished"):
        Plan.read(folder, [Toy()])
    assert built == [1, 2, 3, 4]
    plan_into(folder, [Toy()], [Problem(2)], GPU)
    assert built == [1, 2, 3, 4]
    Plan.read(folder, [Toy()])


def test_a_damaged_program_is_made_again_or_refused(compiler_and_folder):
    built, _, folder = compiler_and_folder
    plan_into(folder, [Toy()], [Problem(2)], GPU)
    (first, *_) = sorted((folder / PROGRAMS).iterdir())
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match="missing or damaged; bring the plan's folder again"):
        _ = Plan.read(folder, [Toy()]).binaries
    plan_into(folder, [Toy()], [Problem(2)], GPU)
    assert len(built) == 5
    assert len(Plan.read(folder, [Toy()]).binaries) == 4


@pytest.mark.parametrize(
    ("part", "value"),
    [("candidates", [3]), ("sources", None), ("cuda", -1), ("arch", "sm_80"), ("digest", 0)],
)
def test_a_damaged_manifest_is_refused_whatever_of_it_is(compiler_and_folder, part, value):
    _, _, folder = compiler_and_folder
    plan_into(folder, [Toy()], [Problem(2)], GPU)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, part: value}))
    with pytest.raises(StoreError, match=r"manifest\.json is damaged; bring the plan's folder"):
        Plan.read(folder, [Toy()])


def test_programs_that_a_newer_plan_has_not_go(compiler_and_folder):
    _, _, folder = compiler_and_folder
    plan_into(folder, [Toy()], [Problem(2)], GPU)
    plan_into(folder, [Toy()], [Problem(2)], GPU, limit=2)
    assert len(list((folder / PROGRAMS).iterdir())) == 2


def test_a_plan_of_other_sources_or_another_gpu_is_refused(compiler_and_folder):
    _, _, folder = compiler_and_folder
    plan_into(folder, [Toy()], [Problem(2)], GPU)
    with pytest.raises(StoreError, match="was planned for sm_90a, NVIDIA A100"):
        Plan.read(folder, [Toy()]).refuse(KNOWN["a100"])
    manifest = json.loads((folder / MANIFEST).read_text())
    ((name, _),) = manifest["sources"]["toy"].items()
    manifest["sources"]["toy"][name] = "0"
    manifest["digest"] = planned._digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=f"was planned before {name} was changed; plan again"):
        Plan.read(folder, [Toy()])


def test_a_driver_that_is_too_old_for_the_programs_is_told_so(compiler_and_folder, monkeypatch):
    _, _, folder = compiler_and_folder
    plan_into(folder, [Toy()], [Problem(2)], GPU)
    monkeypatch.setattr(planned, "driver_cuda", lambda: (12, 8))
    with pytest.raises(StoreError, match="the driver here is of CUDA 12"):
        Plan.read(folder, [Toy()]).refuse(GPU)


def test_a_folder_that_cannot_be_written_is_one_sentence(compiler, tmp_path):
    (tmp_path / "plan").write_text("a file")
    with pytest.raises(StoreError, match="cannot be written"):
        plan_into(tmp_path / "plan", [Toy()], [Problem(2)], GPU)


def test_what_was_planned_is_all_that_is_tried(compiler_and_folder, tmp_path, monkeypatch):
    _, _, folder = compiler_and_folder
    plan_into(folder, [Toy()], [Problem(2)], GPU, limit=2)
    plan = Plan.read(folder, [Toy()])

    def compile_nothing(*_):
        raise AssertionError("a plan was given")

    monkeypatch.setattr("ferrum_numba.tune.search.build_space", compile_nothing)
    task = SearchTask((Toy(),), (Problem(2),), GPU, Policy(), tmp_path / "toy.json")
    rows = search(replace(task, estimates=plan.estimates), Silent(), binaries=plan.binaries)
    assert sorted(row.config["speed"] for row in rows) == [1, 2]


class Silent:
    """Measures nothing."""

    def run(self, candidate, best_us):
        from ferrum_numba.tune import Outcome

        return Outcome("failed", "there is no GPU")

    def round(self, candidates, turn, samples):
        return None


def test_a_real_plan_is_tuned_on_what_an_h200_recorded(tmp_path):
    recorded = [
        row
        for row in results.load(RESULTS).rows
        if row.kernel == "decode" and row.problem["M"] == 1 and row.samples
    ]
    known = {json.dumps(row.config, sort_keys=True) for row in recorded}
    rows = plan_into(tmp_path / "plan", [DECODE], [TOKEN], GPU, limit=4)
    assert {row.status for row in rows} <= {"ok", "spills", "does not fit"}
    plan = Plan.read(Path(tmp_path / "plan"), [DECODE])
    assert all(len(b.cubin) > 1000 for b in plan.binaries.values())
    task = SearchTask(
        plan.kernels, plan.problems, GPU, Policy(), tmp_path / "rows.json",
        estimates=plan.estimates,
    )  # fmt: skip
    found = search(task, ReplayMeasurer(recorded), binaries=plan.binaries)
    measured = [row for row in found if row.status == "measured"]
    assert {row.stage for row in measured} <= {"final", "full"}
    assert all(json.dumps(row.config, sort_keys=True) in known for row in measured)
    (won,) = results.winners(found)
    here = [row.us for row in recorded if row.problem == won.row.problem]
    assert won.row.us <= 1.02 * min(here)
