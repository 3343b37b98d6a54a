"""Checkpoints on disk: folders, shards, fusion, experts; and files that are cut short or lie."""

import json
import os
import re
import struct
import tracemalloc
import warnings
import weakref

import gptq_layers as build
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from ferrum_numba import CheckpointError, FerrumError, GptqCheckpoint, ProblemError
from ferrum_numba.gptq import checkpoint as checkpoint_module
from ferrum_numba.gptq import header
from ferrum_numba.gptq.files import DTYPES, TensorFiles

CONFIG = {"bits": 4, "group_size": 32, "sym": False}


@pytest.fixture
def model(rng):
    """Return layers by name, of two blocks."""
    return {
        f"model.layers.{block}.{name}": build.make(rng, N=N, bias=name[-6] in "qkv")
        for block in range(2)
        for name, N in (
            ("self_attn.q_proj", 64), ("self_attn.k_proj", 16), ("self_attn.v_proj", 24),
            ("mlp.gate_proj", 40), ("mlp.up_proj", 40), ("mlp.down_proj", 8),
        )
    }  # fmt: skip


def stored(model, checkpoint_format="gptq"):
    return {name: layer.gptq(checkpoint_format) for name, layer in model.items()}


def test_a_folder_with_one_file(tmp_path, model):
    folder = build.write(tmp_path / "m", stored(model), CONFIG)
    with GptqCheckpoint.open(folder) as checkpoint:
        for name, layer in model.items():
            got = checkpoint.linear(name)
            assert got.name == name
            build.check(got, layer)


def test_one_file_beside_its_config(tmp_path, model):
    folder = build.write(tmp_path, stored(model), CONFIG, "gptq_model-4bit-32g.safetensors")
    checkpoint = GptqCheckpoint.open(str(folder / "gptq_model-4bit-32g.safetensors"))
    build.check(
        checkpoint.linear("model.layers.1.mlp.up_proj"), model["model.layers.1.mlp.up_proj"]
    )


@pytest.mark.parametrize("indexed", [True, False])
def test_shards_with_an_index_or_without(tmp_path, model, indexed):
    names = [*model]
    shards = {
        f"model-0000{1 + i}-of-00002.safetensors": {name: model[name].gptq() for name in part}
        for i, part in enumerate((names[:5], names[5:]))
    }
    folder = build.write_sharded(tmp_path, shards, CONFIG)
    if not indexed:
        (folder / "model.safetensors.index.json").unlink()
    with GptqCheckpoint.open(folder) as checkpoint:
        assert {info.name for info in checkpoint.layers()} == {*names}
        # q, k and v of the first block are in the first shard, gate and up in both
        for name, layer in model.items():
            build.check(checkpoint.linear(name), layer)
        gate_up = checkpoint.linear("model.layers.0.mlp.gate_up_proj")
    build.check(
        gate_up, build.beside(*(model[f"model.layers.0.mlp.{n}_proj"] for n in ("gate", "up")))
    )


def test_config_json_will_do(tmp_path, model):
    folder = build.write(tmp_path, stored(model, "gptq_v2"))
    section = CONFIG | {"quant_method": "gptq", "checkpoint_format": "gptq_v2"}
    (folder / "config.json").write_text(json.dumps({"quantization_config": section}))
    name = "model.layers.0.mlp.down_proj"
    build.check(GptqCheckpoint.open(folder).linear(name), model[name])


@pytest.mark.parametrize(
    ("fused", "parts"),
    [
        ("qkv_proj", ("q_proj", "k_proj", "v_proj")),
        ("gate_up_proj", ("gate_proj", "up_proj")),
        ("in_proj_qkvz", ("in_proj_qkv", "in_proj_z")),
        ("in_proj_ba", ("in_proj_b", "in_proj_a")),
    ],
)
@pytest.mark.parametrize("prefix", ["", "model.layers.0.x."])
def test_a_fused_projection_is_its_parts_in_order(tmp_path, rng, fused, parts, prefix):
    layers = [build.make(rng, N=8 * (i + 1), bias=True) for i in range(len(parts))]
    by_name = {prefix + part: layer.gptq() for part, layer in zip(parts, layers, strict=True)}
    checkpoint = GptqCheckpoint.open(build.write(tmp_path, by_name, CONFIG))
    got = checkpoint.linear(prefix + fused)
    assert got.name == prefix + fused
    build.check(got, build.beside(*layers))


def test_a_stored_projection_wins_over_its_parts(tmp_path, model, rng):
    direct = build.make(rng)
    layers = stored(model) | {"model.layers.0.self_attn.qkv_proj": direct.gptq()}
    checkpoint = GptqCheckpoint.open(build.write(tmp_path, layers, CONFIG))
    build.check(checkpoint.linear("model.layers.0.self_attn.qkv_proj"), direct)


def test_a_quantised_layer_wins_over_a_dense_one(tmp_path, model):
    name = "model.layers.0.mlp.down_proj"
    dense = {f"{name}.weight": np.zeros((8, 64), np.float16)}
    checkpoint = GptqCheckpoint.open(build.write(tmp_path, stored(model), CONFIG, **dense))
    build.check(checkpoint.linear(name), model[name])


def test_rules_by_layer_are_honoured(tmp_path, rng):
    layers = {
        "a.q_proj": build.make(rng, group_size=64),
        "a.k_proj": build.make(rng, act_order=True),
    }
    config = CONFIG | {"dynamic": {"+:.*q_proj": {"group_size": -1, "sym": True}}}
    checkpoint = GptqCheckpoint.open(build.write(tmp_path, stored(layers), config))
    # what is stored counts for k_proj only
    layers["a.q_proj"].zeros[:] = 8
    for name, layer in layers.items():
        build.check(checkpoint.linear(name), layer)


def test_desc_act_needs_a_g_idx_where_the_config_says_so(tmp_path, rng):
    layers = {name: build.make(rng).gptq(g_idx=False) for name in ("a", "b")}
    config = CONFIG | {"dynamic": {"a": {"desc_act": True}}}
    checkpoint = GptqCheckpoint.open(build.write(tmp_path, layers, config))
    assert not checkpoint.linear("b").act_order
    with pytest.raises(ProblemError, match=r"^a: g_idx is missing; desc_act with 2 groups needs"):
        checkpoint.linear("a")


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_scales_keep_their_type(tmp_path, rng, dtype):
    layer = build.make(rng, bias=True, dtype=dtype)
    checkpoint = GptqCheckpoint.open(build.write(tmp_path, {"x": layer.gptq()}, CONFIG))
    build.check(checkpoint.linear("x"), layer)
    assert checkpoint.layers()[0].dtype == np.dtype(build.DTYPES[dtype]).name


def test_an_awq_checkpoint(tmp_path, rng):
    layers = {"a.q_proj": build.make(rng), "a.k_proj": build.make(rng, N=8, sym=True)}
    layers["a.v_proj"] = build.make(rng, N=24)
    config = {"quant_method": "awq", "w_bit": 4, "q_group_size": 32, "zero_point": True,
              "version": "GEMM"}  # fmt: skip
    folder = build.write(tmp_path, {name: layer.awq() for name, layer in layers.items()}, config)
    checkpoint = GptqCheckpoint.open(folder)
    build.check(checkpoint.linear("a.qkv_proj"), build.beside(*layers.values()))
    assert [(i.name, i.format, i.K, i.N, i.sym) for i in checkpoint.layers()] == [
        ("a.k_proj", "gemm", 64, 8, True),
        ("a.q_proj", "gemm", 64, 64, False),
        ("a.v_proj", "gemm", 64, 24, False),
    ]


@pytest.mark.parametrize("config", [{"is_marlin_format": True}, {"quant_method": "marlin"}])
def test_a_legacy_marlin_checkpoint(tmp_path, rng, config):
    layers = {f"mlp.{name}_proj": build.make(rng, sym=True) for name in ("gate", "up")}
    written = {name: layer.marlin() for name, layer in layers.items()}
    checkpoint = GptqCheckpoint.open(build.write(tmp_path, written, config | {"group_size": 32}))
    build.check(checkpoint.linear("mlp.gate_up_proj"), build.beside(*layers.values()))
    info = checkpoint.layers()[0]
    assert (info.name, info.format, info.K, info.N, info.group_size) == (
        "mlp.gate_proj", "marlin", 64, 64, 32,
    )  # fmt: skip


def test_layers_are_in_the_order_of_their_numbers(tmp_path, rng):
    names = ["lm_head", "model.layers.2.x", "model.layers.10.mlp.a", "model.layers.10.x"]
    tensors = build.make(rng).gptq()
    checkpoint = GptqCheckpoint.open(build.write(tmp_path, dict.fromkeys(names, tensors), CONFIG))
    assert [info.name for info in checkpoint.layers()] == names


def test_the_list_of_layers_says_what_each_is(tmp_path, rng):
    layers = {
        "0": build.make(rng, 72, 40, -1, bias=True).gptq(),
        "1": build.make(rng, act_order=True, dtype="bf16").gptq(),
        "2": build.make(rng, sym=True).gptq(),
        "3": build.make(rng).gptq(),
    }
    del layers["3"]["scales"]
    config = CONFIG | {"dynamic": {"0": {"group_size": -1}, "2": {"bits": 8}}}
    checkpoint = GptqCheckpoint.open(build.write(tmp_path, layers, config))
    first, second, third, fourth = checkpoint.layers()
    assert first == checkpoint_module.LayerInfo(
        "0", "gptq", 72, 40, 72, False, False, True, "float16"
    )
    assert second == checkpoint_module.LayerInfo(
        "1", "gptq", 64, 64, 32, False, True, False, "bfloat16"
    )
    assert "dynamic '2': bits must be 4; got 8" in third.error
    assert fourth.error == f"{tmp_path}: layer 3 has no tensor 3.scales"
    for info in (third, fourth):
        assert info.K is None
        with pytest.raises(CheckpointError) as error:
            checkpoint.linear(info.name)
        assert str(error.value) == info.error


PREFIX = "model.layers.0.mlp.experts.{e}"


def write_experts(folder, experts, **more):
    layers = {
        f"{PREFIX.format(e=e)}.{name}": layer.gptq()
        for e, expert in experts.items()
        for name, layer in expert.items()
    }
    return GptqCheckpoint.open(build.write(folder, layers, CONFIG, **more))


def expert(rng, **kind):
    return {name: build.make(rng, **kind) for name in ("gate_proj", "up_proj", "down_proj")}


@pytest.mark.parametrize("projections", [("gate_proj", "up_proj"), ("gate_up_proj",)])
def test_experts_come_in_the_order_of_their_numbers(tmp_path, rng, projections):
    # 10 and 11 sort before 2 as text
    experts = {e: expert(rng, N=8) for e in range(12)}
    checkpoint = write_experts(tmp_path, experts)
    got = list(checkpoint.experts(PREFIX, projections))
    assert len(got) == 12
    for e, tensors in enumerate(got):
        assert tensors.name == f"{PREFIX.format(e=e)}.{'+'.join(projections)}"
        build.check(tensors, build.beside(experts[e]["gate_proj"], experts[e]["up_proj"]))


def test_experts_may_have_an_act_order_of_their_own(tmp_path, rng):
    """Upstream takes the first expert's for all, and then never gathers."""
    experts = {e: {"down_proj": build.make(rng, act_order=True)} for e in range(3)}
    got = write_experts(tmp_path, experts).experts(PREFIX, ["down_proj"])
    for e, tensors in enumerate(got):
        build.check(tensors, experts[e]["down_proj"])


def test_experts_are_loaded_one_at_a_time(tmp_path, rng):
    checkpoint = write_experts(tmp_path, {e: expert(rng) for e in range(3)})
    alive = []
    for tensors in checkpoint.experts(PREFIX, ["gate_proj", "up_proj"]):
        assert [ref for ref in alive if ref() is not None] == []
        alive.append(weakref.ref(tensors.qweight))
        del tensors
    assert len(alive) == 3


def test_an_expert_unlike_the_first_is_named_at_its_turn(tmp_path, rng):
    """Defect 8: upstream does not check the shapes of a stack."""
    experts = {e: expert(rng, N=16 if e == 2 else 8) for e in range(3)}
    loaded = write_experts(tmp_path, experts).experts(PREFIX, ["down_proj"])
    assert len([next(loaded), next(loaded)]) == 2
    with pytest.raises(ProblemError) as error:
        next(loaded)
    assert str(error.value) == (
        "model.layers.0.mlp.experts.2.down_proj: all experts must be alike; "
        "the first has K = 64, N = 8, group size 32, this one K = 64, N = 16, group size 32"
    )


def test_a_last_expert_that_is_not_quantised_is_missing(tmp_path, rng):
    dense = {f"{PREFIX.format(e=2)}.down_proj.weight": np.zeros((8, 64), np.float16)}
    checkpoint = write_experts(tmp_path, {e: expert(rng, N=8) for e in (0, 1)}, **dense)
    with pytest.raises(
        CheckpointError, match=r"up to 2, but no quantised layers of .*\.experts\.2$"
    ):
        checkpoint.experts(PREFIX, ["down_proj"])


def test_a_number_beyond_all_others_is_looked_for_in_no_time(tmp_path, rng):
    checkpoint = write_experts(tmp_path, {e: expert(rng, N=8) for e in (0, 999_999_999_999)})
    with pytest.raises(CheckpointError, match=r"no quantised layers of .*\.experts\.1$"):
        checkpoint.experts(PREFIX, ["down_proj"])


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        (PREFIX, "has model.layers.0.mlp.experts.{e} up to 3, but no quantised layers of "
         "model.layers.0.mlp.experts.1"),
        ("model.layers.9.mlp.experts.{e}", "no quantised layers model.layers.9.mlp.experts.{e}"),
        ("model.layers.0.mlp.experts", "a prefix of experts needs {e} for their number"),
    ],
)  # fmt: skip
def test_missing_experts_are_said_at_once(tmp_path, rng, prefix, words):
    checkpoint = write_experts(tmp_path, {e: expert(rng, N=8) for e in (0, 2, 3)})
    with pytest.raises(CheckpointError) as error:
        checkpoint.experts(prefix, ["down_proj"])
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.layers.0.mlp.down_prj",
         "has no quantised layer model.layers.0.mlp.down_prj; did you mean "
         "model.layers.0.mlp.down_proj?"),
        ("zzz", "has no quantised layer zzz; it has 12 others"),
        ("lm_head", "lm_head is not quantised; it has a tensor lm_head.weight and no "
         "lm_head.qweight"),
        ("half.qkv_proj", "layer half.k_proj has no tensor half.k_proj.qweight"),
        ("model.layers.0.self_attn", "has no quantised layer model.layers.0.self_attn;"),
    ],
)  # fmt: skip
def test_a_layer_that_is_not_there_is_named(tmp_path, model, name, words):
    more = {"lm_head.weight": np.zeros((8, 64), np.float16)}
    if name.startswith("half"):
        more["half.q_proj.qweight"] = np.zeros((8, 8), np.int32)
        model = {k: v for k, v in model.items() if "0" in k}
        more |= {"half.q_proj.scales": np.zeros((2, 8), np.float16)}
        more |= {"half.q_proj.qzeros": np.zeros((2, 1), np.int32)}
    checkpoint = GptqCheckpoint.open(build.write(tmp_path, stored(model), CONFIG, **more))
    with pytest.raises(CheckpointError) as error:
        checkpoint.linear(name)
    assert words in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_layer_that_the_config_calls_dense_is_refused(tmp_path, model):
    config = CONFIG | {"dynamic": {r"-:.*down_proj$": {}}}
    checkpoint = GptqCheckpoint.open(build.write(tmp_path, stored(model), config))
    with pytest.raises(
        CheckpointError, match=r"dynamic '-:.*' says that .*down_proj is not quantised"
    ):
        checkpoint.linear("model.layers.0.mlp.down_proj")


def test_a_layer_outlives_what_becomes_of_its_file(tmp_path, model):
    """A view of a map of it would end the process here."""
    folder, name = build.write(tmp_path, stored(model), CONFIG), "model.layers.0.mlp.down_proj"
    tensors = GptqCheckpoint.open(folder).linear(name)
    assert not tensors.qweight.flags.writeable
    os.truncate(folder / "model.safetensors", 0)
    build.check(tensors, model[name])


@pytest.mark.parametrize(
    ("kind", "name", "most"),
    [("gptq", "up_proj", 1.1), ("gptq", "gate_up_proj", 2.1), ("awq", "up_proj", 3.1),
     ("marlin", "up_proj", 2.8)],
)  # fmt: skip
def test_no_layer_is_in_memory_more_than_three_times(tmp_path, rng, kind, name, most):
    """Once as it is stored, and what makes it another; codes of a byte are a block's only."""
    layer = build.make(rng, 8192, 64, 128, sym=True)
    config = {
        "gptq": {"bits": 4},
        "awq": {"quant_method": "awq"},
        "marlin": {"quant_method": "marlin"},
    }
    layers = dict.fromkeys(("gate_proj", "up_proj"), getattr(layer, kind)())
    checkpoint = GptqCheckpoint.open(build.write(tmp_path, layers, config[kind]))
    tracemalloc.start()
    got = checkpoint.linear(name)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes <= most * (got.qweight.nbytes + got.scales.nbytes) + 100_000


def test_layers_outlive_their_checkpoint(tmp_path, model):
    name = "model.layers.0.mlp.down_proj"
    with GptqCheckpoint.open(build.write(tmp_path, stored(model), CONFIG)) as checkpoint:
        got = checkpoint.linear(name)
    build.check(got, model[name])
    with pytest.raises(CheckpointError, match=r"model\.safetensors was closed"):
        checkpoint.linear(name)


def test_a_file_cut_while_it_is_open_is_an_error(tmp_path, model):
    folder = build.write(tmp_path, stored(model), CONFIG)
    checkpoint = GptqCheckpoint.open(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors was cut short while it was open"
    ):
        checkpoint.linear("model.layers.0.mlp.down_proj")


def test_a_file_may_be_removed_while_it_is_open(tmp_path, model):
    name = "model.layers.0.mlp.down_proj"
    folder = build.write(tmp_path, stored(model), CONFIG)
    checkpoint = GptqCheckpoint.open(folder)
    (folder / "model.safetensors").unlink()
    build.check(checkpoint.linear(name), model[name])


def test_a_header_is_read_once(tmp_path, model, monkeypatch):
    calls = []
    real = header.safe_open
    monkeypatch.setattr(header, "safe_open", lambda *a, **k: calls.append(a) or real(*a, **k))
    checkpoint = GptqCheckpoint.open(build.write(tmp_path, stored(model), CONFIG))
    for name in model:
        checkpoint.linear(name)
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_is_read_as_it_was_written(tmp_path, dtype):
    array = np.arange(6).reshape(2, 3).astype(DTYPES[dtype])
    save_file({"a": array, "b": array[:1]}, tmp_path / "x.safetensors")
    read = TensorFiles.open(tmp_path / "x.safetensors")
    assert read.entries["a"].dtype == dtype
    assert read.read("a").dtype == array.dtype
    np.testing.assert_array_equal(read.read("a"), array)
    np.testing.assert_array_equal(read.read("b"), array[:1])


def raw(header, data=b"", size=None):
    """Return the bytes of a file with this header and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


# a file's bytes, and what is said of them
BAD = {
    "empty": (b"", "header too small"),
    "three bytes": (b"abc", "header too small"),
    "huge header": (raw({}, size=2**63), "header too large"),
    "header longer than the file": (raw({}, size=2**20), "invalid header length"),
    "no utf-8": (raw(b'{"\xff\xfe": 1}'), "invalid utf-8"),
    "no json": (raw(b'{"a":'), "invalid json"),
    "a list": (raw(b"[]"), "invalid json"),
    "deep": (raw(b'{"a":' * 50_000), "invalid json"),
    "cut data": (
        raw({"b": entry(offsets=(0, 16)), "a": entry(offsets=(16, 32))}, b"\0" * 24),
        "tensor a ends at byte 32 of the data, which are 24 bytes: the file is cut short",
    ),
    "too much data": (raw({"a": entry()}, b"\0" * 24), "file not fully covered"),
    "wrong shape": (
        raw({"a": entry(shape=(5,))}, b"\0" * 16),
        "tensor a is F32 [5], 20 bytes; got 16",
    ),
    "wrong dtype": (
        raw({"a": entry("F16")}, b"\0" * 16),
        "tensor a is F16 [4], 8 bytes; got 16",
    ),
    "backwards": (raw({"a": entry(offsets=(16, 0))}, b"\0" * 16), "tensor a lies at bytes 16 to 0"),
    "overlap": (
        raw({"a": entry(), "b": entry(offsets=(8, 24))}, b"\0" * 24),
        "invalid offset for tensor `b`",
    ),
    "hole": (raw({"a": entry(offsets=(8, 24))}, b"\0" * 24), "invalid offset for tensor `a`"),
    "overflow": (
        raw({"a": entry(shape=(2**62, 2**62))}, b"\0" * 16),
        "tensor a is F32 [4611686018427387904, 4611686018427387904], ",
    ),
    "negative shape": (raw({"a": entry(shape=(-4,))}, b"\0" * 16), "tensor a is F32 [-4]"),
    "negative offset": (raw({"a": entry(offsets=(-16, 0))}), "tensor a lies at bytes -16 to 0"),
    "unknown dtype": (raw({"a": entry("Q4")}, b"\0" * 16), "unknown variant `q4`"),
    "no offsets": (raw({"a": {"dtype": "F32", "shape": [4]}}), "missing field `data_offsets`"),
    "words for offsets": (raw({"a": entry(offsets=("0", "16"))}, b"\0" * 16), "invalid json"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_lies_is_refused_by_name(tmp_path, case):
    content, words = BAD[case]
    (tmp_path / "model.safetensors").write_bytes(content)
    (tmp_path / "quantize_config.json").write_text('{"bits": 4}')
    with pytest.raises(CheckpointError) as error:
        GptqCheckpoint.open(tmp_path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/model.safetensors is damaged: ")
    assert words in message.replace("UTF-8", "utf-8").replace("JSON", "json").replace("Q4", "q4")
    assert "\n" not in message


@pytest.mark.parametrize("step", [1, 97])
def test_a_file_cut_anywhere_is_an_error(tmp_path, rng, step):
    folder = build.write(tmp_path, {"x": build.make(rng, 8, 8, 8).gptq()}, CONFIG)
    content = (folder / "model.safetensors").read_bytes()
    ends = range(0, len(content), step) if step > 1 else range(len(content) - 8, len(content))
    for end in ends:
        (folder / "model.safetensors").write_bytes(content[:end])
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: "):
            GptqCheckpoint.open(folder)


def test_a_file_with_any_wrong_byte_in_its_header_opens_or_is_an_error(tmp_path, rng):
    folder = build.write(
        tmp_path, {"x": build.make(rng, 8, 8, 8).gptq()}, CONFIG | {"group_size": -1}
    )
    content = (folder / "model.safetensors").read_bytes()
    refused = 0
    for place in range(8 + int.from_bytes(content[:8], "little")):
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        (folder / "model.safetensors").write_bytes(changed)
        try:
            with GptqCheckpoint.open(folder) as checkpoint:
                [checkpoint.linear(info.name) for info in checkpoint.layers()]
        except FerrumError as error:
            refused += "\n" not in str(error)
    assert refused > 100


def test_wrong_tensors_of_a_layer_name_it(tmp_path, rng):
    layers = {name: build.make(rng).gptq() for name in ("a", "b", "c")}
    layers["a"]["qweight"] = layers["a"]["qweight"].view(np.float32)
    layers["b"]["scales"] = layers["b"]["scales"].astype(ml_dtypes.float8_e4m3fn)
    layers["c"]["g_idx"] = layers["c"]["g_idx"][:-1]
    checkpoint = GptqCheckpoint.open(build.write(tmp_path, layers, CONFIG))
    for name, words in (
        ("a", "a: qweight must be [K/8, N] of int32; got [8, 64] float32"),
        ("b", "b: scales must be float16 or bfloat16 or float32; got float8_e4m3fn"),
        ("c", "c: g_idx must be [64]; got [63]"),
    ):
        with pytest.raises(ProblemError) as error:
            checkpoint.linear(name)
        assert str(error.value) == words


def test_a_type_that_numpy_lacks_is_named(tmp_path):
    content = raw({"x.qweight": entry("F8_E8M0", (4,), (0, 4))}, b"\0" * 4)
    (tmp_path / "model.safetensors").write_bytes(content)
    (tmp_path / "quantize_config.json").write_text('{"bits": 4}')
    with pytest.raises(CheckpointError, match=r"tensor x\.qweight is F8_E8M0; it needs to be one"):
        GptqCheckpoint.open(tmp_path).linear("x")


def test_a_header_of_odd_length_is_read_all_the_same(tmp_path):
    header = json.dumps({"a": entry()}).encode()
    header += b" " * (3 - len(header) % 8 % 4)
    values = np.arange(4, dtype=np.float32)
    (tmp_path / "x.safetensors").write_bytes(raw(header, values.tobytes()))
    got = TensorFiles.open(tmp_path / "x.safetensors").read("a")
    np.testing.assert_array_equal(got, values)
    assert got.flags.aligned


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"a.qweight": "gone.safetensors"},
         "tensor a.qweight is said to be in 'gone.safetensors', which is no file here"),
        ({"a.qweight": "../m/model.safetensors"}, "in '../m/model.safetensors', which is no"),
        ({"b.qweight": "model.safetensors"}, "tensor b.qweight is not in model.safetensors"),
        ({"a.qweight": 4}, "weight_map must be an object of tensors and their files"),
        (None, "weight_map must be an object of tensors and their files"),
    ],
)  # fmt: skip
def test_an_index_that_lies_is_refused_by_name(tmp_path, rng, weight_map, words):
    folder = build.write(tmp_path / "m", {"a": build.make(rng).gptq()}, CONFIG)
    build.write_index(folder, weight_map)
    with pytest.raises(CheckpointError) as error:
        GptqCheckpoint.open(folder)
    assert words in str(error.value)
    assert str(folder / "model.safetensors.index.json") in str(error.value)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]"])
def test_an_index_that_is_no_json_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"index\.json(: weight_map must be an| is no JSON: )"
    ):
        GptqCheckpoint.open(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path, rng):
    layer = {"a": build.make(rng).gptq()}
    build.write(tmp_path, layer, CONFIG, "one.safetensors")
    build.write(tmp_path, layer, CONFIG, "two.safetensors")
    with pytest.raises(CheckpointError, match=r"two\.safetensors: tensor a\.\w+ is in .*one\.safe"):
        GptqCheckpoint.open(tmp_path)


def test_places_without_a_checkpoint_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="not_here is not there; it must be a folder or a"):
        GptqCheckpoint.open(tmp_path / "not_here")
    with pytest.raises(CheckpointError, match=f"{tmp_path} holds no .safetensors file"):
        GptqCheckpoint.open(tmp_path)


def test_a_layer_of_the_file_is_refused_and_the_next_one_loads(tmp_path, model):
    layers = stored(model)
    bad, good = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
    layers[bad]["scales"] = layers[bad]["scales"][:, :8]
    folder = build.write(tmp_path, layers, CONFIG)
    checkpoint = GptqCheckpoint.open(folder, zero_overflow="carry")
    before = vars(checkpoint).copy()
    for name in (bad, "model.layers.0.mlp.gate_up_proj"):
        with pytest.raises(ProblemError, match=rf"^{bad}: scales must be \[2, "):
            checkpoint.linear(name)
    # nothing of it is kept
    assert vars(checkpoint) == before
    build.check(checkpoint.linear(good), model[good])


def test_a_16_bit_part_of_a_projection_is_named(tmp_path, rng):
    layers = {f"a.{name}": build.make(rng, N=8).gptq() for name in ("q_proj", "k_proj")}
    dense = {"a.v_proj.weight": np.zeros((8, 64), np.float16)}
    checkpoint = GptqCheckpoint.open(build.write(tmp_path, layers, CONFIG, **dense))
    words = (
        "a.qkv_proj cannot be one weight: int4 is a.q_proj, a.k_proj, not quantised is "
        "a.v_proj (F16); load the parts by their own names"
    )
    with pytest.raises(CheckpointError, match=re.escape(words)):
        checkpoint.linear("a.qkv_proj")


@pytest.mark.parametrize("reading", [None, "carry", "wrap"])
def test_how_a_stored_15_is_read_is_told_once(tmp_path, rng, reading):
    layers = {f"layers.{i}.x": build.make(rng, N=64) for i in range(3)}
    for layer in layers.values():
        layer.zeros[:, 3] = 0
    stored = {name: layer.gptq() for name, layer in layers.items()}
    checkpoint = GptqCheckpoint.open(build.write(tmp_path, stored, CONFIG), zero_overflow=reading)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        got = [checkpoint.linear(name) for name in layers]
        infos = checkpoint.layers()
    assert [str(each.message).partition(":")[0] for each in told] == ["layers.0.x"][: not reading]
    assert not any(info.error for info in infos)
    for tensors, layer in zip(got, layers.values(), strict=True):
        same = np.array_equal(build.weight_of(tensors), layer.weight)
        assert same == (reading != "wrap")
