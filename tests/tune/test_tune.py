"""The tuner without a GPU: which candidates, in which order, what is kept, what a fault costs."""

import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import toy_kernel
from toy_kernel import Config, Misbehaving, Problem, Toy, make_binary

from ferrum_numba import results, tune
from ferrum_numba.contract import Work
from ferrum_numba.errors import BuildError, ConfigError, DeviceError
from ferrum_numba.gpu import KNOWN, driver_present
from ferrum_numba.kernels.decode.kernel import Decode
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.launch import cublas
from ferrum_numba.measure import Policy
from ferrum_numba.space import space
from ferrum_numba.tune import exclusive, measurer
from ferrum_numba.tune.search import search
from ferrum_numba.tune.worker import Candidate, Outcome, Worker

GPU = KNOWN["h200"]
TOY = Toy()
DECODE = Decode()


class FakeMeasurer:
    """Measures by a formula, and remembers what it was asked."""

    def __init__(self, us_of=lambda candidate: 100.0 / candidate.config.speed, finals=True):
        self.us_of, self.finals = us_of, finals
        self.asked, self.best, self.contests = [], [], []

    def run(self, candidate, best_us):
        self.asked.append((candidate.problem.M, candidate.config.speed))
        self.best.append(best_us)
        us = self.us_of(candidate)
        return us if isinstance(us, Outcome) else Outcome("measured", us=(us,) * 5, rotated=True)

    def round(self, candidates, turn, samples):
        self.contests.append({c.config.speed for c in candidates})
        if not self.finals:
            return None
        return [
            Outcome(
                "measured",
                us=(self.us_of(c) + 1.0,) * samples,
                rotated=True,
                extra={"power_w": 7.0},
            )
            for c in candidates
        ]


@pytest.fixture
def task(tmp_path):
    return tune.SearchTask((TOY,), (Problem(2),), GPU, Policy(), tmp_path / "toy.json")


@pytest.fixture
def binaries(monkeypatch):
    """Stand in for the compiler: give every config the binary that a test wants."""
    special = {}

    def build(pairs, *_, **__):
        return {(k.name, c): special.get(c.speed, make_binary()) for k, c in pairs}

    monkeypatch.setattr("ferrum_numba.tune.search.build_space", build)
    return special


def by_speed(rows):
    return {row.config["speed"]: row for row in rows}


def test_every_config_is_measured_and_stored(task, binaries):
    fake = FakeMeasurer()
    rows = search(task, fake)
    assert fake.asked == [(2, 1), (2, 2), (2, 3), (2, 4)]
    assert fake.best == [None, 100.0, 50.0, 100.0 / 3]
    row = by_speed(rows)[1]
    # a microsecond more in the final
    assert (row.us, row.us_low, row.us_high) == (101.0, 101.0, 101.0)
    assert row.gbps == pytest.approx(9600 / 101.0 / 1e3)
    assert row.bound_us == pytest.approx(0.002)
    assert row.fraction == pytest.approx(0.002 / 101.0)
    assert (row.status, row.ok, row.source_hash) == ("measured", True, "abc")
    stored = results.load(task.store_path)
    assert len(stored.rows) == 4
    assert stored.environment["gpu_facts"]["key"] == "h200"


def test_what_the_machine_lacks_for_a_kernel_prunes_its_rows(task, binaries, monkeypatch):
    class Dense(Toy):
        needs_cublas = True

    monkeypatch.setattr(cublas, "library", lambda: None)
    fake = FakeMeasurer()
    rows = search(replace(task, kernels=(Dense(),)), fake)
    assert fake.asked == []
    assert {row.status for row in rows} == {"pruned"}
    assert {row.reason for row in rows} == {cublas.MISSING}


def test_progress_counts_all_candidates(task, binaries):
    seen = []
    search(task, FakeMeasurer(), lambda done, total, text: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_best_meet_in_a_final_until_they_are_decided(task, binaries, monkeypatch):
    monkeypatch.setattr("ferrum_numba.tune.finals.FINALISTS", 3)
    fake = FakeMeasurer()
    rows = search(task, fake)
    # 26 us against 34.3, 51 and 101, the default's, which is always in: eight rounds decide
    assert fake.contests == [{4, 3, 2, 1}] * 6 + [{4, 3, 2}] * 2
    assert {row.stage for row in rows} == {"final"}
    won = by_speed(rows)[4]
    assert (won.us, won.us_low, won.us_high) == (26.0, 26.0, 26.0)
    assert won.rounds == ((26.0,) * 3,) * 8
    assert won.samples == (26.0,) * 24
    assert won.contest == by_speed(rows)[2].contest != ""
    # what was seen of the board belongs to the times that are kept
    assert won.more == {"power_w": 7.0}
    (stored,) = (row for row in results.load(task.store_path).rows if row.config["speed"] == 4)
    assert (stored.rounds, stored.contest) == (won.rounds, won.contest)


def test_a_lost_final_leaves_the_first_times(task, binaries):
    rows = search(task, FakeMeasurer(finals=False))
    assert by_speed(rows)[4].us == 25.0
    assert by_speed(rows)[4].stage == "full"


def test_stored_rows_are_not_measured_again(task, binaries):
    first = search(task, FakeMeasurer())
    again = FakeMeasurer()
    rows = search(task, again)
    assert again.asked == []
    assert again.contests == []
    assert [row.us for row in rows] == pytest.approx([row.us for row in first])


def test_a_changed_program_alone_is_measured_again(task, binaries):
    search(task, FakeMeasurer())
    binaries[3] = make_binary("other")
    again = FakeMeasurer()
    search(task, again)
    assert again.asked == [(2, 3)]
    # the newcomer was not in the last final
    assert again.contests[0] == {4, 3, 2, 1}
    assert len(results.load(task.store_path).rows) == 4


@pytest.mark.parametrize(
    "change",
    [{"policy": Policy(samples=3)}, {"gpu": replace(GPU, uuid="another")}, {"regime": "warm"}],
    ids=["policy", "board", "regime"],
)
def test_times_taken_otherwise_do_not_count(task, binaries, change):
    search(task, FakeMeasurer())
    again = FakeMeasurer()
    search(replace(task, **change), again)
    assert len(again.asked) == 4


def test_an_interrupt_keeps_what_was_measured(task, binaries):
    def interrupted(candidate):
        if candidate.config.speed == 3:
            raise KeyboardInterrupt
        return 10.0

    with pytest.raises(KeyboardInterrupt):
        search(task, FakeMeasurer(interrupted))
    assert sorted(by_speed(results.load(task.store_path).rows)) == [1, 2]
    again = FakeMeasurer()
    search(task, again)
    assert again.asked == [(2, 3), (2, 4)]


def test_what_cannot_run_is_a_row_with_its_reason(task, binaries):
    binaries[1] = BuildError("ptxas said no")
    binaries[2] = make_binary(smem_bytes=300_000)
    binaries[3] = make_binary(registers=255 * 4)
    rows = by_speed(search(task, FakeMeasurer()))
    assert (rows[1].status, rows[1].reason) == ("build failed", "ptxas said no")
    assert rows[2].status == "pruned"
    assert "needs 300000 bytes of shared memory a block; NVIDIA H200 has" in rows[2].reason
    assert rows[3].status == "pruned"
    assert "do not fit a SM of NVIDIA H200" in rows[3].reason
    assert rows[4].status == "measured"


def test_blocks_that_wait_for_each_other_must_all_fit(task, binaries, monkeypatch):
    monkeypatch.setattr(Toy, "co_resident", True)
    task = replace(task, problems=(Problem(5000),))
    rows = search(task, FakeMeasurer())
    assert {row.status for row in rows} == {"pruned"}
    assert "its 5000 blocks wait for each other and NVIDIA H200 holds 1056" in rows[0].reason


def test_a_refused_problem_is_one_row(task, binaries):
    rows = search(replace(task, problems=(Problem(2, N=9),)), FakeMeasurer())
    assert [(row.status, row.reason, row.config) for row in rows] == [
        ("refused", "toy needs N = 8", {})
    ]


def test_problems_of_another_op_are_passed_over(task, binaries):
    assert search(replace(task, problems=("a string",)), FakeMeasurer()) == []


def test_failures_do_not_win(task, binaries):
    def outcome(candidate):
        return [
            Outcome("wrong", "far off", rel_error=0.5),
            Outcome("slow", "twice the best", us=(1.0,)),
            Outcome("timeout", "no answer"),
            50.0,
        ][candidate.config.speed - 1]

    rows = search(task, FakeMeasurer(outcome))
    assert [row.status for row in rows] == ["wrong", "slow", "timeout", "measured"]
    assert [row.ok for row in rows] == [False, True, False, True]
    assert [w.row.config["speed"] for w in results.winners(rows)] == [4]


def test_a_time_below_the_bound_is_not_believed(task, binaries):
    rows = search(replace(task, limit=1), FakeMeasurer(lambda c: 0.001))
    assert rows[0].status == "wrong"
    assert "0.001 us is less than the 0.002 us that 9600 bytes" in rows[0].reason


@pytest.mark.parametrize("stage", ["full", "final"])
def test_a_time_above_the_board_s_measured_ceilings_is_not_believed(task, binaries, stage):
    # 100 us are what the ceilings leave: 5 % less may be their own clocks, more is an error
    us = {1: 96.0, 2: 94.0, 3: 120.0, 4: 120.0}
    fake = FakeMeasurer(lambda candidate: us[candidate.config.speed])
    if stage == "final":
        fake.us_of = lambda c: 120.0 if len(fake.asked) < 4 else us[c.config.speed] - 1
    rows = by_speed(search(replace(task, roof_us=lambda kernel, problem: 100.0), fake))
    assert [rows[i].status for i in (1, 2, 3, 4)] == ["measured", "wrong", "measured", "measured"]
    assert rows[2].stage == stage
    assert rows[2].reason == (
        "94 us is less than the 100 us that 9600 bytes and 2 FLOPs need at this board's measured "
        "ceilings, by more than 5%: the work is overstated or the weights were not cold"
    )
    assert results.winners(rows.values())[0].row is rows[1]


def test_samples_under_throttle_are_marked(task, binaries):
    def outcome(candidate):
        hot = {"throttle": ["power cap"]} if candidate.config.speed == 1 else {"throttle": []}
        return Outcome("measured", us=(10.0,) * 4, extra=hot)

    rows = by_speed(search(task, FakeMeasurer(outcome, finals=False)))
    assert (rows[1].throttled, rows[2].throttled) == ((0, 1, 2, 3), ())


def test_a_final_that_is_held_again_takes_the_heats_as_they_are(task, binaries):
    first = search(task, FakeMeasurer())
    again = FakeMeasurer()
    second = search(replace(task, again=True), again)
    assert again.asked == []
    assert {row.contest for row in first}.isdisjoint({row.contest for row in second})
    assert len(results.load(task.store_path).rows) == 4


def test_an_untrusted_run_says_so(task, binaries):
    rows = search(replace(task, untrusted="2 other processes"), FakeMeasurer())
    assert {row.untrusted for row in rows} == {"2 other processes"}
    assert results.load(task.store_path).environment["untrusted"] == "2 other processes"
    assert results.winners(rows) == []
    again = FakeMeasurer()
    search(task, again)
    assert len(again.asked) == 4


TOKENS = W4A16Problem(16, 4096, 4096)


@pytest.mark.parametrize("limit", [1, 2, 7, 12])
def test_a_limit_keeps_what_is_like_the_default_and_thins_the_rest(limit):
    everything, bad = tune.feasible(DECODE, TOKENS, GPU)
    assert len(everything) > 2 * limit
    good, same_bad = tune.feasible(DECODE, TOKENS, GPU, limit)
    assert len(set(good)) == limit
    assert set(good) < set(everything)
    assert same_bad == bad
    default = asdict(DECODE.default(TOKENS, GPU))
    unlike = [sum(default[k] != v for k, v in asdict(config).items()) for config in good]
    likely = (limit + 1) // 2
    assert unlike[0] == 0
    assert unlike[:likely] == sorted(unlike[:likely])
    assert max(unlike[:likely]) <= min(unlike[likely:], default=9)
    # the rest comes from all over what is left of the space
    places = [everything.index(config) for config in good[likely:]]
    assert places == sorted(places)
    assert limit < 7 or places[-1] > len(everything) // 2


@pytest.mark.parametrize("limit", [None, 1000])
def test_a_limit_that_is_no_limit_keeps_the_space_in_its_order(limit):
    assert tune.feasible(DECODE, TOKENS, GPU, limit) == tune.feasible(DECODE, TOKENS, GPU)


def test_feasible_says_why_not():
    good, bad = tune.feasible(TOY, Problem(1), GPU)
    assert [c.speed for c in good] == [1, 2, 3]
    assert bad == [(Config(4), "too fast for one row")]
    assert tune.feasible(TOY, Problem(1, N=9), GPU)[1][0] == (Config(1), "toy needs N = 8")


def test_the_bound_is_the_slower_of_two():
    assert tune.bound_us(Work(flops=0, bytes=48_000_000), GPU) == pytest.approx(10.0)
    assert tune.bound_us(Work(flops=989_400_000_000, bytes=1), GPU) == pytest.approx(1000.0)
    assert tune.bound_by(Work(flops=0, bytes=1), GPU) == "memory"
    assert tune.bound_by(Work(flops=10**6, bytes=1), GPU) == "tensor"


# the space helper


def test_a_space_is_a_product_with_a_predicate():
    found = space(Config, speed=(3, 1), deed=("a", "b"), where=lambda c: c != Config(1, "a"))
    assert found == (Config(3, "a"), Config(3, "b"), Config(1, "b"))


@dataclass(frozen=True)
class Odd:
    number: int

    def __post_init__(self):
        if self.number % 2 == 0:
            raise ConfigError(f"number must be odd, got {self.number}")


def test_a_space_leaves_out_what_contradicts_itself():
    assert space(Odd, number=(1, 2, 3)) == (Odd(1), Odd(3))


def test_a_space_names_its_mistakes():
    with pytest.raises(ConfigError, match="Config has no field sped"):
        space(Config, sped=(1,))
    with pytest.raises(ConfigError, match="no Config is left of the space of speed"):
        space(Config, speed=(1, 2), where=lambda c: c.speed > 2)


# the process


def candidate(deed="work", M=2):
    return Candidate(TOY, Config(1, deed), Problem(M), make_binary())


def test_faults_cost_one_row_and_the_next_gets_a_new_process():
    with Worker(Misbehaving, run_timeout_s=2.0) as worker:
        assert worker.run(candidate(), None).us == (1.0,)
        died = worker.run(candidate("die"), None)
        assert died.status == "failed"
        assert "died with exit code 3" in died.reason
        # a new process, so its operands were made anew
        assert worker.run(candidate(), None).us == (1.0,)
        hung = worker.run(candidate("hang"), None)
        assert (hung.status, hung.reason) == ("timeout", "no answer within 2 s")
        raised = worker.run(candidate("raise"), None)
        assert (raised.status, raised.reason) == ("failed", "ValueError: of no use")
        assert worker.round([candidate(), candidate()], 5, 3) == [(5, 3, 0.0), (5, 3, 1.0)]
        process = worker._process
    assert not process.is_alive()


def test_operands_are_made_once_a_problem_and_hopeless_ones_once_at_all():
    with Worker(Misbehaving) as worker:
        for _ in range(2):
            assert worker.run(candidate(), None).us == (1.0,)
        assert worker.run(candidate(M=3), None).us == (2.0,)
        unlucky = worker.run(candidate(M=13), None)
        assert (unlucky.status, unlucky.reason) == ("failed", "ValueError: M is unlucky")
        assert worker._process is None
        assert worker.run(candidate("work", M=13), None).reason == "ValueError: M is unlucky"
        assert worker._process is None, "a problem that failed is not tried for every config"
        assert worker.round([candidate(M=13)], 0, 3) is None


def test_a_process_without_a_gpu_says_so():
    with (
        Worker(toy_kernel.without_gpu) as worker,
        pytest.raises(DeviceError, match="did not start: no GPU to run on"),
    ):
        worker.run(candidate(), None)


@pytest.mark.skipif(driver_present(), reason="for a machine without a GPU")
def test_tuning_without_a_gpu_says_so(task, binaries, monkeypatch, tmp_path):
    monkeypatch.setenv("FERRUM_NUMBA_LOCK_DIR", str(tmp_path))
    with pytest.raises(DeviceError, match="did not start: no GPU to run on"):
        tune.tune([TOY], [Problem(2)], GPU, policy=Policy(), store_path=task.store_path)
    assert not task.store_path.exists()


def test_one_process_measures_on_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("FERRUM_NUMBA_LOCK_DIR", str(tmp_path))
    board = replace(GPU, uuid="board-1")
    with exclusive.exclusive(board):
        with (
            pytest.raises(DeviceError, match="another process is measuring on NVIDIA H200"),
            exclusive.exclusive(board),
        ):
            pass
        with exclusive.exclusive(replace(GPU, uuid="board-2")):
            pass
    with exclusive.exclusive(board):
        pass


# what the process does on a GPU, with the GPU's part faked


@pytest.fixture
def bench(monkeypatch):
    """Return a GpuMeasurer whose GPU takes the times in `bench.times`, and what it did."""
    state = SimpleNamespace(
        times=[], timed=[], timers=[], bits=[b"same"], ok=True, replay_us=400.0, hosts=[],
        loaded=[], loads=0, busy=threading.Event(),
    )  # fmt: skip

    def taken(us, samples):
        return SimpleNamespace(
            us=(us,) * samples, calls=1, clock_mhz=(1980.0, 1980.0), power_w=None,
            temperature_c=None, throttle=(), busy_us=us * samples,
        )  # fmt: skip

    class Timer:
        def __init__(self, device, calls, regime, policy):
            self.calls, self.replay_us = calls, state.replay_us
            state.timers.append(calls)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.close()

        def keep_busy(self, until):
            while not until():
                state.busy.set()

        def take(self, samples, warmup_ms, briefly=False):
            state.timed.append((self.calls, samples, warmup_ms))
            return taken(state.times.pop(0), samples)

        def close(self):
            state.timers.remove(self.calls)

    def result(into=None):
        return np.frombuffer(state.bits.pop(0) if len(state.bits) > 1 else state.bits[0], np.uint8)

    def operands(device, kernel, problem, *, host, uploads, **sizes):
        state.hosts.append(host)

        def bind(config, binary, loaded=None):
            return SimpleNamespace(calls=lambda: config.speed)

        return SimpleNamespace(
            kernel=kernel, copies=2, result=result, bind=bind, out=SimpleNamespace(size_bytes=8)
        )

    def bind_and_run(operands, config, binary, *, loaded, into):
        state.loaded.append(loaded)
        bound, results = operands.bind(config, binary), [operands.result()]
        return SimpleNamespace(bound=bound, results=results, check=state.check)

    def load(binary, device):
        state.loads += 1
        return binary.fingerprint

    checked = SimpleNamespace(ok=True, reason="", rel_error=1e-4, max_error=2e-4)
    device = SimpleNamespace(gpu=GPU)
    monkeypatch.setattr(measurer, "Timer", Timer)
    monkeypatch.setattr(measurer, "Device", SimpleNamespace(open=lambda: device))
    monkeypatch.setattr(measurer, "OperandSet", operands)
    monkeypatch.setattr(measurer, "bind_and_run", bind_and_run)
    monkeypatch.setattr(measurer, "load", load)
    monkeypatch.setattr(measurer, "page_locked", lambda size: np.zeros(size, np.uint8))
    state.checked = checked
    state.check = lambda: state.checked
    state.measurer = measurer.GpuMeasurer(Policy(samples=15, warmup_ms=300.0))
    state.measurer.open(TOY, Problem(2))
    return state


def test_the_first_candidate_is_timed_in_full(bench):
    bench.times = [10.0]
    found = bench.measurer.run(candidate(), None)
    assert (found.status, found.us, found.rotated) == ("measured", (10.0,) * 15, True)
    assert (found.rel_error, found.max_error) == (1e-4, 2e-4)
    assert found.extra["clock_mhz"] == [1980.0, 1980.0]
    assert found.extra["busy_us"] == 150.0
    assert bench.timed == [(1, 15, 300.0)]


def test_a_far_slower_candidate_is_dropped_after_a_quick_look(bench):
    bench.times = [20.5]
    found = bench.measurer.run(candidate(), 10.0)
    assert (found.status, found.us) == ("slow", (20.5,) * 3)
    assert found.reason == "more than 2 times the best so far, 10 us"
    assert bench.timed == [(1, 3, 0.0)]


def test_a_near_candidate_is_timed_in_full(bench):
    bench.times = [19.5, 11.0]
    found = bench.measurer.run(candidate(), 10.0)
    assert (found.status, found.us) == ("measured", (11.0,) * 15)


def test_the_gpu_works_on_while_the_host_compares(bench):
    bench.times = [10.0]

    def check():
        assert bench.busy.wait(10.0)
        return bench.checked

    bench.check = check
    assert bench.measurer.run(candidate(), None).status == "measured"
    assert bench.timed == [(1, 15, 300.0)]


def test_a_wrong_result_is_not_timed(bench):
    bench.checked.ok, bench.checked.reason = False, "relative error 1"
    found = bench.measurer.run(candidate(), None)
    assert (found.status, found.reason) == ("wrong", "relative error 1")
    assert bench.timed == []


def test_a_result_that_changes_while_timed_is_wrong(bench):
    bench.times, bench.bits = [10.0], [b"one", b"two"]
    assert bench.measurer.run(candidate(), None).status == "wrong"


def test_long_replays_are_fewer_and_the_board_warms_up_once(bench):
    bench.times, bench.replay_us = [10.0] * 2, 20_000.0
    for _ in range(2):
        bench.measurer.run(candidate(), None)
    assert bench.timed == [(1, 5, 300.0), (1, 5, measurer.BRIEF_MS)]


def test_a_program_is_loaded_once_for_all_problems(bench):
    bench.times = [10.0] * 2
    bench.measurer.run(candidate(), None)
    bench.measurer.open(TOY, Problem(3))
    bench.measurer.run(candidate(M=3), None)
    assert (bench.loads, bench.loaded) == (1, ["abc", "abc"])


def test_after_a_wrong_kernel_the_operands_are_uploaded_again(bench):
    bench.checked.ok = False
    bench.measurer.run(candidate(), None)
    assert len(bench.hosts) == 2
    assert bench.hosts[0] is bench.hosts[1]


def test_finalists_take_turns(bench):
    bench.times = [1.0, 2.0, 2.1, 1.1]
    fast, slow = candidate(), replace(candidate(), config=Config(2))
    rounds = [bench.measurer.round([fast, slow], turn, 3) for turn in (0, 1)]
    # the order is reversed, what is returned is not; the first alone finds an idle board
    assert bench.timed == [(1, 3, 300.0), (2, 3, 0.0), (2, 3, 0.0), (1, 3, 0.0)]
    assert [[one.us for one in seen] for seen in rounds] == [
        [(1.0,) * 3, (2.0,) * 3], [(1.1,) * 3, (2.1,) * 3]
    ]  # fmt: skip
    assert rounds[1][0].extra["busy_us"] == pytest.approx(3.3)
    # captured once for all rounds of a final
    assert bench.timers == [1, 2]


@pytest.mark.parametrize(("replay_us", "samples"), [(400.0, 3), (999.0, 3), (1001.0, 1), (9e3, 1)])
def test_where_a_replay_takes_long_a_round_has_one(bench, replay_us, samples):
    bench.times, bench.replay_us = [1.0], replay_us
    (found,) = bench.measurer.round([candidate()], 0, 3)
    assert len(found.us) == samples


@pytest.mark.parametrize("how", ["final", "problem"])
def test_graphs_of_a_final_do_not_outlive_it(bench, how):
    bench.times = [1.0] * 3
    bench.measurer.round([candidate(), replace(candidate(), config=Config(2))], 0, 3)
    if how == "final":
        bench.measurer.round([replace(candidate(), config=Config(3))], 0, 3)
    else:
        bench.measurer.open(TOY, Problem(3))
    assert bench.timers == ([3] if how == "final" else [])


def test_the_module_of_the_toy_is_importable_by_a_process():
    assert Path(toy_kernel.__file__).parent.name == "support"
