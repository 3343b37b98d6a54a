"""The four kernels one after the other, as a layer launches them: on what those before wrote."""

import math

import numpy as np
import pytest
from moe_runs import assert_close, interpreted

from ferrum_numba.compile import build
from ferrum_numba.kernels import MOE
from ferrum_numba.kernels.moe.align_tokens import AlignProblem
from ferrum_numba.kernels.moe.combine import CombineProblem
from ferrum_numba.kernels.moe.route_topk import RouteProblem
from ferrum_numba.kernels.moe.silu_mul import SiluProblem
from ferrum_numba.reference.moe import route_topk

ROUTE, ALIGN, SILU, COMBINE = MOE


def problems(tokens, num_experts, top_k, columns, dtype="bf16"):
    """Return the problem of each kernel."""
    return (
        RouteProblem(tokens, num_experts, top_k, dtype=dtype),
        AlignProblem(tokens, num_experts, top_k),
        SiluProblem(tokens * top_k, columns, dtype=dtype),
        CombineProblem(tokens, num_experts, top_k, columns, dtype=dtype),
    )


def make_inputs(layer, rng):
    """Return logits, and rows as the first GEMM would give them."""
    route, _, silu, _ = layer
    return ROUTE.op.make_inputs(route, rng) | SILU.op.make_inputs(silu, rng)


def assert_layer(layer, inputs, results):
    """Assert that every result is the reference's of what the kernels before gave."""
    routed, listed, gated, summed = results
    given = (
        {"logits": inputs["logits"]},
        {"ids": routed["topk_ids"]},
        {"x": inputs["x"]},
        {"rows": gated, "ids": routed["topk_ids"], "topk_weights": routed["topk_weights"]},
    )
    for kernel, problem, operands, got in zip(
        MOE, layer, given, (routed, listed, gated, summed), strict=True
    ):
        assert_close(kernel, problem, operands, got)


def test_a_layer_on_the_interpreter(rng):
    layer = problems(5, 60, 4, 16)
    inputs = make_inputs(layer, rng)
    # two tokens that cannot tell the experts apart
    inputs["logits"][1:3] = 1
    routed = interpreted(ROUTE, layer[0], {"logits": inputs["logits"]})
    assert routed["topk_ids"][1:3].tolist() == [[0, 1, 2, 3]] * 2
    ids, weights = routed["topk_ids"], routed["topk_weights"]
    listed = interpreted(ALIGN, layer[1], {"ids": ids})
    assert listed["num_pairs"] == 20
    gated = interpreted(SILU, layer[2], {"x": inputs["x"]})
    summed = interpreted(COMBINE, layer[3], {"rows": gated, "ids": ids, "topk_weights": weights})
    assert_layer(layer, inputs, (routed, listed, gated, summed))


class Chain:
    """The kernels in one graph on a GPU, each launched while the one before still runs."""

    def __init__(self, device, layer, inputs):
        from ferrum_numba.launch import Buffer, Graph, load

        self.device, self.layer = device, layer
        self.inputs = {name: Buffer.from_array(device, array) for name, array in inputs.items()}
        self.outputs = [
            Buffer.empty(device, math.prod(shape) * dtype.itemsize)
            for shape, dtype in map(self.form, range(4))
        ]
        routed, _, gated, _ = self.outputs
        ids, nothing = routed.pointer, self.inputs["x"].pointer
        weights = ids + 4 * layer[1].num_pairs
        absent = dict.fromkeys(("shared", "expert_map"), nothing)
        given = (
            {"logits": self.inputs["logits"]},
            {"ids": ids, **absent},
            {"x": self.inputs["x"]},
            {"rows": gated, "ids": ids, "topk_weights": weights, **absent},
        )
        calls = []
        for kernel, problem, operands, out in zip(MOE, layer, given, self.outputs, strict=True):
            config = kernel.default(problem, device.gpu)
            loaded = load(build(kernel, config, device.gpu.arch), device)
            launch = kernel.launch(config, problem, device.gpu)
            calls.append(loaded.prepare(launch, {**operands, "out": out}))
        self.graph = Graph.capture(device, calls)

    def form(self, i):
        """Return shape and type of a kernel's output."""
        return MOE[i].op.output(self.layer[i])

    def run(self, inputs, repeats=1):
        """Return all results of new inputs, computed so often one right after the other."""
        for name, array in inputs.items():
            self.inputs[name].write(array)
        for out in self.outputs:
            out.fill(0xA5)
        stream = self.device.new_stream()
        for _ in range(repeats):
            self.graph.launch(stream)
        self.device.synchronize()
        return [out.read(*self.form(i)) for i, out in enumerate(self.outputs)]


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 16, 300, 4096])
def test_a_graph_serves_every_routing_on_gpu(tokens, device):
    layer = problems(tokens, 128, 8, 768)
    chain = Chain(device, layer, make_inputs(layer, np.random.default_rng(0)))
    for seed in range(4):
        inputs = make_inputs(layer, np.random.default_rng(seed))
        # each time another expert takes a place of every token
        inputs["logits"][:, 7 * seed] = 30
        once = chain.run(inputs)
        assert_layer(layer, inputs, once)
        want, _ = route_topk(inputs["logits"], 8)
        np.testing.assert_array_equal(once[0]["topk_ids"], want)
        again = chain.run(inputs, repeats=100)
        assert [got.tobytes() for got in again] == [got.tobytes() for got in once]
