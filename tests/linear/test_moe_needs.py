"""What a checkpoint's experts will need is what a layer of them asks for when it is prepared."""

from dataclasses import replace

import pytest
import shipped_driver
from host_driver import binary
from moe_layers import Experts
from quantised import layer

from ferrum_numba.errors import ProblemError
from ferrum_numba.gptq.checkpoint import LayerInfo
from ferrum_numba.gpu import KNOWN
from ferrum_numba.linear import moe_needs, needs
from ferrum_numba.linear.dense import MarlinLinear
from ferrum_numba.linear.moe import MoeLayer

H200 = KNOWN["h200"]
BASE = "model.layers.0.mlp.experts"
GATED = ("gate_proj", "up_proj", "down_proj")
KINDS = {
    "symmetric": {}, "asymmetric with a bias": {"zeros": "gptq", "bias": True},
    "act-order": {"inner": 128, "act_order": True}, "one group": {"group_size": -1},
}  # fmt: skip


def info(name, K, N, **kind):
    known = {"group_size": 64, "sym": True, "act_order": False, "bias": False} | kind
    return LayerInfo(name, "gptq", K, N, dtype="float16", **known)


def infos(num_experts=4, H=128, inner=64, base=BASE, names=GATED, **kind):
    sizes = ((H, inner), (H, inner), (inner, H))
    return [
        info(f"{base}.{e}.{name}", K, N, **kind)
        for e in range(num_experts)
        for name, (K, N) in zip(names, sizes, strict=True)
    ]


def silent(done, total):
    pass


def foreseen(block, tokens, top_k=2):
    jobs = needs.programs([], tokens, H200, silent, [lambda *asked: block.programs(top_k, *asked)])
    assert len({(job.kernel.name, job.config) for job in jobs}) == len(jobs)
    return {(job.kernel.name, job.config) for job in jobs}


@pytest.fixture
def asked(monkeypatch):
    """Return the programs that are asked for on a GPU that runs none."""
    found = []

    def build(kernel, config, arch):
        found.append((kernel.name, config))
        parameters = kernel.build(config, arch).parameters
        cubin = b".text." + kernel.name.encode() + b"\0"
        return binary(kernel.name, parameters, cubin=cubin, fingerprint=str(found[-1]))

    shipped_driver.install(monkeypatch)
    monkeypatch.setattr("ferrum_numba.linear.launch_plan.build", build)
    return found


@pytest.mark.parametrize("tokens", [[1], [5, 40, 300]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_layer_asks_for_is_what_was_foreseen(asked, kind, tokens):
    sizes = KINDS[kind]
    experts = Experts(**sizes)
    MoeLayer.from_gptq(experts.gate_up, experts.down, top_k=2).prepare(tokens)
    told = {name: sizes[name] for name in ("inner", "act_order", "bias") if name in sizes}
    group = {"group_size": {}} if "group_size" in sizes else {}
    layers = infos(sym="zeros" not in sizes, **told)
    # of one group there are as many rows as K
    layers = [replace(each, group_size=each.K) for each in layers] if group else layers
    [block] = moe_needs.blocks(layers, "fp16")
    assert foreseen(block, tokens) == set(asked)


def test_shared_experts_are_of_the_layer(asked):
    experts = Experts()
    shared = [
        MarlinLinear.from_gptq(layer(128, 2 * 192, 64)), MarlinLinear.from_gptq(layer(192, 128, 64))
    ]  # fmt: skip
    MoeLayer.from_gptq(experts.gate_up, experts.down, top_k=2, shared=shared).prepare([1, 40])
    around = BASE.removesuffix("experts") + "shared_experts"
    sizes = zip(GATED, ((128, 192), (128, 192), (192, 128)), strict=True)
    [block] = moe_needs.blocks(
        [*infos(), *(info(f"{around}.{name}", K, N) for name, (K, N) in sizes)], "fp16"
    )
    # what packs them is their own need
    assert foreseen(block, [1, 40]) == {one for one in asked if one[0] != "repack"} | {
        one for one in foreseen(block, []) if one[0] == "repack"
    }
    assert {"silu_mul", "combine"} <= {name for name, _ in asked}


def names_of(layers):
    return [(b.gate_up.name, b.down.name, b.num_experts) for b in moe_needs.blocks(layers, "fp16")]


def test_a_kind_is_there_once():
    layers = [
        *infos(), *infos(base="model.layers.1.mlp.experts"),
        *infos(8, base="model.layers.2.mlp.experts"),
    ]  # fmt: skip
    other = "model.layers.2.mlp.experts.0"
    assert names_of(layers) == [
        (f"{BASE}.0.gate_up_proj", f"{BASE}.0.down_proj", 4),
        (f"{other}.gate_up_proj", f"{other}.down_proj", 8),
    ]


def test_mixtral_s_names():
    [block] = moe_needs.blocks(infos(names=("w1", "w3", "w2")), "bf16")
    assert (block.gate_up.N, block.gate_up.dtype, block.down.name) == (128, "bf16", f"{BASE}.0.w2")


def test_experts_in_one_tensor():
    sizes = {"gate_up_proj": (128, 128), "down_proj": (64, 128)}
    stacks = [replace(info(f"{BASE}.{p}", K, N), experts=4) for p, (K, N) in sizes.items()]
    [block] = moe_needs.blocks(stacks, "fp16")
    [apart] = moe_needs.blocks(infos(), "fp16")
    assert block.num_experts == 4
    assert foreseen(block, [1, 40]) == foreseen(apart, [1, 40])
    assert moe_needs.blocks([stacks[0], replace(stacks[1], experts=3)], "fp16") == []
    assert moe_needs.blocks(stacks[:1], "fp16") == []


def test_what_some_experts_have_all_have():
    layers = infos(2)
    layers[3] = replace(layers[3], sym=False)
    [block] = moe_needs.blocks(layers, "fp16")
    assert (block.gate_up.symmetric, block.down.symmetric) == (False, True)


@pytest.mark.parametrize(
    "layers",
    [
        infos()[:-1], infos()[3:], [replace(infos()[0], error="it is damaged"), *infos()[1:]],
        [replace(infos()[0], group_size=32), *infos()[1:]], [*infos()[:-1], info(
            f"{BASE}.3.down_proj", 64, 256)],
        infos(base="model.layers.0.mlp"), infos(names=("fc1", "fc2", "fc3")),
    ],
    ids=["one lacks down", "the first is missing", "damaged", "other groups", "another shape",
         "no experts", "other names"],
)  # fmt: skip
def test_what_forms_no_layer(layers):
    assert moe_needs.blocks(layers, "fp16") == []


def test_experts_that_cannot_be_packed():
    layers = [replace(each, group_size=48) for each in infos(H=192, inner=96)]
    [block] = moe_needs.blocks(layers, "fp16")
    with pytest.raises(ProblemError, match=r"experts of a layer are packed; .* got 48"):
        block.spec(2)
