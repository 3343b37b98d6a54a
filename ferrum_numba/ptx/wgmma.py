"""Tensor-core products of a warpgroup (four warps, 128 lanes) on Hopper, and their descriptors.

D [64, n] += A [64, 16] @ B [16, n], fp16 or bf16 in, fp32 accumulated. Warp w of the warpgroup
holds rows 16w to 16w+15; with g = lane % 32 // 4 and q = lane % 4, relative to them:

    a[0] = A[g, 2q:2q+2]      a[1] = A[g+8, 2q:2q+2]       as A of mma.m16n8k16
    a[2] = A[g, 2q+8:2q+10]   a[3] = A[g+8, 2q+8:2q+10]
    acc[4j:4j+2] = D[g, 8j+2q:8j+2q+2]     acc[4j+2:4j+4] = D[g+8, 8j+2q:8j+2q+2]

B, and A where it is not in registers, lie in shared memory K-major: row n of B holds k = 0 to 15.
A product is asynchronous: its registers may be read, and A's registers or the shared memory be
written, only after `wgmma_commit` and `wgmma_wait`. Before the first product, and whenever
registers of acc or a were written in between, comes `wgmma_fence`. The twin works at once.

Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numpy as np

from ferrum_numba.errors import ConfigError, InterpreterError
from ferrum_numba.ptx.arithmetic import widen
from ferrum_numba.ptx.instruction import (
    F32,
    IMMEDIATE,
    U32,
    U64,
    Array,
    Instruction,
    Lanes,
    U32x4,
    instruction,
)
from ferrum_numba.ptx.mma import A_COLUMN, A_ROW, accumulate

# bytes of a swizzled row -> descriptor bits 62 and 63
_SWIZZLE_CODE = {0: 0, 32: 3, 64: 2, 128: 1}
_SWIZZLE_BYTES = {code: size for size, code in _SWIZZLE_CODE.items()}

_LANE = np.arange(128)[:, None]
_A_ROW = 16 * (_LANE // 32) + np.tile(A_ROW, (4, 1))
_A_COLUMN = np.tile(A_COLUMN, (4, 1))


@cache
def accumulator_index(n: int) -> tuple[Array, Array]:
    """Return row and column of D of each accumulator: [128, n/2] each."""
    element = np.arange(n // 2)[None, :]
    row = 16 * (_LANE // 32) + _LANE % 32 // 4 + 8 * (element // 2 % 2)
    column = 8 * (element // 4) + 2 * (_LANE % 4) + element % 2
    return row, column


@cache
def smem_descriptor(swizzle_bytes: int, stride_bytes: int, leading_bytes: int = 16) -> Instruction:
    """Make the instruction address: U32 -> U64 descriptor of a K-major matrix in shared memory.

    Row r of the matrix (m of A, n of B) and 16-byte chunk c of its k (8 elements) lie at

        address + r // 8 * stride_bytes + r % 8 * swizzle_bytes + 16 * c        swizzled
        address + r // 8 * stride_bytes + r % 8 * 16 + c * leading_bytes        swizzle_bytes 0

    and a swizzle XORs address bits 4 and up with bits 7 and up: one bit of them for 32 bytes, two
    for 64, three for 128. A tile must start at a multiple of 8 * swizzle_bytes; the next 16 of k
    within swizzle_bytes are 32 bytes further: descriptor + 2.

    Args:
        swizzle_bytes: 0, 32, 64 or 128; the length of a swizzled row
        stride_bytes:  from one group of 8 rows to the next, a multiple of 16 below 2**18
        leading_bytes: from one chunk to the next where swizzle_bytes is 0, else without effect

    Raises:
        ConfigError: a size that a descriptor cannot hold.

    Source: PTX ISA, "Matrix Descriptor Format" and "Strides" of wgmma.
    """
    if swizzle_bytes not in _SWIZZLE_CODE:
        raise ConfigError(f"a swizzle is 0, 32, 64 or 128 bytes; got {swizzle_bytes}")
    for name, size_bytes in (("stride", stride_bytes), ("leading", leading_bytes)):
        if size_bytes % 16 or not 0 <= size_bytes < 1 << 18:
            raise ConfigError(
                f"{name}_bytes must be a multiple of 16 below 262144; got {size_bytes}"
            )
    high = stride_bytes >> 4 | _SWIZZLE_CODE[swizzle_bytes] << 30
    low = leading_bytes >> 4 << 16

    def twin(address: Array) -> Array:
        return np.uint64(high << 32 | low) | (address >> 4 & 0x3FFF).astype(np.uint64)

    return Instruction(
        f"smem_descriptor_{swizzle_bytes}_{stride_bytes}_{leading_bytes}",
        "{\n .reg .b32 low, high;\n bfe.u32 low, <address>, 4, 14;\n"
        f" or.b32 low, low, {low:#x};\n mov.b32 high, {high:#x};\n mov.b64 <d>, {{low, high}};\n}}",
        {"address": cast(Any, U32)},
        U64,
        twin,
    )


@cache
def descriptor_step(size_bytes: int) -> Instruction:
    """Make `descriptor -> descriptor` of the matrix that begins size_bytes further.

    The start address is in the lower half, and shared memory ends before it overflows: one 32-bit
    addition.
    """

    def twin(descriptor: Array) -> Array:
        return descriptor + np.uint64(size_bytes >> 4)

    return Instruction(
        f"descriptor_step_{size_bytes}",
        "{\n .reg .b32 low, high;\n mov.b64 {low, high}, <descriptor>;\n"
        f" add.u32 low, low, {size_bytes >> 4};\n mov.b64 <d>, {{low, high}};\n}}",
        {"descriptor": cast(Any, U64)},
        U64,
        twin,
    )


def chunk_addresses(descriptor: int, rows: int) -> Array:
    """Return the address of each 16-byte chunk of a K-major [rows, 16] matrix.

    Returns:
        [rows, 2] uint32, chunk c holding k = 8c to 8c+7
    """
    start = (descriptor & 0x3FFF) << 4
    leading_bytes = (descriptor >> 16 & 0x3FFF) << 4
    stride_bytes = (descriptor >> 32 & 0x3FFF) << 4
    swizzle_bytes = _SWIZZLE_BYTES[descriptor >> 62]
    if descriptor >> 49 & 7:
        raise InterpreterError("a descriptor with a base offset is not supported")
    row, chunk = np.arange(rows)[:, None], np.arange(2)[None, :]
    pitch_bytes, step_bytes = (swizzle_bytes, 16) if swizzle_bytes else (16, leading_bytes)
    address = start + row // 8 * stride_bytes + row % 8 * pitch_bytes + chunk * step_bytes
    swizzled_chunks = max(swizzle_bytes // 16, 1)
    return (address ^ (address >> 7) % swizzled_chunks << 4).astype(np.uint32)


def _load_matrix(lanes: Lanes, descriptor: Array, rows: int, dtype: str) -> Array:
    """Return the [rows, 16] float64 matrix a warpgroup's descriptor points to."""
    if (descriptor != descriptor[0]).any():
        raise InterpreterError("the lanes of a warpgroup gave different matrix descriptors")
    addresses = chunk_addresses(int(descriptor[0]), rows)
    chunks = np.ascontiguousarray(lanes.load_products(addresses.ravel(), 16))
    return widen(chunks.view(np.uint32), dtype).reshape(rows, 16)


def _product(acc: Array, a: Array, b: Array, scale_d: Array) -> Array:
    """Return the accumulators of acc + a @ b.T; where scale_d is 0, of a @ b.T."""
    if (scale_d != scale_d[0]).any():
        raise InterpreterError("the lanes of a warpgroup gave different scale_d")
    index = accumulator_index(len(b))
    total = np.zeros((64, len(b)), np.float32)
    if scale_d[0]:
        total[index] = acc
    return accumulate(a, b.T, total)[index]


def _check_shape(n: int, dtype: str) -> None:
    if n % 8 or not 8 <= n <= 256:
        raise ConfigError(f"wgmma needs n a multiple of 8 from 8 to 256; got {n}")
    if dtype not in ("f16", "bf16"):
        raise ConfigError(f"wgmma needs dtype f16 or bf16; got {dtype}")


def _declare(
    name: str, n: int, dtype: str, operand_a: dict[str, Any], twin: Callable[..., Array]
) -> Instruction:
    operands = {"acc": cast(Any, F32) * (n // 2), **operand_a, "desc_b": U64, "scale_d": U32}
    (a,) = operand_a
    # negation of A and B, then transposition of what lies in shared memory
    flags = "1, 1, 0" if a == "a" else "1, 1, 0, 0"
    template = (
        "{\n .reg .pred p;\n setp.ne.b32 p, <scale_d>, 0;\n"
        f" wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{dtype}.{dtype}"
        f" <d>, <{a}>, <desc_b>, p, {flags};\n}}"
    )
    return Instruction(
        f"{name}_n{n}_{dtype}",
        template,
        operands,
        operands["acc"],
        twin,
        effect="memory",
        scope="warpgroup",
        tied="acc",
        arch="sm_90a",
    )


@cache
def wgmma_rs(n: int, dtype: str = "f16") -> Instruction:
    """Make `(acc, a, desc_b, scale_d) -> acc + A @ B` with A in registers.

    Args:
        n:     columns of B and D: 8, 16, ... 256
        dtype: "f16" or "bf16", of A and B

    Operands of the instruction:
        acc:     n/2 x f32 (module docstring); shares its registers with the result
        a:       4 x u32, fragment of A
        desc_b:  u64 descriptor of B, `smem_descriptor`, K-major
        scale_d: u32, 0 takes acc as zero

    Products are exact; GPU and twin agree to fp32 summation rounding.

    Source: PTX ISA, "Asynchronous wgmma Multiply-and-Accumulate Operation: wgmma.mma_async".
    """
    _check_shape(n, dtype)

    def twin(lanes: Lanes, acc: Array, a: Array, desc_b: Array, scale_d: Array) -> Array:
        tile = np.empty((64, 16))
        tile[_A_ROW, _A_COLUMN] = widen(a, dtype)
        return _product(acc, tile, _load_matrix(lanes, desc_b, n, dtype), scale_d)

    return _declare("wgmma_rs", n, dtype, {"a": U32x4}, twin)


@cache
def wgmma_ss(n: int, dtype: str = "f16") -> Instruction:
    """Make `(acc, desc_a, desc_b, scale_d) -> acc + A @ B` with A in shared memory.

    As `wgmma_rs`, but desc_a is the u64 descriptor of A [64, 16], K-major.

    Source: PTX ISA, "Asynchronous wgmma Multiply-and-Accumulate Operation: wgmma.mma_async".
    """
    _check_shape(n, dtype)

    def twin(lanes: Lanes, acc: Array, desc_a: Array, desc_b: Array, scale_d: Array) -> Array:
        a = _load_matrix(lanes, desc_a, 64, dtype)
        return _product(acc, a, _load_matrix(lanes, desc_b, n, dtype), scale_d)

    return _declare("wgmma_ss", n, dtype, {"desc_a": U64}, twin)


@instruction("wgmma.fence.sync.aligned;", effect="memory", scope="warpgroup", arch="sm_90a")
def wgmma_fence(lanes: Lanes) -> None:
    """Order earlier accesses to registers of acc and a before the products that follow.

    Writes to shared memory by ordinary stores need `fence_proxy_async` as well.

    Source: PTX ISA, "Asynchronous wgmma Proxy: wgmma.fence".
    """
    lanes.block.watch.fence_products(lanes.thread)


@instruction("wgmma.commit_group.sync.aligned;", effect="memory", scope="warpgroup", arch="sm_90a")
def wgmma_commit(lanes: Lanes) -> None:
    """Close a group of the products issued since the last one.

    Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions: wgmma.commit_group".
    """
    lanes.block.watch.commit_products(lanes.thread)


@instruction(
    "wgmma.wait_group.sync.aligned <pending>;", effect="memory", scope="warpgroup", arch="sm_90a"
)
def wgmma_wait(lanes: Lanes, pending: IMMEDIATE) -> None:
    """Wait until at most `pending` of the committed groups are unfinished.

    Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions: wgmma.wait_group".
    """
    lanes.block.watch.wait_products(lanes.thread, pending)


@cache
def wgmma_wait_acc(n: int) -> Instruction:
    """Make `(acc, pending) -> acc`: `wgmma_wait`, with the accumulators passing through it.

    The compiler sees no tie between a plain wait and the registers it waits for, and may move
    their first use above it; uses of this result cannot move.

    Operands of the instruction:
        acc:     n/2 x f32, of the last product; shares its registers with the result
        pending: literal, as in `wgmma_wait`
    """
    accumulator = cast(Any, F32) * (n // 2)

    def twin(lanes: Lanes, acc: Array, pending: int) -> Array:
        lanes.block.watch.wait_products(lanes.thread, pending)
        return acc

    return Instruction(
        f"wgmma_wait_acc_n{n}",
        "wgmma.wait_group.sync.aligned <pending>;",
        {"acc": accumulator, "pending": cast(Any, IMMEDIATE)},
        accumulator,
        twin,
        effect="memory",
        scope="warpgroup",
        tied="acc",
        arch="sm_90a",
    )
