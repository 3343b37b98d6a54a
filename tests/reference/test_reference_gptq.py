"""The reference of the GPTQ checkpoint format: hand-made words, loops, and inverse pairs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ferrum_numba.reference import gptq


def nibble(word, i):
    return (int(word) & 0xFFFFFFFF) >> 4 * i & 15


def test_a_word_holds_eight_rows_of_a_column():
    qweight = np.array([[0x76543210, 0x0EDCBA98]], np.int32)
    want = np.array([np.arange(8), [8, 9, 10, 11, 12, 13, 14, 0]], np.uint8).T
    np.testing.assert_array_equal(gptq.unpack_codes(qweight), want)
    np.testing.assert_array_equal(gptq.pack_codes(want), qweight)


def test_codes_equal_a_loop_over_the_formula(rng):
    qweight = rng.integers(-(2**31), 2**31, size=(3, 5)).astype(np.int32)
    codes = gptq.unpack_codes(qweight)
    assert codes.shape == (24, 5)
    assert codes.dtype == np.uint8
    for k in range(24):
        for n in range(5):
            assert codes[k, n] == nibble(qweight[k // 8, n], k % 8)


@pytest.mark.parametrize("place", range(8))
def test_every_code_in_every_nibble_survives(place):
    codes = np.full((8, 16), 5, np.uint8)
    codes[place] = np.arange(16)
    packed = gptq.pack_codes(codes)
    assert [nibble(word, place) for word in packed[0]] == list(range(16))
    np.testing.assert_array_equal(gptq.unpack_codes(packed), codes)


def test_codes_of_a_transposed_view_are_read_by_index(rng):
    qweight = rng.integers(-(2**31), 2**31, size=(8, 2)).astype(np.int32).T
    want = gptq.unpack_codes(np.ascontiguousarray(qweight))
    np.testing.assert_array_equal(gptq.unpack_codes(qweight), want)


def test_v1_zero_points_are_one_less_on_disk():
    # 8 everywhere, what every symmetric checkpoint holds
    assert (gptq.unpack_zero_points(np.array([[0x77777777]], np.int32)) == 8).all()
    v2 = np.array([[0x88888888]], np.uint32).view(np.int32)
    assert (gptq.unpack_zero_points(v2, "gptq_v2") == 8).all()


def test_a_v1_zero_point_of_zero_borrows_from_its_neighbour():
    zero_points = np.array([[0, 9, 0, 0, 15, 1, 0, 3]], np.uint8)
    word = (0x3_0_1_F_0_0_9_0 - 0x11111111) & 0xFFFFFFFF
    packed = gptq.pack_zero_points(zero_points)
    assert packed.view(np.uint32).tolist() == [[word]]
    # what a decoder that adds 1 to each nibble would return differs
    assert [(nibble(word, i) + 1) & 15 for i in range(8)] != zero_points[0].tolist()
    np.testing.assert_array_equal(gptq.unpack_zero_points(packed), zero_points)


@pytest.mark.parametrize("checkpoint_format", ["gptq", "gptq_v2"])
@given(zero_points=arrays(np.uint8, (2, 16), elements=st.integers(0, 15)))
def test_zero_points_survive_packing(checkpoint_format, zero_points):
    packed = gptq.pack_zero_points(zero_points, checkpoint_format)
    assert packed.shape == (2, 2)
    assert packed.dtype == np.int32
    got = gptq.unpack_zero_points(packed, checkpoint_format)
    np.testing.assert_array_equal(got, zero_points)


def test_v2_zero_points_lie_in_plain_order():
    zero_points = np.arange(16, dtype=np.uint8)[None]
    packed = gptq.pack_zero_points(zero_points, "gptq_v2")
    assert packed.view(np.uint32).tolist() == [[0x76543210, 0xFEDCBA98]]


@given(words=arrays(np.int32, (2, 3), elements=st.integers(-(2**31), 2**31 - 1)))
def test_nibbles_of_any_word_survive(words):
    nibbles = gptq.unpack_nibbles(words)
    assert nibbles[0, 0].tolist() == [nibble(words[0, 0], i) for i in range(8)]
    np.testing.assert_array_equal(gptq.pack_nibbles(nibbles), words)


@pytest.mark.parametrize("checkpoint_format", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "act_order"])
def test_dequantize_equals_a_loop_in_exact_arithmetic(rng, checkpoint_format, ordered):
    K, N, G = 32, 8, 4
    codes = rng.integers(0, 16, size=(K, N), dtype=np.uint8)
    zero_points = rng.integers(0, 16, size=(G, N), dtype=np.uint8)
    # subnormal and large scales too: the product must not round
    scales = (2.0 ** rng.integers(-24, 12, size=(G, N)) * rng.random((G, N))).astype(np.float16)
    g_idx = None if ordered else rng.permutation(np.arange(K) // 8).astype(np.int32)
    got = gptq.dequantize(
        gptq.pack_codes(codes), scales, gptq.pack_zero_points(zero_points, checkpoint_format),
        g_idx, checkpoint_format,
    )  # fmt: skip
    assert got.dtype == np.float32
    for k in range(K):
        g = k // 8 if ordered else g_idx[k]
        for n in range(N):
            want = float(scales[g, n]) * (int(codes[k, n]) - int(zero_points[g, n]))
            assert float(got[k, n]) == want


def test_dequantize_without_zero_points_is_symmetric():
    codes = np.arange(16, dtype=np.uint8)[:, None].repeat(8, axis=1)
    got = gptq.dequantize(gptq.pack_codes(codes), np.ones((1, 8), np.float16), None)
    np.testing.assert_array_equal(got[:, 3], np.arange(16) - 8)


def test_wrong_tensors_are_refused_in_numbers():
    with pytest.raises(ValueError, match=r'must be "gptq" or "gptq_v2"; got "marlin"'):
        gptq.unpack_zero_points(np.zeros((1, 1), np.int32), "marlin")
    with pytest.raises(ValueError, match=r"codes must be \[multiple of 8.*got \[9, 4\]"):
        gptq.pack_codes(np.zeros((9, 4), np.uint8))
    with pytest.raises(ValueError, match=r"zero points must be .*multiple of 8\]; got \[1, 12\]"):
        gptq.pack_zero_points(np.zeros((1, 12), np.uint8))
    with pytest.raises(ValueError, match=r"codes must be 0\.\.15; got 16"):
        gptq.pack_codes(np.full((8, 1), 16, np.uint8))
    with pytest.raises(ValueError, match=r"codes must be a matrix of uint8; got \[8, 1\] int64"):
        gptq.pack_codes(np.zeros((8, 1), np.int64))
    with pytest.raises(ValueError, match=r"qweight must be a matrix of int32; got \[4\] float32"):
        gptq.unpack_codes(np.zeros(4, np.float32))
