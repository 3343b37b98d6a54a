"""The gate; that the Op's test problems equal the reference is in test_kernels.py."""

from dataclasses import replace

import numpy as np
import pytest
from moe_runs import H200, assert_close, interpreted, on_device

from ferrum_numba import check
from ferrum_numba.compile import build
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.kernels.moe.silu_mul import SiluConfig, SiluMul, SiluProblem

KERNEL = SiluMul()

each_type = pytest.mark.parametrize("dtype", DTYPES)
each_order = pytest.mark.parametrize("interleaved", [True, False])


def arranged(gate, up, interleaved, dtype):
    """Return x of [rows, columns] gate and up."""
    if interleaved:
        runs = [part.reshape(len(gate), -1, 8) for part in (gate, up)]
        return np.stack(runs, axis=2).reshape(len(gate), -1).astype(DTYPES[dtype])
    return np.concatenate([gate, up], axis=1).astype(DTYPES[dtype])


@each_type
@each_order
def test_every_column_has_its_own_gate(dtype, interleaved):
    # silu(50) is 50: each product is a number of its own
    gate, up = np.full((2, 24), 50.0), np.arange(48.0).reshape(2, 24)
    problem = SiluProblem(2, 24, interleaved, dtype)
    got = interpreted(KERNEL, problem, {"x": arranged(gate, up, interleaved, dtype)})
    assert got.dtype == DTYPES[dtype]
    np.testing.assert_array_equal(got, (50 * up).astype(DTYPES[dtype]))


@each_type
@each_order
def test_gates_of_all_sizes(dtype, interleaved):
    gates = [0, -0.0, 1, -1, 8, -8, 80, -80, 1e3, -1e3, 6e4, -6e4, np.inf, 1e-5, -6e-8, 0.3]
    gate, up = np.float32([gates]), np.full((1, 16), 0.75)
    x = arranged(gate, up, interleaved, dtype)
    got = interpreted(KERNEL, SiluProblem(1, 16, interleaved, dtype), {"x": x})[0].astype(float)
    held = gate[0].astype(DTYPES[dtype]).astype(float)
    with np.errstate(over="ignore"):
        want = held / (1 + np.exp(-held)) * 0.75
    np.testing.assert_allclose(got, want, rtol=2.0**-8, atol=1e-7)


def test_what_nobody_wrote_stays_in_its_row():
    x = np.ones((3, 32), np.float16)
    x[1] = np.nan
    got = interpreted(KERNEL, SiluProblem(3, 16), {"x": x})
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[[0, 2]]).all()


def test_reads_and_writes_are_16_bytes_and_wait():
    config = replace(KERNEL.default(SiluProblem(8, 768), H200), rows=2)
    ptx = build(KERNEL, config, "sm_90a").ptx
    assert ptx.count("ld.global.v4.u32") == ptx.count("ld.global") == 4
    assert ptx.count("st.global.v4.u32") == 2
    order = ("griddepcontrol.wait", "griddepcontrol.launch_dependents", "ld.global", "st.global")
    places = [ptx.index(opcode) for opcode in order]
    assert places == sorted(places)


def test_blocks_share_the_columns_evenly():
    def shape(rows, columns):
        config = KERNEL.default(SiluProblem(rows, columns), H200)
        return config.num_threads, config.rows

    assert shape(8, 768) == (96, 1)
    assert shape(8, 1024) == (128, 1)
    assert shape(8, 1088) == (96, 1)
    # 96 runs of 8: not two blocks of 64, nor a third of one of 256
    assert shape(32768, 768) == (96, 2)
    assert shape(8192, 14336) == (256, 2)


def test_a_config_is_for_one_order_and_type():
    problem = SiluProblem(2, 64, False, "bf16")
    assert KERNEL.default(problem, H200) == SiluConfig(32, 1, True, False, "bf16")
    assert KERNEL.misfit(SiluConfig(dtype="bf16"), problem, H200) == (
        "compiled for interleaved = True; the problem needs False"
    )
    assert "half of rows = 4 holds all 2" in KERNEL.misfit(SiluConfig(rows=4), problem, H200)


def test_work_is_x_and_the_result():
    assert KERNEL.op.work(SiluProblem(3, 64)).bytes == 3 * 64 * 2 * 3


def test_bad_sizes_are_refused():
    with pytest.raises(ProblemError, match="rows must be 1 to 1048576; got 0"):
        SiluProblem(0, 64)
    with pytest.raises(ProblemError, match="columns must be a multiple of 8 up to 1048576; got 60"):
        SiluProblem(1, 60)
    with pytest.raises(ProblemError, match='dtype must be "fp16" or "bf16"; got "fp32"'):
        SiluProblem(1, 64, dtype="fp32")
    with pytest.raises(ConfigError, match="rows must be at least 1; got rows = 0"):
        SiluConfig(rows=0)


@pytest.mark.gpu
@each_type
@each_order
def test_a_hundred_runs_on_gpu(dtype, interleaved, device):
    for rows, columns in ((8, 768), (70000, 72), (2048, 14336)):
        problem = SiluProblem(rows, columns, interleaved, dtype)
        config = KERNEL.default(problem, device.gpu)
        checked = check.on_gpu(KERNEL, config, problem, device, repeats=100)
        assert checked.ok, checked.reason


@pytest.mark.gpu
@each_type
def test_every_gate_on_gpu(dtype, device):
    # all numbers of the type, and infinities, as gates
    bits = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[dtype])
    gate = bits[~np.isnan(bits.astype(np.float32))][:63488].reshape(-1, 64)
    problem = SiluProblem(*gate.shape, interleaved=False, dtype=dtype)
    x = np.concatenate([gate, np.full_like(gate, 0.75)], axis=1)
    got = on_device(KERNEL, problem, {"x": x}, device).astype(np.float64)
    want = KERNEL.op.reference(problem, {"x": x}).astype(np.float64)
    # one in the last place; -inf / inf is no number
    last = 2.0**-10 if dtype == "fp16" else 2.0**-7
    np.testing.assert_allclose(got, want, rtol=last, atol=2.0**-24)


@pytest.mark.gpu
def test_what_nobody_wrote_stays_in_its_row_on_gpu(device, rng):
    problem = SiluProblem(500, 768)
    x = KERNEL.op.make_inputs(problem, rng)["x"]
    got = on_device(KERNEL, problem, {"x": x}, device)
    x[::3] = np.nan
    poisoned = on_device(KERNEL, problem, {"x": x}, device)
    assert np.isnan(poisoned[::3]).all()
    others = np.arange(500) % 3 > 0
    assert poisoned[others].tobytes() == got[others].tobytes()
    assert_close(KERNEL, replace(problem, rows=int(others.sum())), {"x": x[others]}, got[others])
