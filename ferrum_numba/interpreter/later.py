"""Who writes a byte that was read too early: found by letting the block's other warps go on.

Only an error asks, so it may take its time, and leaves the block in no state to be gone on with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ferrum_numba.errors import InterpreterError
from ferrum_numba.interpreter.memory import Array, Fault, Region

if TYPE_CHECKING:
    from ferrum_numba.interpreter.block import Block
    from ferrum_numba.interpreter.warp import Warp

# of a warp at a time, and of all of them: a loop may poll for what never comes
STEPS, TURNS = 256, 16
BARRIER = "missing: a barrier, such as cuda.syncthreads(), between the two"


class _WrittenError(InterpreterError):
    """The byte is written, where and by whom this says."""


class _Written(Fault):
    error = _WrittenError


def written_later(block: Block, address: int, stuck: Sequence[int]) -> str:
    """Return who writes a byte of shared memory if all others go on, in words; else nothing.

    stuck: threads that cannot: those that read it
    """
    shared, warps = block.shared, [w for w in block.warps if w.first not in stuck]

    def look(at: Array, size_bytes: int, what: str) -> None:
        hits = np.flatnonzero((at <= address) & (address - at.astype(np.int64) < size_bytes))
        if len(hits):
            raise _Written(f"{what} it later", int(hits[0]))

    def store(at: Array, data: Array) -> None:
        look(at, data.shape[1], "writes")
        Region.store(shared, at, data)

    def claim(at: Array, size_bytes: int, state: int, verb: str) -> Array:
        look(at, size_bytes, verb)
        return Region.claim(shared, at, size_bytes, state, verb)

    # a second error on the way must not ask again
    block.warps = []
    shared.claim = claim  # type: ignore[method-assign, assignment]
    shared.store = store  # type: ignore[method-assign, assignment]
    try:
        _go_on(warps)
    except _WrittenError as found:
        return f"; {found}; {BARRIER}"
    except (InterpreterError, ArithmeticError):
        pass
    return ""


def _go_on(warps: Sequence[Warp]) -> None:
    for _ in range(TURNS):
        if not any([warp.run(STEPS) for warp in warps if warp.live]):
            return
