"""Tensor-core products of 8-bit elements: of a warp, and of a warpgroup on Hopper.

A register holds four elements of a row of A or a column of B, the one of the lowest k in its lowest
byte, so that a 32-byte row is laid out as one of sixteen 16-bit elements in `mma` and `wgmma`:

    a[0] = A[g, 4q:4q+4]      a[1] = A[g+8, 4q:4q+4]       a: [16, 32] row-major
    a[2] = A[g, 4q+16:4q+20]  a[3] = A[g+8, 4q+16:4q+20]
    b[0] = B[4q:4q+4, g]      b[1] = B[4q+16:4q+20, g]     b: [32, 8] column-major

`ldmatrix` and descriptors of K-major matrices serve both alike, and C and D are as there. Types are
"e4m3" (fp8, summed in fp32) and "s8" (int8, summed in int32).

Hopper's wgmma of e4m3 sums with fewer bits than its accumulators hold, and the twin does the same
(`sum_fp8`). It has no mma of e4m3: its compiler makes fp16 of both operands, and sums exactly.

Source: PTX ISA, "Matrix Fragments for mma.m16n8k32".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, cast

import ml_dtypes
import numpy as np

from ferrum_numba.errors import ConfigError, InterpreterError
from ferrum_numba.ptx.instruction import (
    F32,
    IMMEDIATE,
    S32,
    U32,
    U64,
    Array,
    F32x4,
    Instruction,
    Lanes,
    S32x4,
    U32x2,
    U32x4,
    instruction,
)
from ferrum_numba.ptx.mma import C_COLUMN, C_ROW
from ferrum_numba.ptx.wgmma import accumulator_index, chunk_addresses

_LANE = np.arange(32)[:, None]
_REGISTER, _BYTE = np.arange(16)[None, :] // 4, np.arange(16)[None, :] % 4
# row and column of A of each element a lane holds: [32, 16]
A_ROW = _LANE // 4 + 8 * (_REGISTER % 2)
A_COLUMN = 4 * (_LANE % 4) + 16 * (_REGISTER // 2) + _BYTE
# row (k) and column (n) of B: [32, 8]
B_ROW = (4 * (_LANE % 4) + 16 * _REGISTER + _BYTE)[:, :8]
B_COLUMN = np.broadcast_to(_LANE // 4, (32, 8))
_WARPGROUP = np.arange(128)[:, None]
_A_ROW = 16 * (_WARPGROUP // 32) + np.tile(A_ROW, (4, 1))
_A_COLUMN = np.tile(A_COLUMN, (4, 1))

# places after the leading one of the largest that a sum of wgmma in e4m3 keeps
FP8_PLACES = 13
# stands for the place of zero, below that of any product and of any fp32
_NOWHERE = -1000
# what elements are, and what they are summed in
ELEMENT = {"e4m3": ml_dtypes.float8_e4m3fn, "s8": np.int8}
SUM: dict[str, Any] = {"e4m3": F32, "s8": S32}


def widen8(registers: Array, dtype: str) -> Array:
    """Return the 8-bit elements of 32-bit registers as float64: [..., n] -> [..., 4n], exact."""
    values: Array = np.ascontiguousarray(registers).view(ELEMENT[dtype]).astype(np.float64)
    return values


def _accumulate(a: Array, b: Array, c: Array, dtype: str) -> Array:
    """Return a @ b + c: exact, then rounded once to fp32, or modulo 2^32."""
    total = a @ b + c.astype(np.float64)
    if dtype == "s8":
        wrapped: Array = total.astype(np.int64).astype(np.int32)
        return wrapped
    rounded: Array = total.astype(np.float32)
    return rounded


def _place(values: Array) -> Array:
    """Return the exponent of the leading bit of each."""
    found: Array = np.where(values == 0, _NOWHERE, np.frexp(values)[1] - 1)
    return found


def sum_fp8(a: Array, b: Array, c: Array) -> Array:
    """Return a @ b + c as one wgmma of e4m3 on Hopper sums it, bit for bit.

    Products and c are cut, toward zero, 13 places after the leading bit of the largest of them,
    where a product leads at the sum of its factors' places, whether it has a carry or not; their
    sum is exact, and is cut 13 places after its own leading bit. What is not finite sums as ever.

    Args:
        a: [m, 32] float64 values of e4m3
        b: [32, n] likewise
        c: [m, n] fp32

    Source: results of an H200 (driver 580.159.04), 77,824 sums of random codes, of codes of int4
    by normal ones, and of pairs of every distance, in one wgmma and in two: none differs.
    """
    columns, before = b.T[None, :, :], c.astype(np.float64)
    products = a[:, None, :] * columns
    plain = products.sum(axis=-1) + before
    leads = np.maximum((_place(a)[:, None, :] + _place(columns)).max(axis=-1), _place(before))
    unit = np.ldexp(1.0, np.maximum(leads, _NOWHERE) - FP8_PLACES)
    cut = (np.trunc(products / unit[..., None]).sum(axis=-1) + np.trunc(before / unit)) * unit
    last = np.ldexp(1.0, _place(cut) - FP8_PLACES)
    total: Array = np.where(np.isfinite(plain), np.trunc(cut / last) * last, plain)
    return total.astype(np.float32)


def _mma(a: Array, b: Array, c: Array, dtype: str) -> Array:
    tile_a, tile_b = np.empty((16, 32)), np.empty((32, 8))
    tile_c = np.empty((16, 8), c.dtype)
    tile_a[A_ROW, A_COLUMN] = widen8(a, dtype)
    tile_b[B_ROW, B_COLUMN] = widen8(b, dtype)
    tile_c[C_ROW, C_COLUMN] = c
    total: Array = _accumulate(tile_a, tile_b, tile_c, dtype)[C_ROW, C_COLUMN]
    return total


@instruction(
    "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 <d>, <a>, <b>, <c>;",
    scope="warp",
    tied="c",
    arch="sm_89",
)
def mma_m16n8k32_e4m3(a: U32x4, b: U32x2, c: F32x4) -> F32x4:
    """Return A @ B + C for fp8 fragments of a warp, accumulated in fp32.

    Operands as in the module docstring; c and the result as in `mma_m16n8k16_f16`.

    Source: PTX ISA, "Multiply-and-Accumulate Instruction: mma".
    """
    return _mma(a, b, c, "e4m3")


@instruction(
    "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 <d>, <a>, <b>, <c>;",
    scope="warp",
    tied="c",
)
def mma_m16n8k32_s8(a: U32x4, b: U32x2, c: S32x4) -> S32x4:
    """Return A @ B + C for int8 fragments of a warp, modulo 2^32; see `mma_m16n8k32_e4m3`."""
    return _mma(a, b, c, "s8")


# by the name of the 8-bit type
MMA8 = {"e4m3": mma_m16n8k32_e4m3, "s8": mma_m16n8k32_s8}


def _load_matrix(lanes: Lanes, descriptor: Array, rows: int, dtype: str) -> Array:
    """Return the [rows, 32] float64 matrix a warpgroup's descriptor points to."""
    if (descriptor != descriptor[0]).any():
        raise InterpreterError("the lanes of a warpgroup gave different matrix descriptors")
    addresses = chunk_addresses(int(descriptor[0]), rows)
    chunks = np.ascontiguousarray(lanes.load_products(addresses.ravel(), 16))
    return widen8(chunks.view(np.uint32), dtype).reshape(rows, 32)


def _product(acc: Array, a: Array, b: Array, scale_d: Array, dtype: str) -> Array:
    if (scale_d != scale_d[0]).any():
        raise InterpreterError("the lanes of a warpgroup gave different scale_d")
    index = accumulator_index(len(b))
    total = np.zeros((64, len(b)), acc.dtype)
    if scale_d[0]:
        total[index] = acc
    summed = sum_fp8 if dtype == "e4m3" else partial(_accumulate, dtype=dtype)
    return summed(a, b.T, total)[index]


def _check(n: int, dtype: str, negate: bool) -> None:
    if n % 8 or not 8 <= n <= 256:
        raise ConfigError(f"wgmma needs n a multiple of 8 from 8 to 256; got {n}")
    if dtype == "s8" and n % 16 and n != 8 and n != 24:
        raise ConfigError(f"wgmma of s8 needs n 8, 24 or a multiple of 16; got {n}")
    if dtype not in ELEMENT:
        raise ConfigError(f"wgmma of 8 bits needs dtype {' or '.join(ELEMENT)}; got {dtype}")
    if negate and dtype == "s8":
        raise ConfigError("wgmma of s8 cannot negate A")


def _declare(
    name: str, n: int, dtype: str, negate: bool, operand_a: dict[str, Any],
    twin: Callable[..., Array],
) -> Instruction:  # fmt: skip
    acc = SUM[dtype] * (n // 2)
    operands = {"acc": acc, **operand_a, "desc_b": U64, "scale_d": U32}
    (a,) = operand_a
    types = "s32.s8.s8" if dtype == "s8" else "f32.e4m3.e4m3"
    # integers have no negation, and 8-bit matrices are K-major always
    flags = "" if dtype == "s8" else f", {-1 if negate else 1}, 1"
    template = (
        "{\n .reg .pred p;\n setp.ne.b32 p, <scale_d>, 0;\n"
        f" wgmma.mma_async.sync.aligned.m64n{n}k32.{types} <d>, <{a}>, <desc_b>, p{flags};\n}}"
    )
    return Instruction(
        f"{name}_n{n}_{dtype}{'_negated' if negate else ''}", template, operands, acc, twin,
        effect="memory", scope="warpgroup", tied="acc", arch="sm_90a",
    )  # fmt: skip


@cache
def wgmma8_rs(n: int, dtype: str, *, negate: bool = False) -> Instruction:
    """Make `(acc, a, desc_b, scale_d) -> acc + A @ B` with A [64, 32] in registers.

    Args:
        n:      columns of B and D: 8, 16, ... 256
        dtype:  "e4m3" or "s8", of A and B
        negate: subtract the product; e4m3 only

    Operands of the instruction:
        acc:     n/2 x f32, or x s32; laid out as in `wgmma`; shares its registers with the result
        a:       4 x u32, fragment of A (module docstring), 16 rows a warp
        desc_b:  u64 descriptor of B, `smem_descriptor`, K-major
        scale_d: u32, 0 takes acc as zero

    Source: PTX ISA, "Asynchronous wgmma Multiply-and-Accumulate Operation: wgmma.mma_async".
    """
    _check(n, dtype, negate)
    sign = -1.0 if negate else 1.0

    def twin(lanes: Lanes, acc: Array, a: Array, desc_b: Array, scale_d: Array) -> Array:
        tile = np.empty((64, 32))
        tile[_A_ROW, _A_COLUMN] = sign * widen8(a, dtype)
        return _product(acc, tile, _load_matrix(lanes, desc_b, n, dtype), scale_d, dtype)

    return _declare("wgmma8_rs", n, dtype, negate, {"a": U32x4}, twin)


@cache
def wgmma8_ss(n: int, dtype: str, *, negate: bool = False) -> Instruction:
    """Make `(acc, desc_a, desc_b, scale_d) -> acc + A @ B` with A [64, 32] in shared memory.

    As `wgmma8_rs`, but desc_a is the u64 descriptor of A, K-major.

    Source: PTX ISA, "Asynchronous wgmma Multiply-and-Accumulate Operation: wgmma.mma_async".
    """
    _check(n, dtype, negate)
    sign = -1.0 if negate else 1.0

    def twin(lanes: Lanes, acc: Array, desc_a: Array, desc_b: Array, scale_d: Array) -> Array:
        a = sign * _load_matrix(lanes, desc_a, 64, dtype)
        return _product(acc, a, _load_matrix(lanes, desc_b, n, dtype), scale_d, dtype)

    return _declare("wgmma8_ss", n, dtype, negate, {"desc_a": U64}, twin)


@cache
def wgmma_wait_s32(n: int) -> Instruction:
    """Make `(acc, pending) -> acc`: `wgmma_wait_acc` with accumulators in int32."""
    accumulator = cast(Any, S32) * (n // 2)

    def twin(lanes: Lanes, acc: Array, pending: int) -> Array:
        lanes.block.watch.wait_products(lanes.thread, pending)
        return acc

    return Instruction(
        f"wgmma_wait_s32_n{n}", "wgmma.wait_group.sync.aligned <pending>;",
        {"acc": accumulator, "pending": cast(Any, IMMEDIATE)}, accumulator, twin,
        effect="memory", scope="warpgroup", tied="acc", arch="sm_90a",
    )  # fmt: skip


@cache
def splat_s32(n: int) -> Instruction:
    """Return the instruction value: S32 -> tuple of n copies; see `splat_f32`."""
    moves = "\n".join(f"mov.b32 <d.{i}>, <value>;" for i in range(n))
    s32 = cast(Any, S32)

    def twin(value: Array) -> Array:
        return np.repeat(value[:, None], n, axis=1)

    return Instruction(f"splat_s32_x{n}", moves, {"value": s32}, s32 * n, twin)
