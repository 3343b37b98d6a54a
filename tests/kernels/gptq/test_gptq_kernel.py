"""The kernel on GPTQ's own tensors: by the interpreter, and as compiled, with no GPU."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ferrum_numba import check, interpreter
from ferrum_numba.compile import build
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.gptq.kernel import CONFIGS, Config, W4A16Gptq
from ferrum_numba.kernels.w4a16 import OP, W4A16Problem
from ferrum_numba.reference import gptq

KERNEL = W4A16Gptq()
H200 = KNOWN["h200"]
PROBLEM = W4A16Problem(19, 72, 264, 24, "gptq", act_order=True, bias=True)
ORDERED = W4A16Problem(19, 72, 416, 32, "gptq", bias=True)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (Config(16, 128, 64, 2, group_rows=32), ORDERED),
        (Config(32, 64, 128, 3, split_k=2, group_rows=32), ORDERED),
        (Config(16, 256, 32, 4, split_k=8, group_rows=32), replace(ORDERED, M=5)),
        (Config(64, 64, 64, 3, split_k=4), replace(ORDERED, M=70, group_size=416)),
        (Config(16, 64, 128, 4, split_k=2, group_rows=8), replace(ORDERED, group_size=104)),
        (Config(32, 96, 64, 3, group_rows=1), PROBLEM),
        (Config(16, 64, 128, 2, split_k=3, group_rows=1), PROBLEM),
        (Config(16, 32, 32, 2, group_rows=1), replace(PROBLEM, group_size=12, act_order=False)),
    ],
    ids=str,
)
def test_other_tiles_equal_the_reference(config, problem):
    checked = check.on_interpreter(KERNEL, config, problem)
    assert checked.ok, checked.reason


def test_a_second_launch_on_the_same_workspace_gives_the_same_bits(rng):
    config = Config(16, 32, 64, 2, split_k=3, group_rows=32)
    launch = KERNEL.launch(config, ORDERED, H200)
    buffers = KERNEL.prepare(ORDERED, OP.make_inputs(ORDERED, rng))
    buffers |= {name: np.zeros(size, np.uint8) for name, size in launch.workspace.items()}
    results = []
    for _ in range(2):
        buffers["out"] = np.full(OP.output(ORDERED)[0], np.nan, np.float16)
        interpreter.run(KERNEL.build(config, "sm_90a"), launch, buffers)
        results.append(buffers["out"].view(np.uint16))
        assert not buffers["counters"].any()
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("config", "arch"),
    [
        (Config(64, split_k=2), "sm_90a"),
        (Config(64, tile_k=32, group_rows=1), "sm_80"),
    ],
    ids=str,
)
def test_it_compiles_to_tensor_cores_without_spills(config, arch):
    binary = build(KERNEL, config, arch)
    assert (binary.spill_bytes, binary.remarks) == (0, ())
    assert binary.stack_bytes == 0
    assert "mma.sync" in binary.ptx
    assert "cp.async.cg" in binary.ptx
    assert ".f64" not in binary.ptx


@pytest.mark.parametrize("gpu", KNOWN.values(), ids=KNOWN)
def test_the_default_of_every_problem_fits_and_is_one_of_the_space(gpu):
    for problem in OP.tests:
        configs = [KERNEL.specialise(choice, problem) for choice in KERNEL.configs(gpu)]
        config = KERNEL.default(problem, gpu)
        assert KERNEL.refuses(problem) is None
        assert KERNEL.misfit(config, problem, gpu) is None
        assert config in configs


def test_the_space_has_no_twins_and_starts_with_the_default():
    assert CONFIGS[0] == Config()
    assert max(Counter(CONFIGS).values()) == 1


def test_a_large_problem_gets_a_large_tile_and_a_small_one_many_blocks():
    assert KERNEL.default(W4A16Problem(4096, 4096, 4096), H200) == Config(64)
    assert KERNEL.default(W4A16Problem(1, 4096, 4096), H200) == Config(16, split_k=8)
    assert KERNEL.default(W4A16Problem(1, 28672, 4096), H200) == Config(16)


def test_a_block_that_needs_more_shared_memory_than_there_is_does_not_fit():
    config = Config(64, 256, 64, 4, group_rows=1)
    reason = KERNEL.misfit(config, replace(PROBLEM, M=64), KNOWN["rtx4090"])
    assert reason.startswith(f"needs {config.smem_bytes} bytes of shared memory a block")
    assert config not in KERNEL.configs(KNOWN["rtx4090"])


@pytest.mark.parametrize("kind", ["none", "gptq", "gptq_v2"])
def test_the_operands_are_a_checkpoint(kind, rng):
    problem = W4A16Problem(2, 64, 128, 32, kind)
    inputs = OP.make_inputs(problem, rng)
    operands = KERNEL.prepare(problem, inputs)
    stored = "gptq" if kind == "none" else kind
    weight = gptq.dequantize(
        operands["qweight"], operands["scales"], operands["qzeros"], operands["g_idx"], stored
    )
    got = operands["x"].astype(np.float64) @ weight.astype(np.float64)
    np.testing.assert_allclose(got, OP.reference(problem, inputs), rtol=1e-6, atol=1e-7)
    # every symmetric checkpoint's word of zero points
    if kind == "none":
        assert set(np.unique(operands["qzeros"])) == {0x77777777}


def test_blocks_that_share_a_tile_get_a_slot_each():
    problem = W4A16Problem(40, 256, 512)
    launch = KERNEL.launch(Config(32, split_k=4), problem, H200)
    assert launch.grid == (2, 2, 4)
    assert launch.workspace == {"partials": 2 * 2 * 4 * 32 * 128 * 4, "counters": 2 * 2 * 4}
