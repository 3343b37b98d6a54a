"""Rounding to nearest: how far a weight may be off, what is kept, and that nothing is half done."""

import json

import gptq_layers as build
import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ferrum_numba import CheckpointError, GptqCheckpoint, GptqTensors, ProblemError
from ferrum_numba.gptq import overflow
from ferrum_numba.gptq import quantize as module
from ferrum_numba.gptq.files import TensorFiles
from ferrum_numba.gptq.quantize import Recipe, quantize_checkpoint, quantize_weight
from ferrum_numba.reference.gptq import unpack_zero_points

# relative error of a scale that is rounded to its type, times the 7.5 or 15 scales it stands for
SCALE_ERROR = {"fp16": 2.0**-11, "bf16": 2.0**-8, "fp32": 2.0**-11}


def rounded(weight, recipe):
    tensors = quantize_weight("x", weight, recipe)
    return GptqTensors.make(
        "x", **tensors, group_size=recipe.group_size, sym=recipe.sym,
        checkpoint_format=recipe.checkpoint_format,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", build.DTYPES)
@pytest.mark.parametrize("group_size", [8, 32, 10**12, -1])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("checkpoint_format", ["gptq", "gptq_v2"])
def test_a_weight_is_half_a_scale_off_at_most(rng, dtype, group_size, sym, checkpoint_format):
    # more columns than a block, a last group that is smaller, and offsets that only asym can follow
    weight = (rng.standard_normal((520, 72)) + rng.uniform(-2, 2, (520, 1))).astype(
        build.DTYPES[dtype]
    )
    got = rounded(weight, Recipe(group_size, sym, checkpoint_format))
    group = np.arange(72) // got.group_size
    scale = got.scales.astype(np.float32)[group]
    error = np.abs(build.weight_of(got) - weight.T.astype(np.float32)) / scale
    # an end of the range is up to 15 scales from its zero
    assert error.max() <= 0.5 + 15 * SCALE_ERROR[dtype]
    # and the range is used: a scale twice as large would be within the bound too
    levels = np.rint(build.weight_of(got) / scale)
    for g in range(got.num_groups):
        low, high = levels[group == g].min(axis=0), levels[group == g].max(axis=0)
        if sym:
            assert (np.maximum(-low, high) >= 7).all()
        else:
            assert (np.maximum(high, 0) - np.minimum(low, 0) >= 14).all()
    assert got.scales.dtype == (ml_dtypes.bfloat16 if dtype == "bf16" else np.float16)
    assert got.symmetric == sym


def test_zero_stays_zero(rng):
    weight = rng.uniform(1, 2, (8, 64)).astype(np.float16)
    weight[:, ::3] = 0
    weight[3] = 0
    for sym in (True, False):
        got = build.weight_of(rounded(weight, Recipe(32, sym)))
        assert (got.T[weight == 0] == 0).all()


@given(
    low=st.floats(-60000, 60000, width=16), high=st.floats(-60000, 60000, width=16),
    sym=st.booleans(),
)  # fmt: skip
def test_any_range_is_met(low, high, sym):
    weight = np.tile(np.linspace(low, high, 8, dtype=np.float32).astype(np.float16), (8, 1))
    # so small that a scale has few bits left
    assume(max(abs(low), abs(high)) == 0 or max(abs(low), abs(high)) > 15e-5)
    got = rounded(weight, Recipe(-1, sym))
    error = np.abs(build.weight_of(got).T - weight.astype(np.float32))
    # below 2^-14 a scale is a subnormal float16, off by half of 2^-24
    assert (error <= got.scales.astype(np.float32).T * 0.51 + 15 * 2.0**-25).all()


def test_the_largest_weight_of_either_sign_survives():
    weight = np.zeros((8, 32), np.float32)
    weight[0, 3], weight[1, 3] = 1, -1
    got = build.weight_of(rounded(weight, Recipe(32, False)))
    np.testing.assert_array_equal(got[3, :2], np.float16(1 / 15) * np.array([15, -15], np.float32))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.nan, "x: a weight must be finite; this one holds NaN or infinity"),
        (np.inf, "x: a weight must be finite; this one holds NaN or infinity"),
        (1e6, "x: a group's weights span 2e+06, whose scale is too large for float16"),
        (3e38, "x: a group's weights span inf, whose scale is too large for float16"),
    ],
)
def test_a_weight_that_cannot_be_rounded_is_named(value, words):
    weight = np.zeros((8, 32), np.float32)
    weight[7, 31] = value
    with pytest.raises(ProblemError) as error:
        quantize_weight("x", weight, Recipe())
    assert str(error.value) == words


@pytest.mark.parametrize("sym", [True, False])
def test_a_weight_whose_scales_vanish_is_refused(rng, sym):
    """It would be all zeros, without a word."""
    weight = rng.standard_normal((8, 32), np.float32) * np.float32(1e-8)
    words = "x: float16 makes an error of 100.0% of its scales, which must be at most 1%: its"
    with pytest.raises(ProblemError, match=words):
        quantize_weight("x", weight, Recipe(32, sym))
    got = build.weight_of(rounded(weight.astype(ml_dtypes.bfloat16), Recipe(32, sym))).T
    assert np.abs(got - weight).max() < 0.2 * np.abs(weight).max()


def test_v1_stores_no_zero_point_of_0(rng):
    """It would store 15, which readers take for three values."""
    weight = rng.uniform(0, 1, (8, 64)).astype(np.float16)
    for checkpoint_format, least in (("gptq", 1), ("gptq_v2", 0)):
        recipe = Recipe(32, False, checkpoint_format)
        qzeros = quantize_weight("x", weight, recipe)["qzeros"]
        assert unpack_zero_points(qzeros, checkpoint_format).min() == least
        assert overflow.count(qzeros) == 0
        got = rounded(weight, recipe)
        error = np.abs(build.weight_of(got).T - weight.astype(np.float32))
        assert error.max() <= got.scales.astype(np.float32).max() * 0.51


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ({"group_size": 0}, "group_size must be -1 or at least 1; got 0"),
        ({"checkpoint_format": "marlin"}, 'must be "gptq" or "gptq_v2"; got "marlin"'),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(kind, words):
    with pytest.raises(ProblemError, match=words):
        Recipe(**kind)


@pytest.fixture
def weights(rng):
    """Return a model's tensors: layers to quantise, and what must stay."""

    def matrix(N, K):
        return rng.standard_normal((N, K), np.float32).astype(np.float16)

    return {
        "model.embed_tokens.weight": matrix(16, 64),
        "model.layers.0.q_proj.weight": matrix(64, 64),
        "model.layers.0.q_proj.bias": np.ones(64, np.float16),
        "model.layers.0.input_layernorm.weight": np.ones(64, np.float16),
        "model.layers.0.mlp.gate.weight": matrix(8, 64),
        "model.layers.0.mlp.gate_proj.weight": matrix(16, 64),
        "model.layers.0.odd.weight": matrix(12, 64),
        "model.layers.0.conv.weight": np.zeros((8, 8, 3), np.float16),
        "model.layers.0.ids.weight": np.zeros((8, 8), np.int64),
        "model.layers.0.scale.weight": np.zeros((8, 8), ml_dtypes.float8_e4m3fn),
        "lm_head.weight": matrix(16, 64),
    }


@pytest.fixture
def source(tmp_path, weights):
    folder = tmp_path / "source"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps({"hidden_size": 64}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_text("not this")
    return folder


def test_a_model_is_written_and_loads(tmp_path, source, weights):
    calls = []
    target = tmp_path / "target"
    made = quantize_checkpoint(source, target, Recipe(32), lambda *call: calls.append(call))
    assert made.layers == ["model.layers.0.mlp.gate_proj", "model.layers.0.q_proj"]
    assert made.kept == {
        "lm_head": "the head",
        "model.embed_tokens": "no linear layer",
        "model.layers.0.conv": "a tensor of 3 dimensions",
        "model.layers.0.mlp.gate": "a router",
        "model.layers.0.odd": "K = 64 and N = 12 must be multiples of 8",
    }
    assert calls[0][:2] == (0, 11)
    assert calls[-1] == (11, 11, "")
    with GptqCheckpoint.open(target) as checkpoint:
        assert [info.name for info in checkpoint.layers()] == sorted(made.layers)
        got = checkpoint.linear("model.layers.0.q_proj")
    np.testing.assert_array_equal(got.bias, np.ones(64))
    want = rounded(weights["model.layers.0.q_proj.weight"], Recipe(32))
    np.testing.assert_array_equal(build.weight_of(got), build.weight_of(want))
    entries = TensorFiles.open(target)
    for name in {*weights} - {f"{layer}.weight" for layer in made.layers}:
        np.testing.assert_array_equal(entries.read(name), weights[name])
        assert entries.read(name).dtype == weights[name].dtype
    assert not any(f"{layer}.weight" in entries.entries for layer in made.layers)


def test_configs_say_what_was_done(tmp_path, source):
    target = tmp_path / "target"
    quantize_checkpoint(source, target, Recipe(-1, False, "gptq_v2", True))
    config = json.loads((target / "quantize_config.json").read_text())
    assert config == {
        "bits": 4, "group_size": -1, "desc_act": False, "sym": False, "lm_head": True,
        "quant_method": "gptq", "checkpoint_format": "gptq_v2", "pack_dtype": "int32",
        # a loader must not look for codes of these; gate_proj is no gate
        "dynamic": {
            r"-:model\.layers\.\d+\.conv$": {}, r"-:model\.layers\.\d+\.mlp\.gate$": {},
            r"-:model\.layers\.\d+\.odd$": {},
        },
    }  # fmt: skip
    model = json.loads((target / "config.json").read_text())
    assert model == {"hidden_size": 64, "quantization_config": config}
    assert {path.name for path in target.iterdir()} == {
        "config.json", "model.safetensors", "quantize_config.json", "tokenizer.json",
    }  # fmt: skip
    # the library's own files nobody else may read
    assert (target / "model.safetensors").stat().st_mode & 0o777 == 0o644
    with GptqCheckpoint.open(target) as checkpoint:
        assert checkpoint.config.lm_head
        assert checkpoint.linear("lm_head").checkpoint_format == "gptq_v2"


def test_a_file_without_a_config_will_do(tmp_path, source):
    (source / "config.json").unlink()
    quantize_checkpoint(source / "model.safetensors", str(tmp_path / "t"), Recipe(32))
    assert {path.name for path in (tmp_path / "t").iterdir()} == {
        "model.safetensors", "quantize_config.json",
    }  # fmt: skip


def test_shards_stay_shards(tmp_path, weights):
    source = tmp_path / "source"
    source.mkdir()
    names = sorted(weights)
    files = {}
    for i, part in enumerate((names[:6], names[6:])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, source / file)
        files |= dict.fromkeys(part, file)
    build.write_index(source, files)
    target = tmp_path / "target"
    made = quantize_checkpoint(source, target, Recipe(32))
    index = json.loads((target / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["model.layers.0.q_proj.qweight"] == files["model.layers.0.q_proj.weight"]
    assert sum(name.endswith(".qweight") for name in index) == len(made.layers) == 2
    for file in {*index.values()}:
        assert {*TensorFiles.open(target / file).entries} == {
            name for name in index if index[name] == file
        }
    with GptqCheckpoint.open(target) as checkpoint:
        assert len(checkpoint.layers()) == 2


@pytest.mark.parametrize("what", ["layer", "config", "target", "parent", "nothing", "bad"])
def test_a_mistake_leaves_nothing_behind(tmp_path, source, weights, what):
    target = tmp_path / "target"
    words = {
        "layer": "is quantised already: it has a tensor x.qweight",
        "config": "is quantised already: it has a quantization_config in config.json",
        "target": "target is there already; the target must be a new folder",
        "parent": "cannot be written: No such file or directory",
        "nothing": "has no linear layer to quantise: no [N, K] .weight",
        "bad": "model.layers.0.q_proj: a weight must be finite",
    }
    if what == "layer":
        save_file(weights | {"x.qweight": np.zeros((8, 8), np.int32)}, source / "model.safetensors")
    elif what == "config":
        (source / "config.json").write_text('{"quantization_config": {}}')
    elif what == "target":
        target.mkdir()
    elif what == "parent":
        target = tmp_path / "no_such" / "target"
    elif what == "nothing":
        save_file({"lm_head.weight": weights["lm_head.weight"]}, source / "model.safetensors")
    else:
        weights["model.layers.0.q_proj.weight"][3, 3] = np.nan
        save_file(weights, source / "model.safetensors")
    with pytest.raises((CheckpointError, ProblemError)) as error:
        quantize_checkpoint(source, target)
    assert words[what] in str(error.value)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"source", "target"} if what == "target" else {"source"}


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interruption_leaves_nothing_behind(tmp_path, source, monkeypatch, failure):
    def fail(*args, **kwargs):
        raise failure

    monkeypatch.setattr(module, "write_index", fail)
    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else CheckpointError
    with pytest.raises(expected) as error:
        quantize_checkpoint(source, tmp_path / "target")
    if expected is CheckpointError:
        assert str(error.value).endswith("target cannot be written: No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_is_written_is_read_back(tmp_path, source, monkeypatch):
    """A config that does not say what is there is never left for others to find."""
    config = module._config

    def wrong(recipe, chosen):
        return config(recipe, chosen) | {"dynamic": {}}

    monkeypatch.setattr(module, "_config", wrong)
    words = "target was not written as it was meant: model.layers.0.conv"
    with pytest.raises(CheckpointError, match=words):
        quantize_checkpoint(source, tmp_path / "target", Recipe(32))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def write(folder, tensors, config=None):
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("config", [{"model_type": "gpt2"}, None])
def test_gpt2_has_its_weights_in_in_by_out(tmp_path, rng, config):
    """transformers' Conv1D: quantised along the other axis a weight is 78 % off."""
    sizes = {"attn.c_attn": (64, 192), "mlp.c_fc": (64, 256), "mlp.c_proj": (256, 64)}
    # which of two equal sizes is K only the model type can say
    sizes |= {"attn.c_proj": (64, 64)} if config else {}
    tensors = {}
    for name, shape in sizes.items():
        tensors[f"h.0.{name}.weight"] = rng.standard_normal(shape, np.float32).astype(np.float16)
        tensors[f"h.0.{name}.bias"] = np.zeros(shape[1], np.float16)
    tensors["wte.weight"] = np.zeros((512, 64), np.float16)
    made = quantize_checkpoint(
        write(tmp_path / "source", tensors, config), tmp_path / "target", Recipe(32)
    )
    assert made.kept == {"wte": "no linear layer"}
    with GptqCheckpoint.open(tmp_path / "target") as checkpoint:
        for name, (K, N) in sizes.items():
            layer = checkpoint.linear(f"h.0.{name}")
            assert (layer.in_features, layer.out_features) == (K, N)
            want = tensors[f"h.0.{name}.weight"].astype(np.float32)
            scale = np.repeat(layer.scales.astype(np.float32), 32, axis=0)
            assert (np.abs(build.weight_of(layer) - want) <= 0.51 * scale).all()


def test_experts_in_one_tensor_are_named(tmp_path, rng):
    weight = rng.standard_normal((4, 128, 64), np.float32).astype(np.float16)
    tensors = {f"model.layers.{i}.mlp.experts.gate_up_proj": weight for i in range(2)}
    tensors["model.layers.0.self_attn.o_proj.weight"] = weight[0]
    folder = write(tmp_path / "source", tensors, {"model_type": "qwen3_moe"})
    made = quantize_checkpoint(folder, tmp_path / "target", Recipe(32))
    reason = "experts in one tensor of 3 dimensions"
    assert made.kept == dict.fromkeys(sorted(tensors)[:1] + sorted(tensors)[2:], reason)
    with GptqCheckpoint.open(tmp_path / "target") as checkpoint:
        assert checkpoint.config.for_layer("model.layers.1.mlp.experts") is None
        assert checkpoint.config.for_layer("model.layers.0.self_attn.o_proj") is not None


@pytest.mark.parametrize(
    ("config", "stored", "head", "reason"),
    [
        ({}, True, True, None),
        ({}, True, False, "the head"),
        ({"tie_word_embeddings": True}, True, True, "the head: it is the embedding"),
        ({"tie_word_embeddings": True}, False, True, "the head: it is the embedding"),
        ({"text_config": {"tie_word_embeddings": True}}, True, True,
         "the head: it is the embedding"),
        ({}, False, True, "the head: it has no tensor of its own"),
        ({"tie_word_embeddings": True}, False, False, None),
    ],
)  # fmt: skip
def test_the_config_says_whether_there_is_a_quantised_head(
    tmp_path, weights, config, stored, head, reason
):
    if not stored:
        del weights["lm_head.weight"]
    folder = write(tmp_path / "source", weights, {"model_type": "llama"} | config)
    made = quantize_checkpoint(folder, tmp_path / "target", Recipe(32, lm_head=head))
    assert made.kept.get("lm_head") == reason
    with GptqCheckpoint.open(tmp_path / "target") as checkpoint:
        assert checkpoint.config.lm_head == ("lm_head" in checkpoint.names)
        assert checkpoint.config.lm_head == (stored and head and reason is None)


def test_a_tensor_of_the_sources_own_is_kept(tmp_path, rng):
    source = tmp_path / "source"
    source.mkdir()
    weight = rng.standard_normal((64, 64)).astype(np.float16)
    tensors = {"m.0.0.weight": weight, "m.0.0.scales": weight[0], "m.0.1.weight": weight}
    save_file(tensors, source / "model.safetensors")
    made = quantize_checkpoint(source, tmp_path / "target", Recipe(32))
    assert made.layers == ["m.0.1"]
    assert made.kept == {"m.0.0": "it has a tensor m.0.0.scales of its own"}
    entries = TensorFiles.open(tmp_path / "target")
    np.testing.assert_array_equal(entries.read("m.0.0.scales"), weight[0])
    np.testing.assert_array_equal(entries.read("m.0.0.weight"), weight)
