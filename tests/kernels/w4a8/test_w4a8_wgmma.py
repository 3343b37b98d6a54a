"""w4a8_wgmma: every config's way through a tile, every kind of operand, what it refuses."""

import re
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from ferrum_numba import check
from ferrum_numba.compile import build
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.prefill.kernel import Prefill
from ferrum_numba.kernels.tools.quantize_rows import QuantizeProblem, QuantizeRows
from ferrum_numba.kernels.w4a8 import OP, W4A8Problem
from ferrum_numba.kernels.w4a8_wgmma.kernel import Config, W4A8Wgmma
from ferrum_numba.reference import w4a8_gemm, w4a16_gemm
from ferrum_numba.reference.quantize_rows import quantize_rows

H200 = KNOWN["h200"]
KERNEL = W4A8Wgmma()


def sms(count):
    """Return an H200 of few SMs: blocks share tiles, and have several."""
    return replace(H200, num_sms=count)


def assert_equals_reference(config, problem, gpu=H200):
    config = KERNEL.specialise(config, problem)
    result = check.on_interpreter(KERNEL, config, problem, gpu=gpu)
    assert result.ok, result.reason


@pytest.mark.parametrize("x_dtype", ["fp8", "int8"])
@pytest.mark.parametrize(
    "config",
    [Config(64, 256, 2), Config(80, 128, 2), Config(112, 256, 2, ahead=1), Config(32, 128, 2)],
    ids=lambda c: f"{c.tile_m}x{c.tile_n}",
)
def test_every_size_of_tile_equals_the_reference(config, x_dtype):
    problem = W4A8Problem(config.tile_m + 9, 256, 256, 64, "gptq", bias=True, x_dtype=x_dtype)
    assert_equals_reference(config, problem, sms(2))


@pytest.mark.parametrize("group_size", [128, 64, 32, -1])
@pytest.mark.parametrize("x_group", [-1, 128])
def test_scales_of_every_kind_equal_the_reference(group_size, x_group):
    problem = W4A8Problem(19, 128, 384, group_size, "gptq", x_group=x_group)
    assert_equals_reference(Config(32, 128, 2), problem, sms(2))


@pytest.mark.parametrize(
    "config",
    [
        Config(32, 128, 2, stripes=False),
        Config(32, 128, 2, stripes=False, pair=True),
        Config(32, 128, 2, stripes=False, cluster=2),
        Config(32, 128, 2),
    ],
    ids=["alone", "pairs", "cluster", "stripes"],
)
def test_blocks_that_share_a_tile_or_x_equal_the_reference(config):
    for x_dtype in ("fp8", "int8"):
        assert_equals_reference(config, W4A8Problem(32, 256, 384, x_dtype=x_dtype), sms(4))


def test_what_quantize_rows_writes_is_what_the_gemm_reads(rng):
    for x_group in (-1, 128):
        problem = W4A8Problem(5, 128, 328, x_group=x_group)
        x = rng.standard_normal((5, 328)).astype(np.float16)
        written = QuantizeRows.op.reference(QuantizeProblem(5, 328, x_group=x_group), {"x": x})
        inputs = OP.make_inputs(problem, np.random.default_rng(0))
        inputs["x8"], inputs["sx"] = quantize_rows(x, x_group=x_group)
        operands = KERNEL.prepare(problem, inputs)
        np.testing.assert_array_equal(operands["x8"], written["x8"])
        filled = ~np.isnan(written["sx"])
        assert operands["sx"].shape == written["sx"].shape
        np.testing.assert_array_equal(operands["sx"][filled], written["sx"][filled])


def test_the_weight_is_packed_as_for_16_bit_activations():
    problem = W4A8Problem(3, 136, 200, 64, "gptq", bias=True)
    inputs = OP.make_inputs(problem, np.random.default_rng(0))
    same = {**inputs, "x": np.zeros((3, 200), np.float16)}
    other = Prefill().prepare(problem.weight, same)
    ours = KERNEL.prepare(problem, inputs)
    for name in ("packed", "scales", "zero_points", "bias"):
        np.testing.assert_array_equal(ours[name], other[name])


def test_with_activations_that_8_bits_hold_it_is_the_other_gemm(rng):
    x = rng.integers(-7, 8, (4, 256)).astype(np.float16)
    inputs = OP.make_inputs(W4A8Problem(4, 64, 256), rng)
    x8, sx = x.astype(ml_dtypes.float8_e4m3fn), np.ones(4, np.float32)
    weight = {name: inputs[name] for name in ("codes", "scales")}
    np.testing.assert_array_equal(w4a8_gemm(x8, sx, **weight), w4a16_gemm(x, **weight))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"x_dtype": "fp4"}, 'x_dtype must be "fp8" or "int8"; got "fp4"'),
        ({"x_group": 64}, "x_group must be -1 or 128; got 64"),
        ({"N": 12}, "N must be a multiple of 8"),
    ],
)
def test_problems_are_refused_in_one_sentence(fields, sentence):
    with pytest.raises(ProblemError, match=sentence):
        W4A8Problem(**{"M": 1, "N": 128, "K": 128, **fields})


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"tile_m": 24}, "tile_m must be a multiple of 16 from 16 to 256; got 24"),
        ({"tile_n": 64}, "tile_n must be 128 or 256; got 64"),
        ({"tile_m": 144}, r"tile_m \* \(tile_n \+ 128\) must be at most 49152; got 144 \* \(256"),
        ({"num_stages": 1}, "num_stages must be at least 2; got 1"),
        ({"ahead": 0}, "ahead must be 1 to 4; got 0"),
        ({"cluster": 4}, "cluster must be 1 or 2, .*; got cluster = 4, tile_m = 128"),
        ({"cluster": 2}, "a cluster of 2 takes no stripes"),
        ({"x_dtype": "fp4"}, "x8 is fp8 or int8, .*; got fp4"),
        ({"group_size": 48}, r"group_size must be one of \(128, 64, 32, -1\); got 48"),
    ],
)
def test_configs_are_refused_in_one_sentence(fields, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Config(**fields)


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [
        (W4A8Problem(1, 64, 128), "w4a8_wgmma needs N of at least 128; got N = 64"),
        (
            W4A8Problem(1, 128, 192, 64),
            "K of a multiple of 128 as packed; got K = 192 .*128 and 256",
        ),
        (
            W4A8Problem(1, 128, 256, 16),
            r"group_size in \(128, 64, 32, -1\); got 16, the nearest is",
        ),
    ],
)
def test_what_it_cannot_run_is_said_with_the_nearest_that_it_can(problem, sentence):
    assert re.search(sentence, KERNEL.refuses(problem))


@pytest.mark.parametrize("key", ["a100", "rtx4090", "b200"])
def test_there_is_nothing_to_try_but_on_hopper(key):
    gpu, problem = KNOWN[key], W4A8Problem(256, 256, 256)
    assert not KERNEL.runs_on(gpu)
    assert f"wgmma needs sm_90a; {gpu.name} is" in KERNEL.misfit(Config(), problem, gpu)


def test_fp8_rows_ask_for_a_gpu_that_has_it():
    rows, problem = QuantizeRows(), QuantizeProblem(4, 256)
    sentence = rows.misfit(rows.default(problem, KNOWN["a100"]), problem, KNOWN["a100"])
    assert sentence == f"fp8 needs sm_89 or later; {KNOWN['a100'].name} is sm_80"
    integers = QuantizeProblem(4, 256, "int8")
    assert rows.misfit(rows.default(integers, KNOWN["a100"]), integers, KNOWN["a100"]) is None


@pytest.mark.parametrize(
    "config",
    [Config(ahead=1), Config(192, 128, 5)],
    ids=lambda c: f"{c.tile_m}x{c.tile_n}",
)
def test_large_tiles_compile_without_spills(config):
    binary = build(KERNEL, config, "sm_90a")
    assert (binary.spill_bytes, binary.stack_bytes, binary.remarks) == (0, 0, ())
