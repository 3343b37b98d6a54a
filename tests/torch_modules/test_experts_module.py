"""The experts of a block as modules, against each expert alone."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from quantised import assert_close, layer, reference, rows  # noqa: E402

from ferrum_numba import MoeLayer  # noqa: E402
from ferrum_numba.errors import ProblemError  # noqa: E402
from ferrum_numba.torch import ExpertStack, GatedExperts, MarlinLinear  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
NUM_EXPERTS, H, INNER = 4, 64, 32
UP = [layer(H, 2 * INNER, 32, seed=e, name=f"up.{e}", zeros="gptq") for e in range(NUM_EXPERTS)]
DOWN = [layer(INNER, H, 32, seed=9 + e, name=f"down.{e}") for e in range(NUM_EXPERTS)]


def block(act=torch.nn.functional.silu, store=None, interleave=False, up=UP):
    gate_up = ExpertStack.from_gptq(up, device="cpu", store=store, interleave=interleave)
    return GatedExperts(gate_up, ExpertStack.from_gptq(DOWN, device="cpu", store=store), act)


def routed(tokens, top_k, seed=0):
    """Return hidden states, the experts of each token and their weights."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, NUM_EXPERTS, generator=generator)
    weights, experts = scores.topk(top_k, dim=-1)
    hidden = torch.from_numpy(rows(tokens, H)) / 8
    return hidden, experts, weights.to(torch.float16)


def one_by_one(hidden, experts, weights):
    """Return the block's result, token by token, in float64."""
    out = np.zeros((len(hidden), H))
    for t, (of_token, with_weights) in enumerate(zip(experts, weights, strict=True)):
        for e, weight in zip(of_token.tolist(), with_weights.tolist(), strict=True):
            gate, up = np.split(
                reference(UP[e], hidden[t : t + 1].numpy()).astype(np.float64), 2, 1
            )
            inner = (gate / (1 + np.exp(-gate)) * up).astype(np.float16)
            out[t] += weight * reference(DOWN[e], inner)[0]
    return out


@pytest.mark.parametrize("store", ["marlin", "raw"])
def test_rows_go_to_their_experts(store):
    stack = ExpertStack.from_gptq(UP, device="cpu", store=store)
    x = rows(6, H)
    got = stack(torch.from_numpy(x), torch.tensor([1, 0, 3, 2])).numpy()
    for e, rows_of in ((0, slice(0, 1)), (2, slice(1, 4)), (3, slice(4, 6))):
        assert_close(got[rows_of], reference(UP[e], x[rows_of]))


def test_an_expert_is_a_view():
    stack = ExpertStack.from_gptq(UP, device="cpu")
    expert, x = stack.expert(2), rows(2, H)
    assert expert.packed.data_ptr() == stack.packed[2].data_ptr()
    assert_close(expert(torch.from_numpy(x)).numpy(), reference(UP[2], x))
    with pytest.raises(ProblemError, match=re.escape("expert must be 0..3; got 4")):
        stack.expert(4)


@pytest.mark.parametrize(("tokens", "top_k"), [(1, 2), (7, 2), (5, 1), (3, NUM_EXPERTS)])
def test_a_block(tokens, top_k):
    given = routed(tokens, top_k)
    got, want = block()(*given), one_by_one(*given)
    assert got.dtype == torch.float16
    # two products and their sum, each rounded to fp16
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=4e-3 * np.abs(want).max())


@pytest.mark.parametrize("store", ["marlin", "raw"])
@pytest.mark.parametrize("act", [torch.nn.functional.silu, torch.nn.SiLU(), torch.nn.GELU()])
@pytest.mark.parametrize("interleave", [True, False])
def test_a_block_of_any_kind(act, store, interleave):
    """Packed experts with a SiLU are one operator; all are what they were."""
    module, given = block(act, store, interleave), routed(6, 3)
    assert module.grouped == (store == "marlin" and not isinstance(act, torch.nn.GELU))
    want = module._one_by_one(*given).float()
    torch.testing.assert_close(
        module(*given).float(), want, rtol=0, atol=4e-3 * float(want.abs().max())
    )
    plain = block(act, store)._one_by_one(*given)
    assert torch.equal(module._one_by_one(*given), plain)


def test_stacks_that_do_not_fit_each_other():
    wide = [layer(H, 2 * H, 32, name=f"up.{e}") for e in range(NUM_EXPERTS)]
    for up, got in ((UP[:3], [3, H, 2 * INNER]), (wide, [NUM_EXPERTS, H, 2 * H])):
        words = (
            f"gate_up must be [E, H, 2 * I] and down [E, I, H]; got {got} and "
            f"{[NUM_EXPERTS, INNER, H]}"
        )
        with pytest.raises(ProblemError, match=re.escape(words)):
            block(up=up)


@pytest.mark.parametrize("ids", [-1, NUM_EXPERTS])
def test_ids_of_no_expert_on_the_host(ids):
    hidden, experts, weights = routed(3, 2)
    experts[1, 0] = ids
    words = re.escape(f"topk_ids must be 0 to {NUM_EXPERTS - 1}; got {ids} at [1, 0]")
    with pytest.raises(ProblemError, match=words):
        block()(hidden, experts, weights)


@pytest.mark.parametrize("store", ["marlin", "raw"])
def test_a_bias_in_two_steps(store):
    layers = [layer(H, 64, 32, seed=e, name=f"e.{e}", bias=True) for e in range(2)]
    stack = ExpertStack.from_gptq(layers, device="cpu", store=store, bias_mode="two_step")
    linear = MarlinLinear.from_gptq(layers[1], device="cpu", store=store, bias_mode="two_step")
    assert "two_step" in str(stack.layout)
    x = rows(3, H)
    plain = MarlinLinear.from_gptq(replace(layers[1], bias=None), device="cpu", store=store)
    bias = layers[1].bias.astype(np.float32)
    want = (plain(torch.from_numpy(x)).numpy().astype(np.float32) + bias).astype(np.float16)
    for module in (linear, stack.expert(1)):
        np.testing.assert_array_equal(module(torch.from_numpy(x)).numpy(), want)
    again = MarlinLinear(linear.layout)
    again.load_state_dict(linear.state_dict())
    np.testing.assert_array_equal(again(torch.from_numpy(x)).numpy(), want)


@pytest.mark.parametrize("interleave", [True, False])
def test_a_block_compiled_whole_and_copied(interleave):
    module, given = block(interleave=interleave), routed(7, 2)
    want = module(*given)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*given), want)
    again = copy.deepcopy(module)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(*given), want)


def test_a_block_exported():
    module, given = block(), routed(7, 2)
    program = torch.export.export(module, given)
    other = routed(7, 2, seed=5)
    assert torch.equal(program.module()(*other), module(*other))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("more", [-1, 1])
def test_counts_of_more_or_fewer_experts(more, device):
    stack = ExpertStack.from_gptq(UP, device="cpu").to(device)
    counts = torch.zeros(len(UP) + more, dtype=torch.int64, device=device)
    words = rf"counts must be \[{len(UP)}\], one of each expert; got \[{len(UP) + more}\]"
    with pytest.raises(ProblemError, match=words):
        stack(torch.zeros(0, H, dtype=torch.float16, device=device), counts)


@pytest.mark.parametrize(
    ("counts", "got"), [([1, 0, 3, 1], 5), ([1, 0, 3, 3], 7), ([6, 1, -1, 0], 6)]
)
def test_counts_that_are_not_the_rows(counts, got):
    stack = ExpertStack.from_gptq(UP, device="cpu")
    with pytest.raises(ProblemError, match=f"counts must be the rows .*, 6 in all; got {got}"):
        stack(torch.from_numpy(rows(6, H)), torch.tensor(counts))


@pytest.mark.parametrize("given", ["logits", "ids"])
def test_a_layer_that_is_no_module_compiled_whole(given):
    layer_of_them = MoeLayer.from_gptq(UP, DOWN, top_k=2, device="cpu")
    hidden, experts, weights = routed(5, 2)
    logits = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 4)).astype("f4"))
    arguments = {"router_logits": logits}
    if given == "ids":
        arguments = {"topk_ids": experts.int(), "topk_weights": weights.float()}
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: layer_of_them(x * 2, **arguments).relu(), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(hidden), layer_of_them(hidden * 2, **arguments).relu())
