"""MoeLayer on a real GPU: every routing in one graph, against the references, and bit for bit.

Run with `pytest -m gpu tests/linear/test_moe_gpu.py`. Weights are symmetric words of random codes;
the reference multiplies the pairs of each expert by its own tensors.
"""

import numpy as np
import pytest
from cuda_array import CudaArray
from moe_layers import Experts, assert_rows, ids_with_counts, logits_of, routed, x_of
from quantised import layer

from ferrum_numba.kernels import GROUPED
from ferrum_numba.launch import Graph
from ferrum_numba.linear.dense import MarlinLinear
from ferrum_numba.linear.moe import MoeLayer
from ferrum_numba.reference import moe

pytestmark = pytest.mark.gpu
SMALL = {"H": 256, "inner": 128, "group_size": 128}
ROWS = (0, 1, 15, 16, 17, 64, 65, 100, 127, 200)


def made(experts, top_k, **options):
    return MoeLayer.from_gptq(experts.gate_up, experts.down, top_k=top_k, **options)


class OnGpu:
    """Arrays of a call on the GPU; `run` fills them and returns the result."""

    def __init__(self, device, module, tokens, H, logits=None, dtype="fp16"):
        self.module, self.device = module, device
        self.x = CudaArray.of(device, x_of(tokens, H, dtype))
        self.out = CudaArray.of(device, np.full((tokens, H), np.nan, np.float16).astype(
            self.x.dtype))  # fmt: skip
        self.logits = None if logits is None else CudaArray.of(device, logits)

    def run(self, x, *routing, stream=0):
        self.x.buffer.write(x)
        if self.logits is not None:
            self.logits.buffer.write(routing[0])
            self.module.forward(self.x, self.logits, self.out, stream)
        else:
            ids, weights = (CudaArray.of(self.device, a) for a in routing)
            self.module.forward(self.x, None, self.out, stream, topk_ids=ids, topk_weights=weights)
        return self.out.read()


def check(device, experts, tokens, top_k, dtype="fp16", seed=0, **options):
    """Compare a layer's result for random logits with the reference."""
    logits = logits_of(tokens, experts.num_experts, seed, np.float32)
    call = OnGpu(device, made(experts, top_k, dtype=dtype, **options), tokens, experts.H, logits,
                 dtype)  # fmt: skip
    x = x_of(tokens, experts.H, dtype, seed + 1)
    got = call.run(x, logits)
    ids, weights = moe.route_topk(logits, top_k)
    two_step = options.get("bias_mode") == "two_step"
    assert_rows(got, experts.expected(x, ids, weights, dtype, two_step=two_step), dtype)


@pytest.mark.parametrize(
    ("num_experts", "top_k"),
    [(3, 1), (3, 3), (8, 2), (60, 4), (127, 7), (128, 8), (256, 8), (512, 5)],
)
@pytest.mark.parametrize("tokens", [1, 5, 65])
def test_numbers_of_experts(device, num_experts, top_k, tokens):
    check(device, Experts(num_experts, **SMALL), tokens, top_k)


@pytest.mark.parametrize("tokens", [1, 2, 4, 8, 16, 33, 64, 250, 1024])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_numbers_of_tokens(device, tokens, dtype):
    check(device, Experts(16, 512, 256, 128), tokens, 4, dtype)


KINDS = {
    "asymmetric with a bias": {"zeros": "gptq", "bias": True, **SMALL},
    "act-order": {"act_order": True, "zeros": "gptq_v2", "H": 256, "inner": 256, "group_size": 64},
    "one group": {"group_size": -1, "bias": True, "H": 256, "inner": 128},
    "groups of 32": {"group_size": 32, "H": 256, "inner": 128},
    "no tile divides it": {"H": 200, "inner": 104, "group_size": 64, "act_order": True},
}


@pytest.mark.parametrize("mode", ["fused", "two_step"])
@pytest.mark.parametrize("tokens", [1, 7, 150])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_weights(device, kind, tokens, mode):
    check(device, Experts(6, **KINDS[kind]), tokens, 3, bias_mode=mode)


@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_experts_with_many_and_few_rows(device, top_k):
    experts = Experts(len(ROWS), **SMALL)
    ids, weights = ids_with_counts(ROWS, top_k)
    x = x_of(len(ids), experts.H)
    got = OnGpu(device, made(experts, top_k), len(ids), experts.H).run(x, ids, weights)
    assert_rows(got, experts.expected(x, ids, weights))


@pytest.mark.parametrize("rows", [200, 4096])
def test_one_expert_takes_all(device, rows):
    experts = Experts(4, **SMALL)
    ids, weights = ids_with_counts((0, 0, rows, 0))
    x = x_of(rows, experts.H)
    got = OnGpu(device, made(experts, 1), rows, experts.H).run(x, ids, weights)
    assert_rows(got, experts.expected(x, ids, weights))


def test_more_pairs_than_16_bits_count(device):
    tokens, experts = 16_400, Experts(8, 64, 64, 32)
    ids, weights = routed(tokens, 8, 4)
    x = x_of(tokens, 64)
    got = OnGpu(device, made(experts, 4), tokens, 64).run(x, ids, weights)
    assert_rows(got, experts.expected(x, ids, weights))


def test_dropped_pairs_and_equal_logits(device):
    experts = Experts(8, **SMALL)
    layer_of_them, x = made(experts, 4), x_of(20, experts.H)
    got = OnGpu(device, layer_of_them, 20, experts.H, logits_of(20, 8)).run(
        x, np.zeros((20, 8), np.float32)
    )
    ids = np.tile(np.arange(4, dtype=np.int32), (20, 1))
    assert_rows(got, experts.expected(x, ids, np.full((20, 4), 0.25, np.float32)))
    ids, weights = routed(20, 8, 4)
    ids[::3, 1], ids[7], ids[9, 2] = -1, -1, 8
    got = OnGpu(device, layer_of_them, 20, experts.H).run(x, ids, weights)
    assert_rows(got, experts.expected(x, ids, weights))
    assert (got[7] == 0).all()


def test_slices_of_the_experts_add_up(device):
    experts, tokens = Experts(16, **SMALL), 40
    ids, weights = routed(tokens, 16, 6)
    x = x_of(tokens, experts.H)
    for here in ([5], list(range(0, 16, 2)), [15, 3, 8]):
        expert_map = np.full(16, -1)
        expert_map[here] = np.arange(len(here))
        module = MoeLayer.from_gptq(
            [experts.gate_up[e] for e in here], [experts.down[e] for e in here], top_k=6,
            expert_map=expert_map,
        )  # fmt: skip
        of_here = np.where(np.isin(ids, here), ids, -1)
        for T in (1, tokens):
            got = OnGpu(device, module, T, experts.H).run(x[:T], ids[:T], weights[:T])
            assert_rows(got, experts.expected(x[:T], of_here[:T], weights[:T]))


def test_shared_experts(device):
    experts, tokens = Experts(8, **SMALL), 33
    tensors = layer(256, 512, 128, seed=70, bias=True), layer(256, 256, 128, seed=71)
    gate_up, down = (MarlinLinear.from_gptq(t) for t in tensors)
    module = made(experts, 2, shared=(gate_up, down))
    for T in (1, tokens):
        ids, weights = routed(T, 8, 2)
        x = x_of(T, 256)
        shared = down(moe.silu_mul(gate_up(x), interleaved=False))
        got = OnGpu(device, module, T, 256).run(x, ids, weights)
        assert_rows(got, experts.expected(x, ids, weights, shared=shared))


# graphs


@pytest.mark.parametrize("tokens", [1, 16, 300])
def test_two_layers_in_one_graph_serve_any_routing(device, tokens):
    layers = [Experts(32, **SMALL), Experts(32, **SMALL, zeros="gptq", bias=True)]
    modules = [made(experts, 4) for experts in layers]
    x, out = (CudaArray.of(device, x_of(tokens, 256)) for _ in range(2))
    between = CudaArray.of(device, x_of(tokens, 256))
    logits = [CudaArray.of(device, logits_of(tokens, 32)) for _ in modules]
    for module in modules:
        module.prepare(tokens)
    graph = Graph.capture(
        device,
        [
            lambda stream: modules[0].forward(x, logits[0], between, stream),
            lambda stream: modules[1].forward(between, logits[1], out, stream),
        ],
    )
    stream = device.new_stream()
    for seed in range(8):
        rows = x_of(tokens, 256, seed=seed)
        given = [logits_of(tokens, 32, 10 * seed + i) for i in range(2)]
        if seed == 3:
            # all choose the same experts
            given[0][:] = given[0][0]
        x.buffer.write(rows)
        for array, values in zip(logits, given, strict=True):
            array.buffer.write(values)
        for _ in range(3):
            # one right after the other
            graph.launch(stream)
        device.synchronize()
        first = layers[0].expected(rows, *moe.route_topk(given[0], 4))
        assert_rows(between.read(), first)
        second = layers[1].expected(between.read(), *moe.route_topk(given[1], 4))
        assert_rows(out.read(), second)


@pytest.mark.parametrize("tokens", [1, 16, 300])
@pytest.mark.parametrize("kind", ["plain", "act-order"])
def test_a_hundred_repetitions_have_equal_bits(device, tokens, kind):
    options = KINDS["act-order"] if kind == "act-order" else {**SMALL, "bias": True}
    experts = Experts(32, **options)
    module = made(experts, 4)
    logits = logits_of(tokens, 32)
    call = OnGpu(device, module, tokens, experts.H, logits)
    module.prepare(tokens)
    first = call.run(x_of(tokens, experts.H), logits)
    graph = Graph.capture(
        device, [lambda stream: module.forward(call.x, call.logits, call.out, stream)]
    )
    stream = device.new_stream()
    for _ in range(100):
        call.out.buffer.fill(0xFF)
        graph.launch(stream)
        device.synchronize()
        np.testing.assert_array_equal(call.out.read(), first)


@pytest.mark.parametrize("tokens", [2, 16, 300])
def test_a_token_s_bits_whatever_the_others_are(device, tokens):
    """With kernels of which that is promised; the same number of tokens, so the same configs."""
    experts = Experts(32, **SMALL)
    module = made(experts, 4, batch_invariant=True)
    x, logits = x_of(tokens, 256), logits_of(tokens, 32)
    call = OnGpu(device, module, tokens, 256, logits)
    first = call.run(x, logits)[0]
    for seed in range(1, 20):
        others = x_of(tokens, 256, seed=seed), logits_of(tokens, 32, seed)
        if seed % 3 == 0:
            others[1][1:] = logits[0]
        x[1:], logits[1:] = others[0][1:], others[1][1:]
        np.testing.assert_array_equal(call.run(x, logits)[0], first)


# every design


@pytest.mark.parametrize("tokens", [3, 64, 700])
@pytest.mark.parametrize("kernel", GROUPED, ids=lambda k: k.name)
def test_each_design_runs_the_layer(device, monkeypatch, kernel, tokens):
    if not kernel.runs_on(device.gpu):
        pytest.skip(f"{kernel.name} does not run on {device.gpu.name}")
    monkeypatch.setattr("ferrum_numba.linear.moe_spec.GROUPED", (kernel,))
    check(device, Experts(16, **SMALL), tokens, 4)


@pytest.mark.parametrize("tokens", [3, 200])
def test_the_gate_in_a_launch_of_its_own(device, monkeypatch, tokens):
    """Rounds gate and up first."""
    monkeypatch.setattr("ferrum_numba.linear.moe_stages.is_fused", lambda *given: False)
    check(device, Experts(12, **SMALL, bias=True), tokens, 4)


def test_nothing_is_read_before_it_is_written(device):
    """Scratch is poisoned between calls: what a call reads of it, it wrote."""
    experts, tokens = Experts(32, **SMALL), 20
    module = made(experts, 4)
    logits = logits_of(tokens, 32)
    call = OnGpu(device, module, tokens, 256, logits)
    x = x_of(tokens, 256)
    first = call.run(x, logits)
    area = module.gate_up.runtime.scratch._default
    for name, buffer in area._buffers.items():
        # what must be zero before a launch, by the launch's own word
        if name in ("rows", "hidden", "both", "gathered", "routing") or name.startswith("list_"):
            buffer.fill(0xFF)
    np.testing.assert_array_equal(call.run(x, logits), first)
