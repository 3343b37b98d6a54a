"""Packed weights as matrices; that the kernel equals its reference is in test_kernels.py."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from ferrum_numba import check, interpreter
from ferrum_numba.compile import build
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.kernels.tools.dequantize import Dequantize, DequantizeConfig, DequantizeProblem
from ferrum_numba.reference.dequantize import dequantize
from ferrum_numba.reference.marlin_layout import pack_weight, pack_zero_points, permute_scales

KERNEL = Dequantize()
H200 = KNOWN["h200"]

each_type = pytest.mark.parametrize("dtype", DTYPES)


def interpreted(problem, inputs):
    """Return what the kernel makes of these inputs."""
    config = KERNEL.default(problem, H200)
    shape, dtype = KERNEL.op.output(problem)
    out = np.full(shape, 0xFFFF, np.uint16).view(dtype)
    buffers = {**KERNEL.prepare(problem, inputs), "out": out}
    launch = KERNEL.launch(config, problem, H200)
    interpreter.run(KERNEL.build(config, "sm_90a"), launch, buffers)
    return buffers["out"]


def weight(rng, problem):
    """Return codes, scales and zero points of a problem, plain, and the kernel's operands."""
    K, N, G = problem.packed_k, problem.packed_n, problem.num_groups
    codes = rng.integers(0, 16, (K, N), np.uint8)
    scales = rng.uniform(0.005, 0.015, (G, N)).astype(DTYPES[problem.dtype])
    zeros = np.full((G, N), 8, np.uint8)
    inputs = {"packed": pack_weight(codes), "scales": permute_scales(scales, G > 1)}
    if problem.has_zero_points:
        zeros = rng.integers(0, 16, (G, N), np.uint8)
        inputs["zero_points"] = pack_zero_points(zeros)
    return codes, scales, zeros, inputs


KINDS = [
    DequantizeProblem(32, 128, 16),
    DequantizeProblem(32, 128, 16, True, "bf16"),
    DequantizeProblem(32, 64, -1, dtype="bf16"),
    DequantizeProblem(32, 64, 32, True),
    DequantizeProblem(40, 72, 32, True, K_padded=64, N_padded=128),
]


@pytest.mark.parametrize("problem", KINDS, ids=str)
def test_kernel_and_reference_equal_a_loop_over_the_formula(rng, problem):
    codes, scales, zeros, inputs = weight(rng, problem)
    want = np.empty((problem.K, problem.N), DTYPES[problem.dtype])
    for k, n in np.ndindex(want.shape):
        g = k // problem.group_rows
        # a float holds the product exactly: rounded once
        product = float(scales[g, n]) * (int(codes[k, n]) - int(zeros[g, n]))
        want[k, n] = np.float32(product)
    reference = KERNEL.op.reference(problem, inputs)
    assert reference.dtype == want.dtype
    np.testing.assert_array_equal(reference, want)
    np.testing.assert_array_equal(interpreted(problem, inputs), want)


@each_type
@pytest.mark.parametrize("zero_points", [False, True])
def test_all_codes_and_zero_points_at_all_sizes_of_scale(dtype, zero_points):
    # subnormal, small, ordinary and large scales; sixteen zero points of 64 columns each
    codes = np.broadcast_to(np.arange(16, dtype=np.uint8)[:, None], (16, 1024)).copy()
    zeros = (np.arange(1024) // 64).astype(np.uint8)[None]
    scales = np.resize([2.0**-24, 3e-7, 0.00371, 0.0117, -0.25, 1.0, 3000.0], 1024)
    scales = scales.astype(DTYPES[dtype])[None]
    problem = DequantizeProblem(16, 1024, -1, zero_points, dtype)
    inputs = {"packed": pack_weight(codes), "scales": permute_scales(scales, False)}
    if zero_points:
        inputs["zero_points"] = pack_zero_points(zeros)
    differences = codes.astype(np.float32) - (zeros if zero_points else 8)
    want = (differences * scales.astype(np.float32)).astype(DTYPES[dtype])
    np.testing.assert_array_equal(interpreted(problem, inputs), want)


def test_scales_of_one_group_in_the_order_of_many_are_another_matrix(rng):
    problem = DequantizeProblem(16, 64, -1)
    codes, scales, _, inputs = weight(rng, problem)
    wrong = {**inputs, "scales": permute_scales(scales, True)}
    assert not np.array_equal(interpreted(problem, wrong), interpreted(problem, inputs))
    assert codes.shape == (16, 64)


def test_the_last_group_may_be_smaller(rng):
    problem = DequantizeProblem(80, 64, 64, K_padded=128)
    assert problem.num_groups == 2
    codes, scales, _, inputs = weight(rng, problem)
    got = interpreted(problem, inputs)
    assert float(got[79, 5]) == float(np.float16(float(scales[1, 5]) * (int(codes[79, 5]) - 8)))
    np.testing.assert_array_equal(got, KERNEL.op.reference(problem, inputs))


def test_a_reference_returns_the_type_of_the_scales(rng):
    _, _, _, inputs = weight(rng, DequantizeProblem(16, 64, -1))
    for dtype in (np.float32, ml_dtypes.bfloat16):
        scales = inputs["scales"].astype(dtype)
        assert dequantize(inputs["packed"], scales, None, 16, (16, 64)).dtype == dtype


@each_type
def test_stores_are_16_bytes_and_words_stream(dtype):
    binary = build(KERNEL, DequantizeConfig(dtype=dtype, has_zero_points=True), "sm_90a")
    assert binary.ptx.count("st.global.v4.u32") == 4
    assert binary.ptx.count("st.global") == 4
    assert binary.ptx.count("ld.global.nc.L1::no_allocate.u32") == 8


def test_a_config_is_for_one_kind_of_weight():
    problem = DequantizeProblem(64, 64, 32, True, "bf16")
    config = KERNEL.default(problem, H200)
    assert config == DequantizeConfig(per_channel=False, has_zero_points=True, dtype="bf16")
    for name, other in (("per_channel", True), ("has_zero_points", False), ("dtype", "fp16")):
        reason = KERNEL.misfit(replace(config, **{name: other}), problem, H200)
        assert reason == f"{name} must be {getattr(config, name)} for this weight; got {other}"
    # one group is one group, however it is said
    for problem in (DequantizeProblem(64, 64, -1), DequantizeProblem(64, 64, 64)):
        assert KERNEL.default(problem, H200).per_channel


def test_work_is_words_scales_zero_points_and_result():
    assert KERNEL.op.work(DequantizeProblem(64, 128, 32, True)).bytes == (
        64 * 128 // 2 + 2 * 128 * 2 + 2 * 128 // 2 + 64 * 128 * 2
    )


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((20, 64, -1), "K must be a multiple of 8 up to 1048576; got 20"),
        (
            (24, 64, -1),
            "K padded to a multiple of 16; got K = 24, K_padded = 24, the nearest is 32",
        ),
        (
            (32, 72, -1),
            "N padded to a multiple of 64; got N = 72, N_padded = 72, the nearest is 128",
        ),
        ((32, 64, 24), "group_size must be -1 or a multiple of 16, the rows of a tile; got 24"),
        ((32, 64, 0), "group_size must be -1 or a multiple of 16, the rows of a tile; got 0"),
        ((32, 64, 32, False, "fp8"), 'dtype must be "fp16" or "bf16"; got "fp8"'),
    ],
)
def test_what_cannot_be_dequantised_is_refused_in_numbers(sizes, words):
    with pytest.raises(ProblemError) as refused:
        DequantizeProblem(*sizes)
    assert words in str(refused.value)


def test_a_block_is_of_whole_warps():
    with pytest.raises(ConfigError, match="a multiple of 32 up to 1024; got 48"):
        DequantizeConfig(48)


@pytest.mark.gpu
@pytest.mark.parametrize("zero_points", [False, True])
@each_type
def test_a_model_size_equals_the_reference_on_gpu(dtype, zero_points, device):
    problem = DequantizeProblem(4096, 6144, 128, zero_points, dtype)
    checked = check.on_gpu(KERNEL, KERNEL.default(problem, device.gpu), problem, device)
    assert checked.ok, checked.reason
