"""The experts of a block as modules, against each expert alone."""

import copy
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from quantised import assert_close, layer, reference, rows  # noqa: E402

from ferrum_numba.errors import ProblemError  # noqa: E402
from ferrum_numba.torch import ExpertStack, GatedExperts  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
NUM_EXPERTS, H, INNER = 4, 64, 32
UP = [layer(H, 2 * INNER, 32, seed=e, name=f"up.{e}", zeros="gptq") for e in range(NUM_EXPERTS)]
DOWN = [layer(INNER, H, 32, seed=9 + e, name=f"down.{e}") for e in range(NUM_EXPERTS)]


def block():
    stacks = (ExpertStack.from_gptq(layers, device="cpu") for layers in (UP, DOWN))
    return GatedExperts(*stacks, torch.nn.functional.silu)


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


def test_a_block_compiled_whole_and_copied():
    module, given = block(), routed(7, 2)
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
