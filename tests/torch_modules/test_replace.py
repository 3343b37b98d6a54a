"""replace_linears: a model's own layers go, those of a checkpoint come, and the logits stay."""

import copy
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from quantised import layer, rows  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

from ferrum_numba.errors import CheckpointError, ProblemError  # noqa: E402
from ferrum_numba.gptq.checkpoint import GptqCheckpoint  # noqa: E402
from ferrum_numba.gptq.quantize import Recipe, quantize_checkpoint  # noqa: E402
from ferrum_numba.perf import models  # noqa: E402
from ferrum_numba.torch import MarlinLinear, replace_linears  # noqa: E402
from ferrum_numba.torch.fused import Fused  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


class Attention(nn.Module):
    def __init__(self, bias=False):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(64, n, bias) for n in (64, 32, 32))
        self.o_proj = nn.Linear(64, 64)

    def forward(self, x):
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.o_proj(torch.cat([k + v, q[..., :32]], dim=-1))


class Model(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.embed = nn.Embedding(16, 64)
        self.attn = Attention(**options)
        self.norm = nn.LayerNorm(64)
        self.lm_head = nn.Linear(64, 16, bias=False)

    def forward(self, tokens):
        return self.lm_head(self.norm(self.attn(self.embed(tokens))))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model().half().eval()


@pytest.fixture
def checkpoint(model, tmp_path):
    return quantised(model, tmp_path)


def quantised(model, folder):
    save_file(model.state_dict(), folder / "model.safetensors")
    quantize_checkpoint(folder / "model.safetensors", folder / "quantised", Recipe(32))
    return folder / "quantised"


def dequantised(model, path):
    dense = copy.deepcopy(model)
    with GptqCheckpoint.open(path) as opened:
        models.dequantise(dense, opened)
    return dense


TOKENS = torch.arange(12).reshape(2, 6)


@pytest.mark.parametrize("store", ["marlin", "raw"])
@pytest.mark.parametrize("fuse", [True, False])
def test_the_logits_are_those_of_the_dequantised_weights(model, checkpoint, fuse, store):
    want = dequantised(model, checkpoint)(TOKENS)
    torch.manual_seed(1)
    # other values everywhere: all of them come from the checkpoint
    ours = Model().half()
    done = replace_linears(ours, checkpoint, fuse=fuse, store=store)
    got = ours(TOKENS)
    np.testing.assert_allclose(got.detach(), want.detach(), rtol=0, atol=2e-3)
    assert sorted(done.layers) == [f"attn.{p}_proj" for p in "koqv"]
    assert done.fused == (["attn.qkv_proj"] if fuse else [])
    # a bias is its layer's
    assert set(done.loaded) == {"embed.weight", "norm.weight", "norm.bias", "lm_head.weight"}
    assert done.unused == []
    assert not [m for m in ours.attn.modules() if isinstance(m, nn.Linear)]


def test_one_product_for_projections_of_one_x(model, checkpoint):
    replace_linears(model, checkpoint)
    calls = []
    for module in model.modules():
        if isinstance(module, MarlinLinear):
            module.register_forward_hook(lambda *call: calls.append(1))
    model(TOKENS)
    # q, k and v; o
    assert len(calls) == 2
    attention, x = model.attn, torch.randn(3, 64).half()
    q = attention.q_proj(x)
    # the same x with other values, and k of another x in between
    other = x * 2
    attention.k_proj(other)
    x *= 2
    assert torch.equal(attention.q_proj(x), attention.qkv_proj(x)[0])
    assert not torch.equal(attention.q_proj(x), q)
    for part in (attention.k_proj, attention.v_proj):
        part(x)
    # q was asked for once more than k and v: what is left is thrown away by the next x
    assert attention.v_proj(other).shape == (3, 32)


def test_an_x_or_a_weight_that_was_written_to_is_multiplied_again():
    linear = MarlinLinear.from_gptq(layer(128, 96, 64), device="cpu")
    fused = Fused(linear, [64, 32])
    x = torch.from_numpy(rows(2, 128))
    before = fused.part(x, 0)
    assert torch.equal(fused.part(x, 1), linear(x)[:, 64:])
    fused.part(x, 0)
    x.mul_(2)
    assert torch.equal(fused.part(x, 1), linear(x)[:, 64:])
    fused.part(x, 0)
    linear.operands()[0].bitwise_not_()
    assert torch.equal(fused.part(x, 1), linear(x)[:, 64:])
    assert not torch.equal(fused.part(x, 0), before)
    with torch.inference_mode():
        y = torch.from_numpy(rows(2, 128))
        assert torch.equal(fused.part(y, 0), linear(y)[:, :64])


def test_nothing_is_kept_when_all_took_theirs(model, checkpoint):
    replace_linears(model, checkpoint)
    model(TOKENS)
    assert model.attn.qkv_proj._last is None


def test_a_fused_model_compiled_whole_copied_and_saved(model, checkpoint):
    replace_linears(model, checkpoint)
    want = model(TOKENS)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(TOKENS), want)
    again = copy.deepcopy(model)
    with torch.no_grad():
        again.attn.qkv_proj.linear.scales.zero_()
    # a copy has its own weights, through its own parts
    assert not torch.equal(again(TOKENS), want)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(TOKENS), want)
    assert "attn.q_proj.packed" not in model.state_dict()


def test_projections_quantised_in_different_ways_stay_apart(model, checkpoint):
    stored = load_file(checkpoint / "model.safetensors")
    stored["attn.k_proj.scales"] = stored["attn.k_proj.scales"].float()
    save_file(stored, checkpoint / "model.safetensors")
    done = replace_linears(model, checkpoint)
    assert done.fused == []
    assert isinstance(model.attn.q_proj, MarlinLinear)


def test_projections_of_which_only_some_have_a_bias_are_one(tmp_path):
    model = Model().half()
    model.attn.q_proj = nn.Linear(64, 64).half()
    path = quantised(model, tmp_path)
    want = dequantised(model, path)(TOKENS)
    assert replace_linears(model, path).fused == ["attn.qkv_proj"]
    assert model.attn.qkv_proj.linear.bias[0, 64:].count_nonzero() == 0
    torch.testing.assert_close(model(TOKENS), want, rtol=0.01, atol=0.01)


def test_a_checkpoint_of_another_model(model, checkpoint):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.ModuleDict({"o_proj": nn.Linear(64, 64)})

    words = "has 3 quantised layers that the model has no place for, such as attn.k_proj"
    with pytest.raises(CheckpointError, match=words):
        replace_linears(Other().half(), checkpoint)
    wide = Model().half()
    wide.attn.o_proj = nn.Linear(128, 64).half()
    words = "attn.o_proj must be K, N = (128, 64) as in the model; the checkpoint has (64, 64)"
    with pytest.raises(ProblemError, match=re.escape(words)):
        replace_linears(wide, checkpoint)
    small = Model().half()
    small.norm = nn.LayerNorm(32).half()
    with pytest.raises(ProblemError, match=r"norm\.\w+ must be \[32\] as in the model"):
        replace_linears(small, checkpoint)


def test_a_model_in_no_type_of_ours(model, checkpoint):
    with pytest.raises(ProblemError, match=r"a model must be in float16 or bfloat16: call \.half"):
        replace_linears(model.float(), checkpoint)


def test_a_model_on_the_meta_device(checkpoint):
    with torch.device("meta"):
        model = Model().half()
    with pytest.raises(ProblemError, match=r"attn\.qkv_proj is on the meta device; say device="):
        replace_linears(model, checkpoint)


@pytest.mark.parametrize("name", models.MODELS)
def test_a_model_of_transformers(name, tmp_path):
    """Llama and Qwen3-MoE, quantised, replaced and compiled whole."""
    pytest.importorskip("transformers")
    config = models.config_of(name, 2, models.TINY)
    pair = models.make_pair(config, "cpu", tmp_path)
    tokens = models.prompt("cpu")
    with torch.inference_mode():
        got, want = (model(tokens, use_cache=False).logits for model in (pair.ours, pair.dense))
        np.testing.assert_allclose(got, want, rtol=0, atol=4e-3 * want.abs().max())
        # the checkpoint's rounding is far larger than ours
        plain = models.new_model(config, "cpu")(tokens, use_cache=False).logits
        assert (plain - want).abs().max() > 20 * (got - want).abs().max()
        torch._dynamo.reset()
        compiled = torch.compile(pair.ours, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(tokens, use_cache=False).logits, got)
