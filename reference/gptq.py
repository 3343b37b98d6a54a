"""The tensors of a GPTQ checkpoint as AutoGPTQ and GPTQModel write them, 4 bits.

    qweight [K/8, N] int32   nibble i of word [r, n] is the code of row 8*r + i, column n
    qzeros  [G, N/8] int32   nibble i of word [g, c] belongs to group g, column 8*c + i
    scales  [G, N] float16
    g_idx   [K] int32        the group of each row

`checkpoint_format` "gptq_v2" stores zero points as they are. "gptq" (v1) stores each word less
0x11111111: one subtraction a word, not a nibble, so that a zero point of 0 borrows from its
neighbour and comes back when the word is added again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ferrum_numba.reference.w4a16 import dequantize_codes

Array = npt.NDArray[Any]

NIBBLES = 8
# what the stored word lacks, by checkpoint format
WORD_OFFSET = {"gptq": np.uint32(0x11111111), "gptq_v2": np.uint32(0)}


def unpack_codes(qweight: Array) -> Array:
    """Return the codes of packed words.

    Args:
        qweight: [K/8, N] int32, nibble i of a word = row 8*k + i

    Returns:
        [K, N] uint8, 0..15.
    """
    words = _words(qweight, "qweight")
    codes = np.empty((len(words), NIBBLES, words.shape[1]), np.uint8)
    for i in range(NIBBLES):
        codes[:, i] = words >> np.uint32(4 * i) & np.uint32(15)
    return codes.reshape(-1, words.shape[1])


def pack_codes(codes: Array) -> Array:
    """Return the packed words of codes; the inverse of `unpack_codes`.

    Args:
        codes: [K, N] uint8, 0..15; K a multiple of 8

    Returns:
        [K/8, N] int32.

    Raises:
        ValueError: K is no multiple of 8, or a code above 15.
    """
    check_nibbles(codes, "codes", rows=NIBBLES)
    nibbles = codes.reshape(-1, NIBBLES, codes.shape[1])
    words = np.zeros((len(nibbles), codes.shape[1]), np.uint32)
    for i in range(NIBBLES):
        words |= nibbles[:, i].astype(np.uint32) << np.uint32(4 * i)
    return words.view(np.int32)


def unpack_zero_points(qzeros: Array, checkpoint_format: str = "gptq") -> Array:
    """Return the true zero points of packed words.

    Args:
        qzeros:            [G, N/8] int32, nibble i of a word = column 8*n + i
        checkpoint_format: "gptq" or "gptq_v2"

    Returns:
        [G, N] uint8, 0..15.

    Raises:
        ValueError: an unknown format.
    """
    words = _words(qzeros, "qzeros") + _word_offset(checkpoint_format)
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    nibbles = words[:, :, None] >> shifts & np.uint32(15)
    return nibbles.astype(np.uint8).reshape(len(words), -1)


def pack_zero_points(zero_points: Array, checkpoint_format: str = "gptq") -> Array:
    """Return the packed words of zero points; the inverse of `unpack_zero_points`.

    Args:
        zero_points:       [G, N] uint8, 0..15; N a multiple of 8
        checkpoint_format: "gptq" or "gptq_v2"

    Returns:
        [G, N/8] int32.

    Raises:
        ValueError: an unknown format, N no multiple of 8, or a zero point above 15.
    """
    check_nibbles(zero_points, "zero points", columns=NIBBLES)
    words = pack_nibbles(zero_points.reshape(len(zero_points), -1, NIBBLES))
    stored: Array = words.view(np.uint32) - _word_offset(checkpoint_format)
    return stored.view(np.int32)


def dequantize(
    qweight: Array,
    scales: Array,
    qzeros: Array | None,
    g_idx: Array | None = None,
    checkpoint_format: str = "gptq",
) -> Array:
    """Return the weight of a checkpoint's tensors, exactly.

    Args:
        qweight:           [K/8, N] int32
        scales:            [G, N] float16
        qzeros:            [G, N/8] int32; None for a zero point of 8 everywhere
        g_idx:             [K] int32; None for k // (K / G)
        checkpoint_format: "gptq" or "gptq_v2"

    Returns:
        [K, N] float32.

    Raises:
        ValueError: an unknown format, or shapes that do not fit each other.
    """
    zero_points = None if qzeros is None else unpack_zero_points(qzeros, checkpoint_format)
    return dequantize_codes(unpack_codes(qweight), scales, zero_points, g_idx)


def pack_nibbles(nibbles: Array) -> Array:
    """Return [...] int32 words of [..., 8] uint8 nibbles, nibble i in bits 4*i and up."""
    pairs = nibbles[..., 0::2] | nibbles[..., 1::2] << 4
    # byte i of a little-endian word holds nibbles 2*i and 2*i + 1
    return np.ascontiguousarray(pairs).view("<i4")[..., 0].astype(np.int32, copy=False)


def unpack_nibbles(words: Array) -> Array:
    """Return [..., 8] uint8 nibbles of [...] int32 words; the inverse of `pack_nibbles`."""
    pairs = np.ascontiguousarray(words[..., None]).astype("<i4", copy=False).view(np.uint8)
    nibbles = np.empty((*words.shape, NIBBLES), np.uint8)
    nibbles[..., 0::2] = pairs & 15
    nibbles[..., 1::2] = pairs >> 4
    return nibbles


def check_nibbles(values: Array, name: str, *, rows: int = 1, columns: int = 1) -> None:
    """Raise ValueError unless values are 2-D uint8 0..15 of divisible shape."""
    if values.ndim != 2 or values.dtype != np.uint8:
        raise ValueError(
            f"{name} must be a matrix of uint8; got {list(values.shape)} {values.dtype}"
        )
    if values.shape[0] % rows or values.shape[1] % columns:
        need = f"[multiple of {rows}, multiple of {columns}]"
        raise ValueError(f"{name} must be {need}; got {list(values.shape)}")
    if values.size and values.max() > 15:
        raise ValueError(f"{name} must be 0..15; got {values.max()}")


def _words(packed: Array, name: str) -> Array:
    if packed.ndim != 2 or packed.dtype not in (np.int32, np.uint32):
        raise ValueError(
            f"{name} must be a matrix of int32; got {list(packed.shape)} {packed.dtype}"
        )
    return packed.view(np.uint32)


def _word_offset(checkpoint_format: str) -> np.uint32:
    if checkpoint_format not in WORD_OFFSET:
        raise ValueError(
            f'checkpoint format must be "gptq" or "gptq_v2"; got "{checkpoint_format}"'
        )
    return WORD_OFFSET[checkpoint_format]
