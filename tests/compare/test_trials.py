"""Trials of two designs on a measurer of our own, and how two revisions are served."""

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from axpy import Axpy, Config, Problem

from ferrum_numba.compare import Built, counter_deltas, deltas
from ferrum_numba.compare.designs import Design, trials
from ferrum_numba.compare.revisions import SCRIPT, _mirror, find_revision
from ferrum_numba.errors import FerrumError, ProblemError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.measure import Policy
from ferrum_numba.tune.worker import Outcome

GPU = replace(KNOWN["h200"], uuid="GPU-1")
KERNEL = Axpy()


class Fake:
    """Takes as long as it is told for each number of threads, one round like the other."""

    def __init__(self, us, status="measured"):
        self.us, self.status, self.rounds = us, status, 0

    def _us(self, candidate):
        return self.us[candidate.config.num_threads]

    def run(self, candidate, best_us):
        wrong = candidate.config.num_threads == 64 and self.status != "measured"
        status = self.status if wrong else "measured"
        return Outcome(status, "as told", us=(self._us(candidate),), rel_error=0.0, max_error=0.0)

    def round(self, candidates, turn, samples):
        self.rounds += 1
        # a step of the clocks touches both
        drift = 1.0 if turn < 3 else 1.3
        return [Outcome("measured", us=(self._us(c) * drift,) * samples) for c in candidates]


def made(measurer, old=32, new=64):
    sides = [Design(KERNEL, lambda _, n=n: Config(n)) for n in (old, new)]
    return list(trials(measurer, *sides, [Problem(100)], GPU, Policy(), "2026-01-01"))


@pytest.mark.parametrize(
    ("us", "name"), [({32: 10, 64: 12}, "SLOWER"), ({32: 12, 64: 10}, "FASTER")]
)
def test_the_new_is_judged_by_the_rounds(us, name):
    (trial,) = made(Fake(us))
    assert trial.pair.verdict.name == name
    assert trial.pair.verdict.ratio == pytest.approx(us[64] / us[32])
    old, new = trial.pair.old, trial.pair.new
    assert old.contest == new.contest != ""
    assert len(old.rounds) == len(new.rounds) >= 4
    assert (old.stage, old.board, old.run) == ("final", "GPU-1", "2026-01-01")
    assert new.config == {"num_threads": 64, "fault": ""}


def test_one_against_itself_is_the_same():
    measurer = Fake({32: 10})
    (trial,) = made(measurer, 32, 32)
    assert trial.pair.verdict.name == "SAME"
    assert deltas(*trial.built) == {"registers": 0, "spill_bytes": 0, "smem_bytes": 0, "sass": {}}


def test_what_was_counted_of_both_is_compared():
    counted = {
        "dram_bytes": 2e6,
        "l2_hit": 0.5,
        "issue": 0.25,
        "stalls": {"wait": 2.0, "gmma": 1.0},
    }
    (trial,) = made(Fake({32: 10, 64: 12}))
    old, new = (
        replace(row, more={"counters": {**counted, **change}})
        for row, change in (
            (trial.pair.old, {}),
            (trial.pair.new, {"dram_bytes": 3e6, "l2_hit": 0.25, "stalls": {"wait": 2.5}}),
        )
    )
    assert counter_deltas(old, new) == {
        "dram_bytes": 1e6, "l2_hit": -0.25, "issue": 0.0, "stalls": {"wait": 0.5},
    }  # fmt: skip
    assert counter_deltas(old, trial.pair.new) == {}


def test_what_is_wrong_got_slower_and_is_timed_no_more():
    measurer = Fake({32: 10, 64: 5}, status="wrong")
    (trial,) = made(measurer)
    assert (trial.pair.verdict.name, trial.pair.why) == ("SLOWER", "wrong: as told")
    assert not trial.pair.new.ok
    assert measurer.rounds == 0
    # what was wrong before tells nothing
    (trial,) = made(Fake({32: 10, 64: 5}, status="wrong"), 64, 32)
    assert trial.pair.verdict.name == "UNDECIDED"
    assert math.isnan(trial.pair.verdict.ratio)


def test_a_config_that_does_not_fit_is_refused():
    class Narrow(Axpy):
        def misfit(self, config, problem, gpu):
            return "too wide"

    sides = [Design(Narrow(), lambda _: Config(32))] * 2
    with pytest.raises(ProblemError, match=r"axpy cannot run Problem\(n=8\) .*: too wide"):
        next(trials(Fake({}), *sides, [Problem(8)], GPU, Policy(), ""))


def test_deltas_are_of_what_is_known_of_both():
    old = Built("a", {}, 32, 0, None, mix={"FFMA": 4, "LDG": 2})
    new = Built("a", {}, 40, 0, 1024, mix={"FFMA": 4, "LDG": 1, "LDS": 9})
    assert deltas(old, new) == {"registers": 8, "spill_bytes": 0, "sass": {"LDS": 9, "LDG": -1}}


def git(folder, *words):
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def test_a_revision_is_found_where_there_is_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_revision("HEAD") is None
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "x")
    assert len(find_revision("HEAD")) == 40
    assert find_revision("no-such-revision") is None
    assert find_revision(".") == "."


def make_tree(folder, word):
    """Make a tree whose package says a word, with the parts that an installation maps."""
    for part in ("ferrum_numba", "kernels", "reference", "perf"):
        (folder / part).mkdir(parents=True)
        (folder / part / "__init__.py").write_text(f"WORD = {word!r}\n")
    return folder


def test_a_tree_is_imported_whole_whatever_is_installed(tmp_path):
    tree = _mirror(make_tree(tmp_path / "tree", "of the tree"), tmp_path / "mirror")
    code = "import ferrum_numba, ferrum_numba.kernels as k; print(ferrum_numba.WORD, k.WORD)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env={"PYTHONPATH": str(tree)}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "of the tree of the tree\n"
    with pytest.raises(FerrumError, match="has no package ferrum_numba"):
        _mirror(tmp_path, tmp_path / "other")


def test_a_side_answers_in_a_line_what_went_wrong(tmp_path):
    asked = json.dumps({"do": "open", "op": "x", "problem": {}, "kernel": "", "warmup_ms": 0})
    tree = make_tree(tmp_path / "tree", "x")
    (tree / "ferrum_numba" / "launch.py").write_text(
        "class DeviceError(Exception): pass\n"
        "class Device:\n    def open():\n        print('noise')\n"
        "        raise DeviceError('no GPU\\n to run on')\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT)], input=f"{asked}\n", capture_output=True, text=True,
        env={"PYTHONPATH": str(_mirror(tree, tmp_path / "mirror"))}, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == {"device": "no GPU to run on"}


# a process that drives another, which hangs as a kernel does
DRIVER = """
import sys
import time
from pathlib import Path
from ferrum_numba.compare.revisions import Side
with Side(Path(sys.argv[1])) as side:
    side.ask({"do": "open"})
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_a_side_ends_with_a_driver_that_is_killed(tmp_path):
    said, tree = tmp_path / "pid", make_tree(tmp_path / "tree", "x")
    (tree / "ferrum_numba" / "launch.py").write_text(
        "import os, time\nfrom pathlib import Path\nclass Device:\n    def open():\n"
        f"        Path({str(said)!r}).write_text(str(os.getpid()))\n        time.sleep(600)\n"
    )
    mirror = _mirror(tree, tmp_path / "mirror")
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(mirror)])
    try:
        assert waits_for(lambda: said.exists() and said.read_text())
        side = int(said.read_text())
        assert is_alive(side)
    finally:
        driver.kill()
        driver.wait()
    assert waits_for(lambda: not is_alive(side)), "it would hold the GPU for ten minutes"


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def waits_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.mark.gpu
def test_gpu_a_design_is_the_same_as_itself(device):
    from ferrum_numba.compare.designs import compare_designs
    from ferrum_numba.kernels.ceilings import CEILINGS

    kernel = next(one for one in CEILINGS if one.name == "dram_copy")
    problem = kernel.op.tests[-1]
    design = Design(kernel, partial(kernel.default, gpu=device.gpu))
    (trial,) = compare_designs(design, design, [problem], device.gpu, Policy(), "now", 60.0)
    assert trial.pair.verdict.name == "SAME"
