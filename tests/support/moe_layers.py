"""Layers of experts to test with, and what each of their tokens should get, pair by pair."""

import numpy as np
from quantised import layer, reference, rows

from ferrum_numba.gptq.fused import concatenate
from ferrum_numba.gptq.tensors import GptqTensors
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.reference.moe import route_topk


class Experts:
    """The tensors of a block's experts: gate_up with gate and up side by side, and down."""

    def __init__(self, num_experts=4, H=128, inner=64, group_size=64, **kind):
        self.num_experts, self.H, self.inner = num_experts, H, inner
        self.gate_up = [
            layer(H, 2 * inner, group_size, seed=e, name=f"experts.{e}.gate_up_proj", **kind)
            for e in range(num_experts)
        ]
        self.down = [
            layer(inner, H, group_size, seed=1000 + e, name=f"experts.{e}.down_proj", **kind)
            for e in range(num_experts)
        ]

    def rows_of(self, expert, x, dtype="fp16", two_step=False):
        """Return an expert's rows [M, H] for x, by the reference on its own tensors."""
        kind = DTYPES[dtype]

        def product(tensors, x):
            sums = reference(tensors, x, dtype, bias=not two_step)
            if two_step and tensors.bias is not None:
                sums = sums.astype(kind).astype("f4") + tensors.bias.astype(kind).astype("f4")
            return sums.astype(kind) if two_step else sums

        gate, up = np.split(product(self.gate_up[expert], x).astype(np.float64), 2, axis=1)
        hidden = (gate / (1 + np.exp(-gate)) * up).astype(kind)
        return product(self.down[expert], hidden).astype(kind)

    def expected(self, x, ids, weights, dtype="fp16", shared=None, two_step=False):
        """Return [T, H]: each token's sum over its pairs, one expert after the other in float32."""
        pairs = np.zeros((*ids.shape, self.H), DTYPES[dtype])
        for expert in range(self.num_experts):
            tokens, places = np.nonzero(ids == expert)
            if len(tokens):
                pairs[tokens, places] = self.rows_of(expert, x[tokens], dtype, two_step)
        sums = np.zeros((len(x), self.H), np.float32)
        if shared is not None:
            sums += shared.astype(np.float32)
        for place in range(ids.shape[1]):
            here = (ids[:, place] >= 0) & (ids[:, place] < self.num_experts)
            term = weights[:, place, None] * pairs[:, place].astype(np.float32)
            sums[here] += term[here]
        return sums.astype(DTYPES[dtype])


def logits_of(tokens, num_experts, seed=0, dtype=np.float32):
    """Return random logits [T, E]."""
    found = np.random.default_rng(seed).standard_normal((tokens, num_experts)) * 2
    return found.astype(dtype)


def routed(tokens, num_experts, top_k, seed=0):
    """Return ids and weights of random logits."""
    return route_topk(logits_of(tokens, num_experts, seed), top_k)


def ids_with_counts(counts, top_k=1, seed=0):
    """Return ids [T, top_k] and weights, in which each expert has so many pairs; -1 fills up."""
    rng = np.random.default_rng(seed)
    pairs = np.repeat(np.arange(len(counts)), counts)
    pairs = np.concatenate([pairs, np.full(-len(pairs) % top_k, -1)])
    ids = rng.permutation(pairs).reshape(-1, top_k).astype(np.int32)
    return ids, rng.random(ids.shape, np.float32) + np.float32(0.1)


def assert_rows(got, want, dtype="fp16"):
    """Compare sums of rounded rows: within two roundings of the largest of them."""
    got, want = got.astype(np.float64), want.astype(np.float64)
    assert got.shape == want.shape
    assert np.isfinite(got).all()
    bound = (2.0**-9 if dtype == "fp16" else 2.0**-6) * max(np.abs(want).max(), 1e-3)
    assert np.abs(got - want).max() <= bound


def x_of(tokens, H, dtype="fp16", seed=1):
    """Return activations [T, H]."""
    return (rows(tokens, H, seed=seed).astype(np.float32) / 2).astype(DTYPES[dtype])


def beside(gate: GptqTensors, up: GptqTensors):
    """Return gate and up in one layer, as a loader fuses them."""
    return concatenate([gate, up], gate.name)
