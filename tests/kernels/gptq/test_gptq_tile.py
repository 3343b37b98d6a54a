"""The steps of a warp on GPTQ words, run by their NumPy twins: one warp, one tile, no kernel."""

import numpy as np
import pytest

from ferrum_numba.kernels.gptq.steps import (
    dequantize_column,
    load_groups,
    load_rows,
    mma_rows,
    store_rows,
)
from ferrum_numba.reference.gptq import WORD_OFFSET, pack_codes, pack_zero_points

G, T = np.arange(32) // 4, np.arange(32) % 4


class Memory:
    """One flat memory, as the interpreter gives it to a twin."""

    def __init__(self, content):
        self.bytes = content.view(np.uint8).reshape(-1).copy()

    def only(self, rows):
        return self

    def load_shared(self, address, size_bytes):
        return self.bytes[address[:, None].astype(np.intp) + np.arange(size_bytes)]

    def store_global(self, address, data):
        self.bytes[address[:, None].astype(np.intp) + np.arange(data.shape[1])] = data


def halves(words):
    return np.ascontiguousarray(words).view(np.float16).reshape(len(words), -1)


def groups_of_lanes(scales, zeros, checkpoint_format="gptq_v2"):
    """Return what lanes load of [rows, 32] scales and zero points; rows is 1 or 8."""
    rows = len(scales)
    packed = pack_zero_points(zeros, checkpoint_format)
    staged = Memory(np.concatenate([scales.view(np.uint8), packed.view(np.uint8)], axis=1))
    address = np.zeros(32, np.uint32)
    return load_groups(rows, 80, 80).twin(
        staged,
        address + (8 * G).astype(np.uint32),
        address + (64 + 4 * (G // 2)).astype(np.uint32),
        (16 * (G % 2)).astype(np.uint32),
        address + WORD_OFFSET[checkpoint_format],
    )


@pytest.mark.parametrize("zero", range(16))
@pytest.mark.parametrize("checkpoint_format", ["gptq", "gptq_v2"])
def test_every_code_of_every_nibble_is_exact(zero, checkpoint_format):
    codes = np.stack([np.roll(np.arange(32, dtype=np.uint8) % 16, i) for i in range(8)])
    words = pack_codes(codes).view(np.uint32)[0]
    # 0 and 15 beside it: a borrow must not reach the neighbour
    zeros = np.where(np.arange(32) % 4 == 2, zero, 15 * (np.arange(32) % 2)).astype(np.uint8)[None]
    groups = groups_of_lanes(np.ones((1, 32), np.float16), zeros, checkpoint_format)
    got = halves(dequantize_column(2, 1).twin(words, groups))
    np.testing.assert_array_equal(got, codes.T.astype(int) - zero)


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("column", range(4))
def test_rows_and_columns_have_scales_and_zero_points_of_their_own(rng, rows, column):
    codes = rng.integers(0, 16, (8, 32), np.uint8)
    zeros = rng.integers(0, 16, (rows, 32), np.uint8)
    scales = rng.uniform(0.005, 0.015, (rows, 32)).astype(np.float16)
    words = pack_codes(codes).view(np.uint32)[0]
    groups = groups_of_lanes(scales, zeros, "gptq")
    got = halves(dequantize_column(column, rows).twin(words, groups))
    mine = 4 * G + column
    steps = codes.T.astype(np.float16) - zeros[:, mine].T.astype(np.float16)
    np.testing.assert_array_equal(got, steps * scales[:, mine].T)


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_a_warp_multiplies_rows_by_words(rng, blocks):
    M, N, K = 16 * blocks, 32, 32
    x = rng.integers(-4, 5, (M, K)).astype(np.float16)
    codes = rng.integers(0, 16, (K, N), np.uint8)
    bias = rng.integers(-8, 9, N).astype(np.float32)
    words = pack_codes(codes).view(np.uint32)
    groups = groups_of_lanes(np.ones((1, 32), np.float16), np.full((1, 32), 8, np.uint8))

    a = load_rows(blocks, 2 * K).twin(Memory(x), (G * 2 * K + T * 16).astype(np.uint32))
    # lane (g, t) reads columns 4g .. 4g + 3 of word row t
    b = [dequantize_column(j, 1).twin(words[T, 4 * G + j], groups) for j in range(4)]
    zero = np.zeros((32, 8 * blocks), np.float32)
    left = mma_rows(blocks).twin(a, b[0], b[1], zero)
    right = mma_rows(blocks).twin(a, b[2], b[3], zero)

    rows = M - 3
    out = Memory(np.full((M, N), np.nan, np.float16))
    address = (G * 2 * N + T * 16).astype(np.uint64)
    store_rows(blocks).twin(
        out, address, np.full(32, 2 * N, np.uint64), (rows - G).astype(np.uint32),
        left, right, bias.reshape(4, 8)[T],
    )  # fmt: skip
    got = out.bytes.view(np.float16).reshape(M, N)
    # small integers: every sum is exact
    want = x.astype(int) @ (codes.astype(int) - 8) + bias.astype(int)
    np.testing.assert_array_equal(got[:rows], want[:rows])
    assert np.isnan(got[rows:]).all()


def test_the_tile_accumulates(rng):
    a = rng.standard_normal((32, 16)).astype(np.float16).view(np.uint32)
    b = rng.standard_normal((32, 8)).astype(np.float16).view(np.uint32)
    c = rng.standard_normal((32, 8)).astype(np.float32)
    zero = np.zeros_like(c)
    product = mma_rows(1).twin(a, b, b, zero)
    np.testing.assert_allclose(mma_rows(1).twin(a, b, b, c), product + c, rtol=1e-5, atol=1e-5)
