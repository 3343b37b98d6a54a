"""The kernels of the ceilings: right on the interpreter, and compiled without spills."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from ferrum_numba import check
from ferrum_numba.compile import build
from ferrum_numba.compile.sass import instruction_mix, nvdisasm
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.ceilings import CEILINGS
from ferrum_numba.kernels.ceilings import memory as ceilings_memory
from ferrum_numba.kernels.ceilings import tensor as ceilings_tensor
from ferrum_numba.kernels.ceilings.bulk import BulkConfig
from ferrum_numba.kernels.ceilings.dequantize import DequantizeConfig
from ferrum_numba.kernels.ceilings.elements import ELEMENTS
from ferrum_numba.kernels.ceilings.fed import FedConfig
from ferrum_numba.kernels.ceilings.memory import LaunchConfig, RowConfig
from ferrum_numba.kernels.ceilings.on_chip import BlockConfig, FmaChain, Lop3Chain
from ferrum_numba.kernels.ceilings.rates import KINDS, Rate
from ferrum_numba.kernels.ceilings.tensor import MmaConfig, WgmmaConfig
from ferrum_numba.kernels.ceilings.waiting import ThreadsConfig
from ferrum_numba.reference import ceilings as reference

GPU = KNOWN["h200"]
# what follows a name of a type other than fp16
WORDS = ("", "_bf16", "_fp8", "_int8")
# first architecture of those that a later one needs
HOPPER = ("wgmma", "dram_read_bulk")
TENSOR_OPCODES = {"HMMA", "IMMA", "QMMA", "HGMMA", "IGMMA", "QGMMA"}
# so small that a few rows take several rounds
SMALL_GPU = replace(GPU, num_sms=2)
BY_NAME = {kernel.name: kernel for kernel in CEILINGS}
ROWS = [RowConfig(1, 64), RowConfig(2, 32)]
THREADS = [BlockConfig(64), BlockConfig(32)]
CONFIGS = {
    **{f"mma_sync{word}": [MmaConfig(16), MmaConfig(32)] for word in WORDS},
    **{f"wgmma{word}": [WgmmaConfig()] for word in WORDS},
    **{f"{name}_fed{word}": [FedConfig()] for name in ("mma_sync", "wgmma") for word in WORDS},
    "dram_read_bulk": [BulkConfig(2, 2), BulkConfig(1, 4)],
    "shared_read": THREADS,
    "fp32_fma": THREADS,
    "lop3": THREADS,
    "kernel_ramp": [ThreadsConfig(64)],
    "grid_barrier": [ThreadsConfig(64)],
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


def archs(name):
    """Return the architectures to compile a kernel for."""
    if name.endswith("_fp8") and name.startswith("mma"):
        return ["sm_89"]
    return ["sm_90a"] if name.startswith(HOPPER) else ["sm_80", "sm_90a"]


@pytest.mark.parametrize(("name", "arch"), [(n, arch) for n in BY_NAME for arch in archs(n)])
def test_compiles_without_spills(name, arch):
    kernel = BY_NAME[name]
    gpu = KNOWN["l40s"] if arch == "sm_89" else GPU
    binary = build(kernel, kernel.configs(gpu)[0], arch)
    assert (binary.spill_bytes, binary.stack_bytes, binary.remarks) == (0, 0, ())
    assert ".f64" not in binary.ptx


# kernel -> an opcode and how often it stands in the loop; loops of few lines are unrolled further
CLAIMS = {
    "mma_sync": ("HMMA", 64), "mma_sync_bf16": ("HMMA", 64), "mma_sync_int8": ("IMMA", 64),
    "wgmma": ("HGMMA", 4), "wgmma_bf16": ("HGMMA", 4), "wgmma_fp8": ("QGMMA", 8),
    "wgmma_int8": ("IGMMA", 4), "wgmma_fed": ("HGMMA", 4), "wgmma_fed_bf16": ("HGMMA", 4),
    "wgmma_fed_fp8": ("QGMMA", 8), "wgmma_fed_int8": ("IGMMA", 4), "mma_sync_fed": ("HMMA", 32),
    "mma_sync_fed_bf16": ("HMMA", 32), "mma_sync_fed_int8": ("IMMA", 32),
    "fp32_fma": ("FFMA", 256), "lop3": ("LOP3", 256), "shared_read": ("LDS", 8),
    "dram_read_bulk": ("UBLKCP", 1),
}  # fmt: skip


@pytest.mark.skipif(nvdisasm() is None, reason="nvdisasm is not installed")
@pytest.mark.parametrize("name", CLAIMS)
def test_the_sass_is_what_it_claims(name):
    kernel, (opcode, count) = BY_NAME[name], CLAIMS[name]
    mix = instruction_mix(build(kernel, kernel.configs(GPU)[0], "sm_90a").cubin)
    assert mix[opcode] >= count
    if opcode in TENSOR_OPCODES:
        assert set(mix) & TENSOR_OPCODES == {opcode}
    if opcode in ("FFMA", "LOP3"):
        # what else stands there takes issue slots too
        assert mix[opcode] > 0.75 * sum(mix.values())


def test_the_hot_loops_are_what_they_claim():
    wgmma = build(BY_NAME["wgmma"], WgmmaConfig(), "sm_90a")
    assert wgmma.ptx.count("wgmma.mma_async") == 4
    assert wgmma.registers <= 168
    mma = build(BY_NAME["mma_sync"], MmaConfig(), "sm_80")
    assert mma.ptx.count("mma.sync.aligned") == 64
    read = build(BY_NAME["dram_read"], RowConfig(), "sm_90a")
    assert read.ptx.count("ld.global.nc") == 8


def test_fp8_is_for_those_that_have_it():
    mma = [BY_NAME[name] for name in ("mma_sync_fp8", "mma_sync_fed_fp8")]
    assert [kernel.configs(GPU) for kernel in mma] == [(), ()]
    assert all(kernel.configs(KNOWN["l40s"]) for kernel in mma)
    assert BY_NAME["wgmma_fp8"].configs(GPU)


def test_bulk_copies_are_for_hopper_and_later():
    assert BY_NAME["dram_read_bulk"].configs(KNOWN["a100"]) == ()
    assert BY_NAME["dram_read_bulk"].configs(KNOWN["b200"])


@pytest.mark.parametrize("name", BY_NAME)
def test_every_config_fits_the_gpu_it_is_for(name):
    kernel = BY_NAME[name]
    for gpu in KNOWN.values():
        for config in kernel.configs(gpu):
            reason = kernel.misfit(config, kernel.op.tests[0], gpu)
            assert reason is None or gpu.smem_per_sm < 200 * 1024


@pytest.mark.parametrize("kernel", CEILINGS, ids=lambda one: one.name)
def test_a_process_can_be_sent_each_of_them(kernel):
    again = pickle.loads(pickle.dumps(kernel))
    assert (again.name, again.op, again.rate) == (kernel.name, kernel.op, kernel.rate)
    assert getattr(again, "element", None) is getattr(kernel, "element", None)


def test_every_kernel_says_what_it_measures():
    rates = {name: kernel.rate for name, kernel in BY_NAME.items()}
    assert {rate.kind for rate in rates.values()} == set(KINDS)
    assert rates["wgmma_fed_int8"] == Rate("tensor", "TOP/s", "int8", fed=True)
    assert rates["grid_barrier"].of(128.0, None) == 2.0
    read = BY_NAME["dram_read"]
    assert rates["dram_read"].of(1000.0, read.op.work(read.op.tests[-1])) == 2**30 / 1e6
    lop3 = BY_NAME["lop3"].op.work(Lop3Chain(1000, 64))
    assert rates["lop3"].of(1.0, lop3) == pytest.approx(8 * 1000 * 64 / 1e6)


def test_signs_alternate_so_that_fp8_sums_stay_small(rng):
    op = BY_NAME["wgmma_fp8"].op
    problem = ceilings_tensor.TensorChain(2, 2052)
    inputs = op.make_inputs(problem, rng)
    products = inputs["a"].astype(np.float64) @ inputs["b"].T.astype(np.float64)
    assert (op.reference(problem, inputs) == 4 * products).all()
    kernel = BY_NAME["wgmma_fp8"]
    assert "odd multiple of 4, as signs alternate; got 2048" in kernel.refuses(
        replace(problem, k_steps=2048)
    )
    # a product that was left out shows
    got = (3 * products).astype(np.float32)
    assert not op.tolerance(problem).compare(got, op.reference(problem, inputs)).ok


def test_the_sums_of_int8_fit_int32(rng):
    op = BY_NAME["wgmma_int8"].op
    problem = op.tests[-1]
    assert 127**2 * 32 * problem.k_steps < 2**31
    small = replace(problem, tiles=2)
    want = op.reference(small, op.make_inputs(small, rng))
    assert (want == want.astype(np.int32)).all()


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda one: one.name)
def test_numbers_are_of_their_type_and_none_is_zero(element, rng):
    numbers = element.random((4, 64), rng)
    assert numbers.dtype == element.dtype
    assert (numbers.astype(np.float64) != 0).all()
    assert len(np.unique(numbers.astype(np.float64))) > 20


def test_lop3_rounds_by_loop():
    seed = np.array([5, 2**32 - 1], np.uint32)
    want = []
    for start in seed.tolist():
        r = [(start + j * 77) % 2**32 for j in range(4)]
        for _ in range(3):
            for j in range(4):
                a, b, c = r[j], r[(j + 1) % 4], r[(j + 3) % 4]
                r[j] = sum(
                    (0x6A >> (4 * (a >> i & 1) + 2 * (b >> i & 1) + (c >> i & 1)) & 1) << i
                    for i in range(32)
                )
        want.append(r[0] ^ r[1] ^ r[2] ^ r[3])
    assert reference.lop3_rounds(seed, 4, 3, 77, 0x6A).tolist() == want


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
    assert work["wgmma"].flops == 2 * 1056 * 64 * 256 * 16 * 2048
    assert work["wgmma_fed_fp8"].flops == 2 * 1056 * 64 * 256 * 32 * 2052
    assert work["shared_read"].bytes == 132 * 64 * 64 * 16384
    assert work["fp32_fma"].flops == 2 * 8 * 132 * 2048 * 8192
    assert work["dequant_and"].flops == 8 * 2**20 * 256
    assert work["launch_floor"] == type(work["wgmma"])(0, 0)


def test_bad_sizes_are_refused():
    with pytest.raises(ProblemError, match="size_bytes must be a multiple of 4096; got 100"):
        ceilings_memory.DramRead(100)
    with pytest.raises(ProblemError, match="k_steps must be 1 to 4096; got 5000"):
        ceilings_tensor.TensorChain(1, 5000)
    with pytest.raises(ConfigError, match="chains must be 8, 16 or 32; got 4"):
        MmaConfig(chains=4)
    with pytest.raises(ConfigError, match="num_stages must be a power of two; got 3"):
        BulkConfig(num_stages=3)
    with pytest.raises(ProblemError, match="steps must be 1 to 65536; got 70000"):
        FmaChain(1, 70000)
    assert BY_NAME["lop3"].refuses(Lop3Chain(1, 33)) == "steps must be a multiple of 32; got 33"


@pytest.mark.gpu
@pytest.mark.parametrize("name", BY_NAME)
def test_gpu_equals_reference(name, device):
    kernel = BY_NAME[name]
    for problem in kernel.op.tests[:-1] or kernel.op.tests:
        for config in kernel.configs(device.gpu):
            if kernel.misfit(config, problem, device.gpu) is None:
                checked = check.on_gpu(kernel, config, problem, device)
                assert checked.ok, checked.reason
