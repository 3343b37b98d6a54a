"""grouped_decode: experts in one grid, whose steps are cut on the device, and experts apart."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from ferrum_numba import check, interpreter
from ferrum_numba.compile import build
from ferrum_numba.errors import ConfigError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.grouped import OP, GroupedProblem
from ferrum_numba.kernels.grouped_decode.apart import ExpertBuckets, ExpertLoop
from ferrum_numba.kernels.grouped_decode.kernel import Config, GroupedDecode
from ferrum_numba.launch import OperandSet
from ferrum_numba.reference.moe import align_tokens

H200 = KNOWN["h200"]
KERNEL = GroupedDecode()
SMALL = Config(8, 1, 2, 64, 1)
PROBLEM = GroupedProblem(9, 5, 2, 128, 256, 64)


def on_interpreter(config, problem, num_sms=3):
    config = KERNEL.specialise(config, problem)
    return check.on_interpreter(KERNEL, config, problem, gpu=replace(H200, num_sms=num_sms))


def run_with(ids, config=SMALL, problem=None):
    """Return what it computes for such ids, the poison of `out` where nothing was written."""
    problem = problem or replace(PROBLEM, tokens=len(ids), top_k=ids.shape[1])
    config = KERNEL.specialise(config, problem)
    gpu = replace(H200, num_sms=3)
    inputs = {**OP.make_inputs(problem, np.random.default_rng(0)), "ids": ids}
    launch = KERNEL.launch(config, problem, gpu)
    buffers = {**KERNEL.prepare(problem, inputs), "out": np.full(*OP.output(problem)[:1], np.nan)}
    buffers["out"] = buffers["out"].astype(OP.output(problem)[1])
    buffers |= {name: np.zeros(size, np.uint8) for name, size in launch.workspace.items()}
    interpreter.run(KERNEL.build(config, H200.arch), launch, buffers)
    compared = OP.tolerance(problem).compare(buffers["out"], OP.reference(problem, inputs))
    assert compared.ok, compared.message
    assert not buffers["slots"].any(), "the workspace is left as it was found"
    return buffers["out"]


@pytest.mark.parametrize("gpu", KNOWN.values(), ids=KNOWN)
def test_every_problem_it_accepts_has_a_config_on_every_gpu(gpu):
    for tokens, n, k in product((1, 2, 9, 100, 9000), (64, 128, 320), (64, 128, 192, 448, 2048)):
        for group_size, gated in product((32, 64, -1), (False, True)):
            problem = GroupedProblem(tokens, 60, 4, n, k, group_size, gated=gated)
            assert KERNEL.refuses(problem) is None
            config = KERNEL.default(problem, gpu)
            assert KERNEL.misfit(config, problem, gpu) is None
            assert sum(KERNEL.launch(config, problem, gpu).workspace.values()) <= 9 << 20


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 15, 16, 17, 33])
@pytest.mark.parametrize("tile_m", [8, 16, 32])
def test_an_expert_may_have_any_number_of_rows(rows, tile_m):
    # the expert in the middle has them; the others what is left of 40 tokens
    ids = np.array([[2]] * rows + [[0], [4]] * ((40 - rows) // 2), np.int32)
    run_with(ids, replace(SMALL, tile_m=tile_m))


@pytest.mark.parametrize("direct", [False, True])
def test_one_expert_may_take_all(direct):
    run_with(np.full((11, 1), 3, np.int32), replace(SMALL, direct=direct))


@pytest.mark.parametrize("grid", [{}, {"direct": True}, {"direct": True, "buckets": True}])
def test_a_dropped_pair_writes_nothing(grid):
    ids = np.array([[0, -1], [5, 2], [-7, 99], [4, 0]], np.int32)
    out = run_with(ids, replace(SMALL, **grid))
    assert np.isnan(out[[1, 2, 4, 5]]).all()
    assert not np.isnan(out[[0, 3, 6, 7]]).any()


@pytest.mark.parametrize("direct", [False, True])
def test_where_every_pair_is_dropped_nothing_is_done(direct):
    assert np.isnan(run_with(np.full((3, 2), -1, np.int32), replace(SMALL, direct=direct))).all()


@pytest.mark.parametrize("num_sms", [1, 2, 5, 7, 40])
@pytest.mark.parametrize("whole", [False, True])
def test_the_result_does_not_depend_on_the_number_of_sms(num_sms, whole):
    problem = GroupedProblem(7, 5, 2, 192, 704, 64)
    result = on_interpreter(replace(SMALL, warps_k=3, whole=whole), problem, num_sms)
    assert result.ok, result.reason


@pytest.mark.parametrize("group_size", [128, 64, 32, -1])
@pytest.mark.parametrize("step_k", [64, 128])
@pytest.mark.parametrize("zero_points", ["none", "gptq"])
def test_every_kind_of_weight(group_size, step_k, zero_points):
    problem = GroupedProblem(
        4, 3, 2, 128, 640, group_size, zero_points=zero_points, bias=group_size == 64,
        gated=group_size in (32, -1), weighted=group_size == 128,
    )  # fmt: skip
    result = on_interpreter(Config(8, 2, 2, step_k, 1), problem)
    assert result.ok, result.reason


@pytest.mark.parametrize("tile_m", [8, 16, 32])
def test_a_token_s_row_has_the_same_bits_whatever_else_is_in_the_batch(tile_m):
    """Whole slices are summed in one order; other stripes cut elsewhere with other batches."""
    problem = GroupedProblem(20, 5, 2, 128, 704, 64)
    inputs = OP.make_inputs(problem, np.random.default_rng(0))
    others = np.vstack([inputs["ids"][:1], np.full((19, 2), 1)]).astype(np.int32)
    outs = []
    for ids in (inputs["ids"], others):
        config = KERNEL.specialise(replace(SMALL, tile_m=tile_m, whole=True), problem)
        launch = KERNEL.launch(config, problem, replace(H200, num_sms=2))
        buffers = KERNEL.prepare(problem, {**inputs, "ids": ids})
        buffers |= {name: np.zeros(size, np.uint8) for name, size in launch.workspace.items()}
        buffers["out"] = np.zeros(*OP.output(problem))
        interpreter.run(KERNEL.build(config, H200.arch), launch, buffers)
        want = OP.reference(problem, {**inputs, "ids": ids})
        assert OP.tolerance(problem).compare(buffers["out"], want).ok
        outs.append(buffers["out"])
    np.testing.assert_array_equal(outs[0][:2].view(np.uint16), outs[1][:2].view(np.uint16))


@pytest.mark.parametrize("kernel", [ExpertBuckets(), ExpertLoop()], ids=lambda k: k.name)
def test_experts_apart_give_what_one_grid_gives(kernel):
    problem = replace(PROBLEM, bias=True, weighted=True)
    config = kernel.default(problem, H200)
    result = check.on_interpreter(kernel, config, problem, gpu=replace(H200, num_sms=3))
    assert result.ok, result.reason


def test_a_loop_has_a_launch_for_every_block_there_can_be():
    kernel, problem = ExpertLoop(), replace(PROBLEM, tokens=40)
    config = kernel.default(problem, H200)
    launches = list(kernel.launch(config, problem, H200).one_by_one())
    most = len(align_tokens(np.zeros((40, 2), np.int32), 5, config.tile_m)["expert_ids"])
    assert [one.scalars["first_block"] for one in launches] == list(range(most))


def test_what_is_no_config_is_refused_in_numbers():
    with pytest.raises(ConfigError, match="cluster = 2"):
        Config(cluster=2)
    with pytest.raises(ConfigError, match="tile_m = 16"):
        Config(tile_m=16, direct=True)
    assert "act_order" in KERNEL.refuses(replace(PROBLEM, act_order=True))


def test_steps_that_32_bits_cannot_number_are_refused():
    """The device would number some of them alike, and leave the others out."""
    mixtral = GroupedProblem(65536, 8, 2, 28672, 4096)
    assert KERNEL.refuses(mixtral) is None
    most = replace(mixtral, top_k=16, N=57344, K=8192)
    assert "got up to 15033188352, of 1048576 pairs" in KERNEL.refuses(most)
    for config in (KERNEL.specialise(c, mixtral) for c in KERNEL.configs(H200)):
        if KERNEL.misfit(config, mixtral, H200) is None:
            blocks = KERNEL.launch(config, mixtral, H200).scalars["max_blocks"]
            assert blocks * (mixtral.N // config.tile_n) * (mixtral.K // config.step_k) < 2**32


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("tokens", [1, 4, 16, 64])
def test_a_model_s_default_spills_nothing(tokens, gated):
    problem = GroupedProblem(tokens, 128, 8, 1536, 2048, gated=gated)
    binary = build(KERNEL, KERNEL.default(problem, H200), H200.arch)
    assert (binary.spill_bytes, binary.stack_bytes, binary.remarks) == (0, 0, ())


@pytest.mark.gpu
@pytest.mark.parametrize("direct", [False, True])
def test_a_hundred_runs_give_equal_bits(device, direct):
    problem = GroupedProblem(16, 60, 4, 1408, 2048)
    config = KERNEL.specialise(Config(8, 2, 2, 128, 4, direct=direct), problem)
    operands = OperandSet(device, KERNEL, problem)
    binary = build(KERNEL, config, device.gpu.arch)
    result = check.on_operands(operands, config, binary, repeats=100)
    assert result.ok, result.reason


@pytest.mark.gpu
@pytest.mark.parametrize("routing", ["uniform", "skewed"])
@pytest.mark.parametrize("tokens", [1, 4, 33, 200, 9000])
def test_many_experts(device, tokens, routing):
    """With 9000 tokens there are more pairs than 65,536."""
    problem = GroupedProblem(tokens, 512, 8, 128, 256, routing=routing, per_pair=tokens == 33)
    config = KERNEL.default(problem, device.gpu)
    result = check.on_gpu(KERNEL, config, problem, device)
    assert result.ok, result.reason
