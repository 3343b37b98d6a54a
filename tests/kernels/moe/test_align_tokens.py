"""The work list; that the Op's test problems equal the reference is in test_kernels.py."""

import re
from dataclasses import replace

import numpy as np
import pytest
from moe_runs import H200, assert_close, interpreted, on_device

from ferrum_numba import check
from ferrum_numba.compile import build
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.moe.align_tokens import AlignConfig, AlignProblem, AlignTokens

KERNEL = AlignTokens()
# rows of ten experts: around a block, and none
ROWS = (0, 1, 15, 16, 17, 64, 65, 100, 127, 200)


def aligned(ids, num_experts, block=16, expert_map=None, config=None):
    """Return the interpreter's list of [T, top_k] ids, which is the reference's."""
    inputs = {"ids": np.asarray(ids, np.int32)}
    num_ids = 0
    if expert_map is not None:
        inputs["expert_map"] = np.asarray(expert_map, np.int32)
        num_ids = len(expert_map)
    tokens, top_k = inputs["ids"].shape
    problem = AlignProblem(tokens, num_experts, top_k, block, num_ids)
    if config is not None:
        config = KERNEL.specialise(config, problem)
        assert KERNEL.misfit(config, problem, H200) is None
    got = interpreted(KERNEL, problem, inputs, config)
    assert_close(KERNEL, problem, inputs, got)
    return got


def crowded(rng):
    """Return ids [605, 1] of ten experts with `ROWS`."""
    return rng.permutation(np.repeat(np.arange(10), ROWS))[:, None]


@pytest.mark.parametrize("block", [8, 16, 64, 128, 256])
def test_experts_with_no_few_and_many_rows(block, rng):
    found = aligned(crowded(rng), 10, block)
    used = found["expert_ids"][found["expert_ids"] >= 0]
    assert np.unique(used, return_counts=True)[1].tolist() == [-(-r // block) for r in ROWS[1:]]


@pytest.mark.parametrize("cluster", [1, 2, 4, 8])
@pytest.mark.parametrize("num_threads", [128, 256])
def test_any_number_of_blocks_and_warps_gives_the_same_list(cluster, num_threads, rng):
    # with a block of four warps every one goes round five times, the last for nothing
    aligned(crowded(rng), 10, 24, config=AlignConfig(num_threads, cluster))


@pytest.mark.parametrize("num_experts", [3, 8, 60, 127, 128, 256, 512])
def test_every_number_of_experts(num_experts, rng):
    ids = [rng.permutation(num_experts)[: min(8, num_experts)] for _ in range(5)]
    aligned(ids, num_experts)


@pytest.mark.parametrize("top_k", [1, 2, 3, 5, 7, 8, 16])
def test_every_number_of_places(top_k, rng):
    aligned([rng.permutation(60)[:top_k] for _ in range(9)], 60, 8)


def test_one_expert_takes_all():
    found = aligned(np.full((150, 1), 6), 8, 16)
    assert found["num_blocks"] == 10
    np.testing.assert_array_equal(found["sorted_token_ids"][:150], np.arange(150))


def test_nobody_is_here():
    for ids in (np.full((3, 2), -1), np.full((3, 2), 8), np.full((3, 2), -(2**31))):
        found = aligned(ids, 8)
        assert [int(found[name][0]) for name in found.dtype.names[:4]] == [0, 0, 0, 0]
        assert (found["sorted_token_ids"] == 6).all()


def test_some_are_dropped(rng):
    ids = rng.integers(-2, 12, (40, 4))
    found = aligned(ids, 9, 8)
    assert found["num_pairs"] == ((ids >= 0) & (ids < 9)).sum()


def test_a_map_names_the_experts_here(rng):
    here = np.full(64, -1)
    here[rng.permutation(64)[:16]] = np.arange(16)
    ids = np.stack([rng.permutation(64)[:8] for _ in range(30)])
    ids[rng.random(ids.shape) < 0.1] = -1
    ids[0] = 64
    aligned(ids, 16, 16, here)
    # experts that the list has no blocks for
    aligned(ids, 9, 16, here)


def test_with_many_experts_fewer_warps_sort():
    config = KERNEL.default(AlignProblem(400, 1000, 8), H200)
    assert (config.num_warps, config.sorting_warps, config.experts) == (32, 16, 1024)
    assert config.smem_bytes <= KNOWN["rtx5090"].smem_per_block
    ids = np.arange(800).reshape(100, 8) * 7 % 1000
    aligned(ids, 1000, 8, config=AlignConfig(1024, 2))


def test_few_pairs_take_a_block_and_many_a_cluster():
    def shape(tokens, gpu=H200):
        config = KERNEL.default(AlignProblem(tokens, 128, 8), gpu)
        return config.cluster, config.num_threads

    assert [shape(T) for T in (1, 64, 65, 256, 4096)] == [
        (1, 256), (1, 256), (8, 256), (8, 256), (8, 512),
    ]  # fmt: skip
    assert shape(4096, KNOWN["a100"]) == (1, 512)


def test_the_launch_does_not_depend_on_the_routing():
    problem = AlignProblem(300, 60, 4, num_ids=64)
    config = KERNEL.default(problem, H200)
    launch = KERNEL.launch(config, problem, H200)
    for other in ({"routing": "skewed"}, {"dropped": True}):
        assert KERNEL.launch(config, replace(problem, **other), H200) == launch
    assert launch.grid == (config.cluster, 1, 1)


def test_it_waits_before_it_reads_and_only_then_lets_the_next_begin():
    config = KERNEL.default(AlignProblem(16, 128, 8), H200)
    binary = build(KERNEL, config, "sm_90a")
    order = ("griddepcontrol.wait", "griddepcontrol.launch_dependents", "ld.global", "st.global")
    places = [binary.ptx.index(opcode) for opcode in order]
    assert places == sorted(places)
    # counts are added to; nothing else is decided by who comes first
    assert set(re.findall(r"\b(?:red|atom)\.\S+", binary.ptx)) == {"red.relaxed.cta.shared.add.u32"}
    assert "cluster" not in binary.ptx


def test_a_config_is_for_a_number_of_experts():
    problem = AlignProblem(1, 200, 8)
    small = AlignConfig(128, experts=256)
    assert KERNEL.misfit(small, problem, H200) == (
        "a thread an expert: num_threads = 128, num_experts = 200"
    )
    assert (
        KERNEL.misfit(AlignConfig(), problem, H200)
        == "compiled for experts = 128; the problem needs 256"
    )
    clustered = AlignConfig(cluster=2, experts=256)
    assert "a cluster needs sm_90" in KERNEL.misfit(clustered, problem, KNOWN["a100"])
    assert {config.cluster for config in KERNEL.configs(KNOWN["a100"])} == {1}


def test_work_is_the_ids_the_map_and_the_list():
    # 6 pairs of 4 experts fill at most 6 + 4 * 7 rows
    words = 6 + 4 + 5 * (2 + 8)
    assert KERNEL.op.work(AlignProblem(3, 4, 2, 8)).bytes == 4 * words
    assert KERNEL.op.work(AlignProblem(3, 4, 2, 8, num_ids=9)).bytes == 4 * (words + 9)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((0, 8, 2), "tokens must be 1 to 65536; got 0"),
        ((1, 2000, 2), "num_experts must be 1 to 1024; got 2000"),
        ((1, 8, 9), "no more than the ids; got top_k = 9, of 8 ids"),
        ((1, 8, 2, 12), "a block must be a multiple of 8 rows up to 256; got 12"),
        ((1, 8, 2, 16, 4), "got num_ids = 4, num_experts = 8"),
        ((1, 8, 2, 16, 0, "even"), 'routing must be "uniform" or "skewed"; got "even"'),
    ],
)
def test_what_is_no_list_is_refused(sizes, words):
    with pytest.raises(ProblemError, match=words):
        AlignProblem(*sizes)
    with pytest.raises(ConfigError, match="num_threads must be a multiple of 32 up to 1024; got"):
        AlignConfig(100)
    with pytest.raises(ConfigError, match="cluster must be 1, 2, 4 or 8; got cluster = 3"):
        AlignConfig(cluster=3)


# the largest have 2^17 and 2^20 pairs
SIZES = (
    (16, 128, 8, 8), (64, 8, 2, 16), (256, 128, 8, 16), (4096, 128, 8, 64), (65536, 60, 2, 256),
    (65536, 1024, 16, 128),
)  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_hundred_runs_on_gpu(sizes, device):
    problem = AlignProblem(*sizes, routing="skewed", dropped=True)
    config = KERNEL.default(problem, device.gpu)
    checked = check.on_gpu(KERNEL, config, problem, device, repeats=100)
    assert checked.ok, checked.reason


@pytest.mark.gpu
@pytest.mark.parametrize("block", [8, 16, 64, 200])
def test_crowded_empty_and_absent_experts_on_gpu(block, device, rng):
    here = np.append(rng.permutation(10), [-1, 77]).astype(np.int32)
    shuffled = {"ids": crowded(rng).astype(np.int32)}
    mapped = {"ids": rng.integers(-3, 14, (5000, 8)).astype(np.int32), "expert_map": here}
    alone = {"ids": np.full((70000 // 8, 8), 3, np.int32)}
    for inputs in (shuffled, mapped, alone):
        num_ids = len(inputs.get("expert_map", ()))
        tokens, top_k = inputs["ids"].shape
        problem = AlignProblem(tokens, 10, top_k, block, num_ids)
        for config in space_of(problem, device.gpu):
            got = on_device(KERNEL, problem, inputs, device, config)
            assert_close(KERNEL, problem, inputs, got)


def space_of(problem, gpu):
    """Return the programmatic configs that fit, or all where there are none."""
    fitting = [KERNEL.specialise(config, problem) for config in KERNEL.configs(gpu)]
    fitting = [config for config in fitting if KERNEL.misfit(config, problem, gpu) is None]
    return [config for config in fitting if config.programmatic] or fitting
