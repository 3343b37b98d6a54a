"""One greenlet a lane: what it is, and where in the kernel's source it stands."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
from greenlet import greenlet

from ferrum_numba.errors import InterpreterError
from ferrum_numba.interpreter.block import Block, Dim3
from ferrum_numba.interpreter.memory import Array
from ferrum_numba.interpreter.operands import Plan, plan
from ferrum_numba.interpreter.races.unwatched import UNWATCHED
from ferrum_numba.ptx.instruction import Instruction

# in the globals of every function that lanes run; tells its frames from the interpreter's own
MARK = "__interpreted__"


# a frame of the kernel or of a function it calls, and the line it stands at
Place = tuple[FrameType, int]


class Lane(greenlet):  # type: ignore[misc]
    """One thread of a block, running the kernel until its next instruction."""

    def __init__(self, function: Callable[..., None], block: Block, thread: int) -> None:
        super().__init__(function)
        self.block = block
        self.thread = thread
        self.threadIdx = Dim3(np.int32(thread), np.int32(0), np.int32(0))

    def execute(self, instruction: Instruction, args: tuple[Any, ...]) -> Any:
        """Ask the scheduler for an instruction that was not bound to `request`."""
        return request(self.parent.switch, plan(instruction))(*args)

    def places(self) -> list[Place]:
        """Return where this lane, which waits, stands: the innermost function first."""
        found = []
        frame = self.gr_frame
        while frame is not None:
            if MARK in frame.f_globals:
                found.append((frame, frame.f_lineno))
            frame = frame.f_back
        return found

    def instruction(self) -> int:
        """Return where in its innermost function this lane, which waits, stands."""
        frame = self.gr_frame
        offset: int = (frame if MARK in frame.f_globals else frame.f_back).f_lasti
        return offset

    def progress(self) -> tuple[int, ...]:
        """Return a key that grows along the source: the place in the kernel, then in its callee."""
        return tuple(frame.f_lasti for frame, _ in reversed(self.places()))

    def error(
        self,
        message: str,
        places: list[Place] | None = None,
        kind: type[InterpreterError] = InterpreterError,
    ) -> InterpreterError:
        """Return an error that says where in the kernel this lane stands."""
        index = "({}, {}, {})".format(*self.block.index)
        return kind(
            f"{where(places or self.places())}: thread {self.thread} of block {index} {message}"
        )


def request(switch: Callable[..., Any], what: Plan) -> Callable[..., Any]:
    """Return what a lane calls to execute: it hands (plan, *operands) to the scheduler.

    Not a function of ours, because every frame between the kernel and the switch costs time.
    """
    # greenlet passes one value on as it is, and only several as a tuple
    return partial(switch, what) if what.operands else partial(switch, what, None)


def where(places: list[Place]) -> str:
    """Return file:line of the innermost function, and of the kernel that called it."""
    frame, line = places[0]
    text = f"{frame.f_code.co_filename}:{line}"
    if len(places) > 1:
        text += f" (in {frame.f_code.co_name}, called from line {places[-1][1]})"
    return text


def raised_at(error: BaseException) -> list[Place]:
    """Return where in the kernel's functions an exception passed: the innermost first."""
    found = []
    trace = error.__traceback__
    while trace is not None:
        if MARK in trace.tb_frame.f_globals:
            found.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return found[::-1]


class LaneGroup:
    """The lanes that execute an instruction together; see `Lanes` in ptx/instruction.py."""

    def __init__(self, block: Block, thread: Array) -> None:
        self.thread = thread
        self.block = block
        self.load_global = block.machine.memory.load
        self.load_shared = block.shared.load
        self.load_products = block.shared.load

    def only(self, rows: Array) -> LaneGroup:
        """Return the lanes of some rows."""
        return type(self)(self.block, self.thread[rows])

    def strong(self) -> LaneGroup:
        """Return the same lanes, whose accesses to global memory several may make at once."""
        return self

    def store_global(self, address: Array, data: Array) -> None:
        """Write [lanes, size_bytes] uint8 to global memory."""
        self.block.machine.memory.store(address, data)
        self.block.machine.events += 1

    def store_shared(self, address: Array, data: Array) -> None:
        """Write [lanes, size_bytes] uint8 to the block's shared memory."""
        self.block.shared.store(address, data)
        self.block.machine.events += 1


class WatchedLanes(LaneGroup):
    """Lanes whose accesses are told to the detector of races."""

    is_strong = False

    def __init__(self, block: Block, thread: Array) -> None:
        super().__init__(block, thread)
        self.load_global = self._load_global
        self.load_shared = self._load_shared
        self.load_products = self._load_products

    def strong(self) -> LaneGroup:
        """Return the same lanes, whose accesses to global memory several may make at once."""
        lanes = WatchedLanes(self.block, self.thread)
        lanes.is_strong = True
        return lanes

    def only(self, rows: Array) -> LaneGroup:
        """Return the lanes of some rows."""
        lanes = WatchedLanes(self.block, self.thread[rows])
        lanes.is_strong = self.is_strong
        return lanes

    def _rows(self, address: Array) -> Array:
        """Return the thread of each address: one lane may have several."""
        if len(self.thread) == 1:
            return np.repeat(self.thread, len(address))
        return self.thread[: len(address)]

    def _load_global(self, address: Array, size_bytes: int) -> Array:
        data = self.block.machine.memory.load(address, size_bytes)
        rows = self._rows(address)
        self.block.watch.read_global(rows, address, size_bytes, strong=self.is_strong)
        return data

    def _load_shared(self, address: Array, size_bytes: int) -> Array:
        data = self.block.shared.load(address, size_bytes)
        self.block.watch.read_shared(self._rows(address), address, size_bytes)
        return data

    def _load_products(self, address: Array, size_bytes: int) -> Array:
        data = self.block.shared.load(address, size_bytes)
        self.block.watch.read_products(self.thread, address, size_bytes)
        return data

    def store_global(self, address: Array, data: Array) -> None:
        """Write [lanes, size_bytes] uint8 to global memory."""
        super().store_global(address, data)
        rows = self._rows(address)
        self.block.watch.write_global(rows, address, data, strong=self.is_strong)

    def store_shared(self, address: Array, data: Array) -> None:
        """Write [lanes, size_bytes] uint8 to the block's shared memory."""
        super().store_shared(address, data)
        rows = self._rows(address)
        self.block.watch.write_shared(rows, address, data, strong=self.is_strong)


def group_of(block: Block, thread: Array) -> LaneGroup:
    """Return the lanes of these threads."""
    return (LaneGroup if block.watch is UNWATCHED else WatchedLanes)(block, thread)
