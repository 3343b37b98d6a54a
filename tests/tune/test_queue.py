"""Problems that boards share: marks, thefts, what a lost board leaves, and the time."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ferrum_numba.tune.budget import NEVER, Deadline
from ferrum_numba.tune.held import Held
from ferrum_numba.tune.queue import Queue, Stopped, Tally


def test_a_board_takes_what_it_marked_and_others_leave_it_alone():
    queue = Queue("abcd", NEVER)
    assert queue.take("one") == "a"
    assert queue.ahead("one") == ["b"]
    assert queue.take("two") == "c"
    assert queue.ahead("two") == ["d"]
    queue.done("a", ())
    assert queue.take("one") == "b"


def test_what_is_marked_is_taken_by_others_where_nothing_else_is_left():
    queue = Queue("ab", NEVER)
    queue.take("one")
    queue.ahead("one")
    assert queue.take("two") == "b"
    assert queue.ahead("two") == []


def test_what_a_lost_board_was_at_comes_first_and_wakes_who_waits():
    queue = Queue("ab", NEVER)
    assert (queue.take("one"), queue.take("two")) == ("a", "b")
    queue.done("b", ())
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(queue.take, "two")
        assert not waiting.done()
        queue.leave("one")
        assert waiting.result(5.0) == "a"
    queue.done("a", ["row"])
    assert queue.finished
    assert queue.take("two") is None
    assert queue.found == {"a": ["row"], "b": []}


def test_nothing_is_given_out_after_the_time():
    late = Queue("ab", Deadline(0.0))
    assert late.take("one") is None
    assert (late.finished, late.left) == (True, 2)


@pytest.mark.parametrize(("boards", "part"), [(1, 1 / 4), (2, 2 / 4)])
def test_a_problem_has_its_part_of_the_time(boards, part):
    queue = Queue("abcd", Deadline.after(1000.0))
    for board in range(boards):
        queue.take(str(board))
    assert queue.share().left_s == pytest.approx(1000.0 * part, rel=0.01)
    assert math.isinf(Queue("a", NEVER).share().at)


def test_boards_are_counted_together_and_stop_together():
    seen = []
    tally, queue = (
        Tally(9, lambda done, total, text: seen.append((done, total, text))),
        Queue("", NEVER),
    )
    one, two = tally.of(queue), tally.of(queue)
    one(1, 5, "a")
    two(3, 5, "b")
    one(2, 5, "a")
    # a problem that was begun on a board that is lost is counted twice
    two(9, 9, "b")
    assert seen == [(1, 9, "a"), (4, 9, "b"), (5, 9, "a"), (9, 9, "b")]
    queue.stop()
    with pytest.raises(Stopped):
        one(3, 5, "a")


def test_a_stop_wakes_who_waits():
    queue = Queue("a", NEVER)
    queue.take("one")
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(queue.take, "two")
        threading.Timer(0.05, queue.stop).start()
        assert waiting.result(5.0) is None


def test_the_account_of_several_gpus_is_one():
    one, other = Held(), Held()
    for held, busy_us in ((one, 1.0), (other, 3.0)):
        with held.doing("heats"):
            pass
        held.add("heats", {"busy_us": busy_us})
    together = Held()
    together.take(one)
    together.take(other)
    assert together.busy_s == {"heats": pytest.approx(4e-6)}
    assert together.held_s == pytest.approx(one.held_s + other.held_s)
