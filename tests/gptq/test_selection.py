"""Which matrices of which models are linear layers to quantise, and why the others are not."""

from pathlib import Path

import pytest

from ferrum_numba import ProblemError
from ferrum_numba.gptq.files import Entry
from ferrum_numba.gptq.selection import Model, Selection

BLOCK = "model.layers.3"


def chosen(shapes, config=None, **options):
    """Return what is decided of tensors of these shapes, by name."""
    entries = {name: Entry(Path("x"), "F16", shape, 0) for name, shape in shapes.items()}
    return Selection(entries, Model.of(config or {}), **options)


def kept(name, shape=(64, 128), config=None, **options):
    """Return why a layer beside a usual one is kept, or None."""
    found = chosen({f"{BLOCK}.q_proj.weight": (64, 64), f"{name}.weight": shape}, config, **options)
    assert f"{BLOCK}.q_proj.weight" in found.linears or options
    assert (f"{name}.weight" in found.linears) == (name not in found.kept)
    return found.kept.get(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lm_head", "the head"),
        ("head", "the head"),
        ("output", "the head"),
        ("model.output", "the head"),
        ("embed_out", "the head"),
        ("shared", "no linear layer"),
        ("model.embed_tokens", "no linear layer"),
        ("transformer.wpe", "no linear layer"),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias", "no linear layer"),
        (f"{BLOCK}.mlp.gate", "a router"),
        (f"{BLOCK}.mlp.gate.wg", "a router"),
        (f"{BLOCK}.ffn.router.layer", "a router"),
        (f"{BLOCK}.mlp.shared_expert_gate", "a router"),
        ("visual.blocks.0.attn.qkv", "not of the language model, but of visual"),
        ("model.vision_tower.layers.0.q", "not of the language model, but of vision_tower"),
        (
            "model.vision_backbone.image_vit.transformer.resblocks.0.attention.wq",
            "not of the language model, but of vision_backbone",
        ),
        ("vpm.encoder.layers.0.mlp.fc1", "not of the language model, but of vpm"),
        ("vision_encoder.transformer.0.q", "not of the language model, but of vision_encoder"),
        ("model.vision_embed.layers.0.q_proj", "not of the language model, but of vision_embed"),
        ("conformer.layers.0.fc", "not of the language model, but of conformer"),
        ("model.sam_model.blocks.0.qkv", "not of the language model, but of sam_model"),
        ("model.mm_projector.0", "not of the language model, but of mm_projector"),
        ("siglip2.layers.0.q", "not of the language model, but of siglip2"),
        (f"{BLOCK}.lora_A.speech", "not of the language model, but of speech"),
        (f"{BLOCK}.sample.activity_proj", None),
        (f"{BLOCK}.img_mlp.net.0.proj", None),
        (f"{BLOCK}.mlp.vision_mlp.up_proj", None),
        ("score", "outside of the model's blocks"),
        ("model.project_in", "outside of the model's blocks"),
        (f"{BLOCK}.mlp.gate_proj", None),
        (f"{BLOCK}.mlp.experts.7.w1", None),
        (f"{BLOCK}.mlp.shared_expert.up_proj", None),
        (f"{BLOCK}.attention.output.dense", None),
        (f"{BLOCK}.mlp.output", None),
    ],
)
def test_names(name, reason):
    assert kept(name) == reason
    # each of them can be asked for
    assert kept(name, include=[name.replace(".", r"\.")]) is None
    assert kept(name, exclude=[name]) == f"excluded by {name!r}"


@pytest.mark.parametrize(
    ("config", "shape", "reason"),
    [
        ({"num_experts": 8}, (8, 128), "a router"),
        ({"text_config": {"num_local_experts": 8}}, (8, 128), "a router"),
        ({"num_experts": 8}, (16, 128), None),
        ({}, (8, 128), None),
    ],
)
def test_a_row_an_expert_is_a_router(config, shape, reason):
    assert kept(f"{BLOCK}.mlp.moe.weights", shape, config) == reason
    # a projection of as many columns is one
    assert kept(f"{BLOCK}.self_attn.k_proj", shape, config) is None


def test_a_row_a_word_is_an_embedding():
    assert kept("model.tok", (512, 64), {"vocab_size": 512}) == "no linear layer"
    assert kept(f"{BLOCK}.up", (512, 64), {"vocab_size": 512}) is None


@pytest.mark.parametrize("block", ["vit.encoder.layer.0", "conformer.layers.0", "visual.blocks.0"])
def test_a_model_of_one_sense_is_all_blocks(block):
    found = chosen({f"{block}.q.weight": (64, 64), "score.weight": (8, 64)})
    assert [*found.linears] == [f"{block}.q.weight"]


def test_a_model_without_numbered_blocks_is_all_blocks():
    assert not chosen({"attn.q_proj.weight": (64, 64), "fc.weight": (8, 64)}).kept


@pytest.mark.parametrize(
    ("shape", "bias", "config", "sizes"),
    [
        ((64, 192), None, {}, (192, 64, False)),
        ((64, 192), 64, {"model_type": "gpt2"}, (192, 64, False)),
        ((64, 192), 192, {}, (64, 192, True)),
        ((64, 192), None, {"model_type": "gpt2"}, (64, 192, True)),
        ((64, 64), 64, {"model_type": "openai-gpt"}, (64, 64, True)),
        ((64, 64), 64, {"model_type": "llama"}, (64, 64, False)),
    ],
)
def test_which_way_round_a_weight_is(shape, bias, config, sizes):
    shapes = {"h.0.c_attn.weight": shape} | ({"h.0.c_attn.bias": (bias,)} if bias else {})
    (linear,) = chosen(shapes, config).linears.values()
    assert (linear.K, linear.N, linear.by_rows) == sizes


def test_sizes_that_are_no_words_are_kept_even_if_asked_for():
    reason = "K = 128 and N = 12 must be multiples of 8"
    assert kept(f"{BLOCK}.odd", (12, 128)) == reason
    assert kept(f"{BLOCK}.odd", (12, 128), include=["odd"]) == reason


@pytest.mark.parametrize("options", [{"include": ["lm_head"]}, {"head": True}])
def test_a_tied_head_stays_though_it_is_stored(options):
    tied = {"tie_word_embeddings": True}
    assert kept("lm_head", config=tied, **options) == "the head: it is the embedding"
    assert kept("lm_head", **options) is None


def test_exclusion_wins():
    assert kept("score", include=["score"], exclude=["sco"]) == "excluded by 'sco'"


def test_all_of_a_kind_by_one_expression():
    shapes = {f"model.layers.{i}.{name}.weight": (64, 64) for i in range(12) for name in "qk"}
    found = chosen(shapes, exclude=[r"\.(0|11)\.", r"layers\.5\.q"])
    assert len(found.linears) == 24 - 5
    assert found.kept["model.layers.11.k"] == r"excluded by '\\.(0|11)\\.'"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"include": ["("]}, r"include '\(' is no regular expression: missing \)"),
        ({"exclude": ["mpl"]}, "exclude 'mpl' is found in no name of a matrix"),
        ({"include": ["q_proj", "x$"]}, r"include 'x\$' is found in no name"),
    ],
)
def test_an_expression_that_says_nothing_is_a_mistake(options, words):
    with pytest.raises(ProblemError, match=words):
        chosen({"q_proj.weight": (64, 64)}, **options)


def test_everything_that_stays_is_named():
    shapes = {
        "layers.0.q.weight": (64, 64), "layers.0.A_log": (64, 16), "norm.weight": (64,),
        "layers.0.conv.weight": (64, 1, 4), "layers.0.experts.down": (4, 64, 64),
        "empty.weight": (0, 64),
    }  # fmt: skip
    found = chosen(shapes)
    assert found.kept == {
        "layers.0.A_log": "no linear layer",
        "layers.0.conv": "a tensor of 3 dimensions",
        "layers.0.experts.down": "experts in one tensor of 3 dimensions",
    }
    # what a loader would look for
    assert found.exceptions == ["layers.0.conv", "layers.0.experts"]
