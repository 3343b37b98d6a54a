"""The reference GEMM against loops, by hand, and in every one of its terms."""

from fractions import Fraction

import numpy as np
import pytest

from ferrum_numba.reference import w4a16, w4a16_gemm


def operands(rng, M=3, N=5, K=24, G=3):
    return {
        "x": rng.standard_normal((M, K)).astype(np.float16),
        "codes": rng.integers(0, 16, size=(K, N), dtype=np.uint8),
        "scales": rng.uniform(0.005, 0.015, size=(G, N)).astype(np.float16),
        "zero_points": rng.integers(0, 16, size=(G, N), dtype=np.uint8),
        "g_idx": rng.permutation(np.arange(K) // (K // G)).astype(np.int32),
        "bias": rng.standard_normal(N).astype(np.float16),
    }


def by_loops(x, codes, scales, zero_points=None, g_idx=None, bias=None):
    """Sum in exact rational arithmetic, rounded once."""
    (M, K), N, G = x.shape, codes.shape[1], len(scales)
    out = np.empty((M, N), np.float32)
    for m, n in np.ndindex(M, N):
        total = Fraction(0) if bias is None else Fraction(float(bias[n]))
        for k in range(K):
            g = k // (K // G) if g_idx is None else g_idx[k]
            zero = 8 if zero_points is None else int(zero_points[g, n])
            weight = Fraction(float(scales[g, n])) * (int(codes[k, n]) - zero)
            total += Fraction(float(x[m, k])) * weight
        out[m, n] = np.float32(float(total))
    return out


@pytest.mark.parametrize(
    "absent",
    [(), ("zero_points",), ("g_idx",), ("bias",), ("zero_points", "g_idx", "bias")],
    ids=lambda names: "without_" + "_".join(names) if names else "all_terms",
)
def test_gemm_equals_exact_sums(rng, absent):
    given = {name: a for name, a in operands(rng).items() if name not in absent}
    got = w4a16_gemm(**given)
    assert got.dtype == np.float32
    # float64 sums may differ from exact ones by one float32 rounding where they cancel
    np.testing.assert_allclose(got, by_loops(**given), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", ["zero_points", "g_idx", "bias"])
def test_every_optional_term_matters(rng, name):
    given = operands(rng)
    without = {key: a for key, a in given.items() if key != name}
    assert np.abs(w4a16_gemm(**given) - w4a16_gemm(**without)).max() > 1e-3


def test_a_result_known_by_hand():
    x = np.array([[1, 2] + [0] * 6 + [4] + [0] * 7], np.float16)
    codes = np.full((16, 1), 8, np.uint8)
    codes[0], codes[1], codes[8] = 9, 6, 15
    scales = np.array([[0.5], [0.25]], np.float16)
    # 1*(9-8)/2 + 2*(6-8)/2 + 4*(15-8)/4 + 10
    got = w4a16_gemm(x, codes, scales, bias=np.array([10], np.float16))
    assert got.tolist() == [[0.5 - 2 + 7 + 10]]


def test_one_row_of_scales_serves_all_rows(rng):
    given = operands(rng, G=1)
    x, codes, scales = given["x"], given["codes"], given["scales"]
    want = x.astype(np.float64) @ ((codes.astype(np.float64) - 8) * scales[0].astype(np.float64))
    np.testing.assert_allclose(w4a16_gemm(x, codes, scales), want, rtol=1e-6)


def test_columns_beyond_one_block_are_computed_alike(rng):
    given = operands(rng, M=2, N=2 * w4a16.BLOCK_COLUMNS + 8, K=16, G=2)
    whole = w4a16_gemm(**given)
    per_column = {"codes", "scales", "zero_points", "bias"}
    for n in (0, w4a16.BLOCK_COLUMNS, whole.shape[1] - 8):
        part = {k: a[..., n : n + 8] if k in per_column else a for k, a in given.items()}
        np.testing.assert_allclose(whole[:, n : n + 8], w4a16_gemm(**part), rtol=1e-6, atol=1e-9)


def test_rows_beyond_one_block_are_dequantised_alike(rng):
    K = 2 * w4a16.BLOCK_ROWS + 16
    given = operands(rng, K=K, G=K // 16)
    got = w4a16.dequantize_codes(given["codes"], given["scales"], given["zero_points"])
    group = np.arange(K) // 16
    step = given["codes"].astype(int) - given["zero_points"][group]
    np.testing.assert_array_equal(got, given["scales"][group].astype(np.float64) * step)


def test_wrong_shapes_are_refused_in_numbers(rng):
    given = operands(rng)
    with pytest.raises(ValueError, match=r"x must be \[M, 24\] for these codes; got \[3, 23\]"):
        w4a16_gemm(**given | {"x": given["x"][:, 1:]})
    with pytest.raises(ValueError, match=r"scales must be \[G, 5\] for these codes; got \[3, 4\]"):
        w4a16_gemm(**given | {"scales": given["scales"][:, 1:]})
    with pytest.raises(ValueError, match=r"zero points must be \[3, 5\] .* got \[2, 5\]"):
        w4a16_gemm(**given | {"zero_points": given["zero_points"][1:]})
    with pytest.raises(ValueError, match=r"bias must be \[5\] for these codes; got \[4\]"):
        w4a16_gemm(**given | {"bias": given["bias"][1:]})
    with pytest.raises(ValueError, match=r"g_idx must be \[24\], one group a row; got \[23\]"):
        w4a16_gemm(**given | {"g_idx": given["g_idx"][1:]})
    with pytest.raises(ValueError, match=r"g_idx must be 0\.\.2; got 1\.\.3"):
        w4a16_gemm(**given | {"g_idx": given["g_idx"] + 1})
    with pytest.raises(ValueError, match=r"24 rows do not divide into 5 groups"):
        w4a16.dequantize_codes(given["codes"], np.ones((5, 5), np.float16))
