"""The grouped GEMM by wgmma: routings of every shape, every kind of weight, how tiles are dealt."""

import re
from dataclasses import replace

import numpy as np
import pytest
from crossed import crossed
from numba import cuda
from numba.cuda.types import uint32, uint64
from overlapping import assert_overlaps

from ferrum_numba import check, interpreter
from ferrum_numba.compile import build
from ferrum_numba.contract import Launch, Program, pointers, sizes
from ferrum_numba.errors import ConfigError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.kernels.grouped_wgmma import kernel as grouped_wgmma
from ferrum_numba.kernels.grouped_wgmma.kernel import Config, GroupedWgmma, expected_blocks
from ferrum_numba.kernels.grouped_wgmma.order import make_order
from ferrum_numba.kernels.prefill.kernel import Config as PrefillConfig
from ferrum_numba.kernels.prefill.kernel import Prefill
from ferrum_numba.kernels.prefill.tile import CONSUMER_WARPS, PRODUCER_WARPS
from ferrum_numba.kernels.shared.cut import cut
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.launch import OperandSet
from ferrum_numba.ptx.memory import st_global_u32

H200 = KNOWN["h200"]
WGMMA = GroupedWgmma()
POISON = np.float16(np.nan)


def sms(count):
    """Return an H200 of few SMs: blocks share tiles, and have several."""
    return replace(H200, num_sms=count)


def assert_equals_reference(config, problem, gpu):
    config = WGMMA.specialise(config, problem)
    result = check.on_interpreter(WGMMA, config, problem, gpu=gpu)
    assert result.ok, result.reason


def inputs_of(problem, ids=None):
    """Return the Op's inputs with these experts; rows of x that no pair reads are NaN."""
    inputs = WGMMA.op.make_inputs(problem, np.random.default_rng(0))
    if ids is not None:
        inputs["ids"] = np.asarray(ids, np.int32).reshape(problem.tokens, problem.top_k)
    pairs = (inputs["ids"] >= 0) & (inputs["ids"] < problem.num_experts)
    read = pairs.reshape(-1) if problem.per_pair else pairs.any(axis=1)
    inputs["x"][~read] = np.nan
    return inputs


def run(config, problem, inputs, gpu, **scalars):
    """Return what a config writes to an output of NaNs, and the workspace that it leaves."""
    config = WGMMA.specialise(config, problem)
    assert WGMMA.misfit(config, problem, gpu) is None
    launch = WGMMA.launch(config, problem, gpu)
    launch = replace(launch, scalars={**launch.scalars, **scalars})
    buffers = dict(WGMMA.prepare(problem, inputs))
    buffers |= {name: np.zeros(size, np.uint8) for name, size in launch.workspace.items()}
    shape, dtype = WGMMA.op.output(problem)
    buffers["out"] = np.full(shape, np.nan, dtype)
    interpreter.run(WGMMA.build(config, "sm_90a"), launch, buffers)
    return buffers["out"], {name: buffers[name] for name in launch.workspace}


def assert_runs(config, problem, ids, gpu):
    inputs = inputs_of(problem, ids)
    got, workspace = run(config, problem, inputs, gpu)
    want = WGMMA.op.reference(problem, inputs)
    result = WGMMA.op.tolerance(problem).compare(got, want)
    assert result.ok, result.message
    assert not workspace["counters"].any()


KINDS = (
    {"group_size": 64, "zero_points": "gptq"},
    {"group_size": 32, "zero_points": "gptq_v2", "bias": True, "gated": True},
    {"group_size": -1, "bias": True, "weighted": True},
    {"group_size": -1, "zero_points": "gptq", "gated": True, "bias": True, "weighted": True},
    {"group_size": 32, "dtype": "bf16", "per_pair": True},
    {"group_size": 128, "zero_points": "gptq_v2", "dtype": "bf16", "bias": True, "gated": True},
)
TILES = (Config(64, 128, 4), Config(96, 256, 4), Config(48, 256, 4, stripes=False))


@pytest.mark.parametrize(("kind", "config"), [*zip(KINDS, 2 * TILES, strict=True)], ids=str)
def test_every_kind_of_weight_equals_the_reference(kind, config):
    """A last tile moved left, and columns of x that end within a stage."""
    problem = GroupedProblem(40, 4, 2, 336, 264, routing="skewed", **kind)
    assert_equals_reference(config, problem, sms(3))


@pytest.mark.parametrize(
    ("kind", "rows"),
    [*zip((kind for kind in KINDS if kind["group_size"] > 0), (16, 24, 48, 64), strict=True)],
    ids=str,
)
def test_scaled_sums_equal_the_reference(kind, rows):
    problem = GroupedProblem(30, 3, 2, 336, 360, **kind)
    assert_equals_reference(Config(rows, 256, 4, scale_sums=True), problem, sms(4))


@pytest.mark.parametrize("problem", WGMMA.op.tests, ids=str)
def test_every_problem_of_the_op_equals_the_reference(problem):
    assert WGMMA.refuses(problem) is None
    assert_equals_reference(WGMMA.default(problem, H200), problem, sms(5))


# of each expert
ROWS = (0, 1, 15, 16, 17, 64, 65, 0)


@pytest.mark.parametrize(
    "config",
    [Config(64, 128, 4), Config(16, 256, 4, scale_sums=True), Config(128, 128, 4, stripes=False)],
    ids=str,
)
def test_experts_of_any_number_of_rows_equal_the_reference(config):
    ids = np.repeat(np.arange(len(ROWS)), ROWS)
    np.random.default_rng(1).shuffle(ids)
    problem = GroupedProblem(len(ids), len(ROWS), 1, config.tile_n, 256)
    assert_runs(config, problem, ids, sms(7))


# of a tile, with what weights: those of KINDS
SHORT = (
    (Config(64, 128, 4, short_m=32), {"weighted": True}),
    (Config(96, 256, 4, short_m=48, stripes=False), KINDS[1]),
    (Config(160, 256, 3, short_m=80), {"gated": True, "dtype": "bf16"}),
    (Config(144, 128, 4, short_m=72), KINDS[3]),
    (Config(32, 256, 4, scale_sums=True, short_m=16), {"gated": True}),
    (Config(48, 256, 4, scale_sums=True, short_m=24, stripes=False), KINDS[0]),
    (Config(40, 256, 4, scale_sums=True, short_m=16), KINDS[5]),
)


@pytest.mark.parametrize(("short", "num_sms"), crossed(SHORT, (3, 7, 132)))
def test_blocks_of_few_pairs_equal_the_reference(short, num_sms):
    """Beside full ones: up to short_m pairs and one more, alone and as an expert's last block."""
    config, kind = short
    rows = (0, 1, config.short_m, config.short_m + 1, config.tile_m, config.tile_m + 1, 0)
    ids = np.repeat(np.arange(len(rows)), rows)
    np.random.default_rng(1).shuffle(ids)
    problem = GroupedProblem(len(ids), len(rows), 1, config.tile_n, 256, **kind)
    assert_runs(config, problem, ids, sms(num_sms))


@pytest.mark.parametrize("scale_sums", [False, True])
def test_short_blocks_have_the_bits_of_full_ones(scale_sums):
    problem = GroupedProblem(40, 4, 2, 256, 256, routing="skewed", gated=True)
    inputs = inputs_of(problem)
    full = Config(48, 256, 4, stripes=False, scale_sums=scale_sums)
    want, _ = run(full, problem, inputs, sms(3))
    got, _ = run(replace(full, short_m=24), problem, inputs, sms(3))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("most", [1, 100, 1024])
def test_blocks_of_few_pairs_come_last(most, monkeypatch):
    """In the order of the list, but from the end; those that have no place in it stay."""
    monkeypatch.setattr(grouped_wgmma, "MOST_ORDERED", most)
    config = Config(64, 128, 4, short_m=32)
    order_blocks, row_of = make_order(config)

    def order_kernel(work_list, out, max_blocks):
        t = uint32(cuda.threadIdx.x)
        if t < 32:
            order_blocks(work_list, max_blocks)
        cuda.syncthreads()
        while t < max_blocks:
            st_global_u32(out + uint64(t * 4), row_of(uint32(t * 64)))
            t = uint32(t + 64)

    block_rows = np.random.default_rng(0).integers(1, 65, 300, np.uint32)
    block_rows[[0, 1, 2, 3]] = 1, 32, 33, 64
    parameters = (*pointers("work_list", "out"), *sizes("max_blocks"))
    program = Program(order_kernel, parameters, 64, smem_bytes=config.smem_bytes)
    header = np.array([300, 300 * 64, block_rows.sum(), 0], np.uint32)
    buffers = {"work_list": np.concatenate([header, np.zeros(300, np.uint32), block_rows])}
    buffers["out"] = np.zeros(300, np.uint32)
    interpreter.run(program, Launch((1, 1, 1), {"max_blocks": 300}), buffers)
    ordered = np.arange(min(most, 300))
    short = block_rows[ordered] <= 32
    want = np.concatenate([ordered[~short], ordered[short][::-1], np.arange(len(short), 300)])
    np.testing.assert_array_equal(buffers["out"], want * 64)


@pytest.mark.parametrize("short_m", [-8, 12, 64, 72])
def test_short_blocks_are_shorter_than_others(short_m):
    with pytest.raises(ConfigError, match=f"below tile_m; got short_m = {short_m}, tile_m = 64"):
        Config(64, 128, 4, short_m=short_m)


@pytest.mark.parametrize("tile_m", [48, 192, 256])
def test_every_height_of_a_tile_equals_the_reference(tile_m):
    """One expert takes all: whole tiles and one of a row."""
    problem = GroupedProblem(tile_m + 1, 3, 1, 128, 128, bias=True, weighted=True)
    assert_runs(Config(tile_m, 128, 4), problem, np.ones(tile_m + 1), sms(3))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("per_pair", [False, True])
def test_dropped_pairs_are_neither_read_nor_written(per_pair, gated):
    """Their rows of x are poisoned, which follow the last column of the row before."""
    problem = GroupedProblem(
        24, 3, 2, 128, 72, -1, bias=True, weighted=True, per_pair=per_pair, gated=gated
    )
    ids = np.random.default_rng(2).integers(0, 3, 48)
    ids[::4], ids[1::8], ids[5::8] = -1, 3, 1 << 20
    assert_runs(Config(64, 128, 4), problem, ids, sms(2))


def test_nothing_is_written_where_all_pairs_are_dropped():
    problem = GroupedProblem(5, 3, 2, 128, 128)
    assert_runs(Config(64, 128, 4), problem, np.full(10, -1), sms(4))


@pytest.mark.parametrize(("num_sms", "stripes"), [(1, False), (2, True), (5, True), (132, True)])
def test_the_result_does_not_depend_on_the_number_of_sms(num_sms, stripes):
    """Fewer tiles than SMs, some waves, tiles that fill no wave, stripes of part of a tile."""
    problem = GroupedProblem(50, 4, 2, 256, 256, bias=True, gated=True)
    assert_equals_reference(Config(32, 256, 4, stripes=stripes), problem, sms(num_sms))
    assert_equals_reference(Config(64, 128, 4, stripes=stripes), problem, sms(num_sms))


def test_runs_on_the_workspace_of_the_run_before():
    """The counters are left at zero, and what the partial sums hold does not matter."""
    problem, gpu = GroupedProblem(40, 3, 2, 256, 512), sms(5)
    config = WGMMA.specialise(Config(64, 128, 4), problem)
    launch = WGMMA.launch(config, problem, gpu)
    buffers = dict(WGMMA.prepare(problem, inputs_of(problem)))
    buffers |= {name: np.zeros(size, np.uint8) for name, size in launch.workspace.items()}
    results = []
    for _ in range(2):
        buffers["out"] = np.zeros(WGMMA.op.output(problem)[0], np.float16)
        interpreter.run(WGMMA.build(config, "sm_90a"), launch, buffers)
        results.append(buffers["out"].copy())
        assert buffers["partials"].any()
        assert not buffers["counters"].any()
        buffers["partials"][:] = 0xFF
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize("config", [Config(64, 128, 4), Config(32, 256, 4, scale_sums=True)])
def test_the_bits_are_those_of_prefill_for_each_expert(config):
    problem = GroupedProblem(40, 3, 2, 256, 256, bias=True)
    config = replace(config, stripes=False)
    inputs = inputs_of(problem)
    got, _ = run(config, problem, inputs, sms(3))
    alone = PrefillConfig(
        config.tile_m, config.tile_n, 4, stripes=False, scale_sums=config.scale_sums
    )
    for expert in range(problem.num_experts):
        pairs = np.flatnonzero(inputs["ids"].reshape(-1) == expert)
        one = W4A16Problem(len(pairs), problem.N, problem.K, bias=True)
        own = {name: inputs[name][expert] for name in ("codes", "scales", "bias")}
        own["x"] = inputs["x"][pairs // problem.top_k]
        launch = Prefill().launch(alone, one, sms(3))
        buffers = dict(Prefill().prepare(one, own))
        buffers |= {name: np.zeros(size, np.uint8) for name, size in launch.workspace.items()}
        buffers["out"] = np.empty((one.M, one.N), np.float16)
        interpreter.run(Prefill().build(alone, "sm_90a"), launch, buffers)
        np.testing.assert_array_equal(got[pairs], buffers["out"])


@pytest.mark.parametrize("scale_sums", [False, True])
def test_without_stripes_a_pair_has_the_same_bits_in_any_batch(scale_sums):
    config = Config(32, 256, 4, stripes=False, scale_sums=scale_sums)
    few, many = (GroupedProblem(tokens, 4, 2, 256, 256) for tokens in (5, 60))
    inputs = inputs_of(many)
    alone, _ = run(config, few, {**inputs, "x": inputs["x"][:5], "ids": inputs["ids"][:5]}, sms(3))
    beside, _ = run(config, many, inputs, sms(3))
    np.testing.assert_array_equal(alone, beside[:10])


def test_a_new_list_gives_the_same_bits():
    problem = GroupedProblem(20, 3, 2, 128, 128)
    inputs = inputs_of(problem)
    old, _ = run(Config(64, 128, 4), problem, inputs, sms(3))
    new, _ = run(Config(64, 128, 4), problem, inputs, sms(3), list_is_new=1)
    np.testing.assert_array_equal(old, new)


def test_the_workspace_serves_the_most_that_a_list_can_stripe():
    """The counters of up to two waves of tiles, less one, a sum for every block."""
    problem = GroupedProblem(4096, 8, 2, 256, 256)
    launch = WGMMA.launch(Config(128, 256), problem, H200)
    assert launch.grid == (132, 1, 1)
    assert launch.workspace == {"partials": 132 * 128 * 256 * 4, "counters": 2 * 132 * 8}
    most = max(tiles - max(0, tiles // 132 - 1) * 132 for tiles in range(1, 1000) if tiles % 132)
    assert most <= 2 * 132
    assert cut(most * 4, 132).num_stripes <= 132


@pytest.mark.parametrize("key", ["a100", "rtx4090", "b200"])
def test_there_is_nothing_to_try_but_on_hopper(key):
    gpu = KNOWN[key]
    assert not WGMMA.runs_on(gpu)
    reason = WGMMA.misfit(Config(), GroupedProblem(256, 8, 2, 256, 256), gpu)
    assert re.search(f"wgmma needs sm_90a; {gpu.name} is", reason)


def test_what_it_refuses_is_said():
    few = GroupedProblem(4, 3, 1, 64, 128)
    assert WGMMA.refuses(few) == "grouped_wgmma needs N of at least 128; got N = 64 (64 as packed)"
    assert "act_order" in WGMMA.refuses(GroupedProblem(4, 3, 1, 128, 128, act_order=True))
    wide = GroupedProblem(65536, 16, 16, 128, 1 << 16, per_pair=True)
    assert "needs an x of less than" in WGMMA.refuses(wide)
    problem = GroupedProblem(4, 3, 1, 128, 256)
    assert "N must be at least 256" in WGMMA.misfit(Config(64, 256), problem, H200)
    assert "compiled for other" in WGMMA.misfit(Config(64, 128, gated=True), problem, H200)
    assert "only adds rows of zeros" in WGMMA.misfit(Config(128, 128), problem, H200)
    sums = Config(16, 256, scale_sums=True, group_size=-1)
    channel = GroupedProblem(4, 3, 1, 256, 128, -1)
    assert "scaled by groups" in WGMMA.misfit(sums, channel, H200)
    with pytest.raises(ConfigError, match="tile_m must be a multiple of 8"):
        Config(20)


@pytest.mark.parametrize("config", WGMMA.configs(H200), ids=str)
def test_the_warps_that_multiply_take_no_more_registers_than_the_others_give(config):
    """Where they do, they wait for ever; a block begins with 168 a thread."""
    more, fewer = config.registers
    assert CONSUMER_WARPS * more + PRODUCER_WARPS * fewer <= 168 * config.num_threads // 32


@pytest.mark.parametrize("tokens", [1, 16, 64, 300, 4096])
@pytest.mark.parametrize("N", [128, 136, 256, 1536])
def test_every_shape_it_accepts_has_a_tile(tokens, N):
    problem = GroupedProblem(tokens, 8, 2, N, 256)
    assert WGMMA.misfit(WGMMA.default(problem, H200), problem, H200) is None


def test_expected_blocks_are_those_of_random_routings():
    rng = np.random.default_rng(0)
    for tokens, E, top_k, block, short_m in (
        (16, 128, 8, 16, 0), (256, 128, 8, 16, 8), (1024, 8, 2, 128, 64), (4096, 128, 8, 96, 48),
        (4096, 8, 2, 128, 64),
    ):  # fmt: skip
        counts = [np.bincount(rng.integers(0, E, tokens * top_k), minlength=E) for _ in range(200)]
        problem = GroupedProblem(tokens, E, top_k, 256, 256)
        hit, full, short = expected_blocks(problem, block, short_m)
        last = [(c[c > 0] - 1) % block + 1 for c in counts]
        assert short == pytest.approx(np.mean([(r <= short_m).sum() for r in last]), rel=0.1)
        assert hit == pytest.approx(np.mean([np.count_nonzero(c) for c in counts]), rel=0.02)
        mean = np.mean([-(-c // block).sum() for c in counts])
        assert full + short == pytest.approx(mean, rel=0.02)


ON_GPU = [
    (Config(16, 256, 7, scale_sums=True), GroupedProblem(64, 64, 4, 1536, 2048)),
    (Config(32, 256, 6, scale_sums=True), GroupedProblem(256, 64, 4, 1536, 2048, gated=True)),
    (Config(64, 256, 4, scale_sums=True), GroupedProblem(300, 16, 4, 2048, 768, weighted=True)),
    (Config(64, 128, 8), GroupedProblem(200, 8, 2, 2048, 1024, 64, zero_points="gptq")),
    (Config(96, 256, 7), GroupedProblem(300, 8, 2, 4096, 1024, -1, bias=True, gated=True)),
    (Config(128, 256, 6), GroupedProblem(700, 8, 2, 4096, 2048, gated=True, dtype="bf16")),
    (Config(192, 256, 5), GroupedProblem(700, 4, 2, 4096, 2048, routing="skewed")),
    (Config(256, 128, 5), GroupedProblem(900, 4, 2, 4096, 2048, per_pair=True, weighted=True)),
    (Config(128, 256, 6, stripes=False), GroupedProblem(700, 8, 2, 4096, 2048)),
    (
        Config(160, 256, 5, short_m=80),
        GroupedProblem(900, 8, 2, 4096, 2048, routing="skewed", gated=True),
    ),
    (Config(40, 256, 5, scale_sums=True, short_m=16), GroupedProblem(256, 64, 4, 1536, 2048)),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("config", "problem"), ON_GPU, ids=str)
def test_a_hundred_runs_give_the_same_bits(config, problem, device):
    config = WGMMA.specialise(config, problem)
    result = check.on_gpu(WGMMA, config, problem, device, repeats=100)
    assert result.ok, result.reason


@pytest.mark.gpu
@pytest.mark.parametrize(
    "config", [c for c in WGMMA.configs(H200) if c.short_m and not c.stripes], ids=str
)
def test_short_blocks_have_the_bits_of_full_ones_on_the_gpu(config, device):
    """With stripes, K may be cut at other places."""
    problem = GroupedProblem(600, 16, 4, 512, 1024, routing="skewed", gated=True)
    config = WGMMA.specialise(config, problem)
    operands, got = OperandSet(device, WGMMA, problem), []
    for each in (config, replace(config, short_m=0)):
        operands.poison()
        operands.bind(each, build(WGMMA, each, device.gpu.arch)).prepared()(0)
        got.append(operands.result().tobytes())
    assert got[0] == got[1]


@pytest.mark.gpu
@pytest.mark.parametrize("problem", WGMMA.op.tests, ids=str)
def test_every_config_equals_the_reference_on_the_gpu(problem, device):
    fitting = [WGMMA.specialise(config, problem) for config in WGMMA.configs(device.gpu)]
    fitting = [c for c in fitting if WGMMA.misfit(c, problem, device.gpu) is None]
    failed = [
        (config, result.reason)
        for config in fitting
        if not (result := check.on_gpu(WGMMA, config, problem, device)).ok
    ]
    assert fitting
    assert not failed


@pytest.mark.gpu
def test_rows_and_top_k_beyond_65536_pairs(device):
    problem = GroupedProblem(16384, 8, 8, 256, 128)
    result = check.on_gpu(WGMMA, WGMMA.default(problem, device.gpu), problem, device)
    assert result.ok, result.reason


# one to each way to multiply and to write; the others take minutes
FEW = (
    Config(192, 256, 5, gated=True),
    Config(128, 256, 6, has_zero_points=True, dtype="bf16", group_size=32, gated=True),
    Config(256, 128, 5, has_zero_points=True, group_size=-1),
    Config(64, 256, 4, scale_sums=True, has_zero_points=True, dtype="bf16", group_size=32),
    Config(160, 256, 5, short_m=80, gated=True),
    Config(48, 256, 5, scale_sums=True, short_m=24),
)
SPACE = tuple(
    replace(config, gated=gated)
    for config in WGMMA.configs(H200)
    for gated in (False, True)
    if config.stripes
)


@pytest.mark.parametrize(
    "config",
    [*FEW, *(pytest.param(c, marks=pytest.mark.slow) for c in SPACE if c not in FEW)],
    ids=str,
)
def test_products_overlap_and_registers_move_to_those_who_multiply(config, monkeypatch):
    assert_overlaps(WGMMA, config, monkeypatch)
