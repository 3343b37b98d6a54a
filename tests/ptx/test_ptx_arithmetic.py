"""Twins of arithmetic, conversions and shuffles, against exact arithmetic and known results."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from numba import cuda
from numba.core.errors import TypingError
from numba.cuda import types
from ptx_cases import assert_same_bits
from ptx_floats import (
    BF16,
    F16,
    F32,
    SPECIAL_BF16,
    SPECIAL_F16,
    SPECIAL_F32,
    decode,
    encode,
    rounded_fma,
)

from ferrum_numba import ptx

FORMATS = {"f16": (F16, SPECIAL_F16), "bf16": (BF16, SPECIAL_BF16)}
EXPRESSIONS = {
    "add": lambda a, b: (a, 1.0, b),
    "sub": lambda a, b: (b, -1.0, a),
    "mul": lambda a, b: (a, b, -0.0),
    "fma": lambda a, b, c: (a, b, c),
}
LANES = np.arange(32, dtype=np.uint32)


def u32(*values):
    return np.array(values, np.uint32)


def signed(special):
    return np.concatenate([special, special | np.uint16(0x8000)])


def as_pairs(halves):
    """Return words of [n] uint16, padded with zero to an even number."""
    return np.concatenate([halves, np.zeros(len(halves) % 2, np.uint16)]).view(np.uint32)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("verb", ["add", "sub", "mul"])
def test_pair_operation_rounds_every_pair_of_special_values_once(verb, dtype):
    form, special = FORMATS[dtype]
    rows = np.array(list(itertools.product(signed(special), repeat=2)), np.uint16)
    a, b = (as_pairs(column.copy()) for column in rows.T)
    got = getattr(ptx, f"{verb}_{dtype}x2").twin(a, b).view(np.uint16)
    values = [[decode(bits, form) for bits in row] for row in rows.tolist()]
    want = [rounded_fma(*EXPRESSIONS[verb](*row), form) for row in values]
    np.testing.assert_array_equal(got, np.array(want, np.uint16))


@pytest.mark.parametrize("dtype", FORMATS)
def test_fma_rounds_special_and_random_values_once(dtype, rng):
    form, special = FORMATS[dtype]
    rows = np.concatenate(
        [
            np.array(list(itertools.product(signed(special[::3]), repeat=3)), np.uint16),
            rng.integers(0, 2**16, (2000, 3), dtype=np.uint16),
        ]
    )
    a, b, c = (as_pairs(column.copy()) for column in rows.T)
    got = getattr(ptx, f"fma_{dtype}x2").twin(a, b, c).view(np.uint16)
    values = [[decode(bits, form) for bits in row] for row in rows.tolist()]
    want = [rounded_fma(*row, form) for row in values]
    np.testing.assert_array_equal(got[: len(want)], np.array(want, np.uint16))


@pytest.mark.parametrize(
    ("dtype", "operands", "want"),
    [
        # 683 * 3 = 2049 is halfway from 2048 to 2050; a tie goes to even
        pytest.param("f16", (0x6156, 0x4200, 0x0000), 0x6800, id="f16-tie"),
        # 2**-24 more, which fp32 would have lost
        pytest.param("f16", (0x6156, 0x4200, 0x0001), 0x6801, id="f16-above-tie"),
        # 7 * 37 = 259 is halfway from 258 to 260; 9 * 29 = 261 from 260 to 262
        pytest.param("bf16", (0x40E0, 0x4214, 0x0000), 0x4382, id="bf16-tie-up"),
        pytest.param("bf16", (0x4110, 0x41E8, 0x0000), 0x4382, id="bf16-tie-down"),
        # 2**-100 less or more, which float64 would have lost
        pytest.param("bf16", (0x40E0, 0x4214, 0x8D80), 0x4381, id="bf16-below-tie"),
        pytest.param("bf16", (0x4110, 0x41E8, 0x0D80), 0x4383, id="bf16-above-tie"),
    ],
)
def test_fma_of_known_cases(dtype, operands, want):
    got = getattr(ptx, f"fma_{dtype}x2").twin(*(u32(bits) for bits in operands))
    assert got[0] & 0xFFFF == want


def test_lop3_of_every_table_and_every_bit_combination():
    a, b, c = u32(0xF0), u32(0xCC), u32(0xAA)
    for lut in range(256):
        assert ptx.lop3.twin(a, b, c, lut)[0] & 0xFF == lut


def test_lop3_magic_turns_every_int4_code_into_fp16():
    """(w & 0x000f000f) | 0x64006400 is the pair 1024 + q; minus 1032, the weight q - 8."""
    low, high = np.meshgrid(np.arange(16, dtype=np.uint32), np.arange(16, dtype=np.uint32))
    words = (low | high << 16).ravel() | np.uint32(0xABC0ABC0)
    mask, magic = np.full_like(words, 0x000F000F), np.full_like(words, 0x64006400)
    pair = ptx.lop3.twin(words, mask, magic, 0xEA)
    got = ptx.sub_f16x2.twin(pair, np.full_like(words, 0x64086408)).view(np.float16)
    np.testing.assert_array_equal(got[0::2], low.ravel().astype(np.float16) - 8)
    np.testing.assert_array_equal(got[1::2], high.ravel().astype(np.float16) - 8)


def test_an_and_turns_every_int4_code_into_an_fp16_subnormal():
    words = np.arange(16, dtype=np.uint32) | np.arange(16, dtype=np.uint32)[::-1] << 16
    scaled = ptx.mul_f16x2.twin(words, np.full_like(words, 0x6C006C00)).view(np.float16)  # 2**12
    np.testing.assert_array_equal(scaled[0::2], np.arange(16) * 2.0**-12)
    np.testing.assert_array_equal(scaled[1::2], np.arange(16)[::-1] * 2.0**-12)


@pytest.mark.parametrize(
    ("selector", "want"),
    [
        pytest.param(0x3210, 0x33221180, id="a"),
        pytest.param(0x7654, 0x77665544, id="b"),
        pytest.param(0x0123, 0x80112233, id="reversed"),
        pytest.param(0x5410, 0x55441180, id="low-halves"),
        pytest.param(0x8888, 0xFFFFFFFF, id="sign-of-0x80"),
        pytest.param(0x9C18, 0x000011FF, id="signs-and-bytes"),
    ],
)
def test_prmt_of_known_selectors(selector, want):
    got = ptx.prmt.twin(u32(0x33221180), u32(0x77665544), u32(selector))
    assert got[0] == want


def test_every_fp16_and_bf16_widens_exactly_and_comes_back():
    every = np.arange(2**16, dtype=np.uint16)
    for dtype, (form, _) in FORMATS.items():
        wide = getattr(ptx, f"{dtype}_to_f32").twin(every)
        want = np.array([decode(bits, form) for bits in every.tolist()], np.float32)
        assert_same_bits(wide, want)
        back = getattr(ptx, f"f32_to_{dtype}").twin(wide)
        np.testing.assert_array_equal(back, np.where(np.isnan(want), 0x7FFF, every))


@pytest.mark.parametrize("dtype", FORMATS)
def test_fp32_narrows_with_one_rounding(dtype, rng):
    form, _ = FORMATS[dtype]
    special = np.concatenate([SPECIAL_F32, SPECIAL_F32 | np.uint32(2**31)])
    bits = np.concatenate([special, rng.integers(0, 2**32, 3000, dtype=np.uint32)])
    want = [rounded_fma(decode(b, F32), 1.0, -0.0, form) for b in bits.tolist()]
    got = getattr(ptx, f"f32_to_{dtype}").twin(bits.view(np.float32))
    np.testing.assert_array_equal(got, np.array(want, np.uint16))


def test_pack_puts_the_first_operand_into_the_low_half():
    one, two = np.float32([1.0]), np.float32([2.0])
    assert ptx.pack_f16x2.twin(one, two)[0] == 0x40003C00
    assert ptx.pack_bf16x2.twin(one, two)[0] == 0x40003F80
    np.testing.assert_array_equal(ptx.unpack_f16x2.twin(u32(0x40003C00)), [[1.0, 2.0]])
    np.testing.assert_array_equal(ptx.unpack_bf16x2.twin(u32(0x40003F80)), [[1.0, 2.0]])


def test_bits_of_fp32_survive_including_a_signalling_nan():
    bits = np.concatenate([SPECIAL_F32, SPECIAL_F32 | np.uint32(2**31)])
    got = ptx.f32_bits.twin(ptx.bits_f32.twin(bits))
    np.testing.assert_array_equal(got, bits)


def test_splat_copies_each_lane_and_is_made_once():
    got = ptx.splat_f32(3).twin(np.float32([1.0, 2.0]))
    np.testing.assert_array_equal(got, [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    assert ptx.splat_f32(3) is ptx.splat_f32(3)


@pytest.mark.parametrize(
    ("op", "operand", "want"),
    [
        pytest.param(ptx.shfl_idx, 7, np.full(32, 7), id="idx"),
        pytest.param(ptx.shfl_idx, 33, np.full(32, 1), id="idx-wraps"),
        pytest.param(ptx.shfl_xor, 1, LANES ^ 1, id="xor"),
        pytest.param(ptx.shfl_down, 16, [*range(16, 32), *range(16, 32)], id="down"),
        pytest.param(ptx.shfl_up, 4, [0, 1, 2, 3, *range(28)], id="up"),
    ],
)
def test_shuffle_of_known_operands(op, operand, want):
    np.testing.assert_array_equal(op.twin(LANES, np.full(32, operand, np.uint32)), want)


def test_ballot_gives_every_lane_the_same_word():
    got = ptx.ballot.twin((LANES % 3 == 0).astype(np.uint32) * 5)
    np.testing.assert_array_equal(got, np.full(32, 0b01001001001001001001001001001001))


def test_match_any_groups_lanes_of_equal_values():
    got = ptx.match_any.twin(LANES // 16)
    np.testing.assert_array_equal(got, [0x0000FFFF] * 16 + [0xFFFF0000] * 16)


def test_reference_rounding_of_known_values():
    assert encode(Fraction(decode(0x3555, F16)), F16) == 0x3555
    assert rounded_fma(65504.0, 1.0, 15.99, F16) == 0x7BFF
    assert rounded_fma(65504.0, 1.0, 16.0, F16) == 0x7C00
    assert rounded_fma(-(2.0**-25), 1.0, 0.0, F16) == 0x8000
    assert rounded_fma(np.inf, 0.0, 0.0, F16) == 0x7FFF


def test_a_float_is_no_register_of_bits():
    def kernel(out):
        ptx.shfl_xor(types.float32(cuda.threadIdx.x), 1)

    with pytest.raises(TypingError, match="value must be u32, not float32; see f32_bits"):
        cuda.compile(kernel, types.void(types.uint64), device=False, abi="numba", cc=(8, 0))
