"""The bias added in a second step; that it equals its reference is in test_kernels.py."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from ferrum_numba import interpreter
from ferrum_numba.compile import build
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.kernels.tools.add_bias import AddBias, AddBiasConfig, AddBiasProblem
from ferrum_numba.reference.add_bias import add_bias

KERNEL = AddBias()
H200 = KNOWN["h200"]

each_type = pytest.mark.parametrize("dtype", DTYPES)


def interpreted(x, bias, dtype):
    """Return what the kernel makes of x and bias."""
    problem = AddBiasProblem(*x.shape, dtype)
    buffers = {"x": x, "bias": bias, "out": np.full(x.shape, 0xFFFF, np.uint16).view(x.dtype)}
    config = KERNEL.default(problem, H200)
    interpreter.run(KERNEL.build(config, "sm_90a"), KERNEL.launch(config, problem, H200), buffers)
    return buffers["out"]


@pytest.mark.parametrize(
    ("dtype", "x", "bias", "want"),
    [
        # half of the last place of 2048 (fp16) and of 256 (bf16) goes to the even neighbour
        ("fp16", 2048, 1, 2048), ("fp16", 2050, 1, 2052), ("fp16", 2048, 1.5, 2050),
        ("bf16", 256, 1, 256), ("bf16", 258, 1, 260), ("bf16", 256, 1.5, 258),
        # what fp16 cannot hold, bf16 can
        ("fp16", 65504, 32, np.inf), ("bf16", 65280, 65280, 130560),
        ("fp16", 2.0**-24, 2.0**-24, 2.0**-23), ("fp16", 1, -1, 0),
    ],
)  # fmt: skip
def test_a_sum_is_rounded_once_to_the_nearest_even(dtype, x, bias, want):
    x, bias = np.full((1, 8), x, DTYPES[dtype]), np.full(8, bias, DTYPES[dtype])
    assert add_bias(x, bias).astype(float).tolist() == [[want] * 8]
    assert interpreted(x, bias, dtype).astype(float).tolist() == [[want] * 8]


@each_type
def test_every_column_gets_its_own_bias(dtype):
    x, bias = np.ones((3, 24), DTYPES[dtype]), np.arange(24).astype(DTYPES[dtype])
    want = np.broadcast_to(np.arange(1.0, 25.0), (3, 24))
    assert interpreted(x, bias, dtype).dtype == DTYPES[dtype]
    np.testing.assert_array_equal(interpreted(x, bias, dtype).astype(float), want)


def test_two_steps_round_twice(rng):
    # the reference of the second step is not that of a fused bias
    exact = rng.standard_normal((4, 64))
    bias = rng.standard_normal(64).astype(np.float16)
    fused = (exact + bias.astype(np.float64)).astype(np.float16)
    assert not np.array_equal(add_bias(exact.astype(np.float16), bias), fused)


def test_a_reference_takes_what_numpy_has(rng):
    x = rng.standard_normal((2, 8)).astype(ml_dtypes.bfloat16)
    assert add_bias(x, x[0]).dtype == ml_dtypes.bfloat16


def test_reads_and_writes_are_16_bytes():
    ptx = build(KERNEL, AddBiasConfig(rows=2), "sm_90a").ptx
    # x may be overwritten, so it is not read as a constant; the bias is, once for both rows
    assert ptx.count("ld.global.v4.u32") == 2
    assert ptx.count("ld.global.nc.v4.u32") == 1
    assert ptx.count("st.global.v4.u32") == 2


def test_a_config_is_for_one_type():
    problem = AddBiasProblem(1, 64, "bf16")
    assert KERNEL.default(problem, H200).dtype == "bf16"
    assert KERNEL.misfit(AddBiasConfig(), problem, H200) == "compiled for fp16, not bf16"
    assert "half of rows = 2 holds all of M = 1" in KERNEL.misfit(
        AddBiasConfig(rows=2, dtype="bf16"), problem, H200
    )


def test_work_is_x_bias_and_result():
    assert KERNEL.op.work(AddBiasProblem(3, 64)).bytes == 2 * 3 * 64 * 2 + 64 * 2


def test_bad_sizes_are_refused():
    with pytest.raises(ProblemError, match="M must be 1 to 65536; got 65537"):
        AddBiasProblem(65537, 64)
    with pytest.raises(ProblemError, match="N must be a multiple of 8 up to 1048576; got 60"):
        AddBiasProblem(1, 60)
    with pytest.raises(ProblemError, match='dtype must be "fp16" or "bf16"; got "fp32"'):
        AddBiasProblem(1, 64, "fp32")
    with pytest.raises(ConfigError, match="got num_threads = 48, rows = 1"):
        AddBiasConfig(48)


@pytest.mark.gpu
@each_type
def test_in_place_on_gpu(dtype, device, rng):
    from ferrum_numba.launch import Buffer, load

    problem = AddBiasProblem(5, 4096, dtype)
    inputs = KERNEL.op.make_inputs(problem, rng)
    config = replace(KERNEL.default(problem, device.gpu), rows=4)
    loaded = load(build(KERNEL, config, device.gpu.arch), device)
    x = Buffer.from_array(device, inputs["x"])
    buffers = {"x": x, "bias": Buffer.from_array(device, inputs["bias"]), "out": x}
    loaded.prepare(KERNEL.launch(config, problem, device.gpu), buffers)(0)
    got = x.read((problem.M, problem.N), DTYPES[dtype])
    np.testing.assert_array_equal(got, add_bias(inputs["x"], inputs["bias"]))
