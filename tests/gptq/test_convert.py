"""Checkpoints from every format into every other: the same to the bit, or refused in a sentence."""

import json
import tracemalloc

import gptq_layers as build
import numpy as np
import pytest
from safetensors.numpy import load_file

from ferrum_numba import CheckpointError, GptqCheckpoint, ProblemError
from ferrum_numba.gptq import convert as module
from ferrum_numba.gptq.convert import convert_checkpoint
from ferrum_numba.gptq.files import TensorFiles
from ferrum_numba.gptq.targets import TARGETS
from ferrum_numba.reference.gptq import unpack_codes, unpack_zero_points

GATE = "model.layers.0.mlp.gate.weight"


def others(rng):
    return {
        "model.embed_tokens.weight": rng.standard_normal((16, 64)).astype(np.float16),
        "model.norm.weight": np.ones(63, np.float16),
        GATE: rng.standard_normal((8, 64)).astype(np.float32),
        "model.flag": np.zeros(3, np.uint8),
        "lm_head.weight": rng.standard_normal((16, 64)).astype(np.float16),
    }


def model(rng, **kind):
    """Return layers of two blocks; every zero point but 0 where they are not symmetric."""
    sizes = {"self_attn.q_proj": (64, 64), "mlp.gate_proj": (64, 128), "mlp.down_proj": (128, 64)}
    layers = {
        f"model.layers.{block}.{name}": build.make(rng, K, N, bias="q_" in name, **kind)
        for block in range(2)
        for name, (K, N) in sizes.items()
    }
    for layer in layers.values():
        layer.zeros[layer.zeros == 0] = 5
    return layers


def write(folder, layers, stored_as, rest, group_size=32):
    """Write a checkpoint in a format by the formulas; return its path."""
    tensors = {
        "gptq": lambda layer: layer.gptq("gptq"),
        "gptq_v2": lambda layer: layer.gptq("gptq_v2"),
        "awq": lambda layer: layer.awq(),
        "marlin": lambda layer: layer.marlin(),
    }[stored_as]
    config = {"quant_method": "gptq", "checkpoint_format": stored_as, "group_size": group_size}
    if stored_as == "awq":
        config = {"quant_method": "awq", "version": "gemm", "q_group_size": group_size}
    stored = {name: tensors(layer) for name, layer in layers.items()}
    build.write(folder, stored, **rest)
    described = {"model_type": "llama", "hidden_size": 64, "quantization_config": config}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def assert_the_same(target, layers, rest):
    """Compare codes, zero points, scales and biases to the bit, and every other tensor."""
    with GptqCheckpoint.open(target) as made:
        assert {*made.names} == {*layers}
        for name, layer in layers.items():
            got = made.linear(name)
            np.testing.assert_array_equal(unpack_codes(got.qweight), layer.codes)
            zeros = np.full(layer.zeros.shape, 8)
            if got.qzeros is not None:
                zeros = unpack_zero_points(got.qzeros, got.checkpoint_format)
            np.testing.assert_array_equal(zeros, layer.zeros)
            assert got.scales.dtype == layer.scales.dtype
            np.testing.assert_array_equal(got.scales, layer.scales)
            np.testing.assert_array_equal(got.row_groups, layer.group)
            assert (got.bias is None) == (layer.bias is None)
            if layer.bias is not None:
                np.testing.assert_array_equal(got.bias, layer.bias)
    files = TensorFiles.open(target)
    for name, array in rest.items():
        np.testing.assert_array_equal(files.read(name), array)
        assert files.read(name).dtype == array.dtype


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("group_size", [32, -1])
@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("stored_as", ["gptq", "gptq_v2", "awq", "marlin"])
def test_symmetric_layers_into_every_format(tmp_path, rng, stored_as, to, group_size, dtype):
    layers, rest = model(rng, sym=True, group_size=group_size, dtype=dtype), others(rng)
    source = write(tmp_path / "source", layers, stored_as, rest, group_size)
    made = convert_checkpoint(source, tmp_path / "target", to)
    assert (made.layers, made.others) == (6, 5)
    assert_the_same(tmp_path / "target", layers, rest)


@pytest.mark.parametrize("to", ["gptq", "gptq_v2", "awq", "compressed-tensors"])
@pytest.mark.parametrize("stored_as", ["gptq", "gptq_v2", "awq"])
def test_zero_points_into_every_format(tmp_path, rng, stored_as, to):
    layers, rest = model(rng), others(rng)
    # one that is symmetric among others
    layers["model.layers.0.self_attn.q_proj"].zeros[:] = 8
    source = write(tmp_path / "source", layers, stored_as, rest)
    convert_checkpoint(source, tmp_path / "target", to)
    assert_the_same(tmp_path / "target", layers, rest)


@pytest.mark.parametrize("version", ["gemv", "gemv_fast", "llm-awq"])
def test_awq_s_other_layouts(tmp_path, rng, version):
    layers, rest = model(rng), others(rng)
    stored = {
        name: layer.gemv(4) if version == "gemv"
        else layer.gemv_fast(4, "scaled_zeros" if version == "llm-awq" else "qzeros")
        for name, layer in layers.items()
    }  # fmt: skip
    config = {"quant_method": "awq", "version": version, "group_size": 32}
    build.write(tmp_path / "source", stored, config, **rest)
    convert_checkpoint(tmp_path / "source", tmp_path / "target", "awq")
    assert_the_same(tmp_path / "target", layers, rest)


@pytest.mark.parametrize("g_idx", ["order", "nothing"])
def test_compressed_tensors_before_0_20(tmp_path, rng, g_idx):
    """They have a weight_g_idx; one of -1 says nothing."""
    layers, rest = model(rng, act_order=g_idx == "order"), others(rng)
    stored = {name: layer.compressed(g_idx=True) for name, layer in layers.items()}
    if g_idx == "nothing":
        for parts in stored.values():
            parts["weight_g_idx"] = np.full_like(parts["weight_g_idx"], -1)
    weights = {
        "num_bits": 4, "symmetric": False, "strategy": "group", "group_size": 32,
        "actorder": "group" if g_idx == "order" else None,
    }  # fmt: skip
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    config = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups,
        "ignore": ["lm_head"],
    }  # fmt: skip
    build.write(tmp_path / "source", stored, **rest)
    described = {"quantization_config": config}
    (tmp_path / "source/config.json").write_text(json.dumps(described))
    convert_checkpoint(tmp_path / "source", tmp_path / "target", "gptq_v2")
    assert_the_same(tmp_path / "target", layers, rest)


@pytest.mark.parametrize("to", ["awq", "compressed-tensors", "gptq_v2", "marlin"])
def test_there_and_back_is_the_same_file(tmp_path, rng, to):
    layers, rest = model(rng, sym=True), others(rng)
    source = write(tmp_path / "source", layers, "gptq", rest)
    convert_checkpoint(source, tmp_path / "there", to)
    convert_checkpoint(tmp_path / "there", tmp_path / "back", "gptq")
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("source", "back"))
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)


@pytest.mark.parametrize("to", ["gptq", "gptq_v2"])
def test_act_order_into_gptq(tmp_path, rng, to):
    layers, rest = model(rng, act_order=True), others(rng)
    source = write(tmp_path / "source", layers, "gptq", rest)
    convert_checkpoint(source, tmp_path / "target", to)
    assert_the_same(tmp_path / "target", layers, rest)
    assert GptqCheckpoint.open(tmp_path / "target").config.desc_act


@pytest.mark.parametrize("to", ["gptq", "compressed-tensors", "marlin"])
def test_layers_of_several_group_sizes(tmp_path, rng, to):
    layers, rest = model(rng, sym=True), others(rng)
    odd = "model.layers.1.mlp.down_proj"
    layers[odd] = build.make(rng, 128, 64, 64, sym=True)
    source = write(tmp_path / "source", layers, "gptq", rest)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"]["dynamic"] = {rf"{odd}$": {"group_size": 64}}
    (source / "config.json").write_text(json.dumps(config))
    convert_checkpoint(source, tmp_path / "target", to)
    assert_the_same(tmp_path / "target", layers, rest)
    words = f"{odd}: an AWQ config has one group size; others have 32, this layer has 64"
    with pytest.raises(ProblemError, match=words):
        convert_checkpoint(source, tmp_path / "awq", "awq")


@pytest.mark.parametrize(
    ("kind", "to", "words"),
    [
        ({}, "marlin", "x.y: a Marlin checkpoint holds zero points of 8; this layer has others"),
        ({"act_order": True}, "awq", "x.y: AWQ holds rows in order; this layer has a g_idx"),
        ({"act_order": True, "sym": True}, "marlin", "holds rows in order; this layer has a g_idx"),
        ({"act_order": True}, "compressed-tensors", "x.y: compressed-tensors holds rows in order"),
        ({"K": 80}, "compressed-tensors", "needs groups that divide K; got group size 32, K = 80"),
        ({"zero": 0}, "gptq", "x.y: GPTQ v1 stores a zero point of 0 as 15, which readers take"),
        ({"N": 72, "sym": True}, "marlin", "needs K in multiples of 16 and N of 64; got K = 64"),
    ],
    ids=str,
)
def test_what_a_format_cannot_hold_is_one_sentence(tmp_path, rng, kind, to, words):
    zero = kind.pop("zero", 8 if kind.get("sym") else 9)
    layer = build.make(rng, **kind)
    layer.zeros[:] = zero
    source = write(tmp_path / "source", {"x.y": layer}, "gptq_v2", others(rng))
    with pytest.raises(ProblemError) as error:
        convert_checkpoint(source, tmp_path / "target", to)
    assert words in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("to", TARGETS)
def test_the_config_says_what_is_there(tmp_path, rng, to):
    layers, rest = model(rng, sym=True), others(rng)
    source = write(tmp_path / "source", layers, "gptq", rest)
    (source / "quantize_config.json").write_text(json.dumps({"group_size": 32}))
    (source / "preprocessor.py").write_text("# the model's own code")
    target = tmp_path / "target"
    convert_checkpoint(source, target, to)
    config = json.loads((target / "config.json").read_text())
    said = config.pop("quantization_config")
    assert config == {"model_type": "llama", "hidden_size": 64}
    own = TARGETS[to].file
    written = {path.name for path in target.iterdir()}
    names = {"config.json", "tokenizer.json", "preprocessor.py", "model.safetensors"}
    assert written == names | ({own} if own else set())
    if own:
        assert json.loads((target / own).read_text()) == said
    if to == "compressed-tensors":
        assert said == {
            "quant_method": "compressed-tensors", "format": "pack-quantized",
            "quantization_status": "compressed", "kv_cache_scheme": None,
            "ignore": [r"re:model\.layers\.\d+\.mlp\.gate$", "re:lm_head$"],
            "config_groups": {"group_0": {
                "targets": ["Linear"], "input_activations": None, "output_activations": None,
                "weights": {
                    "num_bits": 4, "type": "int", "symmetric": True, "dynamic": False,
                    "actorder": None, "strategy": "group", "group_size": 32,
                },
            }},
        }  # fmt: skip
    elif to == "awq":
        assert said == {
            "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True,
            "version": "gemm", "modules_to_not_convert": ["model.layers.0.mlp.gate", "lm_head"],
        }  # fmt: skip
    else:
        assert said == {
            "bits": 4, "group_size": 32, "desc_act": False, "sym": True, "lm_head": False,
            "quant_method": "gptq", "checkpoint_format": to, "pack_dtype": "int32",
            "dynamic": {r"-:model\.layers\.\d+\.mlp\.gate$": {}},
        }  # fmt: skip


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("part", [None, "text_config", "llm_config", "thinker_config.text_config"])
@pytest.mark.parametrize("section", ["quantization_config", "compression_config"])
def test_the_source_s_config_is_gone_wherever_it_was(tmp_path, rng, section, part, to):
    layers = model(rng, sym=True)
    source = write(tmp_path / "source", layers, "gptq", {})
    said = json.loads((source / "config.json").read_text()).pop("quantization_config")
    config = {"hidden_size": 64, section: said}
    for name in reversed(part.split(".") if part else []):
        config = {name: config}
    (source / "config.json").write_text(json.dumps(config))
    convert_checkpoint(source, tmp_path / "target", to)
    assert_the_same(tmp_path / "target", layers, {})
    made = json.loads((tmp_path / "target/config.json").read_text())
    del made["quantization_config"]
    for name in part.split(".") if part else []:
        made = made[name]
    assert made == {"hidden_size": 64}


def test_a_sentence_names_the_target(tmp_path, rng, monkeypatch):
    """Until it is whole the folder has another name, which says nothing to anybody."""
    source = write(tmp_path / "source", model(rng, sym=True), "gptq", {})
    monkeypatch.setattr(module, "unquantised", lambda model: {"part": model})
    with pytest.raises(CheckpointError) as error:
        convert_checkpoint(source, tmp_path / "target", "awq")
    assert str(error.value).count(f"{tmp_path / 'target'}/") == 2
    assert "/." not in str(error.value)


def test_compressed_tensors_by_its_formulas(tmp_path, rng):
    """weight_packed [N, K/8], the lowest nibble first; zero points packed along N."""
    layer = build.make(rng, 64, 72, 32)
    layer.zeros[0, :8] = np.arange(8)
    source = write(tmp_path / "source", {"x.0.y": layer}, "gptq_v2", {})
    convert_checkpoint(source, tmp_path / "target", "compressed-tensors")
    got = load_file(tmp_path / "target/model.safetensors")
    assert {*got} == {f"x.0.y.weight_{p}" for p in ("packed", "scale", "shape", "zero_point")}
    want = build.words(layer.codes.T.reshape(72, 8, 8))
    np.testing.assert_array_equal(got["x.0.y.weight_packed"], want)
    np.testing.assert_array_equal(got["x.0.y.weight_scale"], layer.scales.T)
    zeros = build.words(layer.zeros.T.reshape(9, 8, 2).transpose(0, 2, 1))
    np.testing.assert_array_equal(got["x.0.y.weight_zero_point"], zeros)
    assert got["x.0.y.weight_shape"].tolist() == [72, 64]
    assert got["x.0.y.weight_shape"].dtype == np.int64


def test_a_quantised_head_stays_one(tmp_path, rng):
    layers = {"model.layers.0.x": build.make(rng, sym=True), "lm_head": build.make(rng, sym=True)}
    source = write(tmp_path / "source", layers, "gptq", {})
    for to in TARGETS:
        convert_checkpoint(source, tmp_path / to, to)
        assert_the_same(tmp_path / to, layers, {})
        said = json.loads((tmp_path / to / "config.json").read_text())["quantization_config"]
        assert said.get("lm_head", True)
        assert not any("lm_head" in name for name in said.get("ignore", []))
        assert said.get("modules_to_not_convert", []) == []


def test_shards_stay_shards(tmp_path, rng):
    """A layer's tensors may be in several; they are written where its weight is."""
    stored = {name: layer.gptq() for name, layer in model(rng, sym=True).items()}
    rest, files = others(rng), {}
    first = {name: {"qweight": parts.pop("qweight")} for name, parts in stored.items()}
    for number, (layers, more) in enumerate(((first, {}), (stored, rest), ({}, {"a": rest[GATE]}))):
        file = f"model-{number}.safetensors"
        build.write(tmp_path / "source", layers, {"group_size": 32}, file, **more)
        files |= dict.fromkeys([*build.named(layers), *more], file)
    build.write_index(tmp_path / "source", files)
    convert_checkpoint(tmp_path / "source", tmp_path / "target", "awq")
    index = json.loads((tmp_path / "target/model.safetensors.index.json").read_text())["weight_map"]
    for name, file in index.items():
        quantised = name.rpartition(".")[0] in first
        assert file == ("model-0.safetensors" if quantised else files[name])
        assert name in load_file(tmp_path / "target" / file)
    assert len(GptqCheckpoint.open(tmp_path / "target").layers()) == 6


def test_a_file_without_a_model_s_config(tmp_path, rng):
    layers = model(rng, sym=True)
    source = build.write(
        tmp_path / "source", {n: layer.gptq() for n, layer in layers.items()}, {"group_size": 32}
    )
    for to in TARGETS:
        convert_checkpoint(source / "model.safetensors", tmp_path / to, to)
        assert_the_same(tmp_path / to, layers, {})


def test_a_15_of_v1_must_be_told(tmp_path, rng):
    layers = model(rng)
    layers["model.layers.1.mlp.down_proj"].zeros[1, 7] = 0
    source = write(tmp_path / "source", layers, "gptq", {})
    with pytest.raises(
        CheckpointError, match="down_proj: 1 of 256 stored zero points are 15, which"
    ):
        convert_checkpoint(source, tmp_path / "target", "gptq_v2")
    convert_checkpoint(source, tmp_path / "target", "gptq_v2", zero_overflow="carry")
    assert_the_same(tmp_path / "target", layers, {})


@pytest.mark.parametrize("what", ["unknown", "nothing", "bad", "more", "there", "format"])
def test_a_mistake_leaves_nothing_behind(tmp_path, rng, what):
    layers, rest, to = model(rng, sym=True), {}, "awq"
    words = {
        "unknown": '"gptq", "gptq_v2", "awq", "compressed-tensors", "marlin"; got \'fp8\'',
        "nothing": "source has no quantised layer",
        "bad": "scales must be [2, 64]; got [2, 32]",
        "more": "tensor model.layers.0.mlp.down_proj.lora is none of a quantised layer's,",
        "there": "target is there already",
        "format": "model.layers.0.mlp.down_proj: ",
    }
    if what == "unknown":
        to = "fp8"
    elif what == "nothing":
        layers, rest = {}, others(rng)
    elif what == "bad":
        layer = layers["model.layers.0.self_attn.q_proj"]
        layer.scales = layer.scales[:, :32]
    elif what == "more":
        rest = {"model.layers.0.mlp.down_proj.lora": np.zeros((8, 8), np.float16)}
    elif what == "there":
        (tmp_path / "target").mkdir()
    else:
        layers["model.layers.0.mlp.down_proj"].zeros[:] = 9
        to = "marlin"
    source = write(tmp_path / "source", layers, "gptq", rest)
    with pytest.raises((CheckpointError, ProblemError)) as error:
        convert_checkpoint(source, tmp_path / "target", to)
    assert words[what] in str(error.value)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == ({"source", "target"} if what == "there" else {"source"})


def test_an_interruption_leaves_nothing_behind(tmp_path, rng, monkeypatch):
    source = write(tmp_path / "source", model(rng, sym=True), "gptq", {})

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module._Conversion, "read_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(source, tmp_path / "target", "awq")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_target_that_reads_otherwise_is_not_left(tmp_path, rng, monkeypatch):
    source = write(tmp_path / "source", model(rng, sym=True), "gptq", {})
    monkeypatch.setattr(module._Conversion, "_kinds", lambda self: dict.fromkeys(
        self.infos, module.Kind(64, 16)
    ))  # fmt: skip
    with pytest.raises(CheckpointError, match="was not written as it was meant: layer model"):
        convert_checkpoint(source, tmp_path / "target", "awq")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_progress_and_permissions(tmp_path, rng):
    source = write(tmp_path / "source", model(rng, sym=True), "gptq", others(rng))
    (source / "model.safetensors").chmod(0o640)
    calls = []
    convert_checkpoint(
        source, tmp_path / "target", "awq", progress=lambda *call: calls.append(call)
    )
    assert calls[0] == (0, 11, "model.layers.0.mlp.down_proj")
    assert calls[-1] == (11, 11, "")
    assert (tmp_path / "target/model.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("to", ["gptq_v2", "awq", "compressed-tensors", "marlin"])
def test_one_layer_is_in_memory_at_a_time(tmp_path, rng, to):
    layer = build.make(rng, 1024, 1024, 128, sym=True)
    layers = {f"layers.{i}.x": layer for i in range(12)}
    source = write(tmp_path / "source", layers, "gptq", {}, 128)
    tracemalloc.start()
    convert_checkpoint(source, tmp_path / "target", to)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # a layer has 512 KB of words; 12 have 6 MB
    assert peak < 5 * 512 * 1024
