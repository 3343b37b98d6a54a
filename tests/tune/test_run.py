"""A search as a whole: budget, incumbents, the roof, new values, operands ahead, the account."""

from dataclasses import dataclass, replace

import pytest
from test_tune import GPU, TOY, FakeMeasurer, by_speed
from toy_kernel import Config, Problem, Toy, make_binary

from ferrum_numba import results, tune
from ferrum_numba.measure import Policy
from ferrum_numba.tune.budget import Deadline
from ferrum_numba.tune.held import Held
from ferrum_numba.tune.run import AHEAD, MOST_ROUNDS
from ferrum_numba.tune.search import search
from ferrum_numba.tune.worker import Outcome


class Wide(Toy):
    """A toy of 60 speeds, which the model believes to be the faster the higher they are."""

    space = tuple(Config(speed) for speed in range(1, 61))

    def misfit(self, config, problem, gpu):
        return None

    def estimate_us(self, config, problem, gpu):
        return 100.0 / config.speed


WIDE = Wide()


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
    def build(pairs, arch, progress, executor=None):
        return {(k.name, c): make_binary(f"f{c.speed}") for k, c in pairs}

    monkeypatch.setattr("ferrum_numba.tune.search.build_space", build)


@pytest.fixture
def task(tmp_path):
    return tune.SearchTask((TOY,), (Problem(2),), GPU, Policy(), tmp_path / "toy.json")


def valley(candidate):
    """The model is wrong: 40 is the best."""
    return 10.0 + abs(candidate.config.speed - 40)


def speeds(fake):
    return [speed for _, speed in fake.asked]


def test_a_large_space_is_searched_by_the_model_from_the_default_on(task):
    fake = FakeMeasurer(valley)
    rows = search(replace(task, kernels=(WIDE,)), fake)
    # the default, what the model likes, then neighbours of the best
    assert speeds(fake)[:4] == [1, 60, 59, 58]
    assert len(speeds(fake)) == len(set(speeds(fake)))
    (won,) = results.winners(rows)
    assert won.row.config["speed"] == 40


def test_an_exhaustive_search_measures_all_of_it_in_its_order(task):
    fake = FakeMeasurer(valley)
    search(replace(task, kernels=(WIDE,), searcher="exhaustive"), fake)
    assert speeds(fake) == list(range(1, 61))


def test_a_plans_estimates_stand_for_the_model(task):
    fake = FakeMeasurer(valley)
    told = {("toy", Problem(2), config): abs(config.speed - 30) + 1.0 for config in WIDE.space}
    search(replace(task, kernels=(WIDE,), estimates=told), fake)
    assert speeds(fake)[:4] == [1, 30, 29, 31]


def test_what_was_the_best_is_measured_first_whoever_has_it_and_meets_the_default(task, tmp_path):
    fake = FakeMeasurer(valley)
    rows = search(replace(task, kernels=(WIDE,)), fake)
    elsewhere = replace(task, kernels=(WIDE,), store_path=tmp_path / "elsewhere" / "toy.json")
    again = FakeMeasurer(valley)
    search(replace(elsewhere, earlier=rows), again)
    assert speeds(again)[:2] == [1, 40]
    assert all({1, 40} <= met for met in again.contests[:2])


def test_a_budget_leaves_the_default_and_the_incumbent(task, tmp_path):
    first = search(replace(task, kernels=(WIDE,)), FakeMeasurer(valley))
    elsewhere = replace(task, kernels=(WIDE,), store_path=tmp_path / "elsewhere" / "toy.json")

    def slow(candidate):
        clock.now += 30.0
        return valley(candidate)

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ferrum_numba.tune.budget.time", clock)
        fake = FakeMeasurer(slow)
        rows = search(replace(elsewhere, earlier=first, budget_s=20.0), fake)
    assert speeds(fake) == [1, 40]
    assert {row.stage for row in rows} == {"final"}
    (won,) = results.winners(rows)
    assert won.row.config["speed"] == 40


def test_problems_after_the_deadline_are_left_whole(task):
    fake = FakeMeasurer()
    rows = search(replace(task, deadline=Deadline.after(0.0)), fake)
    assert (rows, fake.asked) == ([], [])


def test_time_that_is_left_goes_into_evidence(task):
    class Even(FakeMeasurer):
        def round(self, candidates, turn, samples):
            self.turn = turn
            # never decided: now the one is ahead, now the other
            return [
                Outcome("measured", us=(10.0 + (i + turn // 2) % 2 * 0.5,) * samples)
                for i, _ in enumerate(sorted(candidates, key=lambda c: c.config.speed))
            ]

    fake = Even(lambda c: 10.0)
    search(replace(task, budget_s=600.0), fake)
    assert fake.turn == MOST_ROUNDS - 1


def test_a_board_at_its_roof_is_done(task):
    fake = FakeMeasurer(lambda candidate: 110.0 - candidate.config.speed)
    search(replace(task, roof_us=lambda kernel, problem: 100.0, within=0.08), fake)
    # 109, then 108, which is within 8 % of 100
    assert speeds(fake) == [1, 2]
    fake = FakeMeasurer(lambda candidate: 110.0 - candidate.config.speed)
    search(replace(task, roof_us=lambda kernel, problem: 50.0, within=0.08), fake)
    assert speeds(fake) == [3, 4]


def test_new_values_in_a_space_time_what_is_new_alone(task, monkeypatch):
    search(task, FakeMeasurer())
    monkeypatch.setattr(Toy, "space", (*Toy.space, Config(5), Config(6)))
    again = FakeMeasurer()
    rows = search(task, again)
    assert speeds(again) == [5, 6]
    assert sorted(by_speed(rows)) == [1, 2, 3, 4, 5, 6]
    assert all({5, 6} <= met for met in again.contests[:2])


class Ready(FakeMeasurer):
    """Says what it was told to expect, and when."""

    def __init__(self):
        super().__init__()
        self.expected, self.waited = [], []

    def expect(self, kernels, problem):
        self.expected.append((problem.M, len(self.asked)))

    def ready(self, problem):
        self.waited.append((problem.M, len(self.asked)))


def test_operands_of_the_next_problems_are_asked_for_before_this_one_is_measured(task):
    fake = Ready()
    problems = tuple(Problem(M) for M in range(2, 6 + AHEAD))
    search(replace(task, problems=problems), fake)
    at_first = [M for M, asked in fake.expected if asked == 0]
    assert at_first == [*range(2, 3 + AHEAD)]
    # its own operands are made before the GPU is held for a problem
    assert fake.waited == [(M, 4 * (M - 2)) for M in range(2, 6 + AHEAD)]
    assert [M for M, asked in fake.expected if asked == 4] == [*range(3, 4 + AHEAD)]


def test_nothing_is_made_ready_for_what_is_known(task):
    search(task, FakeMeasurer())
    fake = Ready()
    search(task, fake)
    assert fake.expected == []


def test_the_time_of_the_gpu_is_accounted_for(task):
    class Busy(FakeMeasurer):
        def run(self, candidate, best_us):
            return replace(super().run(candidate, best_us), extra={"busy_us": 2e6})

        def round(self, candidates, turn, samples):
            found = super().round(candidates, turn, samples)
            return [replace(one, extra={"busy_us": 1e6}) for one in found]

    held = Held()
    fake = Busy()
    rows = search(replace(task, held=held), fake)
    assert held.busy_s["heats"] == 8.0
    assert held.busy_s["finals"] == sum(map(len, fake.contests))
    assert held.held_s > 0
    assert held.sentence().startswith("GPU held 0 s, ")
    # it is of the run, not of a row
    assert all("busy_us" not in row.more for row in rows)


def test_the_account_says_what_share_was_timed(monkeypatch):
    @dataclass
    class Clock:
        now: float = 0.0

        def monotonic(self):
            self.now += 10.0
            return self.now

    monkeypatch.setattr("ferrum_numba.tune.held.time", Clock())
    held = Held()
    assert held.busy == 0.0
    for what, busy_us in (("heats", 6e6), ("finals", 9e6)):
        with held.doing(what):
            pass
        held.add(what, {"busy_us": busy_us})
    # from 10 to 20, and from 30 to 40
    assert held.held_s == 30.0
    assert held.sentence() == (
        "GPU held 30 s, 50% of it inside timed kernels (heats 10 s, 60%; finals 10 s, 90%)"
    )
