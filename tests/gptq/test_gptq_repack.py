"""Packing on the CPU without unpacking: bit for bit what packing the codes gives, and back."""

import numpy as np
import pytest

from ferrum_numba.errors import ProblemError
from ferrum_numba.gptq import repack as module
from ferrum_numba.gptq.repack import gptq_weight, marlin_weight
from ferrum_numba.reference.gptq import pack_codes, unpack_codes
from ferrum_numba.reference.marlin_layout import pack_weight, unpack_weight
from ferrum_numba.reference.w4a16 import dequantize_codes

SHAPES = [(16, 64), (32, 192), (128, 64), (208, 832), (640, 256)]


@pytest.fixture(params=[1 << 6, module.BLOCK_WORDS], ids=["small-blocks", "blocks"])
def _blocks(request, monkeypatch):
    # small: a block is one row of tiles, and threads share them
    monkeypatch.setattr(module, "BLOCK_WORDS", request.param)


def random_words(rng, K, N):
    return rng.integers(0, 2**32, (K // 8, N), np.uint32).view(np.int32)


def closed_form(codes):
    """Return the packed words of codes, nibble by nibble as the layout is published."""
    K, N = codes.shape
    packed = np.zeros((K // 16, 2 * N), np.uint32)
    for k_tile, n_tile, lane, j in np.ndindex(K // 16, N // 64, 32, 4):
        word = 0
        for p in range(8):
            half, sel = p >> 2, p & 3
            k = 16 * k_tile + 2 * (lane & 3) + half + 8 * (sel & 1)
            n = 64 * n_tile + 16 * j + 8 * (sel >> 1) + (lane >> 2)
            word |= int(codes[k, n]) << 4 * p
        packed[k_tile, 128 * n_tile + 4 * lane + j] = word
    return packed.view(np.int32)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packed_words_equal_packed_codes(rng, shape):
    words = random_words(rng, *shape)
    packed = marlin_weight(words)
    assert packed.dtype == np.int32
    np.testing.assert_array_equal(packed, pack_weight(unpack_codes(words)))


def test_packed_words_equal_a_loop_over_the_closed_form(rng):
    words = random_words(rng, 48, 192)
    np.testing.assert_array_equal(marlin_weight(words), closed_form(unpack_codes(words)))


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_perm_moves_rows_of_codes(rng, shape):
    words, perm = random_words(rng, *shape), rng.permutation(shape[0]).astype(np.int32)
    want = pack_weight(unpack_codes(words)[perm])
    np.testing.assert_array_equal(marlin_weight(words, perm), want)
    assert not np.array_equal(want, marlin_weight(words))


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("with_perm", [False, True])
@pytest.mark.parametrize("shape", [(24, 72), (16, 8), (136, 576), (64, 64)], ids=str)
def test_what_does_not_divide_is_padded_with_codes_8(rng, shape, with_perm):
    K, N = shape
    words = random_words(rng, K, N)
    perm = rng.permutation(K).astype(np.int32) if with_perm else None
    codes = np.full((192, 640), 8, np.uint8)
    codes[:K, :N] = unpack_codes(words) if perm is None else unpack_codes(words)[perm]
    np.testing.assert_array_equal(marlin_weight(words, perm, (192, 640)), pack_weight(codes))


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("with_perm", [False, True])
@pytest.mark.parametrize("columns", [(64, 128), (8, 40, 24), (200, 8)], ids=str)
def test_parts_are_packed_as_if_they_were_one(rng, columns, with_perm):
    parts = [random_words(rng, 80, N) for N in columns]
    perm = rng.permutation(80).astype(np.int32) if with_perm else None
    shape = (128, 256)
    want = marlin_weight(np.concatenate(parts, axis=1), perm, shape)
    np.testing.assert_array_equal(marlin_weight(parts, perm, shape), want)
    np.testing.assert_array_equal(
        marlin_weight(tuple(parts[:1]), perm, shape), marlin_weight(parts[0], perm, shape)
    )


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("shape", [(16, 64), (24, 72), (208, 832), (136, 8)], ids=str)
def test_a_weight_comes_back(rng, shape):
    words = random_words(rng, *shape)
    packed = marlin_weight(words, shape=(208, 832))
    np.testing.assert_array_equal(gptq_weight(packed, shape), words)


def test_the_way_back_equals_unpacking(rng):
    packed = random_words(rng, 8 * 5, 384)
    np.testing.assert_array_equal(gptq_weight(packed), pack_codes(unpack_weight(packed)))


def test_a_weight_that_is_no_block_of_memory_is_packed_too(rng):
    words = random_words(rng, 64, 256)
    words.flags.writeable = False
    np.testing.assert_array_equal(
        marlin_weight(words[:, 64:192]), marlin_weight(words[:, 64:192].copy())
    )


@pytest.mark.parametrize("experts", [2, 3])
def test_experts_are_packed_one_by_one_and_not_side_by_side(rng, experts):
    # tiles are stored K first: of a concatenation, they interleave the experts
    words = [random_words(rng, 64, 128) for _ in range(experts)]
    stack = np.stack([marlin_weight(w) for w in words])
    for e in range(experts):
        np.testing.assert_array_equal(unpack_weight(stack[e]), unpack_codes(words[e]))
    side_by_side = marlin_weight(np.concatenate(words, axis=1)).reshape(stack.shape)
    assert not np.array_equal(unpack_weight(side_by_side[0]), unpack_codes(words[0]))


def test_gathered_activations_times_a_sorted_weight_are_the_original_product(rng):
    K, N, G, M = 512, 256, 4, 3
    words = random_words(rng, K, N)
    scales = rng.uniform(0.005, 0.015, (G, N)).astype(np.float16)
    x = rng.standard_normal((M, K)).astype(np.float16).astype(np.float64)
    g_idx = np.arange(K, dtype=np.int32) % G
    perm = np.argsort(g_idx, kind="stable").astype(np.int32)
    # sorted, the rows of a group lie together: the codes need no g_idx any more
    ordered = dequantize_codes(unpack_weight(marlin_weight(words, perm)), scales)
    original = dequantize_codes(unpack_codes(words), scales, None, g_idx)
    want = x @ original
    assert np.abs(x[:, perm] @ ordered - want).max() < 1e-3
    assert np.abs(x @ ordered - want).max() > 0.1
    unsorted = dequantize_codes(unpack_weight(marlin_weight(words)), scales)
    assert np.abs(x[:, perm] @ unsorted - want).max() > 0.1


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((3, 64), {}, "K a multiple of 16 and N of 64; got K = 24, N = 64: pad to 32 and 64"),
        ((4, 72), {}, "got K = 32, N = 72: pad to 32 and 128"),
        ((4, 64), {"shape": (40, 64)}, "got K = 40, N = 64: pad to 48 and 64"),
        ((4, 128), {"shape": (32, 64)}, "K = 32, N = 128 cannot be padded to 32 and 64"),
        ((4, 64), {"shape": (16, 64)}, "K = 32, N = 64 cannot be padded to 16 and 64"),
        ((2, 64, 1), {}, "qweight must be a matrix of int32; got [2, 64, 1] int32"),
        ((0, 64), {}, "qweight must be a matrix of int32; got [0, 64] int32"),
        ((2, 64), {"perm": np.arange(8)}, "perm must be [16] integers for this weight; got [8]"),
        ((2, 64), {"perm": np.arange(16.0)}, "for this weight; got [16] float64"),
        ((2, 64), {"perm": np.zeros(16, np.int32)}, "perm must hold each row of 0..15 once"),
        ((2, 64), {"perm": np.arange(16) - 1}, "perm must hold each row of 0..15 once"),
    ],
)
def test_what_cannot_be_packed_is_refused_in_numbers(shape, options, words):
    with pytest.raises(ProblemError) as refused:
        marlin_weight(np.zeros(shape, np.int32), **options)
    assert words in str(refused.value)


def test_codes_of_another_width_are_refused():
    with pytest.raises(ProblemError, match=r"must be a matrix of int32; got \[2, 64\] int64"):
        marlin_weight(np.zeros((2, 64), np.int64))


@pytest.mark.parametrize(
    ("packed", "shape", "words"),
    [
        ((1, 64), None, "a packed weight must be [K/16, multiple of 128]; got [1, 64]"),
        ((1, 128), (24, 64), "of K = 16, N = 64 holds no weight of K = 24, N = 64"),
        ((2, 128), (12, 64), "holds no weight of K = 12, N = 64"),
        ((2, 128), (16, 72), "of K = 32, N = 64 holds no weight of K = 16, N = 72"),
    ],
)
def test_what_cannot_be_unpacked_is_refused_in_numbers(packed, shape, words):
    with pytest.raises(ProblemError) as refused:
        gptq_weight(np.zeros(packed, np.int32), shape)
    assert words in str(refused.value)


@pytest.mark.usefixtures("_blocks")
def test_an_error_in_a_block_is_not_lost(rng, monkeypatch):
    monkeypatch.setattr(module, "_to_marlin", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        marlin_weight(random_words(rng, 208, 832))
