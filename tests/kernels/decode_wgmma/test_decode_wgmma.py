"""Decode by wgmma: who takes which step, sums handed over, extreme inputs."""

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from ferrum_numba import check, interpreter
from ferrum_numba.compile import build
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.decode_wgmma.kernel import Config, DecodeWgmma
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.reference import w4a16_gemm
from ferrum_numba.tune.space import feasible

H200 = KNOWN["h200"]
KERNEL = DecodeWgmma()
SMALL = Config(16, 2, 2)


def on_interpreter(config, problem, num_sms=3):
    config = KERNEL.specialise(config, problem)
    return check.on_interpreter(KERNEL, config, problem, gpu=replace(H200, num_sms=num_sms))


@pytest.mark.parametrize("key", ["a100", "rtx4090", "b200"])
def test_there_is_nothing_to_try_but_on_hopper(key):
    gpu, problem = KNOWN[key], W4A16Problem(16, 256, 256)
    assert not KERNEL.runs_on(gpu)
    assert feasible(KERNEL, problem, gpu) == ([], [])
    assert re.search(f"wgmma needs sm_90a; {gpu.name} is", KERNEL.misfit(Config(), problem, gpu))


def test_every_shape_it_accepts_has_a_tile():
    for m, n, k in product((1, 16, 17, 33, 65), (8, 256, 320), (64, 200, 4096)):
        for group_size, zero_points in product((32, 64, -1), ("none", "gptq")):
            problem = W4A16Problem(m, n, k, group_size, zero_points)
            config = KERNEL.default(problem, H200)
            assert KERNEL.misfit(config, problem, H200) is None
            assert config.tile_m == (16 if m <= 16 else 32)


@pytest.mark.parametrize("rows", [1, 16, 32, 64, 200, 5000])
@pytest.mark.parametrize("shape", [(8192, 8192), (28672, 8192), (256, 256)])
def test_the_workspace_never_exceeds_4_mb(rows, shape):
    problem = W4A16Problem(rows, *shape)
    for choice in KERNEL.configs(H200):
        if KERNEL.misfit(choice, problem, H200) is None:
            launch = KERNEL.launch(choice, problem, H200)
            assert sum(launch.workspace.values()) <= 4 << 20
            most = 132 * choice.blocks_per_sm
            assert launch.grid[0] * launch.grid[1] <= max(most, -(-rows // choice.tile_m))


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 50, 63, 64])
def test_every_number_of_tokens(rows):
    problem = W4A16Problem(rows, 64, 256, bias=True)
    result = on_interpreter(replace(SMALL, tile_m=16 if rows <= 16 else 32), problem)
    assert result.ok, result.reason


@pytest.mark.parametrize(
    ("group_size", "tile_k"), [(128, 64), (64, 64), (32, 64), (-1, 64), (128, 128), (-1, 128)]
)
@pytest.mark.parametrize("zero_points", ["none", "gptq", "gptq_v2"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_every_kind_of_weight(group_size, tile_k, zero_points, dtype):
    # 704 is no multiple of 128: the last long stage has half of its rows
    K = 640 if group_size == 128 else 704
    problem = W4A16Problem(5, 264, K, group_size, zero_points, False, group_size == 64, dtype)
    result = on_interpreter(replace(SMALL, tile_k=tile_k), problem)
    assert result.ok, result.reason


@pytest.mark.parametrize("num_sms", [1, 2, 3, 5, 7, 11, 16])
def test_the_result_does_not_depend_on_the_number_of_sms(num_sms):
    """A slice cut among more blocks is the same sum but for fp32 rounding."""
    problem = W4A16Problem(3, 576, 704, -1)
    # 3 slices of 11 steps: uneven stripes, and warpgroups without a step
    for config in (
        SMALL, Config(16, 3, 3), Config(16, 1, 2, blocks_per_sm=2), Config(16, 2, 2, 128),
    ):  # fmt: skip
        result = on_interpreter(config, problem, num_sms)
        assert result.ok, result.reason


def launch_twice(config, problem, inputs):
    """Return what two launches in a row compute, on the same workspace, and what is left of it."""
    config = KERNEL.specialise(config, problem)
    launch = KERNEL.launch(config, problem, replace(H200, num_sms=5))
    buffers = {k: np.ascontiguousarray(v) for k, v in KERNEL.prepare(problem, inputs).items()}
    buffers |= {name: np.zeros(size, np.uint8) for name, size in launch.workspace.items()}
    results = []
    for _ in range(2):
        buffers["out"] = np.full((problem.M, problem.N), np.nan, np.float16)
        interpreter.run(KERNEL.build(config, "sm_90a"), launch, buffers)
        results.append(buffers["out"])
    return results, buffers["slots"]


def test_a_launch_leaves_the_slots_ready_for_the_next(rng):
    """Sums that are all zero arrive too."""
    problem = W4A16Problem(19, 256, 704, 64)
    inputs = dict(KERNEL.op.make_inputs(problem, rng))
    inputs["x"] = inputs["x"] * (np.arange(19) % 3 > 0)[:, None].astype(np.float16)
    (first, second), slots = launch_twice(SMALL, problem, inputs)
    np.testing.assert_array_equal(first.view(np.uint16), second.view(np.uint16))
    assert not first[::3].any()
    assert not slots.any()


def tokens(kind, shape, rng):
    """Return activations of a kind: the largest, none, one a row, subnormal, all sizes at once."""
    if kind == "largest":
        return np.where(rng.random(shape) < 0.5, -65504, 65504).astype(np.float16)
    if kind == "one-hot":
        x = np.zeros(shape, np.float16)
        x[np.arange(shape[0]), rng.integers(0, shape[1], shape[0])] = 65504
        return x
    if kind == "subnormal":
        return (rng.integers(-1023, 1024, shape) * 2.0**-24).astype(np.float16)
    if kind == "every size":
        return (rng.standard_normal(shape) * 2.0 ** rng.integers(-24, 15, shape)).astype(np.float16)
    return np.zeros(shape, np.float16)


@pytest.mark.parametrize("kind", ["largest", "zeros", "one-hot", "subnormal", "every size"])
@pytest.mark.parametrize("zero_points", ["none", "gptq_v2"])
@pytest.mark.parametrize("scale", [2.0**-24, 2.0**-10, 4.0])
def test_activations_and_scales_of_every_size(kind, zero_points, scale, rng):
    problem = W4A16Problem(5, 64, 256, 64, zero_points)
    inputs = dict(KERNEL.op.make_inputs(problem, rng))
    inputs["x"] = tokens(kind, inputs["x"].shape, rng)
    inputs["scales"] = np.full_like(inputs["scales"], scale)
    (got, _), _ = launch_twice(SMALL, problem, inputs)
    got, want = got.astype(np.float64), w4a16_gemm(**inputs).astype(np.float64)
    # fp16 holds 65504 at most; what is rounded to it is not this kernel's doing
    limit = np.abs(want) < 65504
    assert (np.abs(got[~limit]) >= 65504).all()
    # one rounding to fp16 (2^-11, or half of the smallest subnormal), and fp32 sums
    magnitude = np.abs(inputs["x"].astype(np.float64)) @ np.full((256, 64), 15 * scale)
    bound = 2.0**-11 * np.abs(want) + 2.0**-25 + 2.0**-20 * magnitude
    assert (np.abs(got - want)[limit] <= bound[limit]).all()


def test_a_token_s_weight_of_zero_takes_nothing_from_the_others(rng):
    """Codes minus zero points are exact: a huge activation times zero leaves small ones alone."""
    problem = W4A16Problem(16, 64, 128, 128)
    inputs = dict(KERNEL.op.make_inputs(problem, rng))
    inputs["codes"], inputs["x"] = inputs["codes"].copy(), inputs["x"].copy()
    inputs["codes"][17] = 8
    inputs["x"][:, 17] = 65504
    (got, _), _ = launch_twice(SMALL, problem, inputs)
    want = w4a16_gemm(**inputs)
    assert np.abs(got - want).max() <= 2.0**-10 * np.abs(want).max()


KINDS = [*product((16, 32), (128, 64, 32, -1), ("none", "gptq"), ("fp16", "bf16"))]
# every value of every field, but one scale a column, which a long stage has below; the others take
# minutes
FEW = [(16, 128, "none", "fp16"), (16, 32, "gptq", "bf16"), (32, 64, "gptq", "fp16")]


@pytest.mark.parametrize(
    ("rows", "group_size", "zero_points", "dtype"),
    [pytest.param(*kind, marks=[] if kind in FEW else pytest.mark.slow) for kind in KINDS],
)
def test_defaults_of_every_kind_compile_without_spills(rows, group_size, zero_points, dtype):
    problem = W4A16Problem(rows, 4096, 4096, group_size, zero_points, dtype=dtype)
    binary = build(KERNEL, KERNEL.default(problem, H200), "sm_90a")
    assert (binary.spill_bytes, binary.remarks) == (0, ())
    assert binary.stack_bytes == 0
    assert "griddepcontrol.wait" in binary.ptx
    half = {"fp16": "f16", "bf16": "bf16"}[dtype]
    assert f"wgmma.mma_async.sync.aligned.m64n{rows}k16.f32.{half}.{half}" in binary.ptx


@pytest.mark.parametrize(
    ("config", "group_size", "zero_points"),
    [
        (Config(16, 2, 4, 128), 128, "gptq"),
        (Config(32, 2, 3, 128), -1, "none"),
        pytest.param(Config(16, 2, 4, 128), -1, "none", marks=pytest.mark.slow),
        pytest.param(Config(32, 2, 3, 128), 128, "gptq", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_long_stages_of_every_kind_compile_without_spills(config, group_size, zero_points):
    problem = W4A16Problem(config.tile_m, 4096, 4096, group_size, zero_points)
    binary = build(KERNEL, KERNEL.specialise(config, problem), "sm_90a")
    assert (binary.spill_bytes, binary.stack_bytes, binary.remarks) == (0, 0, ())


@pytest.mark.parametrize(
    "config",
    [
        Config(16, 2, 4, 128),
        Config(32, 2, 3, 128),
        pytest.param(Config(16, 3, 4), marks=pytest.mark.slow),
        pytest.param(Config(32, 2, 4), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_with_more_products_in_flight_it_compiles_without_spills(config):
    binary = build(KERNEL, replace(config, in_flight=2), "sm_90a")
    assert (binary.spill_bytes, binary.stack_bytes, binary.remarks) == (0, 0, ())
    assert "wgmma.wait_group.sync.aligned 2;" in binary.ptx


def test_a_config_that_starts_late_waits_for_nothing():
    binary = build(KERNEL, Config(early=False), "sm_90a")
    assert "griddepcontrol" not in binary.ptx
