"""Scales in a narrower type: how much of them may be lost, and what is said."""

import warnings
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from quantised import NAME, layer

from ferrum_numba.errors import PrecisionWarning, ProblemError
from ferrum_numba.gptq.tensors import MOST_SCALE_ERROR
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.linear.dense import MarlinLinear
from ferrum_numba.linear.weight import rounded, rounded_scales


def scaled(values, dtype=ml_dtypes.bfloat16):
    """Return a layer with these scales, a number or one a column."""
    made = layer(128, 64, 64)
    return replace(made, scales=np.broadcast_to(values, made.scales.shape).astype(dtype))


@pytest.mark.parametrize("store", ["marlin", "raw"])
def test_scales_that_fp16_makes_zero_are_refused(store):
    words = (
        f"{NAME}: fp16 makes an error of 100.0% of its scales, which are up to 2e-08; at most 1% "
        'is allowed; dtype="bf16" has the range for it'
    )
    with pytest.raises(ProblemError) as error:
        MarlinLinear.from_gptq(scaled(2e-8), device="cpu", store=store)
    assert str(error.value).endswith(words)
    linear = MarlinLinear.from_gptq(scaled(2e-8), device="cpu", store=store, dtype="bf16")
    assert linear(np.ones((1, 128), ml_dtypes.bfloat16)).astype(np.float32).any()


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("scale", [1e-30, 5e-8, 5e-7])
def test_subnormal_scales_are_refused_by_their_error(scale, dtype):
    with pytest.raises(ProblemError, match="fp16 makes an error of"):
        rounded_scales(scaled(scale, dtype), "fp16")


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_scales_of_models_pass(dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in (np.float16, ml_dtypes.bfloat16, np.float32):
            values = np.geomspace(1e-5, 1e3, 64)
            got = rounded_scales(scaled(values, kind), dtype).astype(np.float64)
            error = np.sqrt(np.square(got / scaled(values, kind).scales.astype(float) - 1).mean())
            assert error < MOST_SCALE_ERROR / 2


def test_negative_scales_are_scales():
    assert (rounded_scales(scaled(-0.01), "fp16") < 0).all()
    with pytest.raises(ProblemError, match="which are up to 2e-08"):
        rounded_scales(scaled(-2e-8), "fp16")


def test_some_columns_are_told():
    values = np.full(64, 0.01)
    values[:3] = 2e-8
    words = (
        f"{NAME}: fp16 makes an error of up to 100.0% of the scales of 3 of its 64 columns, and of "
        '0.*% of all; dtype="bf16" has'
    )
    with pytest.warns(PrecisionWarning, match=words):
        got = rounded_scales(scaled(values), "fp16")
    assert not got[:, :3].any()


def test_scales_of_zero_are_no_loss():
    """Columns that are pruned."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not rounded_scales(scaled(0), "fp16").any()
        rounded_scales(scaled(np.arange(64) % 2 * 0.01), "fp16")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1e5, 'scales must be finite in fp16; got 99840 at [0, 0]; dtype="bf16" has the range'),
        (np.inf, "scales must be finite in fp16; got inf at [0, 0]"),
    ],
)
def test_what_overflows_is_refused(value, words):
    with pytest.raises(ProblemError) as error:
        rounded_scales(scaled(value), "fp16")
    assert str(error.value).startswith(f"{NAME}: {words}")
    assert ("bf16" in str(error.value)) == np.isfinite(value)


def test_a_bias_may_be_next_to_nothing():
    """It is added to numbers of the size of the result."""
    assert not rounded(NAME, "bias", np.full(8, 1e-9), "fp16").any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_has_the_type_is_not_copied(dtype):
    made = scaled(0.01, DTYPES[dtype])
    assert rounded_scales(made, dtype) is made.scales
