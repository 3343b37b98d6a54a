"""The kernels of the ceilings: right on the interpreter, and compiled without spills."""

from dataclasses import replace

import numpy as np
import pytest

from ferrum_numba import check
from ferrum_numba.compile import build
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.ceilings import CEILINGS
from ferrum_numba.kernels.ceilings import memory as ceilings_memory
from ferrum_numba.kernels.ceilings import tensor as ceilings_tensor
from ferrum_numba.kernels.ceilings.dequantize import DequantizeConfig
from ferrum_numba.kernels.ceilings.memory import LaunchConfig, RowConfig
from ferrum_numba.kernels.ceilings.tensor import MmaConfig, WgmmaConfig
from ferrum_numba.reference import ceilings as reference

GPU = KNOWN["h200"]
# so small that a few rows take several rounds
SMALL_GPU = replace(GPU, num_sms=2)
BY_NAME = {kernel.name: kernel for kernel in CEILINGS}
ROWS = [RowConfig(1, 64), RowConfig(2, 32)]
CONFIGS = {
    "mma_sync": [MmaConfig(16), MmaConfig(32)],
    "wgmma": [WgmmaConfig()],
    "dequant_and": [DequantizeConfig(8, 64), DequantizeConfig(4, 32)],
    "dequant_f16": [DequantizeConfig(8, 64)],
    "dequant_scaled": [DequantizeConfig(8, 64)],
    "launch_floor": [LaunchConfig()],
}


def cases():
    """Return every kernel with a few configs on its small problems."""
    return [
        pytest.param(kernel, config, problem, id=f"{kernel.name}-{config}-{problem}")
        for kernel in CEILINGS
        for config in CONFIGS.get(kernel.name, ROWS)
        for problem in kernel.op.tests[:-1] or kernel.op.tests
    ]


@pytest.mark.parametrize(("kernel", "config", "problem"), cases())
def test_interpreter_equals_reference(kernel, config, problem):
    checked = check.on_interpreter(kernel, config, problem, gpu=SMALL_GPU)
    assert checked.ok, checked.reason


def test_every_kernel_has_a_case():
    assert {case.values[0].name for case in cases()} == set(BY_NAME)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("name", BY_NAME)
def test_compiles_without_spills(name, arch):
    if name == "wgmma" and arch != "sm_90a":
        pytest.skip("only Hopper has wgmma")
    kernel = BY_NAME[name]
    binary = build(kernel, kernel.configs(GPU)[0], arch)
    assert (binary.spill_bytes, binary.stack_bytes) == (0, 0)
    assert ".f64" not in binary.ptx


def test_the_hot_loops_are_what_they_claim():
    wgmma = build(BY_NAME["wgmma"], WgmmaConfig(), "sm_90a")
    assert wgmma.ptx.count("wgmma.mma_async") == 4
    assert wgmma.registers <= 168
    mma = build(BY_NAME["mma_sync"], MmaConfig(), "sm_80")
    assert mma.ptx.count("mma.sync.aligned") == 16
    read = build(BY_NAME["dram_read"], RowConfig(), "sm_90a")
    assert read.ptx.count("ld.global.nc") == 8


def test_wgmma_is_for_hopper_only():
    assert BY_NAME["wgmma"].configs(KNOWN["a100"]) == ()
    assert BY_NAME["wgmma"].configs(KNOWN["b200"]) == ()


def test_l2_is_not_read_with_more_than_half_of_it():
    kernel, config = BY_NAME["l2_read"], RowConfig()
    full = kernel.op.tests[-1]
    assert kernel.misfit(config, full, GPU) is None
    assert "do not stay in half of the L2 of NVIDIA A10" in kernel.misfit(
        config, full, KNOWN["a10"]
    )


def test_a_read_is_larger_than_any_l2():
    full = BY_NAME["dram_read"].op.tests[-1]
    assert all(full.size_bytes >= 8 * gpu.l2_bytes for gpu in KNOWN.values())


@pytest.mark.parametrize("name", ["dram_read", "l2_read"])
def test_a_word_that_was_not_read_shows(name, rng):
    op = BY_NAME[name].op
    problem = op.tests[1]
    inputs = op.make_inputs(problem, rng)
    want = op.reference(problem, inputs)
    inputs["data"][3, 7] ^= np.uint32(1)
    assert not op.tolerance(problem).compare(op.reference(problem, inputs), want).ok


def test_row_sums_by_hand():
    data = np.array([[1, 2], [2**32 - 1, 3], [5, 6]], np.uint32)
    assert reference.row_sums(data, 1, 0).tolist() == [3, 2, 11]
    assert reference.row_sums(data, 2, 1).tolist() == [5, 13, 14]
    assert reference.row_sums(data, 3, 2).tolist() == [16, 16, 16]


def test_tensor_inputs_are_exact_to_the_longest_chain(rng):
    problem = ceilings_tensor.TensorChain(4, ceilings_tensor.MAX_K_STEPS)
    inputs = ceilings_tensor.TENSOR.make_inputs(problem, rng)
    assert all((array != 0).all() for array in inputs.values())
    largest = 16 * (15 / 8) ** 2 * problem.k_steps
    assert largest * 64 < 2**24
    want = ceilings_tensor.TENSOR.reference(problem, inputs)
    assert (want == want.astype(np.float32)).all()


def test_dequantize_chain_by_loop(rng):
    words = rng.integers(0, 2**32, 3, np.uint32)
    values = rng.integers(0, 2**16, 16).astype(np.uint16)
    want = []
    for start in words:
        word, total = int(start), 0
        for _ in range(5):
            for i in range(4):
                pair = int(values[word >> 4 * i & 15])
                pair |= int(values[word >> (4 * i + 16) & 15]) << 16
                total ^= pair
            word = (word + 77) % 2**32
        want.append(total)
    assert reference.dequantize_chain(words, 5, 77, values).tolist() == want


def test_work_is_what_is_moved_and_computed():
    work = {name: kernel.op.work(kernel.op.tests[-1]) for name, kernel in BY_NAME.items()}
    assert work["dram_read"].bytes == 2**30
    assert work["dram_copy"].bytes == 2**29
    assert work["l2_read"].bytes == 2**30
    assert work["wgmma"].flops == 2 * 2640 * 64 * 256 * 16 * 1024
    assert work["dequant_and"].flops == 8 * 2**20 * 256
    assert work["launch_floor"] == type(work["wgmma"])(0, 0)


def test_bad_sizes_are_refused():
    with pytest.raises(ProblemError, match="size_bytes must be a multiple of 4096; got 100"):
        ceilings_memory.DramRead(100)
    with pytest.raises(ProblemError, match="k_steps must be 1 to 4096; got 5000"):
        ceilings_tensor.TensorChain(1, 5000)
    with pytest.raises(ConfigError, match="chains must be 8, 16 or 32; got 4"):
        MmaConfig(chains=4)


@pytest.mark.gpu
@pytest.mark.parametrize("name", BY_NAME)
def test_gpu_equals_reference(name, device):
    kernel = BY_NAME[name]
    for problem in kernel.op.tests[:-1] or kernel.op.tests:
        for config in kernel.configs(device.gpu):
            if kernel.misfit(config, problem, device.gpu) is None:
                checked = check.on_gpu(kernel, config, problem, device)
                assert checked.ok, checked.reason
