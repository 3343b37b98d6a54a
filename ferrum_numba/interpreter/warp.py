"""The lanes of a warp in lock step: equal requests are executed together, once."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import starmap
from operator import attrgetter
from typing import Any

import numpy as np

from ferrum_numba.errors import InterpreterError
from ferrum_numba.interpreter.block import Block
from ferrum_numba.interpreter.lane import (
    Lane,
    LaneGroup,
    group_of,
    raised_at,
    where,
)
from ferrum_numba.interpreter.later import written_later
from ferrum_numba.interpreter.memory import GAP_BITS, Fault, Unwritten
from ferrum_numba.interpreter.operands import Plan
from ferrum_numba.ptx.instruction import BLOCKED

WARP_SIZE = 32
# (plan, *operands)
Request = tuple[Any, ...]
_THREAD = attrgetter("thread")
# stands for the request of a lane whose function has returned
ENDED = Plan("end", (), (), None, "lane", False, lambda: None)
_END: Request = (ENDED,)
# of a lane that returned by a `return` within the kernel, and so has no part in what follows
LEFT = Plan("return", (), (), None, "lane", False, lambda: None)


class Group:
    """Lanes of a warp that ask for the same instruction with the same immediates."""

    __slots__ = ("lanes", "operands", "plan", "requests")

    def __init__(self, plan: Plan, lanes: list[Lane], requests: list[Request]) -> None:
        self.plan = plan
        self.lanes = lanes
        self.requests = requests
        # what the twin is called with, kept while it is BLOCKED
        self.operands: list[Any] | None = None

    def join(self, lane: Lane, request: Request) -> None:
        """Add a lane, in order of the lanes."""
        position = bisect_left(self.lanes, lane.thread, key=_THREAD)
        self.lanes.insert(position, lane)
        self.requests.insert(position, request)
        self.operands = None


class Warp:
    """32 lanes, or fewer in the last warp of a block."""

    def __init__(self, block: Block, lanes: list[Lane], siblings: list[Warp]) -> None:
        self.block = block
        self.siblings = siblings
        self.first = lanes[0].thread
        self.live = len(lanes)
        self.groups: dict[Any, Group] = {}
        self._whole = group_of(block, np.arange(self.first, self.first + len(lanes)))
        self.lanes = lanes

    def start(self, arguments: tuple[Any, ...]) -> None:
        """Run every lane up to its first instruction."""
        columns = [[argument] * len(self.lanes) for argument in arguments]
        try:
            self._go_on(self.lanes, *columns)
        except KeyboardInterrupt as error:
            raise self._stopped(error) from error

    def run(self, most: int = sys.maxsize) -> bool:
        """Execute until every lane waits or has ended; return whether anything was executed.

        most: instructions of some of its lanes, at most
        """
        steps = 0
        try:
            while steps < most and self.groups and self._step():
                steps += 1
        except KeyboardInterrupt as error:
            raise self._stopped(error) from error
        return steps > 0

    def _stopped(self, error: KeyboardInterrupt) -> KeyboardInterrupt:
        """Return Ctrl-C with the line at which it came."""
        waiting = next(iter(self.groups.values()), None)
        places = raised_at(error) or (waiting.lanes[0].places() if waiting else [])
        return KeyboardInterrupt(where(places) if places else "")

    def _step(self) -> bool:
        for key in self._order():
            group = self.groups[key]
            if group.plan.scope == "warpgroup":
                if self._run_warpgroup(key):
                    return True
            elif group.plan.scope == "lane" or len(group.lanes) == self.live:
                results = self._execute(group)
                if results is not None:
                    self._resume(key, results)
                    return True
        self._check_agreement()
        return False

    def _order(self) -> Sequence[Any]:
        """Return the groups, the one that is furthest behind first: so lanes meet again."""
        if len(self.groups) == 1:
            return tuple(self.groups)
        return sorted(self.groups, key=lambda key: self.groups[key].lanes[0].progress())

    def _execute(self, group: Group) -> Sequence[Any] | None:
        """Run the twin; return a result a lane, or None if the lanes must wait."""
        lanes = self._whole
        if len(group.lanes) != len(self.lanes):
            lanes = group_of(self.block, np.array([lane.thread for lane in group.lanes]))
        if group.plan.scope == "warp" and group.operands is None:
            _check_warp(group)
        return call_twin(group, lanes)

    def _resume(self, key: Any, results: Sequence[Any]) -> None:
        self._go_on(self.groups.pop(key).lanes, results)

    def _go_on(self, lanes: list[Lane], *columns: Iterable[Any]) -> None:
        """Run lanes to their next instruction, and sort them by it; columns: what they get."""
        requests: list[Request] = []
        try:
            # no Python between two lanes; those before the one that fails are in the list
            requests.extend(starmap(Lane.switch, zip(lanes, *columns, strict=True)))
        except (InterpreterError, ArithmeticError) as error:
            lane = lanes[len(requests)]
            kind = error.error if isinstance(error, Fault) else InterpreterError
            raise lane.error(str(error), raised_at(error), kind) from error
        try:
            self._sort(lanes, requests)
        except (TypeError, IndexError):
            _refuse_number(lanes, requests)
            raise

    def _sort(self, lanes: list[Lane], requests: list[Request]) -> None:
        if not all(requests):
            requests = [request or _END for request in requests]
        if self.groups or not self._join_all(lanes, requests):
            for lane, request in zip(lanes, requests, strict=True):
                self._sort_in(lane, request)

    def _join_all(self, lanes: list[Lane], requests: list[Request]) -> bool:
        """Make one group of lanes that all ask for the same, the common case."""
        what = requests[0][0]
        if what is ENDED or what is LEFT:
            return False
        try:
            keys = list(map(what.key, requests))
        except IndexError:
            # of another instruction, with fewer operands
            return False
        if keys.count(keys[0]) < len(keys):
            return False
        self.groups[keys[0]] = Group(what, lanes, requests)
        return True

    def _sort_in(self, lane: Lane, request: Request) -> None:
        what = request[0]
        if what is ENDED or what is LEFT:
            self.block.left += what is LEFT
            self.live -= 1
            self.block.live -= 1
            self.block.machine.events += 1
            if not self.block.live:
                self.block.watch.ended()
            return
        key = what.key(request)
        if key in self.groups:
            self.groups[key].join(lane, request)
        else:
            self.groups[key] = Group(what, [lane], [request])

    def _run_warpgroup(self, key: Any) -> bool:
        """Execute an instruction of four warps if all of them have reached it."""
        start = self.first // 128 * 4
        team = self.siblings[start : start + 4]
        groups = [warp.groups.get(key) for warp in team]
        if any(g is None or len(g.lanes) < WARP_SIZE for g in groups) or len(team) < 4:
            if len(team) < 4:
                lane = self.groups[key].lanes[0]
                raise lane.error(f"{self.groups[key].plan.name} needs four warps in a row")
            return False
        parts = [group for group in groups if group is not None]
        whole = Group(
            parts[0].plan,
            [lane for part in parts for lane in part.lanes],
            [request for part in parts for request in part.requests],
        )
        _check_same_place(whole)
        threads = np.arange(32 * start, 32 * start + 128)
        results = call_twin(whole, group_of(self.block, threads))
        if results is None:
            return False
        for i, warp in enumerate(team):
            warp._resume(key, results[WARP_SIZE * i : WARP_SIZE * (i + 1)])
        return True

    def describe(self, group: Group) -> str:
        """Return who waits, and for an mbarrier what is outstanding."""
        threads = f"thread {group.lanes[0].thread}"
        if len(group.lanes) > 1:
            threads += f" and {len(group.lanes) - 1} more of its warp"
        text = f"{threads} in block {self.block.index}"
        if group.plan.name.startswith("mbarrier") and group.operands:
            bar = self.block.mbarrier(int(group.operands[0][0]))
            text += f"; {bar.pending} arrivals and {bar.tx_bytes} bytes are outstanding"
        ended = self.block.num_threads - self.block.left - self.block.live
        if group.plan.name == "syncthreads" and ended:
            text += (
                f"; {ended} threads of the block ended without it, and all must reach it: move it "
                "out of the branch, or give bar_sync a barrier of their own and their number"
            )
        return text

    def _check_agreement(self) -> None:
        """Refuse lanes of the warp that wait for each other at different instructions."""
        groups = list(self.groups.values())
        if len(groups) > 1 and all(group.plan.scope != "lane" for group in groups):
            first, second = groups[0].lanes[0], groups[1].lanes[0]
            raise _disagree(groups[0], first, groups[1], second)


def call_twin(group: Group, lanes: LaneGroup) -> Sequence[Any] | None:
    """Return each lane's result, or None if the twin must wait."""
    what, watch = group.plan, lanes.block.watch
    try:
        watch.enter(group)
        if group.operands is None:
            group.operands = what.prepare(group.requests)
        if what.wants_lanes:
            out = what.twin(lanes, *group.operands)
        else:
            out = what.twin(*group.operands)
        if out is BLOCKED:
            return None
        return watch.leave(group, what.results(out, len(group.lanes)))
    except InterpreterError as error:
        row = error.row if isinstance(error, Fault) else 0
        lane = group.lanes[row] if row < len(group.lanes) else group.lanes[0]
        kind = error.error if isinstance(error, Fault) else InterpreterError
        raise lane.error(f"{what.name} {error}{_later(group, lanes, error)}", kind=kind) from error


def _later(group: Group, lanes: LaneGroup, error: InterpreterError) -> str:
    """Return who writes what was read too early, where somebody would."""
    if not isinstance(error, Unwritten) or error.address >> GAP_BITS:
        return ""
    stuck = [lane.thread // WARP_SIZE * WARP_SIZE for lane in group.lanes]
    return written_later(lanes.block, error.address, stuck)


def _refuse_number(lanes: list[Lane], requests: Sequence[Any]) -> None:
    """Refuse too few operands, of which even the immediates may be missing."""
    for lane, request in zip(lanes, requests, strict=True):
        refusal = (request if isinstance(request, Plan) else request[0]).refusal(request)
        if refusal is not None:
            raise lane.error(refusal)


def _check_warp(group: Group) -> None:
    if len(group.lanes) < WARP_SIZE and not group.plan.any_count:
        raise group.lanes[0].error(
            f"{group.plan.name} needs all 32 lanes of the warp; {len(group.lanes)} are left"
        )
    _check_same_place(group)


def _check_same_place(group: Group) -> None:
    """Refuse lanes that reached the same instruction at different lines."""
    places = [lane.instruction() for lane in group.lanes]
    if len(set(places)) > 1:
        other = next(i for i, place in enumerate(places) if place != places[0])
        raise _disagree(group, group.lanes[0], group, group.lanes[other])


def _disagree(group: Group, lane: Lane, other_group: Group, other: Lane) -> InterpreterError:
    return lane.error(
        f"{group.plan.name}: lanes disagree: thread {other.thread} of the same warp is at "
        f"{other_group.plan.name}, {where(other.places())}"
    )
