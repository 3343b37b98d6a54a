"""A checkpoint's config: dialects, defaults, rules by layer, and the words of a refusal."""

import json

import pytest

from ferrum_numba import CheckpointError, GptqConfig


def test_defaults_are_those_of_the_loaders():
    config = GptqConfig.parse({})
    assert config == GptqConfig()
    assert (config.bits, config.group_size, config.desc_act, config.sym) == (4, 128, False, False)
    assert (config.quant_method, config.checkpoint_format, config.lm_head) == (
        "gptq",
        "gptq",
        False,
    )


@pytest.mark.parametrize(
    ("found", "field", "want"),
    [
        ({"bits": 4}, "bits", 4),
        ({"w_bit": 4}, "bits", 4),
        ({"wbits": 4}, "bits", 4),
        ({"group_size": 32}, "group_size", 32),
        ({"q_group_size": 64}, "group_size", 64),
        ({"group_size": -1}, "group_size", -1),
        ({"desc_act": True}, "desc_act", True),
        ({"sym": True}, "sym", True),
        ({"zero_point": False}, "sym", True),
        ({"zero_point": True}, "sym", False),
        ({"quant_method": "AWQ"}, "quant_method", "awq"),
        ({"method": "awq"}, "quant_method", "awq"),
        ({"method": "awq"}, "checkpoint_format", "gemm"),
        ({"quant_method": "awq", "version": "GEMM"}, "checkpoint_format", "gemm"),
        ({"quant_method": "marlin"}, "checkpoint_format", "marlin"),
        ({"checkpoint_format": "gptq_v2"}, "checkpoint_format", "gptq_v2"),
        ({"format": "gptq_v2"}, "checkpoint_format", "gptq_v2"),
        ({"version": "gptq_v2"}, "checkpoint_format", "gptq_v2"),
        ({"is_marlin_format": True}, "checkpoint_format", "marlin"),
        ({"is_marlin_format": False, "format": "gptq"}, "checkpoint_format", "gptq"),
        ({"lm_head": True}, "lm_head", True),
        # the writer of GPTQModel says everything twice
        (
            {"method": "gptq", "quant_method": "gptq", "format": "gptq_v2",
             "checkpoint_format": "gptq_v2", "pack_dtype": "int32"},
            "checkpoint_format", "gptq_v2",
        ),
        ({"group_size": None, "q_group_size": 32}, "group_size", 32),
        ({"damp_percent": 0.05, "true_sequential": True, "meta": {"uri": "x"}}, "bits", 4),
    ],
    ids=str,
)  # fmt: skip
def test_a_key_by_any_of_its_names(found, field, want):
    assert getattr(GptqConfig.parse(found), field) == want


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"bits": 8}, "here: bits must be 4; got 8"),
        ({"w_bit": 3}, "here: bits must be 4; got 3"),
        ({"bits": "4"}, 'here: bits must be a whole number; got "4"'),
        ({"bits": True}, "here: bits must be a whole number; got true"),
        ({"group_size": 0}, "here: group_size must be -1 or at least 1; got 0"),
        ({"group_size": -2}, "here: group_size must be -1 or at least 1; got -2"),
        ({"q_group_size": 1.5}, "here: q_group_size must be a whole number; got 1.5"),
        ({"sym": "yes"}, 'here: sym must be true or false; got "yes"'),
        ({"zero_point": 1}, "here: zero_point must be true or false; got 1"),
        ({"quant_method": "fp8"}, 'quant_method must be "gptq" or "awq" or "marlin"; got "fp8"'),
        (
            {"checkpoint_format": "bitblas"},
            'checkpoint_format of gptq must be "gptq" or "gptq_v2" or "marlin"; got "bitblas"',
        ),
        (
            {"quant_method": "awq", "version": "gemv"},
            'checkpoint_format of awq must be "gemm"; got "gemv"',
        ),
        ({"pack_dtype": "int8"}, 'here: pack_dtype must be "int32"; got "int8"'),
        (
            {"format": "gptq", "checkpoint_format": "gptq_v2"},
            'checkpoint_format = "gptq_v2" and format = "gptq" contradict each other',
        ),
        ({"sym": True, "zero_point": True}, "sym = true and zero_point = true contradict"),
        ({"format": "marlin", "desc_act": True}, "desc_act of marlin must be false; got true"),
        ({"dynamic": []}, "here: dynamic must be an object; got []"),
        ({"dynamic": {"(": {}}}, "here: dynamic '(' is no pattern of names: missing )"),
        ({"dynamic": {"x": 4}}, "here: dynamic 'x' must be an object; got 4"),
        ([], "here must be a JSON object; got []"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_key_and_value(found, words):
    with pytest.raises(CheckpointError) as error:
        GptqConfig.parse(found, "here")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


RULES = {
    "dynamic": {
        r"-:.*\.gate$": {},
        r"+:.*\.0\.": {"group_size": 32, "desc_act": True},
        r".*\.down_proj": {"bits": 8},
        r".*\.o_proj": {"q_group_size": 64, "zero_point": False},
        r"model\.layers\.[01]\.": {"sym": True},
    }
}


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("model.layers.0.mlp.gate", None),
        ("model.layers.0.mlp.gate_proj", (32, True, False)),
        # the first rule that matches counts, and only that
        ("model.layers.0.mlp.down_proj", (32, True, False)),
        ("model.layers.1.attn.o_proj", (64, False, True)),
        ("model.layers.1.attn.q_proj", (128, False, True)),
        ("model.layers.2.attn.q_proj", (128, False, False)),
        # a rule matches from the start of a name
        ("vision.model.layers.1.q_proj", (128, False, False)),
    ],
)
def test_the_first_rule_that_matches_changes_a_layer(name, want):
    config = GptqConfig.parse(RULES).for_layer(name)
    got = config and (config.group_size, config.desc_act, config.sym)
    assert got == want


def test_a_rule_for_eight_bits_hurts_only_its_layers():
    config = GptqConfig.parse(RULES, "here")
    with pytest.raises(CheckpointError) as error:
        config.for_layer("model.layers.5.mlp.down_proj")
    assert str(error.value) == (
        "model.layers.5.mlp.down_proj: here: dynamic '.*\\\\.down_proj': bits must be 4; got 8"
    )


def write(folder, **files):
    for name, value in files.items():
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        (folder / f"{name}.json").write_bytes(text)


def test_the_first_file_that_is_there_counts(tmp_path):
    write(tmp_path, config={"quantization_config": {"group_size": 32}, "hidden_size": 64})
    config = GptqConfig.load(tmp_path)
    assert config.group_size == 32
    assert config.source == f"{tmp_path}/config.json: quantization_config"
    write(tmp_path, quant_config={"q_group_size": 64, "w_bit": 4})
    assert GptqConfig.load(str(tmp_path)).group_size == 64
    write(tmp_path, quantize_config={"group_size": -1})
    config = GptqConfig.load(tmp_path)
    assert (config.group_size, config.source) == (-1, f"{tmp_path}/quantize_config.json")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "has no quantize_config.json and no config.json with a quantization_config"),
        ({"config": {"hidden_size": 64}}, "no config.json with a quantization_config"),
        (
            {"config": {"quantization_config": 4}},
            "quantization_config must be a JSON object; got 4",
        ),
        ({"quantize_config": b"{"}, "quantize_config.json is no JSON: expecting property name"),
        ({"quantize_config": b"\xff{}"}, "quantize_config.json is no JSON: "),
        ({"quantize_config": b"[" * 100_000}, "quantize_config.json is no JSON: "),
        ({"quantize_config": [4]}, "quantize_config.json must be a JSON object; got list"),
    ],
    ids=["none", "not quantised", "no object", "cut", "no utf-8", "deep", "list"],
)
def test_a_config_that_cannot_be_had_names_the_file(tmp_path, files, words):
    write(tmp_path, **files)
    with pytest.raises(CheckpointError) as error:
        GptqConfig.load(tmp_path)
    assert words in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_config_that_is_a_folder_cannot_be_read(tmp_path):
    (tmp_path / "quantize_config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"quantize_config\.json cannot be read: Is a dir"):
        GptqConfig.load(tmp_path)
