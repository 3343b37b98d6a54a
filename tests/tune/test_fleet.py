"""Several boards on one task, without a GPU: who measures what, and what a lost board costs."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from toy_kernel import Problem, Toy, make_binary

from ferrum_numba import gpu, results, tune
from ferrum_numba.errors import DeviceError, StoreError, ToolchainError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.measure import Policy
from ferrum_numba.results.store import Store
from ferrum_numba.tune import exclusive, fleet
from ferrum_numba.tune.fleet import Board, BoardLost, Fleet, run_fleet
from ferrum_numba.tune.worker import Outcome
from ferrum_numba.tune.yardstick import Yardstick

GPU = KNOWN["h200"]
TOY = Toy()
PROBLEMS = tuple(Problem(m) for m in (2, 3, 4, 5, 6, 7))


class Ruler(Toy):
    name = "ruler"


RULER = Yardstick(Ruler(), Problem(100))


class OnBoard:
    """A board's measurer: by a formula, slower or faster than another; may break at its n-th."""

    def __init__(self, pace=1.0, delay_s=0.0, breaks_at=0, error=lambda: BoardLost("it is gone")):
        self.pace, self.delay_s, self.breaks_at, self.error = pace, delay_s, breaks_at, error
        self.asked = []

    def run(self, candidate, best_us):
        if candidate.kernel.name == "ruler":
            return Outcome("measured", us=(200.0 * self.pace,) * 3)
        self.asked.append((candidate.problem.M, candidate.config.speed))
        if len(self.asked) == self.breaks_at:
            raise self.error()
        time.sleep(self.delay_s)
        us = 100.0 * self.pace / candidate.config.speed
        return Outcome("measured", us=(us,) * 5, rotated=True)

    def round(self, candidates, turn, samples):
        return None


@pytest.fixture
def task(tmp_path, monkeypatch):
    def build(pairs, *_, **__):
        return {(k.name, c): make_binary() for k, c in pairs}

    monkeypatch.setattr("ferrum_numba.tune.search.build_space", build)
    monkeypatch.setattr("ferrum_numba.tune.fleet.build", lambda *_: make_binary())
    return tune.SearchTask((TOY,), PROBLEMS, GPU, Policy(), tmp_path / "toy.json")


def board(task, number, measurer, **changes):
    gpu = replace(GPU, uuid=f"board-{number}")
    return Board(gpu, measurer, results.environment(gpu, task.policy, ["x"]), **changes)


def measure(task, *measurers, yardsticks=()):
    boards = [board(task, i, one) for i, one in enumerate(measurers, start=1)]
    return run_fleet(Fleet(task, yardsticks), boards)


def test_boards_share_the_problems_and_one_store(task):
    first, second = OnBoard(delay_s=0.005), OnBoard(delay_s=0.005)
    rows = measure(task, first, second)
    assert [row.problem["M"] for row in rows] == [m for m in range(2, 8) for _ in range(4)]
    ones, others = ({m for m, _ in each.asked} for each in (first, second))
    assert (ones | others, ones & others) == ({2, 3, 4, 5, 6, 7}, set())
    assert min(len(ones), len(others)) >= 2
    file = results.load(task.store_path)
    assert len(file.rows) == 24
    boards = {row.problem["M"]: file.environment_of(row)["uuid"] for row in file.rows}
    assert {boards[m] for m in ones} == {"board-1"}
    assert {boards[m] for m in others} == {"board-2"}


def test_the_longest_problems_come_first(task):
    one = OnBoard()
    measure(task, one)
    assert list(dict.fromkeys(m for m, _ in one.asked)) == [7, 6, 5, 4, 3, 2]


def test_boards_measure_at_the_same_time(task):
    both = threading.Barrier(2)

    class Meets(OnBoard):
        def run(self, candidate, best_us):
            if not self.asked:
                # broken, where one waits for the other to have ended
                both.wait(10.0)
            return super().run(candidate, best_us)

    assert len(measure(task, Meets(), Meets())) == 24


def test_rows_carry_what_their_board_takes_over_the_first(task):
    rows = measure(task, OnBoard(), yardsticks=[RULER])
    assert {row.board_factor for row in rows} == {1.0}
    path = task.store_path
    later = replace(task, problems=(Problem(9),))
    gpu = replace(GPU, uuid="board-2")
    slow = Board(gpu, OnBoard(1.03), results.environment(gpu, task.policy, ["x"]))
    rows = run_fleet(Fleet(later, [RULER]), [slow])
    assert [row.board_factor for row in rows] == [pytest.approx(1.03)] * 4
    file = results.load(path)
    assert {row.problem["M"]: row.board_factor for row in file.rows}[2] == 1.0
    (timed,) = file.environment["yardstick"]
    assert (timed["kernel"], timed["us"], timed["bound"]) == ("ruler", 206.0, "memory")


def test_without_a_yardstick_boards_do_not_answer_for_each_other(task):
    rows = measure(task, OnBoard())
    assert all(row.board_factor is None for row in rows)
    other = OnBoard()
    run_fleet(Fleet(task), [board(task, 2, other)])
    assert len(other.asked) == 24
    again = OnBoard()
    run_fleet(Fleet(task), [board(task, 2, again)])
    assert again.asked == []


def test_without_a_compiler_a_plan_is_tuned_and_boards_are_not_compared(task, monkeypatch):
    def no_compiler(*_):
        raise ToolchainError("the package numba is not installed", "pip install it")

    monkeypatch.setattr("ferrum_numba.tune.fleet.build", no_compiler)
    programs = {(TOY.name, config): make_binary() for config in TOY.space}
    with pytest.warns(RuntimeWarning, match="the boards are not compared: no kernel compiles"):
        found = Fleet(task, [RULER], binaries=programs)
    rows = run_fleet(found, [board(task, 1, OnBoard())])
    assert len(rows) == 24
    assert all(row.board_factor is None for row in rows)


def test_a_yardstick_that_cannot_be_timed_is_none(task):
    class Unlucky(OnBoard):
        def run(self, candidate, best_us):
            if candidate.kernel.name == "ruler":
                return Outcome("wrong", "far off")
            return super().run(candidate, best_us)

    rows = measure(task, Unlucky(), yardsticks=[RULER])
    assert all(row.board_factor is None for row in rows)
    assert "yardstick" not in results.load(task.store_path).environment


def test_another_board_goes_on_where_one_is_lost(task):
    lost = OnBoard(breaks_at=3)
    other = Late(lost)
    with pytest.warns(RuntimeWarning, match="GPU-board-1 dropped out: it is gone"):
        rows = measure(task, lost, other, yardsticks=[RULER])
    assert len(rows) == 24
    assert {row.status for row in rows} == {"measured"}
    # what the lost board had measured of the problem was kept, and is not measured again
    assert len(other.asked) == 22
    assert set(other.asked) | set(lost.asked[:2]) == {
        (m, s) for m in range(2, 8) for s in (1, 2, 3, 4)
    }


def test_a_board_that_drops_out_is_named_and_the_last_ones_error_raised(task):
    broken = OnBoard(breaks_at=1, error=lambda: DeviceError("it fell off the bus"))
    with pytest.warns(RuntimeWarning, match="GPU-board-1 dropped out: it fell off the bus"):
        rows = run_fleet(Fleet(task), [board(task, 1, broken), board(task, 2, Late(broken))])
    assert len(rows) == 24
    both = [OnBoard(breaks_at=1, error=broken.error) for _ in range(2)]
    with pytest.raises(DeviceError, match="it fell off the bus"):
        measure(replace(task, problems=(Problem(9),)), *both)


class Late(OnBoard):
    """Begins when another has begun."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def run(self, candidate, best_us):
        while not self.other.asked:
            time.sleep(0.001)
        return super().run(candidate, best_us)


def test_boards_that_are_all_lost_leave_a_sentence_and_what_they_measured(task):
    with pytest.raises(DeviceError, match="no board is left to measure 6 problems on"):
        measure(task, OnBoard(breaks_at=3))
    assert len(results.load(task.store_path).rows) == 2


def test_ctrl_c_keeps_what_was_measured_and_the_next_run_goes_on(task, monkeypatch):
    begun = threading.Event()

    class Begun(OnBoard):
        def run(self, candidate, best_us):
            if len(self.asked) == 5:
                begun.set()
            return super().run(candidate, best_us)

    def interrupted(self, seconds):
        assert begun.wait(10.0)
        raise KeyboardInterrupt

    one = Begun(delay_s=0.01)
    with monkeypatch.context() as patched:
        patched.setattr(Fleet, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measure(task, one)
    kept = len(results.load(task.store_path).rows)
    assert 6 <= kept == len(one.asked) < 24
    again = OnBoard()
    assert len(measure(task, again)) == 24
    assert len(again.asked) == 24 - kept


def test_what_is_measured_too_long_after_ctrl_c_is_not_kept(task, monkeypatch):
    """Its process is ended next, which would look like a fault of the candidate."""
    begun, ended = threading.Event(), threading.Event()

    class Hung(OnBoard):
        def run(self, candidate, best_us):
            begun.set()
            ended.wait(10.0)
            return Outcome("failed", "the measuring process died")

    def interrupted(self, seconds):
        begun.wait(10.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(Fleet, "wait", interrupted)
    monkeypatch.setattr(fleet, "GRACE_S", 0.05)
    with pytest.raises(KeyboardInterrupt):
        measure(task, Hung())
    ended.set()
    with Store(task.store_path.with_name("tuning.sqlite")) as store:
        assert store.rows("toy") == []


def test_a_store_that_cannot_be_written_ends_the_run(task):
    task.store_path.with_name("tuning.sqlite").mkdir()
    with pytest.raises(StoreError, match="unable to open database file"):
        measure(task, OnBoard(), OnBoard())


def test_an_untrusted_board_says_so_in_its_rows(task):
    rows = run_fleet(Fleet(task), [board(task, 1, OnBoard(), untrusted="2 other processes")])
    assert {row.untrusted for row in rows} == {"2 other processes"}


def test_problems_of_no_kernel_are_passed_over(task):
    assert measure(replace(task, problems=("a string",)), OnBoard()) == []


def test_boards_of_two_models_are_refused(task):
    with pytest.raises(DeviceError, match="got NVIDIA H200 and NVIDIA H100 80GB HBM3; name those"):
        fleet.tune_fleet(task, [GPU, KNOWN["h100"]])


def test_a_process_sees_the_board_it_is_told_alone(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    seen = fleet.on_board("54b77351-aaaa", lambda: os.environ["CUDA_VISIBLE_DEVICES"])
    assert seen == "GPU-54b77351-aaaa"


def test_each_board_has_a_process_of_its_own_and_its_lock(task, monkeypatch, tmp_path):
    """All of `tune_fleet` but the GPU: the processes are real."""
    monkeypatch.setenv("FERRUM_NUMBA_LOCK_DIR", str(tmp_path))
    monkeypatch.setattr("ferrum_numba.tune.measurer.GpuMeasurer", Visible)
    boards = [replace(GPU, uuid=f"board-{i}") for i in (1, 2)]
    rows = fleet.tune_fleet(task, boards)
    seen = {row.problem["M"]: row.more["sees"] for row in rows}
    assert set(seen.values()) == {"GPU-board-1", "GPU-board-2"}
    file = results.load(task.store_path)
    assert all(f"GPU-{file.environment_of(row)['uuid']}" == row.more["sees"] for row in file.rows)
    for one in boards:
        with exclusive.exclusive(one):
            pass


class Visible:
    """Says which GPU its process would see, once there are two of its kind."""

    def __init__(self, policy):
        self.folder = Path(os.environ["FERRUM_NUMBA_LOCK_DIR"])
        (self.folder / f"{os.getpid()}.begun").touch()

    def open(self, kernel, problem, *_):
        pass

    def run(self, candidate, best_us):
        deadline = time.monotonic() + 30.0
        while len([*self.folder.glob("*.begun")]) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.02)
        sees = os.environ["CUDA_VISIBLE_DEVICES"]
        return Outcome("measured", us=(100.0,) * 5, extra={"sees": sees})

    def round(self, candidates, turn, samples):
        return None


@pytest.mark.gpu
@pytest.mark.timing
def test_all_gpus_of_the_machine_tune_at_once(tmp_path):
    """The whole of it, with two yardsticks; on one GPU it is a fleet of one."""
    from axpy import Axpy
    from axpy import Problem as Sized

    from ferrum_numba.kernels.ceilings import CEILINGS

    boards = gpu.chosen("all")
    rulers = [Yardstick(k, k.op.tests[-1]) for k in CEILINGS if k.name in ("dram_read", "mma_sync")]
    # of some megabytes: few copies exceed L2
    problems = [Sized(n) for n in range(10**6, 10**6 + 4 * len(boards))]
    task = tune.SearchTask([Axpy()], problems, boards[0], Policy(), tmp_path / "axpy.json")
    rows = fleet.tune_fleet(task, boards, yardsticks=rulers)
    assert [row.status for row in rows] == ["measured"] * 2 * len(problems)
    assert {row.board for row in rows} == {one.uuid for one in boards}
    assert all(0.5 < row.board_factor < 2.0 for row in rows)
    assert min(abs(row.board_factor - 1.0) for row in rows) < 1e-4
