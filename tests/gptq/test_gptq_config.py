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
        # zero_point decides
        ({"sym": True, "zero_point": True}, "sym", False),
        ({"sym": True, "zero_point": False}, "sym", True),
        ({"format": "gptq_p"}, "checkpoint_format", "gptq_v2"),
        ({"version": "GEMV_FAST"}, "quant_method", "awq"),
        ({"version": "GEMV_FAST"}, "checkpoint_format", "gemv_fast"),
        ({"quant_method": "awq", "version": "gemv_fast", "pack_dtype": "int16"},
         "checkpoint_format", "gemv_fast"),
        ({"quant_method": "awq", "backend": "llm-awq"}, "checkpoint_format", "llm-awq"),
        ({"quant_method": "awq", "version": "marlin"}, "checkpoint_format", "awq_marlin"),
        # AutoAWQ's own file lacks the method
        ({"version": "Marlin", "w_bit": 4, "zero_point": False}, "checkpoint_format", "awq_marlin"),
        ({"version": "marlin", "format": "marlin"}, "checkpoint_format", "marlin"),
        ({"version": "marlin", "method": "gptq"}, "checkpoint_format", "marlin"),
        ({"quant_method": "auto-round"}, "checkpoint_format", "gptq"),
        ({"quant_method": "intel/auto-round"}, "quant_method", "auto-round"),
        ({"quant_method": "Auto_Round"}, "quant_method", "auto-round"),
        ({"quant_method": "autoround"}, "quant_method", "auto-round"),
        # the packing of the writer, not the kernel of the reader
        ({"quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "backend": "auto"},
         "checkpoint_format", "gemm"),
        ({"damp_percent": 0.05, "true_sequential": True, "meta": {"uri": "x"}}, "bits", 4),
    ],
    ids=str,
)  # fmt: skip
def test_a_key_by_any_of_its_names(found, field, want):
    assert getattr(GptqConfig.parse(found), field) == want


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"bits": "4"}, 'here: bits must be a whole number; got "4"'),
        ({"bits": True}, "here: bits must be a whole number; got true"),
        ({"group_size": 0}, "here: group_size must be -1 or at least 1; got 0"),
        ({"group_size": -2}, "here: group_size must be -1 or at least 1; got -2"),
        ({"q_group_size": 1.5}, "here: q_group_size must be a whole number; got 1.5"),
        ({"sym": "yes"}, 'here: sym must be true or false; got "yes"'),
        ({"zero_point": 1}, "here: zero_point must be true or false; got 1"),
        (
            {"quant_method": "fp8"},
            'quant_method must be "gptq" or "awq" or "marlin" or "auto-round" or '
            '"compressed-tensors"; got "fp8"',
        ),
        ({"group_size": None}, "here: group_size must be -1 or at least 1; got null"),
        (
            {"checkpoint_format": "bitblas"},
            'checkpoint_format of gptq must be "gptq" or "gptq_v2" or "marlin"; got "bitblas"',
        ),
        (
            {"quant_method": "awq", "version": "exllama"},
            'checkpoint_format of awq must be "gemm" or "gemv" or "gemv_fast" or "llm-awq" or '
            '"awq_marlin"; got "exllama"',
        ),
        ({"pack_dtype": "int8"}, 'here: pack_dtype must be "int32"; got "int8"'),
        (
            {"format": "gptq", "checkpoint_format": "gptq_v2"},
            'checkpoint_format = "gptq_v2" and format = "gptq" contradict each other',
        ),
        ({"format": "marlin", "desc_act": True}, "desc_act of marlin must be false; got true"),
        (
            {"format": "marlin", "sym": False},
            "here: a checkpoint for Marlin holds zero points of 8",
        ),
        (
            {"quant_method": "awq", "version": "marlin", "zero_point": True},
            "here: a checkpoint for Marlin holds zero points of 8 only; got sym = false or zero_",
        ),
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


@pytest.mark.parametrize(
    ("packing", "want"),
    [
        ("auto_round:auto_gptq", "gptq"), ("auto_round:gptq", "gptq"), ("gptq:exllamav2", "gptq"),
        ("auto_round:auto_awq", "gemm"), ("auto_round:awq", "gemm"), ("awq:gemm", "gemm"),
        ("auto_round", "gptq_v2"), ("auto_round:gptqmodel", "gptq_v2"),
        ("auto_round:exllamav2", "gptq_v2"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["packing_format", "backend"])
def test_a_name_of_a_packing_is_one_format(packing, want, key):
    """Before there was a `packing_format`, the kernel's name said it."""
    config = GptqConfig.parse({"quant_method": "auto-round", key: packing})
    assert config.checkpoint_format == want


@pytest.mark.parametrize("packing", ["auto_round:fp8_static", "mlx", "auto_round:llm_compressor"])
def test_a_packing_that_is_not_read_is_named(packing):
    with pytest.raises(CheckpointError, match=f'here: packing_format "{packing}" is none of int4'):
        GptqConfig.parse({"quant_method": "auto-round", "packing_format": packing}, "here")


EXTRA = {
    "quant_method": "auto-round", "group_size": 128, "sym": True,
    "extra_config": {
        r".*shared_expert.*": {"bits": 16, "act_bits": 16},
        r"layers\.[01]\..*down": {"group_size": 64},
        "model.layers.0.mlp.down_proj": {"group_size": 32, "sym": False},
        "lm_head": {"bits": 8},
        "model.layers.0.mlp": {},
        "model.layers.9.up_proj": {"data_type": "mx_fp"},
        "model.layers.8.up_proj": {"act_bits": 8},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "want"),
    [
        # a name counts before a pattern, wherever it stands
        ("model.layers.0.mlp.down_proj", (32, False)),
        ("model.layers.1.mlp.down_proj", (64, True)),
        ("model.layers.1.shared_expert.down_proj", None),
        # a name is no pattern, nor the start of one
        ("model.layers.0.mlp.up_proj", (128, True)),
        ("model.layers.2.mlp.down_proj", (128, True)),
        ("x.lm_head", (128, True)),
    ],
)
def test_overrides_of_auto_round(name, want):
    config = GptqConfig.parse(EXTRA).for_layer(name)
    assert (config and (config.group_size, config.sym)) == want


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lm_head", "lm_head: here: extra_config 'lm_head': bits must be 4; got 8"),
        ("model.layers.9.up_proj", 'data_type must be "int"; got "mx_fp"'),
        ("model.layers.8.up_proj", "act_bits must be at least 16; got 8"),
    ],
)  # fmt: skip
def test_an_override_that_is_not_int4_names_its_layer(name, words):
    config = GptqConfig.parse(EXTRA, "here")
    with pytest.raises(CheckpointError) as error:
        config.for_layer(name)
    assert words in str(error.value)


def test_rules_that_differ_in_their_prefix_only_keep_their_order():
    for first, want in (("-:", None), ("+:", 32)):
        second = {"-:": "+:", "+:": "-:"}[first]
        dynamic = {f"{first}.*gate": {"group_size": 32}, f"{second}.*gate": {"group_size": 32}}
        config = GptqConfig.parse({"dynamic": dynamic}).for_layer("mlp.gate")
        assert (config and config.group_size) == want


@pytest.mark.parametrize("posix", ["[[:digit:]]", "[[:^alpha:]_]", "[[.a.]]", "[a[=b=]]"])
def test_classes_of_other_engines_are_refused(posix):
    with pytest.raises(CheckpointError) as error:
        GptqConfig.parse({"dynamic": {f"-:layers.{posix}+": {}}}, "here")
    assert f"here: dynamic '-:layers.{posix}+': [" in str(error.value)
    assert "is a class of another engine than Python's; write a range" in str(error.value)


def test_a_bracket_in_a_class_is_one():
    config = GptqConfig.parse({"dynamic": {r"-:x[[.]\d": {}}})
    assert config.for_layer("x.1") is None
    assert config.for_layer("x1") is not None


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_other_bits_are_refused_with_the_layer(bits):
    config = GptqConfig.parse({"w_bit": bits, "dynamic": {"fine": {"bits": 4}}}, "here")
    assert config.for_layer("fine").bits == 4
    with pytest.raises(CheckpointError, match=f"^x: here: bits must be 4; got {bits}$"):
        config.for_layer("x")


def compressed(*groups, **more):
    """Return a compressed-tensors config of (targets, changes of weights, changes of group)."""
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group",
               "group_size": 128, "actorder": None, "dynamic": False}  # fmt: skip
    config_groups = {
        f"group_{i}": {"targets": targets, "weights": weights | changes, "format": None,
                       "input_activations": None} | of_group
        for i, (targets, changes, of_group) in enumerate(groups or ((["Linear"], {}, {}),))
    }  # fmt: skip
    head = {"quant_method": "compressed-tensors", "format": "pack-quantized", "version": "0.19.0"}
    return head | {"config_groups": config_groups, "ignore": ["lm_head", "re:.*router$"]} | more


MIXED = compressed(
    (["Linear"], {"group_size": 64}, {}),
    (["re:.*down_proj$"], {"group_size": 32, "symmetric": False, "actorder": "group"}, {}),
    (["model.layers.0.down_proj"], {"strategy": "channel", "group_size": None}, {}),
    (["re:.*o_proj$"], {"num_bits": 8}, {}),
    (["re:.*fp8$"], {"num_bits": 8, "type": "float"}, {"format": "float-quantized"}),
    (["re:.*nvfp4$"], {"type": "float"}, {"format": "nvfp4-pack-quantized"}),
    (["re:.*act$"], {}, {"input_activations": {"num_bits": 8, "type": "int"}}),
    (["re:.*tensor$"], {"strategy": "tensor"}, {}),
)


@pytest.mark.parametrize(
    ("name", "want"),
    [
        # a name counts before a pattern, a pattern before a class
        ("model.layers.0.down_proj", (-1, True, False)),
        ("model.layers.1.down_proj", (32, False, True)),
        ("model.layers.1.up_proj", (64, True, False)),
        ("lm_head", None),
        ("model.layers.1.router", None),
    ],
)
def test_groups_of_compressed_tensors(name, want):
    config = GptqConfig.parse(MIXED).for_layer(name)
    assert (config and (config.group_size, config.sym, config.desc_act)) == want


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.o_proj", "a.o_proj: here: config_groups 'group_3' target 're:.*o_proj$': bits must be"),
        ("a.fp8", "a.fp8 is float-quantized, float of 8 bits; only int4 is read (here: config_"),
        ("a.nvfp4", "a.nvfp4 is nvfp4-pack-quantized, float of 4 bits; only int4 is read (here"),
        ("a.act", "a.act is for activations of 8 bits; only 16 bits are run (here: "),
        ("a.tensor", "a.tensor has scales by tensor; only group and channel are read (here: "),
    ],
)
def test_a_group_that_is_not_read_names_its_layer(name, words):
    config = GptqConfig.parse(MIXED, "here")
    with pytest.raises(CheckpointError) as error:
        config.for_layer(name)
    assert str(error.value).startswith(words)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"sparsity_config": {"format": "sparse-24-bitmask"}},
         "x is sparse (sparse-24-bitmask); only dense weights are read"),
        ({"transform_config": {"config_groups": {"u": {"apply": [{"location": "input"}]}}}},
         "x needs its activations rotated (transform_config 'u'); that is not done"),
        ({"format": "marlin-24"}, "x is stored as marlin-24; only pack-quantized is read"),
    ],
)  # fmt: skip
def test_a_model_that_is_more_than_its_weights_is_refused(more, words):
    config = GptqConfig.parse(compressed(**more))
    with pytest.raises(CheckpointError) as error:
        config.for_layer("x")
    assert str(error.value).startswith(words)


def test_a_rotation_that_is_in_the_weights_is_none():
    transform = {"config_groups": {"u": {"apply": [{"location": "weight_input"}]}}}
    assert GptqConfig.parse(compressed(transform_config=transform)).for_layer("x") is not None


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"config_groups": 4}, "here: config_groups must be an object; got 4"),
        ({"config_groups": {"W4A16": ["Linear"]}}, "here: config_groups: W4A16 must be an object;"),
        ({"ignore": "lm_head"}, 'here: ignore must be strings; got "lm_head"'),
        ({"ignore": ["re:("]}, "here: ignore 're:(' is no pattern of names: missing )"),
        ({"sparsity_config": "x"}, 'here: sparsity_config must be an object; got "x"'),
        ({"transform_config": "x"}, 'here: transform_config must be an object; got "x"'),
        ({"transform_config": {"config_groups": {"a": [1]}}},
         "here: transform_config: config_groups: a must be an object; got [1]"),
        ({"transform_config": {"config_groups": {"a": {"apply": ["x"]}}}},
         """here: transform_config: config_groups 'a': apply must be objects; got ["x"]"""),
        ({"transform_config": {"config_groups": {"a": {"apply": 4}}}}, "apply must be objects; g"),
        ({"ignore": ["re:[[:digit:]]"]}, "[:digit:] is a class of another engine than"),
    ],
)  # fmt: skip
def test_a_damaged_config_of_compressed_tensors_is_refused(found, words):
    with pytest.raises(CheckpointError) as error:
        GptqConfig.parse(compressed() | found, "here")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("weights", "group", "words"),
    [
        ({}, {"input_activations": {"num_bits": None}},
         "input_activations: num_bits must be a whole number; got null"),
        ({}, {"input_activations": "x"}, 'input_activations must be an object; got "x"'),
        ({}, {"weights": [4]}, "weights must be an object; got [4]"),
        ({"num_bits": None}, {}, "weights: num_bits must be a whole number; got null"),
        ({"num_bits": "4"}, {}, 'weights: num_bits must be a whole number; got "4"'),
    ],
)  # fmt: skip
def test_a_damaged_group_of_compressed_tensors_is_refused(weights, group, words):
    with pytest.raises(CheckpointError) as error:
        GptqConfig.parse(compressed((["Linear"], weights, group)), "here")
    assert str(error.value).startswith("here: config_groups 'group_0'")
    assert str(error.value).endswith(words)


def test_a_layer_that_is_no_target_is_not_quantised():
    config = GptqConfig.parse(compressed((["re:.*q_proj"], {}, {})))
    assert config.for_layer("x.k_proj") is None
    assert config.rule("x.k_proj").key == "config_groups without a target for it"


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


def test_a_rule_gives_no_layer_of_marlin_other_zero_points():
    rules = {"dynamic": {"x": {"sym": False}, "z": {"group_size": 32}}}
    config = GptqConfig.parse({"format": "marlin"} | rules, "here")
    assert config.for_layer("z").group_size == 32
    with pytest.raises(CheckpointError, match=r"^x: here: dynamic 'x': a checkpoint for Marlin ho"):
        config.for_layer("x")


def write(folder, **files):
    for name, value in files.items():
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        (folder / f"{name}.json").write_bytes(text)


def test_places_say_together_what_each_says_alone(tmp_path):
    write(tmp_path, config={"quantization_config": {"group_size": 32}, "hidden_size": 64})
    config = GptqConfig.load(tmp_path)
    assert config.group_size == 32
    assert config.source == f"{tmp_path}/config.json: quantization_config"
    # AutoAWQ's own file lacks the method
    write(tmp_path, quant_config={"q_group_size": 32, "w_bit": 4, "version": "GEMV"})
    config = GptqConfig.load(str(tmp_path))
    assert (config.quant_method, config.checkpoint_format, config.group_size) == ("awq", "gemv", 32)
    assert config.source == f"{tmp_path}/quant_config.json"


TWO = {"bits": 4, "group_size": 32, "quant_method": "gptq"}


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"format": "gptq"}, {"checkpoint_format": "gptq_v2"},
         'checkpoint_format is "gptq" in the one, "gptq_v2" in the other'),
        # one of them does not say that zero points do not count
        ({"format": "gptq", "sym": True}, {"checkpoint_format": "gptq_v2"},
         'checkpoint_format is "gptq" in the one, "gptq_v2" in the other'),
        ({"format": "gptq", "sym": True}, {"format": "marlin", "sym": True},
         'checkpoint_format is "gptq" in the one, "marlin" in the other'),
        ({}, {"group_size": 64}, "group_size is 32 in the one, 64 in the other"),
        ({}, {"bits": 8}, "bits is 4 in the one, 8 in the other"),
        ({}, {"quant_method": "awq"}, 'quant_method is "gptq" in the one, "awq" in the other'),
        ({"sym": False}, {"sym": True}, "sym is false in the one, true in the other"),
        ({"dynamic": {"a": {}}}, {"dynamic": {"-:a": {}}}, "rules is 1 rules in the one, 1 rules"),
    ],
)  # fmt: skip
def test_two_places_that_contradict_each_other_are_named(tmp_path, first, second, words):
    write(tmp_path, quantize_config=TWO | first, config={"quantization_config": TWO | second})
    with pytest.raises(CheckpointError) as error:
        GptqConfig.load(tmp_path)
    assert str(error.value).startswith(
        f"{tmp_path}/quantize_config.json and {tmp_path}/config.json: quantization_config "
        f"contradict each other: {words}"
    )


@pytest.mark.parametrize(
    "rules",
    [
        {"dynamic": {"x": {"sym": False}}},
        {"dynamic": {"+:x": {"zero_point": True}}},
        {"extra_config": {"x": {"sym": False}}},
    ],
    ids=str,
)
@pytest.mark.parametrize("both", [True, False])
def test_zero_points_that_count_in_one_layer_have_one_format(tmp_path, rules, both):
    first = TWO | {"format": "gptq", "sym": True} | rules
    second = TWO | {"format": "gptq_v2", "sym": True} | (rules if both else {})
    write(tmp_path, quantize_config=first, config={"quantization_config": second})
    with pytest.raises(CheckpointError) as error:
        GptqConfig.load(tmp_path)
    assert 'checkpoint_format is "gptq" in the one, "gptq_v2" in the other' in str(error.value)


def test_rules_of_symmetric_layers_leave_either_format(tmp_path):
    rules = {"dynamic": {"-:gate": {}, "x": {"sym": True, "group_size": 64}}}
    first, second = (TWO | {"format": f, "sym": True} | rules for f in ("gptq", "gptq_v2"))
    write(tmp_path, quantize_config=first, config={"quantization_config": second})
    assert GptqConfig.load(tmp_path).for_layer("x").checkpoint_format == "gptq"


@pytest.mark.parametrize(
    ("first", "second", "want"),
    [
        # optimum's two files; zero points do not count
        ({"format": "gptq", "sym": True}, {"format": "gptq_v2", "sym": True}, "gptq"),
        ({"lm_head": False}, {"lm_head": True}, "gptq"),
        ({"group_size": None}, {}, "gptq"),
        ({"quant_method": None}, {"format": "gptq_p"}, "gptq_v2"),
    ],
)
def test_two_places_that_differ_in_what_changes_no_weight(tmp_path, first, second, want):
    write(tmp_path, quantize_config=TWO | first, config={"quantization_config": TWO | second})
    config = GptqConfig.load(tmp_path)
    assert (config.checkpoint_format, config.group_size) == (want, 32)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("text_config", "text_config.quantization_config"),
        ("thinker_config.text_config", "thinker_config.text_config.quantization_config"),
    ],
)
def test_a_section_may_stand_in_a_part_of_the_model(tmp_path, path, place):
    section = {"quantization_config": {"group_size": 32}}
    for part in reversed(path.split(".")):
        section = {part: section, "vision_config": {"hidden_size": 4}}
    write(tmp_path, config=section)
    config = GptqConfig.load(tmp_path)
    assert (config.group_size, config.source) == (32, f"{tmp_path}/config.json: {place}")


def test_the_old_name_of_compressed_tensors_section(tmp_path):
    inner = {"quantization_config": compressed(), "sparsity_config": {}}
    for section in (inner, compressed()):
        write(tmp_path, config={"compression_config": section})
        config = GptqConfig.load(tmp_path)
        assert config.quant_method == "compressed-tensors"


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


@pytest.mark.parametrize(
    ("files", "place"),
    [
        ({"config": {"quantization_config": {}}}, "config.json: quantization_config"),
        ({"quantize_config": {}, "config": {"quantization_config": {}}}, "quantize_config.json"),
    ],
)
def test_an_empty_config_says_nothing(tmp_path, files, place):
    write(tmp_path, **files)
    with pytest.raises(CheckpointError) as error:
        GptqConfig.load(tmp_path)
    words = "says nothing of how it was quantised; it is empty"
    assert str(error.value) == f"{tmp_path}/{place} {words}"
    # another place may say it
    write(tmp_path, quant_config={"q_group_size": 32})
    assert GptqConfig.load(tmp_path).group_size == 32


def test_a_config_that_is_a_folder_cannot_be_read(tmp_path):
    (tmp_path / "quantize_config.json").mkdir()
    with pytest.raises(
        CheckpointError, match=r"quantize_config\.json cannot be read: it is a folder"
    ):
        GptqConfig.load(tmp_path)
