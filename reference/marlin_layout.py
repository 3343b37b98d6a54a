"""Marlin's layout of weights, scales and zero points (IST-DASLab/marlin and vLLM, bit for bit).

The unit is a tile of 16 rows (K) by 64 columns (N): 128 words, 4 for each of a warp's 32 lanes, so
that one 16-byte load brings a lane its share of four 16 x 16 sub-tiles. Its nibbles are the lane's
B operands of `mma.m16n8k16`: rows 2*(lane % 4) + {0, 1, 8, 9} of columns lane // 4 + {0, 8}.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ferrum_numba.reference.gptq import check_nibbles, pack_nibbles, unpack_nibbles

Array = npt.NDArray[Any]

TILE_K, TILE_N = 16, 64
TILE_WORDS = TILE_K * TILE_N // 8
# order of a word's nibbles in packed zero points: even elements first, as the kernel decodes them
ZERO_POINT_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])


def tile_order() -> Array:
    """Return where each nibble of a packed tile comes from.

    Returns:
        [32 lanes, 4 words, 8 nibbles] int64, an index 64 * k + n into the [16, 64] tile; a
        permutation of 0..1023.
    """
    lane, word, half, block, pair = np.ix_(*(np.arange(n) for n in (32, 4, 2, 2, 2)))
    k = 2 * (lane % 4) + half + 8 * pair
    n = 16 * word + 8 * block + lane // 4
    # nibble = 4 * half + 2 * block + pair: the halves of a half2 lie 16 bits apart
    return (TILE_N * k + n).reshape(32, 4, 8)


def pack_weight(codes: Array) -> Array:
    """Return a weight's codes in Marlin's layout.

    Args:
        codes: [K, N] uint8, 0..15; K a multiple of 16, N of 64

    Returns:
        [K/16, 2*N] int32; tile (i, j) is words 128*j .. 128*j + 127 of row i.

    Raises:
        ValueError: a shape that does not divide into tiles, or a code above 15.
    """
    check_nibbles(codes, "codes", rows=TILE_K, columns=TILE_N)
    K, N = codes.shape
    tiles = codes.reshape(K // TILE_K, TILE_K, N // TILE_N, TILE_N).swapaxes(1, 2)
    # a row of tiles at a time: the gathered copy stays in cache
    packed = np.empty((K // TILE_K, 2 * N), np.int32)
    order = tile_order()
    for row, tile in zip(packed, tiles, strict=True):
        nibbles = tile.reshape(-1, TILE_K * TILE_N).take(order, axis=1)
        row[:] = pack_nibbles(nibbles).reshape(-1)
    return packed


def unpack_weight(packed: Array) -> Array:
    """Return the codes of a packed weight; the inverse of `pack_weight`.

    Args:
        packed: [K/16, 2*N] int32

    Returns:
        [K, N] uint8, 0..15.

    Raises:
        ValueError: a shape that no packed weight has.
    """
    if packed.ndim != 2 or packed.shape[1] % TILE_WORDS or packed.dtype != np.int32:
        raise ValueError(
            f"a packed weight must be [K/16, multiple of {TILE_WORDS}] int32; "
            f"got {list(packed.shape)} {packed.dtype}"
        )
    k_tiles, n_tiles = len(packed), packed.shape[1] // TILE_WORDS
    codes = np.empty((k_tiles, TILE_K, n_tiles, TILE_N), np.uint8)
    source = np.argsort(tile_order().reshape(-1))
    for tile_row, words in zip(codes, packed, strict=True):
        nibbles = unpack_nibbles(words).reshape(n_tiles, TILE_K * TILE_N).take(source, axis=1)
        tile_row[:] = nibbles.reshape(n_tiles, TILE_K, TILE_N).swapaxes(0, 1)
    return codes.reshape(k_tiles * TILE_K, n_tiles * TILE_N)


def permute_scales(scales: Array, grouped: bool) -> Array:
    """Return scales in the order in which Marlin's lanes read them.

    Args:
        scales:  [G, N] float16, or any other type of element; N a multiple of 64
        grouped: True where a scale multiplies weights (G > 1): lane // 4 reads the scales of its
                 8 columns of a tile at once. False where it multiplies sums (G == 1): lane % 4
                 reads those of its columns of the result, pairs 8 apart.

    Returns:
        [G, N], same type.

    Raises:
        ValueError: N is no multiple of 64.
    """
    _check_columns(scales, "scales")
    if grouped:
        # column = 8 * block + lane // 4
        return scales.reshape(-1, 8, 8).swapaxes(1, 2).reshape(scales.shape)
    # column = 8 * block + 2 * (lane % 4) + half, in every 32
    return scales.reshape(-1, 4, 4, 2).swapaxes(1, 2).reshape(scales.shape)


def unpermute_scales(scales: Array, grouped: bool) -> Array:
    """Return permuted scales in the order of their columns; the inverse of `permute_scales`.

    Args:
        scales:  [G, N] float16, or any other type of element
        grouped: as for `permute_scales`

    Returns:
        [G, N], same type.
    """
    # both permutations swap two axes of equal length, so each is its own inverse
    return permute_scales(scales, grouped)


def pack_zero_points(zero_points: Array) -> Array:
    """Return zero points in the order of vLLM's Marlin kernels.

    Args:
        zero_points: [G, N] uint8, 0..15; N a multiple of 64

    Returns:
        [G, N/8] int32; word 8*j + lane // 4 of a row holds the zero points of the lane's 8 columns
        of tile j, in the nibble order of a weight's word.

    Raises:
        ValueError: N is no multiple of 64, or a zero point above 15.
    """
    check_nibbles(zero_points, "zero points", columns=TILE_N)
    columns = permute_scales(zero_points, grouped=True)
    words = columns.reshape(len(zero_points), -1, 8)
    return pack_nibbles(words[..., ZERO_POINT_ORDER])


def unpack_zero_points(packed: Array) -> Array:
    """Return the zero points of packed words; the inverse of `pack_zero_points`.

    Args:
        packed: [G, N/8] int32

    Returns:
        [G, N] uint8, 0..15.
    """
    words = unpack_nibbles(packed)[..., np.argsort(ZERO_POINT_ORDER)]
    return unpermute_scales(words.reshape(len(packed), -1), grouped=True)


def _check_columns(values: Array, name: str) -> None:
    if values.ndim != 2 or values.shape[1] % TILE_N:
        raise ValueError(f"{name} must be [G, multiple of {TILE_N}]; got {list(values.shape)}")
