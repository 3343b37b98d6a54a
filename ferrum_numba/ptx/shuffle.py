"""Exchange of registers between the 32 lanes of a warp; all of them take part.

A shuffle moves bits: `shfl_*` for 32-bit words, `shfl_*_f32` for fp32. A vote or a reduction gives
every lane one word made of all.
"""

from __future__ import annotations

import numpy as np

from ferrum_numba.ptx.instruction import F32, U32, Array, instruction

_LANE = np.arange(32)


def _from(value: Array, source: Array) -> Array:
    """Return each lane's value of lane `source`, its own where source leaves the warp."""
    return value[np.where((source >= 0) & (source < 32), source, _LANE)]


@instruction(
    "shfl.sync.idx.b32 <d>, <value>, <lane>, 0x1f, 0xffffffff;", effect="volatile", scope="warp"
)
def shfl_idx(value: U32, lane: U32) -> U32:
    """Return the value of lane `lane` % 32.

    Source: PTX ISA, "Data Movement and Conversion Instructions: shfl.sync".
    """
    return value[lane % 32]


@instruction(
    "shfl.sync.idx.b32 <d>, <value>, <lane>, 0x1f, 0xffffffff;", effect="volatile", scope="warp"
)
def shfl_idx_f32(value: F32, lane: U32) -> F32:
    """Return the fp32 of lane `lane` % 32; see `shfl_idx`."""
    return value[lane % 32]


@instruction(
    "shfl.sync.bfly.b32 <d>, <value>, <mask>, 0x1f, 0xffffffff;", effect="volatile", scope="warp"
)
def shfl_xor(value: U32, mask: U32) -> U32:
    """Return the value of the lane whose index differs in the bits of mask, which is below 32.

    Source: PTX ISA, "Data Movement and Conversion Instructions: shfl.sync".
    """
    return value[_LANE ^ mask % 32]


@instruction(
    "shfl.sync.bfly.b32 <d>, <value>, <mask>, 0x1f, 0xffffffff;", effect="volatile", scope="warp"
)
def shfl_xor_f32(value: F32, mask: U32) -> F32:
    """Return the fp32 of the lane whose index differs in the bits of mask; see `shfl_xor`."""
    return value[_LANE ^ mask % 32]


@instruction(
    "shfl.sync.down.b32 <d>, <value>, <delta>, 0x1f, 0xffffffff;", effect="volatile", scope="warp"
)
def shfl_down(value: U32, delta: U32) -> U32:
    """Return the value of the lane delta further, the lane's own beyond lane 31; delta < 32.

    Source: PTX ISA, "Data Movement and Conversion Instructions: shfl.sync".
    """
    return _from(value, _LANE + delta % 32)


@instruction(
    "shfl.sync.down.b32 <d>, <value>, <delta>, 0x1f, 0xffffffff;", effect="volatile", scope="warp"
)
def shfl_down_f32(value: F32, delta: U32) -> F32:
    """Return the fp32 of the lane delta further; see `shfl_down`."""
    return _from(value, _LANE + delta % 32)


@instruction(
    "shfl.sync.up.b32 <d>, <value>, <delta>, 0x0, 0xffffffff;", effect="volatile", scope="warp"
)
def shfl_up(value: U32, delta: U32) -> U32:
    """Return the value of the lane delta before, the lane's own below lane 0; delta < 32.

    Source: PTX ISA, "Data Movement and Conversion Instructions: shfl.sync".
    """
    return _from(value, _LANE - delta % 32)


@instruction(
    "shfl.sync.up.b32 <d>, <value>, <delta>, 0x0, 0xffffffff;", effect="volatile", scope="warp"
)
def shfl_up_f32(value: F32, delta: U32) -> F32:
    """Return the fp32 of the lane delta before; see `shfl_up`."""
    return _from(value, _LANE - delta % 32)


@instruction(
    "{\n .reg .pred p;\n setp.ne.b32 p, <pred>, 0;\n vote.sync.ballot.b32 <d>, p, 0xffffffff;\n}",
    effect="volatile",
    scope="warp",
)
def ballot(pred: U32) -> U32:
    """Return, to every lane, the word whose bit l says that pred of lane l is not 0.

    Source: PTX ISA, "Parallel Synchronization and Communication Instructions: vote.sync".
    """
    word = np.packbits(pred != 0, bitorder="little").view(np.uint32)
    return np.repeat(word, 32)


@instruction("match.any.sync.b32 <d>, <value>, 0xffffffff;", effect="volatile", scope="warp")
def match_any(value: U32) -> U32:
    """Return the word whose bit l says that lane l has the same value as this lane.

    Source: PTX ISA, "Parallel Synchronization and Communication Instructions: match.sync".
    """
    same = value[:, None] == value[None, :]
    return np.packbits(same, axis=1, bitorder="little").view(np.uint32)[:, 0]


@instruction("redux.sync.add.u32 <d>, <value>, 0xffffffff;", effect="volatile", scope="warp")
def redux_add(value: U32) -> U32:
    """Return, to every lane, the sum of the lanes' values, modulo 2**32.

    Source: PTX ISA, "Parallel Synchronization and Communication Instructions: redux.sync".
    """
    return np.full_like(value, value.sum(dtype=np.uint32))


@instruction("redux.sync.max.u32 <d>, <value>, 0xffffffff;", effect="volatile", scope="warp")
def redux_max(value: U32) -> U32:
    """Return, to every lane, the largest of the lanes' values; see `redux_add`."""
    return np.full_like(value, value.max())


@instruction("redux.sync.min.u32 <d>, <value>, 0xffffffff;", effect="volatile", scope="warp")
def redux_min(value: U32) -> U32:
    """Return, to every lane, the smallest of the lanes' values; see `redux_add`."""
    return np.full_like(value, value.min())
