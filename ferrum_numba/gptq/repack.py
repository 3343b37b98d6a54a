"""GPTQ words to Marlin words and back on the CPU, as fast as memory: codes are never unpacked.

Eight words of GPTQ, rows 2*i and 2*i + 1 of columns n and n + 8, and four words of Marlin hold the
same codes. Each of a lane's four words, t = lane % 4, has byte t of words

    A = qweight[2*i, n]        C = qweight[2*i, n + 8]
    B = qweight[2*i + 1, n]    D = qweight[2*i + 1, n + 8]

in the nibble order A, B, C, D of the lower nibbles, then of the upper ones: a transposition of
nibbles between A and B, of bytes between A and C, of halves between A and B, on all columns of a
row at once. Each is its own inverse, so the way back is the same steps in reverse.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from ferrum_numba.division import round_up
from ferrum_numba.errors import ProblemError

Array = npt.NDArray[Any]

TILE_K, TILE_N = 16, 64
WORD_ROWS = 8
# a word of eight codes 8: with a scale of any size, weights of zero
PADDING = np.uint32(0x88888888)
NIBBLES, BYTES, HALVES = (4, 0x0F0F0F0F), (8, 0x00FF00FF), (16, 0x0000FFFF)
# words a thread works on at a time: a call of NumPy, which leaves the interpreter to others, must
# take longer than another thread needs to wake up; see docs/designs/tools.md#host-packing
BLOCK_WORDS = 1 << 19
# 16 bytes that move together; nothing is computed with them
QUAD = np.complex128


def marlin_weight(
    qweight: Array | Sequence[Array],
    perm: Array | None = None,
    shape: tuple[int, int] | None = None,
) -> Array:
    """Return a GPTQ weight in Marlin's layout; the bits of `pack_weight` on its codes.

    Args:
        qweight: [K/8, N] int32, or several of them that are one side by side
        perm:    [K] int32, row perm[k] becomes row k; None for rows as they are
        shape:   (K, N) to pad to with codes 8, multiples of 16 and 64; None for the weight's own

    Returns:
        [K/16, 2*N] int32, of the padded K and N.

    Raises:
        ProblemError: a shape that does not divide into tiles, or a perm that is no permutation.
    """
    parts = [qweight] if isinstance(qweight, np.ndarray) else qweight
    words = [_matrix(part, "qweight") for part in parts]
    K, N = WORD_ROWS * len(words[0]), sum(part.shape[1] for part in words)
    K_padded, N_padded = _padded_shape(K, N, shape)
    order = None if perm is None else _permutation(perm, K)
    columns = _column_order(N_padded)
    packed = np.empty((K_padded // TILE_K, 2 * N_padded), np.int32)

    def pack(k_tiles: slice, scratch: Array) -> None:
        rows = slice(2 * k_tiles.start, 2 * k_tiles.stop)
        if order is None:
            blocks = [part[rows] for part in words]
        else:
            codes = order[WORD_ROWS * rows.start : WORD_ROWS * rows.stop]
            blocks = [_gathered(part, codes, scratch) for part in words]
        block = _padded(_beside(blocks, scratch), (rows.stop - rows.start, N_padded))
        _to_marlin(block, columns, packed.view(np.uint32)[k_tiles], scratch)

    _for_each_block(pack, K_padded // TILE_K, N_padded)
    return packed


def gptq_weight(packed: Array, shape: tuple[int, int] | None = None) -> Array:
    """Return the GPTQ words of a weight in Marlin's layout; the inverse of `marlin_weight`.

    Args:
        packed: [K/16, 2*N] int32
        shape:  (K, N) of the weight without its padding, multiples of 8; None for all of it

    Returns:
        [K/8, N] int32.

    Raises:
        ProblemError: no packed weight, or a shape that it does not hold.
    """
    words = _matrix(packed, "a packed weight")
    if words.shape[1] % (2 * TILE_N):
        raise ProblemError(
            f"a packed weight must be [K/16, multiple of {2 * TILE_N}]; got {list(words.shape)}"
        )
    K_padded, N_padded = TILE_K * len(words), words.shape[1] // 2
    K, N = (K_padded, N_padded) if shape is None else shape
    if not (0 < K <= K_padded and 0 < N <= N_padded) or K % WORD_ROWS:
        raise ProblemError(
            f"a packed weight of K = {K_padded}, N = {N_padded} holds no weight of K = {K}, N = {N}"
        )
    columns = np.argsort(_column_order(N_padded))
    qweight = np.empty((K // WORD_ROWS, N), np.int32)

    def unpack(k_tiles: slice, scratch: Array) -> None:
        target = qweight.view(np.uint32)[2 * k_tiles.start : 2 * k_tiles.stop]
        target[:] = _to_gptq(words[k_tiles], columns, scratch)[: len(target), :N]

    _for_each_block(unpack, K_padded // TILE_K, N_padded)
    return qweight


def _to_marlin(rows: Array, columns: Array, packed: Array, scratch: Array) -> None:
    """Pack [2*k_tiles, N] words into [k_tiles, 2*N]."""
    k_tiles, N = len(packed), rows.shape[1]
    # [k_tiles, row of two, block of two, words]
    words, spare = (part[: rows.size] for part in scratch)
    rows.take(columns, axis=1, out=words.reshape(rows.shape), mode="clip")
    words = words.reshape(k_tiles, 2, 2, N // 2)
    _exchange(words[:, 0], words[:, 1], *NIBBLES, spare)
    _exchange(words[:, :, 0], words[:, :, 1], *BYTES, spare)
    _exchange(words[:, 0], words[:, 1], *HALVES, spare)
    source, target = words.view(QUAD), packed.view(QUAD).reshape(k_tiles, -1, 4)
    for t in range(4):
        target[:, :, t] = source[:, t // 2, t % 2]


def _to_gptq(packed: Array, columns: Array, scratch: Array) -> Array:
    """Return [2*k_tiles, N] words of [k_tiles, 2*N]: the steps of `_to_marlin` in reverse."""
    k_tiles, N = len(packed), packed.shape[1] // 2
    words, spare = (part[: packed.size] for part in scratch)
    words = words.reshape(k_tiles, 2, 2, N // 2)
    source, target = packed.view(QUAD).reshape(k_tiles, -1, 4), words.view(QUAD)
    for t in range(4):
        target[:, t // 2, t % 2] = source[:, :, t]
    _exchange(words[:, 0], words[:, 1], *HALVES, spare)
    _exchange(words[:, :, 0], words[:, :, 1], *BYTES, spare)
    _exchange(words[:, 0], words[:, 1], *NIBBLES, spare)
    rows: Array = spare.reshape(2 * k_tiles, N)
    words.reshape(rows.shape).take(columns, axis=1, out=rows, mode="clip")
    return rows


def _exchange(low: Array, high: Array, shift: int, mask: int, spare: Array) -> None:
    """Exchange the upper pieces of `low` with the lower ones of `high`, in place.

    mask: the lower one of every two pieces of `shift` bits
    """
    differ = spare[: low.size].reshape(low.shape)
    np.right_shift(low, np.uint32(shift), out=differ)
    differ ^= high
    differ &= np.uint32(mask)
    high ^= differ
    differ <<= np.uint32(shift)
    low ^= differ


def _column_order(columns: int) -> Array:
    """Return the columns in the order of a lane's words: blocks of 8 apart, then lane, then word.

    Column 64*tile + 16*j + 8*block + lane goes to place [block, tile, lane, j].
    """
    order: Array = np.arange(columns).reshape(-1, 4, 2, 8).transpose(2, 0, 3, 1).reshape(-1)
    return order


def _gathered(words: Array, order: Array, scratch: Array) -> Array:
    """Return [len(order)/8, N] words whose nibble i of row r is the code of row order[8*r + i].

    words: [K/8, N]
    """
    source = order.reshape(-1, WORD_ROWS)
    shift = (4 * (source % WORD_ROWS)).astype(np.uint32)
    found = np.zeros((len(source), words.shape[1]), np.uint32)
    code = scratch[0, : found.size].reshape(found.shape)
    for i in reversed(range(WORD_ROWS)):
        words.take(source[:, i] // WORD_ROWS, axis=0, out=code, mode="clip")
        code >>= shift[:, i, None]
        code &= np.uint32(15)
        found <<= np.uint32(4)
        found |= code
    return found


def _beside(blocks: Sequence[Array], scratch: Array) -> Array:
    """Return blocks of as many rows side by side."""
    if len(blocks) == 1:
        return blocks[0]
    rows, columns = len(blocks[0]), sum(block.shape[1] for block in blocks)
    # the first half is for what comes next
    beside = scratch[1, : rows * columns].reshape(rows, columns)
    return np.concatenate(blocks, axis=1, out=beside)


def _padded(rows: Array, shape: tuple[int, int]) -> Array:
    """Return rows of words, with codes 8 where there are none."""
    if rows.shape == shape:
        return rows
    padded = np.full(shape, PADDING)
    padded[: len(rows), : rows.shape[1]] = rows
    return padded


def _for_each_block(work: Callable[[slice, Array], None], k_tiles: int, N: int) -> None:
    """Call `work` on all runs of k tiles, each time with scratch of twice its words.

    On all processors where it is worth it: NumPy leaves the interpreter to others while it works.
    """
    height = max(1, BLOCK_WORDS // (2 * N))
    blocks = [slice(k, min(k + height, k_tiles)) for k in range(0, k_tiles, height)]
    # the threads share it: each takes the next block that none has
    remaining = iter(blocks)

    def run() -> None:
        scratch = np.empty((2, 2 * N * min(height, k_tiles)), np.uint32)
        for block in remaining:
            work(block, scratch)

    num_threads = min(len(blocks), len(os.sched_getaffinity(0)))
    if num_threads < 2:
        run()
        return
    with ThreadPoolExecutor(num_threads) as pool:
        for done in [pool.submit(run) for _ in range(num_threads)]:
            done.result()


def _matrix(words: Array, name: str) -> Array:
    if words.ndim != 2 or words.dtype not in (np.int32, np.uint32) or not words.size:
        raise ProblemError(
            f"{name} must be a matrix of int32; got {list(words.shape)} {words.dtype}"
        )
    return np.ascontiguousarray(words).view(np.uint32)


def _padded_shape(K: int, N: int, shape: tuple[int, int] | None) -> tuple[int, int]:
    K_padded, N_padded = (K, N) if shape is None else shape
    if K_padded % TILE_K or N_padded % TILE_N:
        raise ProblemError(
            f"Marlin's layout needs K a multiple of {TILE_K} and N of {TILE_N}; "
            f"got K = {K_padded}, N = {N_padded}: pad to {round_up(K_padded, TILE_K)} and "
            f"{round_up(N_padded, TILE_N)}"
        )
    if K_padded < K or N_padded < N:
        raise ProblemError(
            f"a weight of K = {K}, N = {N} cannot be padded to {K_padded} and {N_padded}"
        )
    return K_padded, N_padded


def _permutation(perm: Array, K: int) -> Array:
    if perm.shape != (K,) or perm.dtype.kind not in "iu":
        raise ProblemError(
            f"perm must be [{K}] integers for this weight; got {list(perm.shape)} {perm.dtype}"
        )
    order: Array = perm.astype(np.intp)
    if not np.array_equal(np.sort(order), np.arange(K)):
        raise ProblemError(f"perm must hold each row of 0..{K - 1} once")
    return order
