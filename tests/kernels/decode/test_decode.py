"""Decode: who takes which step, shared sums, activations of every size."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from ferrum_numba import check, interpreter
from ferrum_numba.compile import build
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.decode.kernel import Config, Decode
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.launch import Buffer, Graph, OperandSet, load
from ferrum_numba.reference import w4a16_gemm

H200 = KNOWN["h200"]
DECODE = Decode()
SMALL = Config(8, 1, 2, 64, 1)


def on_interpreter(config, problem, num_sms=3):
    config = DECODE.specialise(config, problem)
    return check.on_interpreter(DECODE, config, problem, gpu=replace(H200, num_sms=num_sms))


def test_what_the_problem_dictates_is_set_on_any_config():
    problem = W4A16Problem(1, 128, 256, 256, "gptq")
    config = DECODE.specialise(Config(), problem)
    assert (config.group_size, config.has_zero_points, config.dtype) == (-1, True, "fp16")
    assert "compiled for other weights" in DECODE.misfit(Config(), problem, H200)


@pytest.mark.parametrize("gpu", KNOWN.values(), ids=KNOWN)
def test_every_shape_it_accepts_has_a_tile_on_every_gpu(gpu):
    for m, n, k in product((1, 9, 17, 65), (64, 128, 192, 320), (64, 128, 192, 448)):
        for group_size, zero_points in product((32, 64, -1), ("none", "gptq")):
            problem = W4A16Problem(m, n, k, group_size, zero_points)
            assert DECODE.refuses(problem) is None
            config = DECODE.default(problem, gpu)
            assert DECODE.misfit(config, problem, gpu) is None
            launch = DECODE.launch(config, problem, gpu)
            assert sum(launch.workspace.values()) <= 4 << 20


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64])
def test_every_number_of_tokens(rows):
    problem = W4A16Problem(rows, 64, 256, bias=True)
    tile_m = 8 if rows <= 8 else 16 if rows <= 16 else 32
    result = on_interpreter(replace(SMALL, tile_m=tile_m), problem)
    assert result.ok, result.reason


@pytest.mark.parametrize("group_size", [128, 64, 32, -1])
@pytest.mark.parametrize("step_k", [64, 128])
@pytest.mark.parametrize("zero_points", ["none", "gptq", "gptq_v2"])
def test_every_kind_of_weight(group_size, step_k, zero_points):
    problem = W4A16Problem(5, 128, 640, group_size, zero_points, bias=group_size == 64)
    result = on_interpreter(Config(8, 2, 2, step_k, 1), problem)
    assert result.ok, result.reason


@pytest.mark.parametrize("num_sms", [1, 2, 3, 5, 7, 11])
def test_the_result_does_not_depend_on_the_number_of_sms(num_sms):
    """A slice cut among more blocks is the same sum but for fp32 rounding."""
    problem = W4A16Problem(3, 192, 704, 64)
    # 3 slices of 11 steps for two warps: uneven stripes, and warps without a step
    for config in (SMALL, replace(SMALL, warps_k=3)):
        result = on_interpreter(config, problem, num_sms)
        assert result.ok, result.reason


@pytest.mark.parametrize("cluster", [2, 3, 4, 8])
def test_a_cluster_sums_its_blocks(cluster):
    problem = W4A16Problem(9, 64, 704, 64, bias=True)
    result = on_interpreter(replace(SMALL, cluster=cluster), problem, 16)
    assert result.ok, result.reason


def test_a_cluster_that_does_not_fit_is_refused_in_numbers():
    config = replace(SMALL, cluster=8, group_size=64, early=False)
    problem = W4A16Problem(1, 64, 448, 64)
    few = "K = 448 has fewer steps than a cluster of 8 blocks"
    assert DECODE.misfit(config, problem, H200) == few
    many = "1536 blocks in clusters of 8, one wave is 132"
    assert DECODE.misfit(config, replace(problem, K=512, N=12288), H200) == many
    assert "has no clusters" in DECODE.misfit(config, replace(problem, K=512), KNOWN["a100"])


def test_stripes_of_whole_slices_hand_nothing_over():
    """128 slices on 132 SMs: a stripe is longer by two steps of 16 warps, and needs no slots."""
    problem = W4A16Problem(1, 8192, 8192)
    launch = DECODE.launch(DECODE.specialise(Config(8, 1, 16, 128, 1), problem), problem, H200)
    assert launch.grid == (128, 1, 1)
    assert launch.scalars["stripe_steps"] == 64
    assert launch.workspace == {"slots": 16}
    # with two blocks a SM it would be twice as long
    launch = DECODE.launch(DECODE.specialise(Config(8, 1, 8, 128, 2), problem), problem, H200)
    assert launch.scalars["stripe_steps"] == 32


@pytest.mark.parametrize(
    ("K", "N", "cluster"),
    [
        (4096, 4096, 2),  # small
        (8192, 8192, 2),  # 256 blocks on 132 SMs
        (4096, 14336, 2),  # 224
        (27648, 5120, 1),  # 160 would leave SMs idle for long
        (8192, 28672, 1),  # more than a wave
        (5120, 5120, 4),  # pairs would leave SMs idle, fours fill 0.81 of a wave
        (4096, 6144, 2),  # 384 blocks in fours would not all find room
    ],
)
def test_untuned_a_cluster_shares_a_slice_where_it_pays_off(K, N, cluster):
    for rows in (1, 8, 16):
        assert DECODE.default(W4A16Problem(rows, N, K), H200).cluster == cluster


@pytest.mark.parametrize("rows", [1, 16, 64, 200])
def test_the_workspace_never_exceeds_4_mb(rows):
    for choice in DECODE.configs(H200):
        problem = W4A16Problem(rows, 8192, 8192)
        if DECODE.misfit(choice, problem, H200) is None:
            launch = DECODE.launch(choice, problem, H200)
            assert launch.workspace["slots"] <= 4 << 20
            assert launch.grid[0] <= max(132 * choice.blocks_per_sm, -(-rows // choice.tile_m))


def test_a_config_that_would_spill_is_a_misfit():
    problem = W4A16Problem(16, 8192, 8192, 64)
    config = DECODE.specialise(Config(16, 2, 6, 128, 1), problem)
    reason = DECODE.misfit(config, problem, H200)
    assert reason == "needs 248 registers a thread; 12 warps leave 168"


def arrays_of(problem, inputs, launch):
    """Return a launch's buffers: the operands, a workspace of zeros and an output of NaN."""
    arrays = {k: np.ascontiguousarray(v) for k, v in DECODE.prepare(problem, inputs).items()}
    arrays |= {name: np.zeros(size, np.uint8) for name, size in launch.workspace.items()}
    return arrays | {"out": np.full((problem.M, problem.N), np.nan, np.float16)}


def run(problem, inputs, config):
    """Return what the interpreter computes of given inputs on two SMs, which share a slice."""
    config = DECODE.specialise(config, problem)
    launch = DECODE.launch(config, problem, replace(H200, num_sms=2))
    arrays = arrays_of(problem, inputs, launch)
    interpreter.run(DECODE.build(config, "sm_90a"), launch, arrays)
    assert not any(arrays[name].any() for name in launch.workspace)
    return arrays["out"]


def run_on(device, problem, inputs, config):
    """Return what the GPU computes of given inputs."""
    config = DECODE.specialise(config, problem)
    launch = DECODE.launch(config, problem, device.gpu)
    arrays = arrays_of(problem, inputs, launch)
    buffers = {name: Buffer.from_array(device, array) for name, array in arrays.items()}
    load(build(DECODE, config, device.gpu.arch), device).prepare(launch, buffers)(0)
    device.synchronize()
    return buffers["out"].read((problem.M, problem.N), np.float16)


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


def through_fp16_weights(inputs):
    """Return what a kernel that rounds each weight to fp16 computes, and the exact result."""
    groups = len(inputs["scales"])
    scales = np.repeat(inputs["scales"], len(inputs["codes"]) // groups, axis=0)
    zero = 8.0
    if "zero_points" in inputs:
        zero = np.repeat(inputs["zero_points"], len(inputs["codes"]) // groups, axis=0)
    codes = inputs["codes"].astype(np.float64) - zero
    weights = (codes * scales.astype(np.float64)).astype(np.float16)
    return inputs["x"].astype(np.float64) @ weights.astype(np.float64)


def assert_as_good_as_fp16_weights(got, inputs, scale):
    """Assert one rounding to fp16 and fp32 sums, and no more error than rounded weights give."""
    got, want = got.astype(np.float64), w4a16_gemm(**inputs).astype(np.float64)
    # fp16 holds 65504 at most; what is rounded to it is not this kernel's doing
    limit = np.abs(want) < 65504
    assert np.isinf(got[~limit]).all() or (np.abs(got[~limit]) >= 65504).all()
    rounded = through_fp16_weights(inputs)
    ours, theirs = np.abs(got - want)[limit], np.abs(rounded - want)[limit]
    # one rounding to fp16 (2^-11, or half of the smallest subnormal), and fp32 sums
    magnitude = np.abs(inputs["x"].astype(np.float64)).sum(1, keepdims=True) * (15 * scale)
    bound = 2.0**-11 * np.abs(want) + 2.0**-25 + 2.0**-20 * magnitude
    assert (ours <= bound[limit]).all()
    assert ours.sum() <= theirs.sum() + bound[limit].sum()


def extreme_inputs(problem, kind, scale, rng):
    """Return a problem's inputs with activations of a kind and one scale everywhere."""
    inputs = dict(DECODE.op.make_inputs(problem, rng))
    inputs["x"] = tokens(kind, inputs["x"].shape, rng)
    inputs["scales"] = np.full_like(inputs["scales"], scale)
    return inputs


each_kind = pytest.mark.parametrize(
    "kind", ["largest", "zeros", "one-hot", "subnormal", "every size"]
)
each_scale = pytest.mark.parametrize("scale", [2.0**-24, 2.0**-10, 4.0])


@each_kind
@pytest.mark.parametrize("zero_points", ["none", "gptq_v2"])
@each_scale
def test_activations_and_scales_of_every_size(kind, zero_points, scale, rng):
    problem = W4A16Problem(5, 64, 256, 64, zero_points)
    inputs = extreme_inputs(problem, kind, scale, rng)
    assert_as_good_as_fp16_weights(run(problem, inputs, SMALL), inputs, scale)


@pytest.mark.gpu
@each_kind
@pytest.mark.parametrize("shape", [(4096, 1024), (576, 2048)])
@each_scale
def test_activations_and_scales_of_every_size_on_gpu(kind, shape, scale, rng, device):
    """A wide weight is cut into stripes, a narrow one shared by clusters where there are any."""
    problem = W4A16Problem(5, *shape, 64)
    inputs = extreme_inputs(problem, kind, scale, rng)
    for config in (DECODE.default(problem, device.gpu), replace(SMALL, early=False)):
        got = run_on(device, problem, inputs, config)
        assert_as_good_as_fp16_weights(got, inputs, scale)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(576, 1024), (584, 1000)])
@pytest.mark.parametrize("rows", range(1, 65))
def test_every_number_of_tokens_on_gpu(rows, shape, device):
    problem = W4A16Problem(rows, *shape, 128)
    result = check.on_gpu(DECODE, DECODE.default(problem, device.gpu), problem, device)
    assert result.ok, result.reason


@pytest.mark.gpu
@pytest.mark.parametrize("cluster", [1, 2])
@pytest.mark.parametrize("shape", [(14336, 4096), (4096, 14336), (8192, 8192)])
def test_a_hundred_launches_give_the_same_bits(shape, cluster, device):
    """They follow each other closely: each may begin to load before the one before has ended."""
    problem = W4A16Problem(8, *shape)
    configs = (DECODE.specialise(c, problem) for c in DECODE.configs(device.gpu))
    configs = [c for c in configs if DECODE.misfit(c, problem, device.gpu) is None]
    config = next((c for c in configs if c.cluster == cluster), None)
    if config is None:
        pytest.skip(f"no config has clusters of {cluster} on {device.gpu.name}")
    operands = OperandSet(device, DECODE, problem)
    bound = operands.bind(config, build(DECODE, config, device.gpu.arch))
    alone, first = bound.prepared(), None
    many = Graph.capture(device, [alone] * 100)
    for call in (alone, many.launch, many.launch):
        operands.poison()
        call(device.new_stream())
        device.synchronize()
        got = operands.result().tobytes()
        first = first or got
        assert got == first
    for name, buffer in bound.workspace.items():
        assert not buffer.read((buffer.size_bytes,), np.uint8).any(), name


def test_a_token_that_is_no_number_keeps_nobody_waiting_and_harms_no_other(rng):
    """Sums that blocks hand over may be NaN, infinite or zero."""
    problem = W4A16Problem(4, 64, 256, 64)
    inputs = dict(DECODE.op.make_inputs(problem, rng))
    x = inputs["x"].copy()
    x[0], x[1, 3], x[2] = np.nan, np.inf, 0
    clean = run(problem, {**inputs, "x": np.where(np.isfinite(x), x, 0).astype(x.dtype)}, SMALL)
    got = run(problem, {**inputs, "x": x}, SMALL)
    assert np.isnan(got[0]).all()
    assert not np.isfinite(got[1]).any()
    np.testing.assert_array_equal(got[2:], clean[2:])
    assert not got[2].any()


def test_a_token_s_weight_of_zero_takes_nothing_from_the_others(rng):
    """Codes minus zero points are exact: a huge activation times zero leaves small ones alone."""
    problem = W4A16Problem(1, 64, 128, 128)
    inputs = dict(DECODE.op.make_inputs(problem, rng))
    codes = inputs["codes"].copy()
    codes[17] = 8
    inputs["codes"] = codes
    inputs["x"] = inputs["x"].copy()
    inputs["x"][0, 17] = 65504
    got = run(problem, inputs, SMALL)
    want = w4a16_gemm(**inputs)
    assert np.abs(got - want).max() <= 2.0**-10 * np.abs(want).max()


KINDS = [*product((8, 16, 32), (128, 64, 32, -1), ("none", "gptq"), ("fp16", "bf16"))]
# every value of every field, and what has most registers; the others take minutes
FEW = [
    (8, 128, "none", "fp16"), (8, 32, "gptq", "bf16"), (16, 128, "gptq", "fp16"),
    (16, 64, "none", "bf16"), (32, -1, "gptq", "fp16"), (32, 32, "gptq", "fp16"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "group_size", "zero_points", "dtype"),
    [pytest.param(*kind, marks=[] if kind in FEW else pytest.mark.slow) for kind in KINDS],
)
def test_defaults_of_every_kind_compile_without_spills(rows, group_size, zero_points, dtype):
    problem = W4A16Problem(rows, 4096, 4096, group_size, zero_points, dtype=dtype)
    binary = build(DECODE, DECODE.default(problem, H200), "sm_90a")
    assert (binary.spill_bytes, binary.remarks) == (0, ())
    assert binary.stack_bytes == 0
    assert "griddepcontrol.wait" in binary.ptx
    half = {"fp16": "f16", "bf16": "bf16"}[dtype]
    assert f"mma.sync.aligned.m16n8k16.row.col.f32.{half}.{half}.f32" in binary.ptx


def test_an_architecture_without_early_start_has_none():
    binary = build(DECODE, DECODE.default(W4A16Problem(8, 4096, 4096), KNOWN["a100"]), "sm_80")
    assert "griddepcontrol" not in binary.ptx
    assert (binary.spill_bytes, binary.remarks) == (0, ())
