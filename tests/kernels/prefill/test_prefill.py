"""Prefill: how it deals out the tiles, every kind of weight, every residue."""

import re
from dataclasses import replace

import numpy as np
import pytest
from crossed import crossed
from overlapping import assert_overlaps

from ferrum_numba import check, interpreter
from ferrum_numba.compile import build
from ferrum_numba.errors import ProblemError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.marlin.kernel import Marlin
from ferrum_numba.kernels.prefill.kernel import Config, Prefill
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.launch import OperandSet
from ferrum_numba.results import choose
from ferrum_numba.tune.plan import plan
from ferrum_numba.tune.space import feasible

H200 = KNOWN["h200"]
PREFILL = Prefill()


def sms(count):
    """Return an H200 of few SMs: blocks share tiles, and have several."""
    return replace(H200, num_sms=count)


def assert_equals_reference(config, problem, gpu):
    config = PREFILL.specialise(config, problem)
    result = check.on_interpreter(PREFILL, config, problem, gpu=gpu)
    assert result.ok, result.reason


def test_a_pair_of_blocks_needs_two_sms():
    problem = W4A16Problem(128, 512, 256)
    assert "needs two SMs" in PREFILL.misfit(Config(pair=True), problem, sms(1))
    assert PREFILL.misfit(PREFILL.default(problem, sms(1)), problem, sms(1)) is None


@pytest.mark.parametrize("key", ["a100", "rtx4090", "b200"])
def test_there_is_nothing_to_try_but_on_hopper(key):
    gpu, problem = KNOWN[key], W4A16Problem(256, 256, 256)
    assert not PREFILL.runs_on(gpu)
    assert feasible(PREFILL, problem, gpu) == ([], [])
    assert plan([PREFILL], [problem], gpu) == []
    assert re.search(f"wgmma needs sm_90a; {gpu.name} is", PREFILL.misfit(Config(), problem, gpu))
    assert choose([], problem, [PREFILL, Marlin()], gpu).kernel.name == "marlin"
    with pytest.raises(ProblemError, match=f"prefill: it has no config for {gpu.name}"):
        choose([], problem, [PREFILL], gpu)


@pytest.mark.parametrize("M", [1, 63, 64, 65, 128, 129, 200, 4096])
@pytest.mark.parametrize("N", [128, 136, 192, 256, 8192])
def test_every_shape_it_accepts_has_a_tile(M, N):
    problem = W4A16Problem(M, N, 256)
    assert PREFILL.refuses(problem) is None
    assert PREFILL.misfit(PREFILL.default(problem, H200), problem, H200) is None


@pytest.mark.parametrize("num_sms", [1, 3, 7, 132])
@pytest.mark.parametrize("stripes", [True, False])
@pytest.mark.parametrize("shape", [(64, 128, 1024), (200, 512, 256), (700, 1088, 640)], ids=str)
def test_every_k_tile_of_every_tile_is_dealt_out_once(shape, stripes, num_sms):
    problem = W4A16Problem(*shape)
    config = Config(64, 128, stripes=stripes)
    launch = PREFILL.launch(config, problem, sms(num_sms))
    k_tiles = problem.K // 64
    tiles = -(-problem.M // 64) * -(-problem.N // 128)
    striped, stripe = launch.scalars["striped_tiles"], launch.scalars["stripe_steps"]
    grid = launch.grid[0]
    assert grid <= num_sms
    assert (grid - 1) * stripe < striped * k_tiles or not stripes or striped < tiles
    assert grid * stripe >= striped * k_tiles
    # the whole tiles go round, from the first that is not striped
    assert striped <= tiles
    if stripes and tiles > num_sms:
        assert (tiles - striped) % num_sms == 0
        assert striped < 2 * num_sms or tiles % num_sms == 0


KINDS = (
    {"group_size": 128},
    {"group_size": 64, "zero_points": "gptq"},
    {"group_size": 32, "zero_points": "gptq_v2", "bias": True},
    {"group_size": -1, "bias": True},
    {"group_size": -1, "zero_points": "gptq"},
    {"group_size": 32, "dtype": "bf16"},
    {"group_size": 128, "zero_points": "gptq_v2", "dtype": "bf16", "bias": True},
    {"group_size": -1, "zero_points": "gptq", "dtype": "bf16"},
)


@pytest.mark.parametrize(("kind", "tile"), crossed(KINDS, ((64, 128, 3), (96, 256, 3))))
def test_every_kind_of_weight_equals_the_reference(kind, tile):
    problem = W4A16Problem(70, 576, 256, **kind)
    assert_equals_reference(Config(*tile), problem, sms(3))


# rows of x, columns and rows of the weight around the edges of a tile of 64 x 128 x 64
RESIDUES = (
    (1, 128, 64), (63, 136, 72), (64, 248, 120), (65, 256, 128), (66, 264, 184), (127, 320, 192),
    (129, 392, 200),
)  # fmt: skip


@pytest.mark.parametrize("shape", RESIDUES, ids=str)
def test_what_is_no_whole_tile_equals_the_reference(shape):
    problem = W4A16Problem(*shape, 64, bias=True)
    assert_equals_reference(Config(64, 128, 4), problem, sms(2))


HEIGHTS = ((16, 128, 2), (48, 128, 2), (112, 256, 2), (176, 256, 2), (256, 128, 2))


@pytest.mark.parametrize("tile", HEIGHTS, ids=str)
def test_every_height_of_a_tile_equals_the_reference(tile):
    problem = W4A16Problem(max(17, tile[0] - 63), 320, 192, 64)
    assert_equals_reference(Config(*tile), problem, sms(3))


@pytest.mark.parametrize(
    ("kind", "rows"), crossed([kind for kind in KINDS if kind["group_size"] > 0], (16, 48, 64))
)
def test_scaled_sums_equal_the_reference(kind, rows):
    """A last tile moved left, stripes that begin and end anywhere, columns of x past the last."""
    problem = W4A16Problem(rows + 3, 328, 1000 if kind["group_size"] > 64 else 896, **kind)
    assert_equals_reference(Config(rows, 256, 3, scale_sums=True), problem, sms(3))


@pytest.mark.parametrize("shared", [{"pair": True}, {"stripes": False}, {"num_stages": 2}], ids=str)
def test_scaled_sums_of_blocks_that_share_equal_the_reference(shared):
    config = Config(**{"tile_m": 32, "num_stages": 3, "scale_sums": True} | shared)
    assert_equals_reference(config, W4A16Problem(70, 576, 640, 64, "gptq", bias=True), sms(4))


def test_scaled_sums_round_no_weight():
    """The result is as near to fp64 as rounding it to fp16 lets it be."""
    problem = W4A16Problem(30, 256, 1024)
    errors = [
        check.on_interpreter(PREFILL, config, problem, gpu=sms(3)).rel_error
        for config in (Config(32, 256, 3, scale_sums=True), Config(32, 256, 3))
    ]
    assert errors[0] < 2.2e-4 < errors[1]


@pytest.mark.parametrize(("num_sms", "stripes"), crossed((1, 2, 5, 8, 132), (True, False)))
def test_the_result_does_not_depend_on_the_number_of_sms(num_sms, stripes):
    """A tile cut among more blocks is the same sum but for fp32 rounding."""
    problem = W4A16Problem(130, 256, 512, bias=True)
    config = Config(64, 128, 4, stripes=stripes)
    assert_equals_reference(config, problem, sms(num_sms))


def test_bands_of_tiles_cover_every_tile():
    """More rows of tiles than a band, and a last band that is lower."""
    assert_equals_reference(Config(16, 128, 4), W4A16Problem(1100, 256, 64, 64), sms(5))


def test_runs_on_the_workspace_of_the_run_before():
    """The counters are left at zero, and what the partial sums hold does not matter."""
    problem, gpu = W4A16Problem(70, 256, 512), sms(5)
    config = Config(64, 128, 3)
    inputs = PREFILL.op.make_inputs(problem, np.random.default_rng(0))
    launch = PREFILL.launch(config, problem, gpu)
    buffers = dict(PREFILL.prepare(problem, inputs))
    buffers |= {name: np.zeros(size, np.uint8) for name, size in launch.workspace.items()}
    results = []
    for _ in range(2):
        buffers["out"] = np.zeros((problem.M, problem.N), np.float16)
        interpreter.run(PREFILL.build(config, "sm_90a"), launch, buffers)
        results.append(buffers["out"].copy())
        assert not buffers["counters"].any()
        buffers["partials"][:] = 0xFF
    np.testing.assert_array_equal(results[0], results[1])
    assert launch.scalars["striped_tiles"] > 0


def test_no_two_blocks_write_the_same_element():
    """The last tile of N is moved left; what it shares with the one before is written once."""
    problem = W4A16Problem(64, 192, 128)
    inputs = PREFILL.op.make_inputs(problem, np.random.default_rng(0))
    whole = PREFILL.launch(Config(64, 128, stripes=False), problem, H200)
    assert whole.grid == (2, 1, 1)
    assert_equals_reference(Config(64, 128, 3, stripes=False), problem, H200)
    assert inputs["x"].shape == (64, 128)


SHARED = (
    {"stripes": False, "cluster": 2},
    {"stripes": False, "cluster": 4},
    {"pair": True},
    {"stripes": False, "pair": True},
)


@pytest.mark.parametrize(("shared", "kind"), crossed(SHARED, KINDS[1:5]))
def test_blocks_that_share_a_tile_or_x_equal_the_reference(shared, kind):
    problem = W4A16Problem(70, 320, 448, **kind)
    assert_equals_reference(Config(64, 128, 3, **shared), problem, sms(24))


@pytest.mark.parametrize(
    ("num_sms", "striped"),
    [
        (2, False), (6, False), (8, True),
        *(pytest.param(*c, marks=pytest.mark.slow) for c in ((4, False), (10, True), (16, True))),
    ],
)  # fmt: skip
def test_pairs_of_blocks_cut_what_is_left_into_stripes(num_sms, striped):
    """Few and many stripes a tile, a last tile moved left, rows of one block past the last."""
    problem = W4A16Problem(129, 576, 512, 64, "gptq", bias=True, dtype="bf16")
    config = PREFILL.specialise(Config(128, 128, 3, pair=True), problem)
    # six tiles: one, two and three pairs of SMs have whole ones
    assert (PREFILL.launch(config, problem, sms(num_sms)).scalars["striped_tiles"] > 0) == striped
    assert_equals_reference(config, problem, sms(num_sms))


# (M, N, K) -> (tile_m, tile_n, stripes, cluster, pair, scale_sums): what won on an H200, see
# docs/designs/prefill.md#tiles
DEFAULTS = {
    (64, 4096, 4096): (64, 128, True, 1, False, False),
    (96, 4096, 4096): (96, 128, True, 1, False, False),
    (128, 4096, 4096): (64, 128, False, 2, False, False),
    (256, 4096, 4096): (128, 128, False, 2, False, False),
    (33, 28672, 8192): (48, 256, True, 1, False, True),
    (64, 28672, 8192): (64, 256, True, 1, False, True),
    (128, 28672, 8192): (128, 256, True, 1, False, False),
    (256, 28672, 8192): (256, 128, True, 1, False, False),
    (1024, 28672, 8192): (256, 128, True, 1, False, False),
    (4096, 8192, 8192): (256, 128, True, 1, True, False),
}


@pytest.mark.parametrize("shape", DEFAULTS, ids=str)
def test_the_default_is_what_won(shape):
    config = PREFILL.default(W4A16Problem(*shape), H200)
    got = (config.tile_m, config.tile_n, config.stripes, config.cluster, config.pair)
    assert (*got, config.scale_sums) == DEFAULTS[shape]


ON_GPU = [
    (Config(128, 256, 6), (200, 8192, 8192)),
    (Config(256, 128, 5), (200, 8192, 8192)),
    (Config(256, 128, 5, pair=True), (200, 8192, 8192)),
    (Config(192, 256, 5, pair=True), (200, 8192, 8192)),
    (Config(96, 256, 7), (90, 8192, 8192)),
    (Config(128, 128, 7, stripes=False, cluster=2), (125, 4096, 4096)),
    (Config(64, 128, 8, stripes=False, cluster=2), (125, 4096, 4096)),
    (Config(64, 128, 8), (64, 4096, 4096)),
    (Config(64, 256, 4, scale_sums=True), (60, 8192, 8192)),
    (Config(16, 256, 7, scale_sums=True), (16, 4096, 14336)),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("config", "shape"), ON_GPU, ids=str)
def test_a_hundred_runs_give_the_same_bits(config, shape, device):
    result = check.on_gpu(PREFILL, config, W4A16Problem(*shape), device, repeats=100)
    assert result.ok, result.reason


@pytest.mark.gpu
@pytest.mark.parametrize(("config", "shape"), ON_GPU[2:6:3], ids=str)
def test_launches_that_begin_early_give_the_same_bits(config, shape, device):
    """Launches in a row share a workspace, and the map of x lies in it."""
    operands = OperandSet(device, PREFILL, W4A16Problem(*shape))
    prepared = operands.bind(config, build(PREFILL, config, device.gpu.arch)).prepared()
    operands.poison()
    prepared(0)
    alone = operands.result()
    operands.poison()
    for _ in range(30):
        prepared(0)
    assert operands.result().tobytes() == alone.tobytes()


# one to each way to multiply; the others take minutes
FEW = (
    Config(256, 128, 5, has_zero_points=True, group_size=-1),
    Config(128, 256, 6, pair=True, has_zero_points=True, dtype="bf16", group_size=32),
    Config(64, 256, 4, scale_sums=True, has_zero_points=True, dtype="bf16", group_size=32),
)
OVERLAPPING = (
    *FEW,
    Config(),
    Config(192, 256, 5, has_zero_points=True, dtype="bf16", group_size=32),
    Config(64, 256, 4, scale_sums=True),
    Config(
        128, 128, 7, stripes=False, cluster=2, has_zero_points=True, dtype="bf16", group_size=32
    ),
)


@pytest.mark.parametrize(
    "config",
    [pytest.param(c, marks=[] if c in FEW else pytest.mark.slow) for c in OVERLAPPING],
    ids=str,
)
def test_products_overlap_and_registers_move_to_those_who_multiply(config, monkeypatch):
    assert_overlaps(PREFILL, config, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("config", [c for c in PREFILL.configs(H200) if c.stripes], ids=str)
def test_products_overlap_in_the_whole_space(config, monkeypatch):
    assert_overlaps(PREFILL, config, monkeypatch)
