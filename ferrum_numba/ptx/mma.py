"""Tensor-core products of one warp, and the loads and stores of their fragments.

Who holds what of a 16x8x16 product, with g = lane // 4 and q = lane % 4; a register holds two
16-bit elements, the one of the lower column (A) or row (B) in its low half:

    a[0] = A[g, 2q:2q+2]      a[1] = A[g+8, 2q:2q+2]      a: [16, 16] row-major
    a[2] = A[g, 2q+8:2q+10]   a[3] = A[g+8, 2q+8:2q+10]
    b[0] = B[2q:2q+2, g]      b[1] = B[2q+8:2q+10, g]     b: [16, 8] column-major
    c[0:2] = C[g, 2q:2q+2]    c[2:4] = C[g+8, 2q:2q+2]    c: [16, 8] fp32

Source: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
"""

from __future__ import annotations

import numpy as np

from ferrum_numba.ptx.arithmetic import widen
from ferrum_numba.ptx.instruction import U32, Array, F32x4, Lanes, U32x2, U32x4, instruction

_LANE = np.arange(32)[:, None]
_REGISTER = np.arange(8)[None, :] // 2
_HALF = np.arange(8)[None, :] % 2
# row and column of A of each 16-bit element a lane holds: [32, 8]
A_ROW = _LANE // 4 + 8 * (_REGISTER % 2)
A_COLUMN = 2 * (_LANE % 4) + 8 * (_REGISTER // 2) + _HALF
# row (k) and column (n) of B: [32, 4]
B_ROW = (2 * (_LANE % 4) + 8 * _REGISTER + _HALF)[:, :4]
B_COLUMN = np.broadcast_to(_LANE // 4, (32, 4))
# row and column of C: [32, 4]
C_ROW = (_LANE // 4 + 8 * _REGISTER)[:, :4]
C_COLUMN = (2 * (_LANE % 4) + _HALF)[:, :4]


def accumulate(a: Array, b: Array, c: Array) -> Array:
    """Return a @ b + c with exact products, summed in float64 and rounded to fp32 once."""
    with np.errstate(over="ignore", invalid="ignore"):
        return (a @ b + c).astype(np.float32)


def _mma(a: Array, b: Array, c: Array, dtype: str) -> Array:
    tile_a, tile_b = np.empty((16, 16)), np.empty((16, 8))
    tile_c = np.empty((16, 8), np.float32)
    tile_a[A_ROW, A_COLUMN] = widen(a, dtype)
    tile_b[B_ROW, B_COLUMN] = widen(b, dtype)
    tile_c[C_ROW, C_COLUMN] = c
    total: Array = accumulate(tile_a, tile_b, tile_c)[C_ROW, C_COLUMN]
    return total


@instruction(
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 <d>, <a>, <b>, <c>;",
    scope="warp",
    tied="c",
)
def mma_m16n8k16_f16(a: U32x4, b: U32x2, c: F32x4) -> F32x4:
    """Return A @ B + C for fp16 fragments of a warp, accumulated in fp32.

    Args:
        a: 4 x u32, fragment of A [16, 16] fp16 (module docstring)
        b: 2 x u32, fragment of B [16, 8] fp16
        c: 4 x f32, fragment of C [16, 8]; shares its registers with the result

    Returns:
        4 x f32, laid out as c. Products are exact, subnormals included; GPU and twin agree to
        fp32 summation rounding, because the order and the alignment of the sum are the GPU's own.

    Source: PTX ISA, "Multiply-and-Accumulate Instruction: mma".
    """
    return _mma(a, b, c, "f16")


@instruction(
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 <d>, <a>, <b>, <c>;",
    scope="warp",
    tied="c",
)
def mma_m16n8k16_bf16(a: U32x4, b: U32x2, c: F32x4) -> F32x4:
    """Return A @ B + C for bf16 fragments of a warp, accumulated in fp32.

    Operands, result and rounding as `mma_m16n8k16_f16`, with bf16 elements.

    Source: PTX ISA, "Multiply-and-Accumulate Instruction: mma".
    """
    return _mma(a, b, c, "bf16")


# by the name of the 16-bit type
MMA = {"f16": mma_m16n8k16_f16, "bf16": mma_m16n8k16_bf16}


def _load_matrices(lanes: Lanes, address: Array, count: int, *, transposed: bool) -> Array:
    """Return [32, count] uint32: two elements of each 8x8 matrix of 16-bit elements a lane."""
    rows = lanes.load_shared(address[: 8 * count], 16)
    matrices = np.ascontiguousarray(rows).view(np.uint16).reshape(count, 8, 8)
    if transposed:
        matrices = matrices.swapaxes(1, 2)
    # lane l holds columns 2(l % 4) and 2(l % 4) + 1 of row l // 4
    return np.ascontiguousarray(matrices).view(np.uint32).reshape(count, 32).T


def _store_matrices(lanes: Lanes, address: Array, value: Array, *, transposed: bool) -> None:
    """Store [32, count] uint32 as 8x8 matrices of 16-bit elements: `_load_matrices` reversed."""
    count = value.shape[1]
    matrices = np.ascontiguousarray(value.T).view(np.uint16).reshape(count, 8, 8)
    if transposed:
        matrices = matrices.swapaxes(1, 2)
    rows = np.ascontiguousarray(matrices).view(np.uint8).reshape(8 * count, 16)
    lanes.store_shared(address[: 8 * count], rows)


@instruction(
    "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {<d>}, [<address>];", effect="memory", scope="warp"
)
def ldmatrix_x1(lanes: Lanes, address: U32) -> U32:
    """Load one 8x8 matrix of 16-bit elements from shared memory into a warp.

    Args:
        address: lane i < 8 gives the address of row i, 16 bytes, 16-byte aligned

    Returns:
        lane l holds M[l // 4, 2(l % 4)] in the low half and the next column in the high half

    Source: PTX ISA, "Warp-level matrix load instruction: ldmatrix".
    """
    return _load_matrices(lanes, address, 1, transposed=False)[:, 0]


@instruction(
    "ldmatrix.sync.aligned.m8n8.x2.shared.b16 <d>, [<address>];", effect="memory", scope="warp"
)
def ldmatrix_x2(lanes: Lanes, address: U32) -> U32x2:
    """Load two 8x8 matrices; lanes 8i to 8i+7 address the rows of matrix i; see `ldmatrix_x1`."""
    return _load_matrices(lanes, address, 2, transposed=False)


@instruction(
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16 <d>, [<address>];", effect="memory", scope="warp"
)
def ldmatrix_x4(lanes: Lanes, address: U32) -> U32x4:
    """Load four 8x8 matrices; lanes 8i to 8i+7 address the rows of matrix i; see `ldmatrix_x1`.

    The fragment `a` of a row-major A [16, 16]: lane l addresses A[l % 16, 8 * (l // 16)].
    """
    return _load_matrices(lanes, address, 4, transposed=False)


@instruction(
    "ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {<d>}, [<address>];",
    effect="memory",
    scope="warp",
)
def ldmatrix_x1_trans(lanes: Lanes, address: U32) -> U32:
    """Load one 8x8 matrix transposed: lane l holds M[2(l % 4), l // 4] and the row after it.

    Addresses as `ldmatrix_x1`: lane i < 8 gives row i of the stored, untransposed matrix.
    """
    return _load_matrices(lanes, address, 1, transposed=True)[:, 0]


@instruction(
    "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 <d>, [<address>];",
    effect="memory",
    scope="warp",
)
def ldmatrix_x2_trans(lanes: Lanes, address: U32) -> U32x2:
    """Load two 8x8 matrices, each transposed; see `ldmatrix_x2` and `ldmatrix_x1_trans`.

    The fragment `b` of a row-major B [16, 8]: lane l addresses B[l % 16, 0].
    """
    return _load_matrices(lanes, address, 2, transposed=True)


@instruction(
    "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 <d>, [<address>];",
    effect="memory",
    scope="warp",
)
def ldmatrix_x4_trans(lanes: Lanes, address: U32) -> U32x4:
    """Load four 8x8 matrices, each transposed; see `ldmatrix_x4` and `ldmatrix_x1_trans`."""
    return _load_matrices(lanes, address, 4, transposed=True)


@instruction(
    "stmatrix.sync.aligned.m8n8.x1.shared.b16 [<address>], {<value>};",
    effect="memory",
    scope="warp",
    arch="sm_90",
)
def stmatrix_x1(lanes: Lanes, address: U32, value: U32) -> None:
    """Store one 8x8 matrix of 16-bit elements from a warp to shared memory.

    Args:
        address: lane i < 8 gives the address of row i, 16 bytes, 16-byte aligned
        value:   lane l holds M[l // 4, 2(l % 4)] in the low half, the next column in the high half

    Source: PTX ISA, "Warp-level matrix store instruction: stmatrix".
    """
    _store_matrices(lanes, address, value[:, None], transposed=False)


@instruction(
    "stmatrix.sync.aligned.m8n8.x2.shared.b16 [<address>], <value>;",
    effect="memory",
    scope="warp",
    arch="sm_90",
)
def stmatrix_x2(lanes: Lanes, address: U32, value: U32x2) -> None:
    """Store two 8x8 matrices; lanes 8i to 8i+7 address the rows of matrix i; see `stmatrix_x1`."""
    _store_matrices(lanes, address, value, transposed=False)


@instruction(
    "stmatrix.sync.aligned.m8n8.x4.shared.b16 [<address>], <value>;",
    effect="memory",
    scope="warp",
    arch="sm_90",
)
def stmatrix_x4(lanes: Lanes, address: U32, value: U32x4) -> None:
    """Store four 8x8 matrices; lanes 8i to 8i+7 address the rows of matrix i; see `stmatrix_x1`."""
    _store_matrices(lanes, address, value, transposed=False)


@instruction(
    "stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [<address>], {<value>};",
    effect="memory",
    scope="warp",
    arch="sm_90",
)
def stmatrix_x1_trans(lanes: Lanes, address: U32, value: U32) -> None:
    """Store one 8x8 matrix transposed: lane l holds M[2(l % 4), l // 4] and the row after it.

    Addresses as `stmatrix_x1`: lane i < 8 gives row i of the stored matrix M.
    """
    _store_matrices(lanes, address, value[:, None], transposed=True)


@instruction(
    "stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [<address>], <value>;",
    effect="memory",
    scope="warp",
    arch="sm_90",
)
def stmatrix_x2_trans(lanes: Lanes, address: U32, value: U32x2) -> None:
    """Store two 8x8 matrices, each transposed; see `stmatrix_x2` and `stmatrix_x1_trans`."""
    _store_matrices(lanes, address, value, transposed=True)


@instruction(
    "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [<address>], <value>;",
    effect="memory",
    scope="warp",
    arch="sm_90",
)
def stmatrix_x4_trans(lanes: Lanes, address: U32, value: U32x4) -> None:
    """Store four 8x8 matrices, each transposed; see `stmatrix_x4` and `stmatrix_x1_trans`."""
    _store_matrices(lanes, address, value, transposed=True)
