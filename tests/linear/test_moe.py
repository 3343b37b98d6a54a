"""MoeLayer against its experts one by one: on the host, and on a GPU of host memory."""

import re
from dataclasses import replace

import gpu_of_host
import numpy as np
import pytest
from moe_layers import Experts, assert_rows, ids_with_counts, logits_of, routed, x_of
from quantised import layer, reference, some_columns

import ferrum_numba
from ferrum_numba.contract import describe
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import CaptureError, LaunchError, ProblemError
from ferrum_numba.gptq.fused import interleaved
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels import GROUPED
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.launch import Graph
from ferrum_numba.linear.dense import MarlinLinear
from ferrum_numba.linear.moe import MoeLayer
from ferrum_numba.linear.moe_choice import grouped_choice, is_fused
from ferrum_numba.linear.moe_stages import MoeTask
from ferrum_numba.reference import moe
from ferrum_numba.reference.gptq import unpack_codes
from ferrum_numba.results.decisions import Decision

PLAIN = Experts()
KINDS = {
    "symmetric": PLAIN,
    "asymmetric with a bias": Experts(zeros="gptq", bias=True),
    "act-order": Experts(inner=128, act_order=True, zeros="gptq_v2"),
    "one group": Experts(group_size=-1, bias=True),
    "inner = 40, H = 72": Experts(H=72, inner=40, act_order=True),
}
MODES = ("fused", "two_step")


@pytest.fixture
def gpu(monkeypatch):
    return gpu_of_host.install(monkeypatch)


def made(experts, top_k=2, device="cpu", **options):
    return MoeLayer.from_gptq(experts.gate_up, experts.down, top_k=top_k, device=device, **options)


# on the host


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_host_s_rows_are_the_references(kind, mode):
    experts = KINDS[kind]
    ids, weights = routed(9, 4, 2)
    x = x_of(9, experts.H)
    got = made(experts, bias_mode=mode)(x, topk_ids=ids, topk_weights=weights)
    assert_rows(got, experts.expected(x, ids, weights, two_step=mode == "two_step"))


def test_the_host_runs_the_references_to_the_bit():
    experts, x, logits = PLAIN, x_of(7, 128), logits_of(7, 4)
    ids, weights = moe.route_topk(logits, 2)
    first = stacked([interleaved(tensors) for tensors in experts.gate_up])
    hidden = moe.grouped_gemm(x, ids, **first, gated=True).astype(np.float16)
    rows = moe.grouped_gemm(hidden, ids, **stacked(experts.down), per_pair=True)
    want = moe.combine(rows.astype(np.float16), ids, weights, 4)
    np.testing.assert_array_equal(made(experts)(x, logits), want)


def stacked(tensors):
    """Return symmetric experts as the reference takes them."""
    group = np.arange(tensors[0].in_features, dtype=np.int32) // tensors[0].group_size
    return {
        "codes": np.stack([unpack_codes(each.qweight) for each in tensors]),
        "scales": np.stack([each.scales for each in tensors]),
        "g_idx": np.stack([group] * len(tensors)),
    }


ROWS = (0, 1, 15, 16, 17, 64, 65, 100, 127, 200)


@pytest.mark.parametrize("top_k", [1, 3])
def test_experts_with_many_and_few_rows(top_k):
    experts = Experts(len(ROWS), 64, 32, 32)
    ids, weights = ids_with_counts(ROWS, top_k)
    x = x_of(len(ids), 64)
    layer = made(experts, top_k, allow_dropped=True)
    got = layer(x, topk_ids=ids, topk_weights=weights)
    assert_rows(got, experts.expected(x, ids, weights))


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", [True, False])
def test_logits_are_routed(scoring, renormalize):
    x, logits = x_of(5, 128), logits_of(5, 4)
    ids, weights = moe.route_topk(logits, 2, scoring, renormalize)
    layer = made(PLAIN, scoring=scoring, renormalize=renormalize)
    want = layer(x, topk_ids=ids, topk_weights=weights)
    np.testing.assert_array_equal(layer(x, logits), want)


def test_equal_logits_choose_the_first_experts():
    x = x_of(3, 128)
    ids = np.tile(np.arange(2, dtype=np.int32), (3, 1))
    got = made(PLAIN)(x, np.ones((3, 4), np.float32))
    assert_rows(got, PLAIN.expected(x, ids, np.full((3, 2), 0.5, np.float32)))


def test_gate_and_up_may_come_apart():
    gate = [some_columns(t, slice(0, 64)) for t in PLAIN.gate_up]
    up = [some_columns(t, slice(64, 128)) for t in PLAIN.gate_up]
    pairs = MoeLayer.from_gptq(zip(gate, up, strict=True), PLAIN.down, top_k=2, device="cpu")
    x, logits = x_of(3, 128), logits_of(3, 4)
    np.testing.assert_array_equal(pairs(x, logits), made(PLAIN)(x, logits))


def test_all_gates_and_all_ups_are_no_pairs():
    with pytest.raises(ProblemError, match=r"a pair of gate and up; got 4 of GptqTensors"):
        MoeLayer.from_gptq([PLAIN.gate_up, PLAIN.gate_up], PLAIN.down, top_k=1, device="cpu")


@pytest.mark.parametrize("kind", ["asymmetric with a bias", "act-order"])
def test_columns_in_runs_are_gate_and_up_in_turn(kind):
    tensors = KINDS[kind].gate_up[0]
    x = x_of(2, tensors.in_features)
    gate, up = moe.split_gate(reference(interleaved(tensors), x))
    np.testing.assert_array_equal(np.concatenate([gate, up], axis=1), reference(tensors, x))


def test_gate_and_up_that_are_no_whole_runs():
    with pytest.raises(ProblemError, match="a multiple of 8 columns each; got 72 of both"):
        interleaved(layer(64, 72, 32))


def test_more_dimensions_and_no_tokens():
    layer, x, logits = made(PLAIN), x_of(6, 128), logits_of(6, 4)
    got = layer(x.reshape(2, 3, 128), logits.reshape(2, 3, 4))
    np.testing.assert_array_equal(got.reshape(6, 128), layer(x, logits))
    assert layer(x[:0], logits[:0]).shape == (0, 128)


def shared_experts(device="cpu", H=128, inner=24, dtype="fp16"):
    tensors = [layer(H, 2 * inner, 32, seed=7, name="shared.gate_up", bias=True),
               layer(inner, H, 24, seed=8, name="shared.down")]  # fmt: skip
    return tuple(MarlinLinear.from_gptq(t, device=device, dtype=dtype) for t in tensors)


def test_shared_experts_are_added():
    x, (ids, weights) = x_of(5, 128), routed(5, 4, 2)
    gate_up, down = shared_experts()
    shared = down(moe.silu_mul(gate_up(x), interleaved=False))
    got = made(PLAIN, shared=(gate_up, down))(x, topk_ids=ids, topk_weights=weights)
    assert_rows(got, PLAIN.expected(x, ids, weights, shared=shared))


def slice_of(experts, here, **options):
    """Return a layer with some of the experts, and its map."""
    expert_map = np.full(experts.num_experts, -1)
    expert_map[here] = np.arange(len(here))
    return MoeLayer.from_gptq(
        [experts.gate_up[e] for e in here], [experts.down[e] for e in here],
        expert_map=expert_map, **options,
    )  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("here", [[2, 0], [3], [0, 1, 2, 3]])
def test_slices_of_the_experts_add_up(gpu, here, device):
    """One of them has fewer experts than a token chooses."""
    x, (ids, weights) = x_of(4, 128), routed(4, 4, 2)
    got = slice_of(PLAIN, here, top_k=2, device=device)(x, topk_ids=ids, topk_weights=weights)
    of_here = np.where(np.isin(ids, here), ids, -1)
    assert_rows(got, PLAIN.expected(x, of_here, weights))


# on a GPU of host memory


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_s_rows_are_the_references(gpu, kind, mode, tokens):
    experts = KINDS[kind]
    x, logits = x_of(tokens, experts.H), logits_of(tokens, 4)
    ids, weights = moe.route_topk(logits, 2)
    got = made(experts, device="cuda", bias_mode=mode)(x, logits)
    assert_rows(got, experts.expected(x, ids, weights, two_step=mode == "two_step"))


@pytest.mark.parametrize("logits", [np.float16, np.float32])
def test_a_gpu_s_rows_in_bf16(gpu, logits):
    x = x_of(3, 128, "bf16")
    found = logits_of(3, 4, dtype=logits)
    ids, weights = moe.route_topk(found, 2)
    got = made(PLAIN, device="cuda", dtype="bf16")(x, found)
    assert_rows(got, PLAIN.expected(x, ids, weights, "bf16"), "bf16")


@pytest.mark.parametrize(
    ("counts", "top_k"), [((0, 1, 15, 17), 1), ((33, 0, 0, 0), 1), ((16, 16, 1, 0), 3)]
)
def test_crowded_and_empty_experts_on_a_gpu(gpu, counts, top_k):
    ids, weights = ids_with_counts(counts, top_k)
    x = x_of(len(ids), 128)
    layer = made(PLAIN, top_k, "cuda", allow_dropped=True)
    assert_rows(layer(x, topk_ids=ids, topk_weights=weights), PLAIN.expected(x, ids, weights))


@pytest.mark.parametrize(("tokens", "num_experts", "top_k"), [(2, 8, 8), (3, 60, 4)])
def test_many_experts_on_a_gpu(gpu, tokens, num_experts, top_k):
    experts = Experts(num_experts, 64, 32, 32)
    x, logits = x_of(tokens, 64), logits_of(tokens, num_experts)
    got = made(experts, top_k, "cuda")(x, logits)
    assert_rows(got, experts.expected(x, *moe.route_topk(logits, top_k)))


@pytest.mark.parametrize("tokens", [1, 4])
def test_shared_experts_on_a_gpu(gpu, tokens):
    x, (ids, weights) = x_of(tokens, 128), routed(tokens, 4, 2)
    gate_up, down = shared_experts("cuda")
    shared = down(moe.silu_mul(gate_up(x), interleaved=False))
    gpu.launched.clear()
    layer = made(PLAIN, device="cuda", shared=(gate_up, down))
    got = layer(x, topk_ids=ids, topk_weights=weights)
    assert_rows(got, PLAIN.expected(x, ids, weights, shared=shared))
    assert gpu.launched[-4 - (tokens > 1)] == gpu.launched[-6 - (tokens > 1)]


def launches(gpu, layer, tokens, H=128, **given):
    gpu.launched.clear()
    layer(x_of(tokens, H), **given)
    return gpu.launched


def test_what_is_launched(gpu):
    """Ids are read directly for one token; given ids need no route; a list serves both GEMMs."""
    gemm, ids_and_weights = "grouped_decode", lambda T: dict(zip(
        ("topk_ids", "topk_weights"), routed(T, 4, 2), strict=True
    ))  # fmt: skip
    fused, biased = made(PLAIN, device="cuda"), KINDS["asymmetric with a bias"]
    assert launches(gpu, fused, 1, **ids_and_weights(1)) == [gemm, gemm, "combine"]
    assert launches(gpu, fused, 1, router_logits=logits_of(1, 4)) == [
        "route_topk", gemm, gemm, "combine",
    ]  # fmt: skip
    assert launches(gpu, fused, 5, router_logits=logits_of(5, 4)) == [
        "route_topk", "align_tokens", gemm, gemm, "combine",
    ]  # fmt: skip
    two_step = made(biased, device="cuda", bias_mode="two_step")
    assert launches(gpu, two_step, 5, **ids_and_weights(5)) == [
        "align_tokens", gemm, "add_bias_pairs", "silu_mul", gemm, "add_bias_pairs", "combine",
    ]  # fmt: skip
    ordered = made(KINDS["act-order"], device="cuda")
    assert launches(gpu, ordered, 5, **ids_and_weights(5)) == [
        "align_tokens", "gather_pairs", gemm, "gather_pairs", gemm, "combine",
    ]  # fmt: skip


def stages_of(layer, tokens, logits=None, decisions=()):
    task = layer.spec.task(tokens, logits)
    assert isinstance(task, MoeTask)
    return list(task.stages(decisions, gpu_of_host.GPU))


def new_lists(stages):
    """Return what each grouped GEMM is told of what it reads."""
    return [s.scalars["list_is_new"] for s in stages if "list_is_new" in s.scalars]


def test_a_gemm_waits_for_what_was_written_just_before(gpu):
    plain, ordered = made(PLAIN), made(KINDS["act-order"])
    # ids are the call's, or the route's
    assert new_lists(stages_of(plain, 1)) == [1, 0]
    assert new_lists(stages_of(plain, 1, "fp16")) == [1, 0]
    # the list is
    assert new_lists(stages_of(plain, 5, "fp16")) == [1, 0]
    # something was launched since
    assert new_lists(stages_of(ordered, 5)) == [0, 0]
    for stages in (stages_of(plain, 5, "fp16"), stages_of(ordered, 5)):
        launch = [s.launch(gpu_of_host.GPU) for s in stages]
        assert all(each.programmatic for each in launch)
        assert [each.scalars["list_is_new"] for each in launch
                if "list_is_new" in each.scalars] == new_lists(stages)  # fmt: skip


def test_gemms_with_other_blocks_have_two_lists(gpu):
    """Configs as they were decided: of blocks of 8 and of 16."""
    decode, layer = GROUPED[0], made(PLAIN)
    stages = stages_of(layer, 40)
    gemms = [s for s in stages if s.choice is not None]
    blocks = (8, 16)
    decided = []
    for stage, block in zip(gemms, blocks, strict=True):
        space = (decode.specialise(c, stage.problem) for c in decode.configs(gpu_of_host.GPU))
        config = next(
            c for c in space
            if c.tile_m == block and not c.direct
            and decode.misfit(c, stage.problem, gpu_of_host.GPU) is None
        )  # fmt: skip
        decided.append(Decision("grouped_gemm", describe(stage.problem), "grouped_decode",
                                describe(config), 1.0, "final"))  # fmt: skip
    stages = stages_of(layer, 40, decisions=decided)
    made_by = {name: s.problem.block for s in stages for name in s.makes if "list" in name}
    assert made_by == {"list_8": 8, "list_16": 16}
    # the second list was written just before the first GEMM, which reads the other
    assert new_lists(stages) == [0, 0]
    assert [s.kernel.reads(s.config) for s in stages if s.choice is not None] == [*made_by]


def test_the_gate_is_where_it_was_measured_to_cost_less(gpu):
    layer = made(PLAIN)
    gemm = next(s for s in stages_of(layer, 16) if s.choice is not None)
    plain = replace(gemm.problem, gated=False)

    def names(gated_us, plain_us, tokens=16):
        decided = [
            Decision("grouped_gemm", describe(replace(p, tokens=tokens)), "grouped_decode",
                     describe(gemm.config), us, "final")
            for p, us in ((gemm.problem, gated_us), (plain, plain_us))
        ]  # fmt: skip
        return [s.kernel.name for s in stages_of(layer, 16, decisions=decided)]

    assert gemm.problem.gated
    assert "silu_mul" not in names(10.0, 9.5)
    assert "silu_mul" in names(10.0, 9.0)
    # of the nearest number of tokens
    assert "silu_mul" in names(10.0, 9.0, tokens=64)


def test_gates_of_one_routing_are_compared():
    """A skewed routing hits fewer experts, and takes less time."""
    problem = GroupedProblem(64, 128, 8, 1536, 2048)
    gated = replace(problem, gated=True)
    skewed = replace(problem, routing="skewed")

    def decided(*times):
        return [
            Decision("grouped_gemm", describe(p), "grouped_decode", {}, us, "final")
            for p, us in times
        ]

    slower, faster = (gated, 50.0), (problem, 40.0)
    assert is_fused(problem, GROUPED, decided(slower, (skewed, 30.0)))
    assert not is_fused(problem, GROUPED, decided(slower, faster))
    other = (replace(skewed, gated=True), 30.0), (skewed, 31.0)
    assert not is_fused(problem, GROUPED, decided(slower, faster, *other))
    # rows from before there was a choice of routings
    old = [replace(d, problem={**d.problem}) for d in decided(slower, faster)]
    for found in old:
        del found.problem["routing"]
    assert not is_fused(problem, GROUPED, old)


def test_batch_invariance_can_be_asked_for(gpu):
    """Bits of a token's row, whatever experts the others choose."""
    layer = made(PLAIN, device="cuda", batch_invariant=True)
    for tokens in (1, 5):
        for stage in stages_of(layer, tokens):
            if stage.choice is not None:
                assert stage.kernel.is_invariant(stage.config)
    x, logits = x_of(5, 128), logits_of(5, 4)
    first = layer(x, logits)[0]
    for seed in (3, 4):
        others = np.concatenate([logits[:1], logits_of(4, 4, seed)])
        np.testing.assert_array_equal(layer(x, others)[0], first)


@pytest.mark.parametrize(("tokens", "tile_m"), [(1, 8), (16, 8), (64, 8), (256, 24), (1024, 80)])
def test_a_config_that_may_not_run_gives_way_to_one_like_it(tokens, tile_m):
    """Not to the first there is, which reads the weights once a pair."""
    problem = GroupedProblem(tokens, 128, 8, 1536, 2048)
    usual = grouped_choice(problem, GROUPED, [], KNOWN["h200"])
    found = grouped_choice(problem, GROUPED, [], KNOWN["h200"], invariant=True)
    assert (found.kernel, found.config.tile_m) == (usual.kernel, tile_m)
    assert found.kernel.reads(found.config) == ("ids" if tokens == 1 else f"list_{tile_m}")
    assert found.kernel.is_invariant(found.config)


@pytest.mark.parametrize("gpu", KNOWN.values(), ids=KNOWN)
def test_every_number_of_tokens_has_a_config_that_may_run(gpu):
    for tokens in (1, 7, 64, 300, 8192):
        for N, K in ((64, 64), (320, 192), (1536, 2048)):
            # of all experts, or of an eighth of them, which have an eighth of the pairs
            for num_ids, own_tokens in ((0, tokens), (64, ceil_div(tokens, 8))):
                problem = GroupedProblem(tokens, 8, 2, N, K, 64)
                found = grouped_choice(problem, GROUPED, [], gpu, num_ids=num_ids, invariant=True)
                own = replace(problem, tokens=own_tokens)
                assert found.kernel.is_invariant(found.config)
                assert found.kernel.reads(found.config) != "ids" or not num_ids
                assert found.kernel.misfit(found.config, own, gpu) is None


def test_of_experts_elsewhere_no_rows_are_expected():
    """16 of 128 experts have of 512 tokens the rows that they would have of 64 of their own."""
    slice_of_all = GroupedProblem(512, 16, 8, 1536, 2048)
    found = grouped_choice(slice_of_all, GROUPED, [], KNOWN["h200"], num_ids=128)
    whole = grouped_choice(replace(slice_of_all, num_experts=128), GROUPED, [], KNOWN["h200"])
    alone = grouped_choice(slice_of_all, GROUPED, [], KNOWN["h200"])
    assert found.config.tile_m == whole.config.tile_m < alone.config.tile_m
    for tokens in (1, 3, 4096):
        few = replace(slice_of_all, tokens=tokens, num_experts=2)
        choice = grouped_choice(few, GROUPED, [], KNOWN["h200"], num_ids=128)
        own = replace(few, tokens=ceil_div(tokens, 64))
        assert choice.kernel.misfit(choice.config, own, KNOWN["h200"]) is None


def test_a_map_and_ids_that_would_be_read_directly(gpu):
    layer = slice_of(PLAIN, [1, 3], top_k=2, device="cpu")
    names = [s.kernel.name for s in stages_of(layer, 1)]
    assert names == ["align_tokens", "grouped_decode", "grouped_decode", "combine"]


# graphs


def test_two_layers_in_one_graph_serve_any_routing(gpu):
    others = KINDS["asymmetric with a bias"]
    layers = [made(PLAIN, device="cuda"), made(others, device="cuda")]
    tokens = 3
    for each in layers:
        each.prepare(tokens)
    x, logits = gpu.array(x_of(tokens, 128)), gpu.array(logits_of(tokens, 4))
    between, out = gpu.empty((tokens, 128)), gpu.empty((tokens, 128))
    loaded = gpu.host.calls.count("cuLibraryLoadData")
    allocated = len(gpu.host.allocated)
    calls = [
        lambda stream: layers[0].forward(x, logits, between, stream),
        lambda stream: layers[1].forward(between, logits, out, stream),
    ]
    graph = Graph.capture(gpu.device, calls)
    assert gpu.host.calls.count("cuLibraryLoadData") == loaded
    assert len(gpu.host.allocated) == allocated
    for seed in range(3):
        rows, found = x_of(tokens, 128, seed=seed), logits_of(tokens, 4, seed + 9)
        x.buffer.write(rows)
        logits.buffer.write(found)
        graph.launch(0)
        ids, weights = moe.route_topk(found, 2)
        want = PLAIN.expected(rows, ids, weights)
        assert_rows(between.read(), want)
        assert_rows(out.read(), others.expected(between.read(), ids, weights))


def test_another_number_of_tokens_than_was_prepared(gpu):
    layer = made(PLAIN, device="cuda")
    layer.prepare([1, 4])
    x, logits, out = gpu.empty((3, 128)), gpu.array(logits_of(3, 4)), gpu.empty((3, 128))
    words = (
        "experts.0.gate_up_proj: 3 tokens: a kernel cannot be loaded while a graph is captured, "
        "and it was prepared for 1, 4; call prepare([3]) of the layer before each capture, or "
        "once with the stream that is captured"
    )
    with pytest.raises(CaptureError, match=re.escape(words)):
        Graph.capture(gpu.device, [lambda stream: layer.forward(x, logits, out, stream)])


def test_layers_share_their_plans_and_their_scratch(gpu):
    first, second = made(PLAIN, device="cuda"), made(Experts(), device="cuda")
    x, logits = x_of(3, 128), logits_of(3, 4)
    first(x, logits)
    before = list(gpu.host.allocated), gpu.host.calls.count("cuLibraryLoadData")
    second(x, logits)
    assert gpu.host.calls.count("cuLibraryLoadData") == before[1]
    # x, out, logits of the call, and the weights
    assert len(gpu.host.allocated) == len(before[0]) + 3


def test_out_may_be_x(gpu):
    layer = made(PLAIN, device="cuda")
    rows, logits = x_of(3, 128), logits_of(3, 4)
    x = gpu.array(rows)
    layer.forward(x, gpu.array(logits), x)
    np.testing.assert_array_equal(x.read(), layer(rows, logits))


# what is wrong


def differing(**change):
    return Experts(**{"H": 128, "inner": 64, **change})


@pytest.mark.parametrize(
    ("gate_up", "down", "words"),
    [
        (PLAIN, differing(inner=128), "experts.0.gate_up_proj: gate_up must be [H, 2 * I] and down "
                                      "[I, H]; got [128, 128] and [128, 128]"),
        (PLAIN, differing(H=192), "got [128, 128] and [64, 192]"),
        (PLAIN, differing(num_experts=3), "a stack of 4 experts was asked for; got 3"),
        (PLAIN, differing(num_experts=5), "a stack of 4 experts was asked for; got 5"),
        (differing(inner=36), PLAIN, "experts.0.gate_up_proj: gate and up must have a multiple of "
                                     "8 columns each; got 72 of both"),
    ],
)  # fmt: skip
def test_stacks_that_do_not_fit_each_other(gpu, gate_up, down, words):
    with pytest.raises(ProblemError, match=re.escape(words)):
        MoeLayer.from_gptq(gate_up.gate_up, down.down, top_k=2)
    assert gpu.host.memory == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 5}, "top_k must be 1 to 4, of 4 experts; got 5"),
        ({"top_k": 0}, "top_k must be 1 to 4, of 4 experts; got 0"),
        ({"top_k": 2.0}, "top_k must be 1 to 4, of 4 experts; got 2.0"),
        ({"scoring": "relu"}, "scoring must be \"softmax\" or \"sigmoid\"; got 'relu'"),
        ({"act": "gelu"}, "act must be \"silu\"; got 'gelu'"),
        ({"expert_map": [0, 1, 2, 4]}, "expert_map must say -1, or 0 to 3; it says 4 of id 3"),
        ({"expert_map": [0, 1, 2, -1]}, "expert_map has no id for expert 3, which is here"),
        ({"expert_map": [0.5]}, "expert_map must be integers, [E_global]; got float64 [1]"),
        ({"expert_map": [*range(4), *[-1] * 1021]}, "there may be up to 1024 experts; got 1025"),
        ({"dtype": "fp32"}, "dtype must be \"fp16\" or \"bf16\"; got 'fp32'"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(gpu, options, words):
    with pytest.raises(ProblemError, match=re.escape(words)):
        made(PLAIN, device="cuda", **{"top_k": 2, **options})
    assert gpu.host.memory == {}


def test_shared_experts_that_do_not_fit(gpu):
    for shared, words in (
        (shared_experts("cuda", H=64), "shared must be [128, 2 * I] and [I, 128]; got [64, 48] and "
                                       "[24, 64]"),
        (shared_experts("cpu"), "shared must be fp16 on cuda:0; shared.gate_up is fp16 on the "
                                "host"),
        (shared_experts("cuda", dtype="bf16"), "shared.gate_up is bf16 on cuda:0"),
        (shared_experts("cuda")[:1], "shared must be two MarlinLinear, gate_up and down; got "),
        ("ab", "shared must be two MarlinLinear, gate_up and down; got str, str"),
    ):  # fmt: skip
        with pytest.raises(ProblemError, match=re.escape(words)):
            made(PLAIN, device="cuda", shared=shared)


IDS, WEIGHTS = routed(3, 4, 2)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("x", "given", "words"),
    [
        (x_of(3, 64), {"router_logits": logits_of(3, 4)}, "x must be [..., 128]; got [3, 64]"),
        (x_of(3, 128), {"router_logits": logits_of(3, 5)},
         "router_logits must be [3, 4]; got [3, 5]"),
        (x_of(3, 128), {"router_logits": logits_of(2, 4)},
         "router_logits must be [3, 4]; got [2, 4]"),
        (x_of(3, 128), {"router_logits": logits_of(3, 4, dtype=np.float64)},
         "router_logits must be fp16 or bf16 or fp32; got float64"),
        (x_of(3, 128), {}, "is given router_logits, or topk_ids and topk_weights; got none of"),
        (x_of(3, 128), {"topk_ids": IDS}, "or topk_ids and topk_weights; got topk_ids"),
        (x_of(3, 128), {"router_logits": logits_of(3, 4), "topk_ids": IDS, "topk_weights": WEIGHTS},
         "got router_logits, topk_ids, topk_weights"),
        (x_of(3, 128), {"topk_ids": IDS[:, :1], "topk_weights": WEIGHTS},
         "topk_ids must be [3, 2]; got [3, 1]"),
        (x_of(3, 128), {"topk_ids": IDS.astype(np.int64), "topk_weights": WEIGHTS},
         "topk_ids must be int32; got int64"),
        (x_of(3, 128), {"topk_ids": IDS, "topk_weights": WEIGHTS.astype(np.float16)},
         "topk_weights must be fp32; got fp16"),
        (x_of(3, 128), {"topk_ids": np.full((3, 2), 4, np.int32), "topk_weights": WEIGHTS},
         "topk_ids must be 0 to 3; got 4 at [0, 0] (allow_dropped = True drops such)"),
        (x_of(3, 128), {"topk_ids": np.full((3, 2), -1, np.int32), "topk_weights": WEIGHTS},
         "topk_ids must be 0 to 3; got -1 at [0, 0]"),
        (x_of(3, 128, "bf16"), {"router_logits": logits_of(3, 4)}, "x must be fp16; got bf"),
    ],
)  # fmt: skip
def test_arguments_that_are_not_the_layer_s(gpu, device, x, given, words):
    with pytest.raises(ProblemError, match=re.escape(words)):
        made(PLAIN, device=device)(x, **given)


def test_outputs_that_cannot_be(gpu):
    layer = made(PLAIN, device="cuda")
    x, logits = gpu.empty((3, 128)), gpu.empty((3, 4), np.float32)
    for out, error, words in (
        (gpu.empty((2, 128)), ProblemError, "out must be [3, 128] like x; got [2, 128]"),
        (gpu.empty((3, 128), np.float32), ProblemError, "out must be fp16; got fp32"),
        (np.empty((3, 128), np.float16), LaunchError, "out must be on cuda:0 like the weight"),
    ):
        with pytest.raises(error, match=re.escape(words)):
            layer.forward(x, logits, out)
    host = made(PLAIN)
    rows = x_of(3, 128)
    overlapping = np.zeros(3 * 128 + 24, np.float16)
    found = overlapping[-24:].view(np.float32).reshape(3, 4)
    with pytest.raises(LaunchError, match="out overlaps what the tokens are routed by"):
        host.forward(rows, found, overlapping[24:].reshape(3, 128))
    frozen = np.empty((3, 128), np.float16)
    frozen.flags.writeable = False
    with pytest.raises(LaunchError, match="out is read-only"):
        host.forward(rows, logits_of(3, 4), frozen)


def test_the_public_name():
    assert ferrum_numba.MoeLayer is MoeLayer
