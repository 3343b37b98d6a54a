"""What a lane reads by itself: registers that hold the same for as long as its block runs.

Nothing waits for them and nobody has a part in them, so a lane does not stop there to let the
others of its warp catch up, which takes ten times as long. Where instructions are counted it does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from greenlet import getcurrent

from ferrum_numba.interpreter.lane import group_of
from ferrum_numba.interpreter.operands import Plan, plan
from ferrum_numba.ptx.instruction import Instruction
from ferrum_numba.ptx.special import (
    block_id,
    block_id_y,
    cluster_ctarank,
    opaque_u32,
    smem_base,
    thread_id,
)

_REGISTERS = {block_id, block_id_y, cluster_ctarank, smem_base, thread_id}


def at_once(instruction: Instruction, asked: Callable[..., Any]) -> Callable[..., Any]:
    """Return what a lane calls for an instruction: `asked`, which stops, where it must."""
    if instruction in _REGISTERS:
        return _register(plan(instruction))
    return _opaque(asked) if instruction is opaque_u32 else asked


def _register(what: Plan) -> Callable[[], Any]:
    def read() -> Any:
        lane = getcurrent()
        block = lane.block
        values = block.registers.get(what)
        if values is None:
            threads = np.arange(block.num_threads)
            out = what.twin(group_of(block, threads))
            values = block.registers[what] = what.results(out, block.num_threads)
        return values[lane.thread]

    return read


def _opaque(asked: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return a value as it is; one that is cut to 32 bits, or refused, is asked for."""

    def same(value: Any) -> Any:
        return value if type(value) is np.uint32 else asked(value)

    return same
