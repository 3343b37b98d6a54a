"""8-bit activations: the GEMM against exact sums, the rounding of rows against its definition."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from ferrum_numba.reference import w4a8_gemm
from ferrum_numba.reference.quantize_rows import LARGEST, LEAST, X_TYPES, quantize_rows

E4M3 = ml_dtypes.float8_e4m3fn
# every finite value of e4m3, in order
VALUES = np.unique(np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32))
VALUES = VALUES[np.isfinite(VALUES)]


def operands(rng, M=3, N=5, K=264, group=24, x_dtype="fp8", x_group=-1):
    x = (rng.standard_normal((M, K)) * [[1], [100], [0.001]]).astype(np.float16)
    x8, sx = quantize_rows(x, x_dtype, x_group)
    return {
        "x8": x8,
        "sx": sx,
        "codes": rng.integers(0, 16, size=(K, N), dtype=np.uint8),
        "scales": rng.uniform(0.005, 0.015, size=(K // group, N)).astype(np.float16),
        "zero_points": rng.integers(0, 16, size=(K // group, N), dtype=np.uint8),
        "bias": rng.standard_normal(N).astype(np.float16),
    }


def by_loops(x8, sx, codes, scales, zero_points=None, bias=None):
    """Sum in exact rational arithmetic, rounded once."""
    (M, K), N, group = x8.shape, codes.shape[1], len(codes) // len(scales)
    out = np.empty((M, N), np.float32)
    for m, n in np.ndindex(M, N):
        total = Fraction(0) if bias is None else Fraction(float(bias[n]))
        for k in range(K):
            zero = 8 if zero_points is None else int(zero_points[k // group, n])
            weight = Fraction(float(scales[k // group, n])) * (int(codes[k, n]) - zero)
            factor = Fraction(float(sx[m, k // 128 if sx.shape[1] > 1 else 0]))
            total += Fraction(float(x8[m, k])) * factor * weight
        out[m, n] = np.float32(float(total))
    return out


@pytest.mark.parametrize("x_group", [-1, 128])
@pytest.mark.parametrize("x_dtype", X_TYPES)
@pytest.mark.parametrize("absent", [(), ("zero_points",), ("bias",)], ids=str)
def test_gemm_equals_exact_sums(rng, absent, x_dtype, x_group):
    given = operands(rng, x_dtype=x_dtype, x_group=x_group)
    given = {name: array for name, array in given.items() if name not in absent}
    got = w4a8_gemm(**given)
    assert got.dtype == np.float32
    # float64 sums may differ from exact ones by one float32 rounding where they cancel
    np.testing.assert_allclose(got, by_loops(**given), rtol=1e-7, atol=1e-12)


def test_a_result_known_by_hand():
    x8 = np.array([[1, 2] + [0] * 6 + [4] + [0] * 7], E4M3)
    codes = np.full((16, 1), 8, np.uint8)
    codes[0], codes[1], codes[8] = 9, 6, 15
    scales = np.array([[0.5], [2]], np.float16)
    sx = np.array([0.25], np.float32)
    # 0.25 * (0.5 * (1 * 1 + 2 * -2) + 2 * 4 * 7)
    np.testing.assert_array_equal(w4a8_gemm(x8, sx, codes, scales), [[13.625]])


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.nan, np.inf])
def test_scales_of_x_are_finite_and_above_zero(rng, wrong):
    given = operands(rng)
    given["sx"][1, 0] = wrong
    with pytest.raises(
        ValueError, match=rf"sx must be finite and above 0; got {wrong} at \[1, 0\]"
    ):
        w4a8_gemm(**given)


def test_shapes_and_types_are_refused_in_the_callers_numbers(rng):
    given = operands(rng)
    with pytest.raises(ValueError, match=r"sx must be \[3\] or \[3, 3\] for this x8; got \[2, 1\]"):
        w4a8_gemm(**{**given, "sx": given["sx"][:2]})
    with pytest.raises(ValueError, match="x8 must be float8_e4m3fn or int8; got float16"):
        w4a8_gemm(**{**given, "x8": given["x8"].astype(np.float16)})


@pytest.mark.parametrize("x_group", [-1, 128])
def test_fp8_is_the_nearest_value_and_ties_go_to_even(rng, x_group):
    # ties and their neighbours between every two values, beside a peak that makes the factor 1
    middles = (VALUES[:-1] + VALUES[1:]) / 2
    wanted = np.concatenate([VALUES, middles, np.nextafter(middles, 0), np.nextafter(middles, 999)])
    rows = np.zeros((1, -(-len(wanted) // 127) * 128), np.float32)
    places = np.flatnonzero(np.arange(rows.size) % 128 != 127)[: len(wanted)]
    rows[0, places] = wanted
    rows[0, 127::128] = 448
    x8, sx = quantize_rows(rows, "fp8", x_group)
    assert (sx == 1).all()
    got = x8.astype(np.float32)[0, places].astype(np.float64)
    exact = rows[0, places].astype(np.float64)
    distance = np.abs(VALUES.astype(np.float64)[None] - exact[:, None])
    np.testing.assert_array_equal(np.abs(got - exact), distance.min(axis=1))
    tied = (distance == distance.min(axis=1, keepdims=True)).sum(axis=1) == 2
    assert tied.sum() >= len(middles)
    codes = x8[0, places].view(np.uint8)
    assert (codes[tied] % 2 == 0).all()


@pytest.mark.parametrize("x_dtype", X_TYPES)
def test_rows_come_back_within_half_a_step_and_peaks_are_the_largest(rng, x_dtype):
    x = (rng.standard_normal((5, 200)) * 10.0 ** np.arange(-3, 2)[:, None]).astype(np.float16)
    x8, sx = quantize_rows(x, x_dtype, 128)
    assert (x8.shape, x8.dtype, sx.shape, sx.dtype) == ((5, 200), X_TYPES[x_dtype], (5, 2), "f4")
    back = x8.astype(np.float64) * sx.repeat(128, axis=1)[:, :200]
    step = sx.repeat(128, axis=1)[:, :200] / 2 if x_dtype == "int8" else np.abs(x) / 16
    least = sx.repeat(128, axis=1)[:, :200] * 2.0**-10
    assert (np.abs(back - x) <= np.maximum(step, least) * 1.000001).all()
    for part in (slice(0, 128), slice(128, 200)):
        peak = np.abs(x8[:, part].astype(np.float32)).max(axis=1)
        np.testing.assert_array_equal(peak, LARGEST[x_dtype])


def test_a_row_of_zeros_and_one_of_the_smallest_have_scales(rng):
    x = np.zeros((2, 16), ml_dtypes.bfloat16)
    x[1] = 1e-39
    x8, sx = quantize_rows(x)
    np.testing.assert_array_equal(x8.astype(np.float32), 0)
    np.testing.assert_array_equal(sx, np.float32(LEAST / 448))


def test_columns_are_gathered_first(rng):
    x, perm = rng.standard_normal((4, 256)).astype(np.float16), rng.permutation(256)
    for got, want in zip(
        quantize_rows(x, x_group=128, perm=perm),
        quantize_rows(x[:, perm], x_group=128),
        strict=True,
    ):
        np.testing.assert_array_equal(got.view(f"u{got.itemsize}"), want.view(f"u{want.itemsize}"))
