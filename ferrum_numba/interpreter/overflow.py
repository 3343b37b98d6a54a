"""Integer overflow in a lane: an error, unless its value goes straight into a cast.

Numba computes `a + b` of two uint32 in 64 bits and NumPy in 32, so the two agree only where
nothing overflows, or where the kernel cuts the result: `uint32(a + b)`.
"""

from __future__ import annotations

import builtins
import dis
import sys
from functools import cache
from types import CodeType, FrameType
from typing import Any

from ferrum_numba.interpreter.lane import MARK
from ferrum_numba.interpreter.rebind import CASTS

# the low bits of their result depend on the low bits of their operands only
_RING = {"+", "-", "*", "<<", "&", "|", "^"}
_ADVICE = "wrap with uint32(...) where that is meant, or widen with uint64(...) before"


def refuse_overflow(kind: str, flag: int) -> None:
    """Raise, unless the overflow happened in an expression that a cast wraps."""
    frame = sys._getframe(1)
    if MARK not in frame.f_globals:
        return
    instructions = _instructions(frame.f_code)
    where = next(i for i, op in enumerate(instructions) if op.offset == frame.f_lasti)
    # a float cast may round to infinity, as on the GPU
    if instructions[where].opname == "BINARY_OP" and not _is_cut(frame, instructions, where):
        sign = instructions[where].argrepr
        raise FloatingPointError(f"overflows in {sign}, which Numba computes in 64 bits; {_ADVICE}")


@cache
def _instructions(code: CodeType) -> tuple[dis.Instruction, ...]:
    return tuple(dis.get_instructions(code))


def _is_cut(frame: FrameType, instructions: tuple[dis.Instruction, ...], where: int) -> bool:
    """Return whether the value goes into a cast, through operations on its low bits only."""
    start, end = _span(instructions[where])
    for op in instructions[where + 1 :]:
        op_start, op_end = _span(op)
        if op.opname == "PRECALL" or not (op_start <= start and end <= op_end):
            continue
        if op.opname == "CALL":
            return _callee(frame, instructions, op_start) in CASTS
        if op.opname != "BINARY_OP" or op.argrepr.rstrip("=") not in _RING:
            return False
    return False


def _span(op: dis.Instruction) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return where the expression begins and ends in the source, as (line, column)."""
    p = op.positions
    if p is None or None in (p.lineno, p.col_offset, p.end_lineno, p.end_col_offset):
        return (0, 0), (0, 0)
    return (p.lineno or 0, p.col_offset or 0), (p.end_lineno or 0, p.end_col_offset or 0)


def _callee(frame: FrameType, instructions: tuple[dis.Instruction, ...], start: Any) -> Any:
    """Return what the call beginning here calls: a name, or an attribute of a module."""
    found: Any = None
    for op in instructions:
        if _span(op)[0] != start:
            continue
        if op.opname.startswith(("LOAD_GLOBAL", "LOAD_FAST", "LOAD_DEREF")):
            spaces = (frame.f_locals, frame.f_globals, vars(builtins))
            found = next((space[op.argval] for space in spaces if op.argval in space), None)
        elif op.opname in {"LOAD_ATTR", "LOAD_METHOD"} and found is not None:
            found = getattr(found, op.argval, None)
    return found
