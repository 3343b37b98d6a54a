"""Where a block's dynamic shared memory begins, indices of thread and block, and clocks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from ferrum_numba.ptx.instruction import U32, U64, Array, Instruction, Lanes, instruction

_SYMBOL = "ferrum_dynamic_smem"
# a 128-byte swizzle repeats every 1024 bytes
_ALIGNMENT = 1024
_SHARED_SPACE = 3


class _SmemBase(Instruction):
    """Not text but a symbol of the module: the external array that the launch gives its size."""

    def _emit(self, context: Any, builder: Any, args: Sequence[Any], constants: list[int]) -> Any:
        module = builder.module
        symbol = module.globals.get(_SYMBOL)
        if symbol is None:
            kind = ir.ArrayType(ir.IntType(8), 0)
            symbol = ir.GlobalVariable(module, kind, _SYMBOL, addrspace=_SHARED_SPACE)
            symbol.linkage = "external"
            symbol.align = _ALIGNMENT
        return builder.ptrtoint(symbol, U32.llvm)


def _smem_base(lanes: Lanes) -> Array:
    """Return the 32-bit address of the block's dynamic shared memory, a multiple of 1024."""
    return np.full(len(lanes.thread), lanes.block.shared.base, np.uint32)


@instruction("mov.b32 <d>, <value>;", effect="volatile")
def opaque_u32(value: U32) -> U32:
    """Return a value as one that the compiler knows nothing of.

    What follows from it is computed where it stands, and not once before a loop, to be kept in
    registers that the loop is short of.
    """
    return value


smem_base = _SmemBase("smem_base", _SYMBOL, {}, U32, _smem_base)


@instruction("mov.u32 <d>, %cluster_ctarank;", arch="sm_90")
def cluster_ctarank(lanes: Lanes) -> U32:
    """Return the rank of the block in its cluster.

    Source: PTX ISA, "Special Registers: %cluster_ctarank".
    """
    return np.full(len(lanes.thread), lanes.block.rank, np.uint32)


# volatile: what is computed from it cannot be moved to where registers are scarce
@instruction("mov.u32 <d>, %tid.x;", effect="volatile")
def thread_id(lanes: Lanes) -> U32:
    """Return the index of the thread in its block, read where it stands.

    Source: PTX ISA, "Special Registers: %tid".
    """
    return lanes.thread.astype(np.uint32)


@instruction("mov.u32 <d>, %ctaid.x;", effect="volatile")
def block_id(lanes: Lanes) -> U32:
    """Return the index of the block in the grid, read where it stands; see `thread_id`.

    Source: PTX ISA, "Special Registers: %ctaid".
    """
    return np.full(len(lanes.thread), lanes.block.index[0], np.uint32)


@instruction("mov.u32 <d>, %ctaid.y;", effect="volatile")
def block_id_y(lanes: Lanes) -> U32:
    """Return the index of the block along y; see `block_id`."""
    return np.full(len(lanes.thread), lanes.block.index[1], np.uint32)


@instruction("mov.u64 <d>, %clock64;", effect="volatile")
def clock64(lanes: Lanes) -> U64:
    """Return the SM's cycle counter; the interpreter's counts nanoseconds.

    Source: PTX ISA, "Special Registers: %clock64".
    """
    return np.full(len(lanes.thread), time.perf_counter_ns(), np.uint64)


@instruction("mov.u64 <d>, %globaltimer;", effect="volatile")
def globaltimer(lanes: Lanes) -> U64:
    """Return nanoseconds on a clock that all SMs share; coarse on some GPUs.

    Source: PTX ISA, "Special Registers: %globaltimer".
    """
    return np.full(len(lanes.thread), time.perf_counter_ns(), np.uint64)
