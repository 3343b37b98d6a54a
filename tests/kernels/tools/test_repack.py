"""The repack kernel and its reference; that it equals the reference is in test_kernels.py."""

import time
from dataclasses import replace

import numpy as np
import pytest

from ferrum_numba import interpreter
from ferrum_numba.compile import build
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.gptq.repack import marlin_weight
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.tools.repack import Repack, RepackConfig, RepackProblem
from ferrum_numba.reference.gptq import pack_codes, unpack_codes
from ferrum_numba.reference.marlin_layout import unpack_weight
from ferrum_numba.reference.repack import repack

KERNEL = Repack()
SMALL = replace(KNOWN["h200"], num_sms=3)
# of Qwen3-30B-A3B: gate and up, down
QWEN3_STACKS = (RepackProblem(128, 2048, 1536), RepackProblem(128, 768, 2048))


def interpreted(problem, inputs):
    """Return what the kernel makes of these inputs."""
    config = KERNEL.default(problem, SMALL)
    shape, dtype = KERNEL.op.output(problem)
    buffers = {**KERNEL.prepare(problem, inputs), "out": np.full(shape, -1, dtype)}
    launch = KERNEL.launch(config, problem, SMALL)
    interpreter.run(KERNEL.build(config, "sm_90a"), launch, buffers)
    return buffers["out"]


@pytest.mark.parametrize("act_order", [False, True])
def test_the_kernel_equals_packing_on_the_cpu(rng, act_order):
    problem = RepackProblem(2, 56, 72, act_order, 64, 128)
    inputs = KERNEL.op.make_inputs(problem, rng)
    perms = inputs.get("perm", [None, None])
    want = [marlin_weight(q, p, (64, 128)) for q, p in zip(inputs["qweight"], perms, strict=True)]
    np.testing.assert_array_equal(interpreted(problem, inputs), np.stack(want))


def test_one_code_lands_in_one_nibble():
    # of the second expert, row 9 = 8 + 2*0 + 1, column 91 = 64 + 16*1 + 8 + 3: tile (0, 1)
    codes = np.zeros((2, 16, 128), np.uint8)
    codes[1, 9, 91] = 15
    qweight = np.stack([pack_codes(one) for one in codes])
    packed = interpreted(RepackProblem(2, 16, 128), {"qweight": qweight}).view(np.uint32)
    assert np.argwhere(packed).tolist() == [[1, 0, 128 + 4 * (4 * 3 + 0) + 1]]
    assert packed.max() == 15 << 4 * (4 * 1 + 2 * 1 + 1)


def test_each_expert_has_a_permutation_of_its_own(rng):
    problem = RepackProblem(2, 32, 64, act_order=True)
    inputs = KERNEL.op.make_inputs(problem, rng)
    assert (inputs["perm"][0] != inputs["perm"][1]).any()
    packed = interpreted(problem, inputs)
    for e in range(2):
        codes = unpack_codes(inputs["qweight"][e])[inputs["perm"][e]]
        np.testing.assert_array_equal(unpack_weight(packed[e]), codes)


def test_the_reference_pads_with_codes_8(rng):
    inputs = KERNEL.op.make_inputs(RepackProblem(1, 24, 72, K_padded=32, N_padded=128), rng)
    codes = unpack_weight(repack(inputs["qweight"], None, (32, 128))[0])
    np.testing.assert_array_equal(codes[:24, :72], unpack_codes(inputs["qweight"][0]))
    assert (codes[24:] == 8).all()
    assert (codes[:, 72:] == 8).all()


def test_experts_side_by_side_are_not_a_stack(rng):
    inputs = KERNEL.op.make_inputs(RepackProblem(2, 32, 64), rng)
    stack = repack(inputs["qweight"])
    side_by_side = repack(np.concatenate(list(inputs["qweight"]), axis=1)[None])
    assert side_by_side.size == stack.size
    assert not np.array_equal(side_by_side.reshape(stack.shape), stack)


def test_work_is_every_word_once_in_and_once_out():
    work = KERNEL.op.work
    assert work(RepackProblem(2, 32, 64)).bytes == 2 * (2 * 32 * 64 // 2)
    padded = RepackProblem(1, 24, 72, K_padded=64, N_padded=128)
    assert work(padded).bytes == 24 * 72 // 2 + 64 * 128 // 2
    gathered = RepackProblem(2, 32, 64, act_order=True)
    assert work(gathered).bytes == work(RepackProblem(2, 32, 64)).bytes + 4 * 2 * 32


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((1, 12, 64), "K must be a multiple of 8; got 12"),
        ((1, 16, 0), "N must be a multiple of 8; got 0"),
        ((1, 24, 64), "K padded to a multiple of 16; got K = 24, K_padded = 24, the nearest is 32"),
        (
            (1, 16, 72),
            "N padded to a multiple of 64; got N = 72, N_padded = 72, the nearest is 128",
        ),
        ((1, 32, 64, False, 16), "got K = 32, K_padded = 16, the nearest is 32"),
        ((1, 16, 64, False, 16, 96), "got N = 64, N_padded = 96, the nearest is 64"),
        ((0, 16, 64), "a stack must hold 1 weight or more"),
        ((2**31, 16, 64), "less than 2147483648 tiles of 1024 codes; got E = 2147483648"),
    ],
)
def test_what_cannot_be_packed_is_refused_in_numbers(sizes, words):
    with pytest.raises(ProblemError) as refused:
        RepackProblem(*sizes)
    assert words in str(refused.value)


def test_a_config_is_for_one_kind_of_weight():
    problem = RepackProblem(1, 16, 64, act_order=True)
    assert KERNEL.default(problem, SMALL) == RepackConfig(act_order=True)
    assert "act_order must be True" in KERNEL.misfit(RepackConfig(), problem, SMALL)
    with pytest.raises(ConfigError, match="a multiple of 32 up to 1024; got 48"):
        RepackConfig(48)


def test_reads_and_writes_are_16_bytes():
    plain = build(KERNEL, RepackConfig(), "sm_90a")
    assert plain.ptx.count("ld.global.nc.v4.u32") == 4
    assert plain.ptx.count("st.global.v4.u32") == 4
    assert plain.ptx.count("ld.global") == 4
    gathering = build(KERNEL, RepackConfig(act_order=True), "sm_90a")
    # of 4 vectors of words, each from 8 rows by 8 numbers of perm
    assert gathering.ptx.count("ld.global.nc.v4.u32") == 4 * (8 + 2)
    assert gathering.ptx.count("ld.global") == 4 * (8 + 2)
    assert gathering.registers <= 64


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("act_order", [False, True])
def test_the_stacks_of_a_model_layer_take_less_than_a_second(device, rng, act_order):
    from ferrum_numba.launch import Buffer, load

    prepared, kept = [], []
    for problem in (replace(stack, act_order=act_order) for stack in QWEN3_STACKS):
        inputs = KERNEL.op.make_inputs(problem, rng)
        operands = KERNEL.prepare(problem, inputs)
        buffers = {name: Buffer.from_array(device, array) for name, array in operands.items()}
        shape, dtype = KERNEL.op.output(problem)
        buffers["out"] = Buffer.empty(device, int(np.prod(shape)) * dtype.itemsize)
        config = KERNEL.default(problem, device.gpu)
        loaded = load(build(KERNEL, config, device.gpu.arch), device)
        prepared.append(loaded.prepare(KERNEL.launch(config, problem, device.gpu), buffers))
        kept.append((inputs, buffers["out"], shape, dtype))
    device.synchronize()
    began = time.perf_counter()
    for launch in prepared:
        launch(0)
    device.synchronize()
    assert time.perf_counter() - began < 1
    for inputs, out, shape, dtype in kept:
        packed = out.read(shape, dtype)
        for e in (0, 1, 63, 127):
            perm = inputs["perm"][e] if act_order else None
            np.testing.assert_array_equal(packed[e], marlin_weight(inputs["qweight"][e], perm))
