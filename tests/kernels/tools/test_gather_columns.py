"""The gather of columns; that it equals its reference is in test_kernels.py."""

from dataclasses import replace

import numpy as np
import pytest

from ferrum_numba import check, interpreter
from ferrum_numba.compile import build
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.gptq.repack import marlin_weight
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.tools.gather_columns import GatherColumns, GatherConfig, GatherProblem
from ferrum_numba.reference.gather_columns import gather_columns
from ferrum_numba.reference.gptq import unpack_codes
from ferrum_numba.reference.marlin_layout import unpack_weight
from ferrum_numba.reference.w4a16 import dequantize_codes

KERNEL = GatherColumns()
H200 = KNOWN["h200"]


def interpreted(x, perm, config=None):
    """Return what the kernel makes of 16-bit x."""
    problem = GatherProblem(*x.shape)
    config = config or KERNEL.default(problem, H200)
    buffers = {"x": x, "perm": perm, "out": np.full(x.shape, 0xFFFF, np.uint16).view(x.dtype)}
    launch = KERNEL.launch(config, problem, H200)
    interpreter.run(KERNEL.build(config, "sm_90a"), launch, buffers)
    return buffers["out"]


def test_out_j_is_x_of_perm_j():
    x = np.arange(16, dtype=np.uint16).reshape(1, 16)
    perm = np.array([9, 3, 0, 15, 1, 2, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14], np.int32)
    assert gather_columns(x, perm)[0, :4].tolist() == [9, 3, 0, 15]
    assert interpreted(x, perm).tolist() == [perm.tolist()]


def test_bits_are_kept_also_of_nan_and_infinity():
    x = np.array([[0x7C00, 0xFC00, 0x7E01, 0xFFFF, 0x8000, 1, 0x3C00, 0]], np.uint16)
    reverse = np.arange(8, dtype=np.int32)[::-1].copy()
    out = interpreted(x.view(np.float16), reverse)
    assert out.view(np.uint16).tolist() == [x[0, ::-1].tolist()]


def test_an_act_order_product_of_gathered_columns_is_the_original_one(rng):
    K, N, G, M = 512, 256, 4, 3
    words = rng.integers(0, 2**32, (K // 8, N), np.uint32).view(np.int32)
    scales = rng.uniform(0.005, 0.015, (G, N)).astype(np.float16)
    x = rng.standard_normal((M, K)).astype(np.float16)
    g_idx = np.arange(K, dtype=np.int32) % G
    perm = np.argsort(g_idx, kind="stable").astype(np.int32)
    gathered = interpreted(x, perm).astype(np.float64)
    ordered = dequantize_codes(unpack_weight(marlin_weight(words, perm)), scales)
    want = x.astype(np.float64) @ dequantize_codes(unpack_codes(words), scales, None, g_idx)
    assert np.abs(gathered @ ordered - want).max() < 1e-3
    # the inverse permutation, or none, is another product
    inverse = np.argsort(perm).astype(np.int32)
    assert np.abs(gather_columns(x, inverse).astype(np.float64) @ ordered - want).max() > 0.1
    assert np.abs(x.astype(np.float64) @ ordered - want).max() > 0.1


def test_perm_is_read_once_for_several_rows_and_results_are_stored_by_16_bytes():
    ptx = build(KERNEL, GatherConfig(rows=4), "sm_90a").ptx
    assert ptx.count("ld.global.nc.v4.u32") == 2
    assert ptx.count("ld.global.u16") == 8 * 4
    assert ptx.count("st.global.v4.u32") == 4
    assert "griddepcontrol" not in ptx


def test_a_programmatic_launch_reads_perm_before_and_x_after_it_waits():
    ptx = build(KERNEL, GatherConfig(programmatic=True), "sm_90a").ptx
    perm, wait, x = (ptx.index(o) for o in ("ld.global.nc", "griddepcontrol.wait", "ld.global.u16"))
    assert perm < wait < x
    problem = GatherProblem(1, 4096)
    assert KERNEL.launch(GatherConfig(programmatic=True), problem, H200).programmatic
    assert not KERNEL.launch(GatherConfig(), problem, H200).programmatic


def test_programmatic_launches_are_for_hopper_and_later():
    problem, config = GatherProblem(1, 4096), GatherConfig(programmatic=True)
    assert "needs sm_90 or later; NVIDIA A10 is sm_86" in KERNEL.misfit(
        config, problem, KNOWN["a10"]
    )
    for key in ("h100", "b200", "rtx5090"):
        assert KERNEL.misfit(config, problem, KNOWN[key]) is None
        assert config in KERNEL.configs(KNOWN[key])
    assert config not in KERNEL.configs(KNOWN["a100"])


def test_few_rows_are_dealt_to_small_blocks_and_many_are_staged():
    for M in (1, 2, 16):
        assert KERNEL.default(GatherProblem(M, 4096), H200) == GatherConfig()
    many = KERNEL.default(GatherProblem(4096, 5000), H200)
    assert many.staged
    assert many.row_bytes == 16384
    assert many.smem_bytes == many.rows * 16384


def test_a_row_that_shared_memory_cannot_hold_is_not_staged():
    problem = GatherProblem(64, 1 << 18)
    assert not KERNEL.default(problem, H200).staged
    staged = KERNEL.specialise(GatherConfig(256, staged=True), problem)
    want = "1 rows need 524288 bytes of shared memory a block; NVIDIA H200 has 232448"
    assert KERNEL.misfit(staged, problem, H200) == want
    assert "compiled for rows of 0 bytes" in KERNEL.misfit(
        GatherConfig(256, staged=True), problem, H200
    )


def test_half_of_the_rows_are_not_left_idle():
    problem = GatherProblem(2, 64)
    assert KERNEL.misfit(GatherConfig(rows=2), problem, H200) is None
    assert "half of rows = 4 holds all of M = 2" in KERNEL.misfit(
        GatherConfig(rows=4), problem, H200
    )


def test_work_is_x_perm_and_result():
    assert KERNEL.op.work(GatherProblem(3, 64)).bytes == 2 * 3 * 64 * 2 + 64 * 4


def test_bad_sizes_are_refused():
    with pytest.raises(ProblemError, match="M must be 1 to 65536; got 0"):
        GatherProblem(0, 64)
    with pytest.raises(ProblemError, match="K must be a multiple of 8 up to 1048576; got 60"):
        GatherProblem(1, 60)
    with pytest.raises(ConfigError, match="rows at least 1; got num_threads = 64, rows = 0"):
        GatherConfig(rows=0)


@pytest.mark.gpu
@pytest.mark.parametrize("M", [1, 16, 300])
@pytest.mark.parametrize("K", [4096, 28672])
def test_model_sizes_equal_the_reference_on_gpu(M, K, device):
    problem = GatherProblem(M, K)
    default = KERNEL.default(problem, device.gpu)
    programmatic = replace(default, programmatic=True)
    able = [programmatic] if KERNEL.misfit(programmatic, problem, device.gpu) is None else []
    for config in (default, *able):
        checked = check.on_gpu(KERNEL, config, problem, device)
        assert checked.ok, checked.reason
