"""A v1 zero point stored as 15: what each reading makes of it, and that nobody need guess."""

import warnings

import gptq_layers as build
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ferrum_numba import GptqCheckpoint, GptqTensors, ProblemError
from ferrum_numba.errors import ZeroOverflowWarning
from ferrum_numba.gptq import overflow
from ferrum_numba.gptq.convert import convert_checkpoint

WORDS = arrays(np.int32, (2, 1), elements=st.integers(-(2**31), 2**31 - 1))


def stored(*nibbles):
    """Return [1, 1] int32 of a word's nibbles, the lowest first."""
    return build.words(np.array([[nibbles]], np.uint8))


def weight(qzeros, reading, codes=None):
    codes = np.full((8, 8), 5, np.uint8) if codes is None else codes
    layer = GptqTensors.make(
        "x", build.pack_rows(codes), np.ones((len(qzeros), 8), np.float16), qzeros,
        group_size=len(codes) // len(qzeros), zero_overflow=reading,
    )  # fmt: skip
    return build.weight_of(layer)


ZEROS = {
    # the second 15 goes on to 17: its 1 stays, and the next column gets the carry
    "carry": (0, 1, 9, 10, 15, 0, 9, 8),
    "wrap": (0, 0, 8, 10, 15, 0, 8, 8),
    "sixteen": (16, 16, 8, 10, 15, 16, 8, 8),
}


@pytest.mark.parametrize("reading", overflow.READINGS)
def test_each_reading(reading):
    qzeros = stored(15, 15, 7, 9, 14, 15, 7, 7)
    true = np.array(ZEROS[reading])
    np.testing.assert_array_equal(weight(qzeros, reading), np.tile(5.0 - true, (8, 1)))


@given(words=WORDS)
def test_readings_of_any_words(words):
    nibbles = words.view(np.uint32)[..., None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15
    nibbles = nibbles.reshape(2, 8).astype(np.float32)
    codes = np.full((16, 8), 3, np.uint8)
    true = {"wrap": (nibbles + 1) % 16, "sixteen": nibbles + 1}
    for reading, zeros in true.items():
        np.testing.assert_array_equal(weight(words, reading, codes), 3 - np.repeat(zeros, 8, 0))
    assert overflow.count(words) == (nibbles == 15).sum()
    np.testing.assert_array_equal(overflow.of_15(words), nibbles == 15)


def test_by_default_it_is_a_carry_with_a_warning():
    qzeros = stored(7, 15, 7, 7, 15, 7, 7, 7)
    words = 'x: 2 of 8 stored zero points are 15, which is read as zero_overflow = "carry"; say so'
    with pytest.warns(ZeroOverflowWarning, match=words) as told:
        got = weight(qzeros, None)
    assert told[0].filename == __file__
    np.testing.assert_array_equal(got, weight(qzeros, "carry"))


@pytest.mark.parametrize("reading", [None, *overflow.READINGS])
def test_other_zero_points_are_read_alike_and_not_copied(rng, reading):
    layer = build.make(rng)
    layer.zeros[layer.zeros == 0] = 1
    tensors = layer.gptq()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = GptqTensors.make("x", **tensors, group_size=32, zero_overflow=reading)
    build.check(got, layer)
    assert got.qzeros is tensors["qzeros"]
    assert got.qweight is tensors["qweight"]


@pytest.mark.parametrize("kind", [{"sym": True}, {"checkpoint_format": "gptq_v2"}])
def test_where_15_is_no_question(kind):
    tensors = {"qweight": np.zeros((1, 8), np.int32), "scales": np.ones((1, 8), np.float16)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = GptqTensors.make("x", **tensors, qzeros=stored(*[15] * 8), group_size=8, **kind)
    assert got.symmetric == ("sym" in kind)


def test_sixteen_in_act_order(rng):
    layer = build.make(rng, 64, 8, 32, act_order=True)
    layer.codes[layer.codes == 0] = 1
    qzeros = np.concatenate([stored(15, 3, 15, 0, 0, 0, 0, 15), stored(1, 15, 2, 0, 0, 0, 0, 15)])
    tensors = layer.gptq() | {"qzeros": qzeros}
    got = GptqTensors.make("x", **tensors, group_size=32, zero_overflow="sixteen")
    layer.zeros = np.array([[16, 4, 16, 1, 1, 1, 1, 16], [2, 16, 3, 1, 1, 1, 1, 16]], np.uint8)
    np.testing.assert_array_equal(build.weight_of(got), layer.weight)


def test_what_int4_cannot_hold_is_refused():
    codes = np.full((8, 8), 1, np.uint8)
    codes[3, 6] = 0
    words = "x: a zero point of 16 with a code of 0, as in row 3, column 6, is outside of int4"
    with pytest.raises(ProblemError, match=words):
        weight(stored(*[15] * 8), "sixteen", codes)


def test_a_reading_that_is_none():
    words = 'zero_overflow must be one of "carry", "wrap", "sixteen"; got "16"'
    with pytest.raises(ProblemError, match=words.replace('"16"', "'16'")):
        weight(stored(*[0] * 8), "16")


def test_an_unknown_reading_is_refused_before_anything_is_read(tmp_path):
    words = '^zero_overflow must be one of "carry", "wrap", "sixteen"; got \'16\'$'
    with pytest.raises(ProblemError, match=words):
        GptqCheckpoint.open(tmp_path / "nowhere", zero_overflow="16")
    with pytest.raises(ProblemError, match=words):
        convert_checkpoint(tmp_path / "nowhere", tmp_path / "x", "awq", zero_overflow="16")
