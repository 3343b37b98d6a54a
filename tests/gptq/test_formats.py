"""Every layout of a layer, written by its formula, is read to the bit; what is none is named."""

import json

import gptq_layers as build
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from ferrum_numba import CheckpointError, GptqCheckpoint, ProblemError
from ferrum_numba.gptq.files import TensorFiles
from ferrum_numba.gptq.formats import layer_of

AWQ = {"quant_method": "awq", "w_bit": 4, "zero_point": True}


def compressed_config(group_size=32, sym=False, actorder=None, **more):
    """Return a compressed-tensors config of one group, as llmcompressor writes it."""
    weights = {
        "num_bits": 4, "type": "int", "symmetric": sym, "actorder": actorder, "dynamic": False,
        "strategy": "channel" if group_size == -1 else "group",
        "group_size": None if group_size == -1 else group_size,
    }  # fmt: skip
    group = {"targets": ["Linear"], "weights": weights, "format": "pack-quantized"}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "version": "0.19.0",
            "config_groups": {"group_0": group}, "ignore": ["lm_head"]} | more  # fmt: skip


def opened(folder, layers, config, **more):
    """Write a checkpoint with its config in config.json and open it."""
    build.write(folder, layers, **more)
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return GptqCheckpoint.open(folder)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize(("K", "N", "group_size"), [(64, 64, 32), (72, 24, -1), (200, 16, 128)])
def test_compressed_tensors(tmp_path, rng, dtype, sym, K, N, group_size):
    layer = build.make(rng, K, N, group_size, sym=sym, dtype=dtype, bias=True)
    checkpoint = opened(tmp_path, {"x": layer.compressed(sym)}, compressed_config(group_size, sym))
    build.check(checkpoint.linear("x"), layer)
    (info,) = checkpoint.layers()
    assert (info.format, info.K, info.N, info.sym) == ("pack-quantized", K, N, sym)


@pytest.mark.parametrize("actorder", ["group", "static", "weight"])
def test_act_order_of_compressed_tensors(tmp_path, rng, actorder):
    by_group = actorder == "group"
    layer = build.make(rng, act_order=by_group)
    tensors = layer.compressed(g_idx=by_group)
    checkpoint = opened(tmp_path, {"x": tensors}, compressed_config(actorder=actorder))
    build.check(checkpoint.linear("x"), layer)
    assert checkpoint.linear("x").act_order == by_group


def test_a_group_index_that_was_never_set_says_nothing(tmp_path, rng):
    layer = build.make(rng)
    tensors = layer.compressed() | {"weight_g_idx": np.full(64, -1, np.int32)}
    build.check(opened(tmp_path, {"x": tensors}, compressed_config()).linear("x"), layer)


def test_zero_points_of_old_files_are_bytes(tmp_path, rng):
    layer = build.make(rng)
    old = (layer.zeros.T.astype(np.int8) - 8).copy()
    tensors = layer.compressed() | {"weight_zero_point": old}
    build.check(opened(tmp_path, {"x": tensors}, compressed_config()).linear("x"), layer)
    tensors["weight_zero_point"] = old + np.int8(1)
    with pytest.raises(ProblemError, match=r"^x: weight_zero_point must be -8\.\.7$"):
        opened(tmp_path, {"x": tensors}, compressed_config()).linear("x")


@pytest.mark.parametrize("old", [False, True])
def test_zero_points_of_a_symmetric_layer_are_8(tmp_path, rng, old):
    layer = build.make(rng, sym=True)
    tensors = layer.compressed()
    if old:
        tensors["weight_zero_point"] = np.zeros((64, 2), np.int8)
    build.check(opened(tmp_path, {"x": tensors}, compressed_config(sym=True)).linear("x"), layer)
    tensors["weight_zero_point"][3, 1] += 1
    words = "^x: weight_zero_point must say 8 everywhere, as symmetric = true does; it does not$"
    with pytest.raises(ProblemError, match=words):
        opened(tmp_path, {"x": tensors}, compressed_config(sym=True)).linear("x")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_shape": np.array([64, 60])}, "x: K must be a multiple of 8; got 60"),
        ({"weight_shape": np.array([64, 72])}, "x: weight_shape says [64, 72]; weight_packed is"),
        ({"weight_shape": np.array([64])}, "x: weight_shape says [64]; weight_packed is [64, 8]"),
        ({"weight_zero_point": None}, "x: qzeros are missing; a weight that is not symmetric"),
        ({"weight_scale": np.ones(64, np.float16)}, "x: weight_scale must be [N, G]; got [64]"),
        ({"weight_scale": np.ones((64, 3), np.float16)}, "x: scales must have 2 rows, one for"),
        ({"weight_zero_point": np.ones((63, 2), np.int8)}, "x: weight_zero_point must be [64, G]"),
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_are_named(tmp_path, rng, change, words):
    tensors = build.make(rng).compressed() | change
    tensors = {name: array for name, array in tensors.items() if array is not None}
    with pytest.raises(ProblemError) as error:
        opened(tmp_path, {"x": tensors}, compressed_config()).linear("x")
    assert str(error.value).startswith(words)


def test_groups_by_target_each_have_their_own(tmp_path, rng):
    layers = {
        "a.q_proj": build.make(rng, sym=True),
        "a.down_proj": build.make(rng, group_size=-1),
        "b.down_proj": build.make(rng, group_size=16),
    }
    config = compressed_config(32, True)
    one = config["config_groups"]["group_0"]
    for i, (target, size) in enumerate((("re:.*down_proj", -1), ("b.down_proj", 16)), 1):
        weights = compressed_config(size)["config_groups"]["group_0"]["weights"]
        config["config_groups"][f"group_{i}"] = one | {"targets": [target], "weights": weights}
    stored = {name: layer.compressed("q" in name) for name, layer in layers.items()}
    checkpoint = opened(tmp_path, stored, config)
    for name, layer in layers.items():
        build.check(checkpoint.linear(name), layer)


def test_a_layer_to_ignore_that_is_quantised_is_refused(tmp_path, rng):
    tensors = {"lm_head": build.make(rng).compressed()}
    with pytest.raises(CheckpointError, match="ignore 'lm_head' says that lm_head is not quant"):
        opened(tmp_path, tensors, compressed_config()).linear("lm_head")


@pytest.mark.parametrize(("group_size", "width"), [(32, 4), (64, 2), (128, 1), (-1, 1)])
@pytest.mark.parametrize("version", ["GEMV", "gemv_fast", "llm-awq"])
def test_layouts_of_autoawq(tmp_path, rng, version, group_size, width):
    layer = build.make(rng, 256, 24, group_size, bias=True)
    if version == "GEMV":
        tensors = layer.gemv(width)
    else:
        name = "qzeros" if version == "gemv_fast" else "scaled_zeros"
        tensors = layer.gemv_fast(width, name)
    config = AWQ | {"version": version, "q_group_size": group_size}
    checkpoint = opened(tmp_path, {"x": tensors}, config)
    build.check(checkpoint.linear("x"), layer)
    (info,) = checkpoint.layers()
    assert (info.format, info.K, info.N) == (version.lower(), 256, 24)


@pytest.mark.parametrize(
    ("K", "group_size", "width", "said", "words"),
    [
        (1024, 32, 4, {}, "x: scales must be of 8 groups, padding and all, for group_size 128 and"),
        (1024, 128, 1, {"q_group_size": 64}, "x: scales must be of 16 groups, padding and all"),
        (256, 128, 1, {"q_group_size": -1}, "x: scales must be 0 beyond the 1 groups of group_"),
        (1024, 128, 1, {"q_group_size": 256}, "group_size 256 and K = 1024; group 4 is not"),
        (256, -1, 1, {"q_group_size": 128}, "x: scales of the last of 2 groups are 0; group_size"),
    ],
)
@pytest.mark.parametrize("version", ["gemv", "gemv_fast", "llm-awq"])
def test_another_group_size_than_a_layer_has_is_seen(
    tmp_path, rng, version, K, group_size, width, said, words
):
    layer = build.make(rng, K, 8, group_size)
    of_zeros = "scaled_zeros" if version == "llm-awq" else "qzeros"
    tensors = layer.gemv(width) if version == "gemv" else layer.gemv_fast(width, of_zeros)
    with pytest.raises(ProblemError) as error:
        opened(tmp_path, {"x": tensors}, AWQ | {"version": version} | said).linear("x")
    assert words in str(error.value)


def test_zero_points_beyond_the_groups_are_seen(tmp_path, rng):
    tensors = build.make(rng, 256, 8, 128).gemv()
    tensors["qzeros"] = np.full_like(tensors["qzeros"], 0x01888888)
    config = AWQ | {"version": "gemv"}
    with pytest.raises(ProblemError, match=r"^x: qzeros must be 0 beyond the 2 groups of group_"):
        opened(tmp_path, {"x": tensors}, config).linear("x")
    tensors["qzeros"] = np.zeros((8, 2), np.int32)
    with pytest.raises(ProblemError, match=r"^x: qzeros must be of 8 groups, padding and all"):
        opened(tmp_path, {"x": tensors}, config).linear("x")


def test_every_zero_point_of_gemv_fast_is_found_whatever_the_scale(tmp_path, rng):
    """Its product with the scale is what is stored, in fp16."""
    layer = build.make(rng, 64, 16 * 8, 64)
    layer.zeros[:] = np.arange(128) % 16
    layer.scales[:] = np.repeat([6e-8, 1e-7, 6.1e-5, 1e-3, -0.02, 1.0, 100.0, 4000.0], 16)
    config = AWQ | {"version": "gemv_fast", "group_size": 64}
    build.check(opened(tmp_path, {"x": layer.gemv_fast(2)}, config).linear("x"), layer)


def test_a_scale_of_0_has_any_zero_point(tmp_path, rng):
    layer = build.make(rng, 64, 8, 64)
    layer.scales[:, :4] = 0
    config = AWQ | {"version": "gemv_fast", "group_size": 64}
    build.check(opened(tmp_path, {"x": layer.gemv_fast(2)}, config).linear("x"), layer)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"qzeros": np.pad(np.full((1, 8), 0.5, np.float16), ((0, 15), (0, 0)))},
         "x: qzeros must be minus scale times a zero point of 0..15; got 0.5 for a scale of"),
        ({"qzeros": np.pad(np.full((1, 8), -np.inf, np.float16), ((0, 15), (0, 0)))},
         "x: qzeros must be minus scale times"),
        ({"qweight": np.zeros((2, 32), np.int16)}, "x: qweight must be [N/4, multiple of 64] of"),
        ({"qweight": np.zeros((2, 64), np.int32)}, "of int16; got [2, 64] int32"),
        ({"scales": np.ones((8, 16), np.float16)}, "x: scales must be of 8 columns; got [8, 16]"),
        ({"qzeros": None}, "x: qzeros are missing; AWQ's zero points are stored but where"),
    ],
    ids=str,
)  # fmt: skip
def test_a_layer_of_gemv_fast_that_lies_is_named(tmp_path, rng, change, words):
    tensors = build.make(rng, 64, 8, 64).gemv_fast(2) | change
    tensors = {name: array for name, array in tensors.items() if array is not None}
    config = AWQ | {"version": "gemv_fast", "group_size": 64}
    with pytest.raises(ProblemError) as error:
        opened(tmp_path, {"x": tensors}, config).linear("x")
    assert words in str(error.value)


@pytest.mark.parametrize("group_size", [32, -1])
def test_marlin_of_autoawq(tmp_path, rng, group_size):
    layer = build.make(rng, group_size=group_size, sym=True, bias=True)
    config = {"quant_method": "awq", "version": "marlin", "zero_point": False,
              "q_group_size": group_size}  # fmt: skip
    checkpoint = opened(tmp_path, {"x": layer.awq_marlin()}, config)
    build.check(checkpoint.linear("x"), layer)
    assert checkpoint.layers()[0].format == "awq_marlin"
    # its own file lacks the method; beside the model's section or alone
    del config["quant_method"]
    (tmp_path / "quant_config.json").write_text(json.dumps(config))
    build.check(GptqCheckpoint.open(tmp_path).linear("x"), layer)
    (tmp_path / "config.json").unlink()
    build.check(GptqCheckpoint.open(tmp_path).linear("x"), layer)


@pytest.mark.parametrize(
    "config",
    [{"quant_method": "awq", "version": "marlin", "zero_point": False, "q_group_size": 32},
     {"checkpoint_format": "marlin", "group_size": 32}],
    ids=["awq", "gptq"],
)  # fmt: skip
def test_zero_points_beside_marlin_are_8(tmp_path, rng, config):
    layer = build.make(rng, sym=True)
    tensors = layer.awq_marlin() if "version" in config else layer.marlin()
    tensors["qzeros"] = build.pack_columns(layer.zeros)
    build.check(opened(tmp_path, {"x": tensors}, config).linear("x"), layer)
    tensors["qzeros"][1, 3] ^= 1
    with pytest.raises(
        ProblemError, match=r"^x: qzeros must say 8 everywhere, as a checkpoint for"
    ):
        opened(tmp_path, {"x": tensors}, config).linear("x")


@pytest.mark.parametrize("version", ["gemm", "gemv"])
def test_awq_without_its_zero_points_is_refused(tmp_path, rng, version):
    """What is read as 8 then is off by as much as the zero points are."""
    layer = build.make(rng, sym=True)
    tensors = layer.awq() if version == "gemm" else layer.gemv(4)
    del tensors["qzeros"]
    config = {"quant_method": "awq", "version": version, "group_size": 32}
    words = "x: qzeros are missing; AWQ's zero points are stored but where zero_point = false"
    for said in ({}, {"zero_point": True}, {"zero_point": True, "sym": True}):
        with pytest.raises(ProblemError) as error:
            opened(tmp_path, {"x": tensors}, config | said).linear("x")
        assert str(error.value) == words
    build.check(opened(tmp_path, {"x": tensors}, config | {"zero_point": False}).linear("x"), layer)


def test_zero_point_decides_where_sym_says_otherwise(tmp_path, rng):
    layer = build.make(rng)
    config = AWQ | {"group_size": 32, "sym": True}
    build.check(opened(tmp_path, {"x": layer.awq()}, config).linear("x"), layer)


AUTO_ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "data_type": "int",
              "autoround_version": "0.16.1", "act_bits": 16}  # fmt: skip


@pytest.mark.parametrize(
    ("packing", "sym", "stored_as"),
    [
        ("auto_round:auto_gptq", True, "gptq"),
        ("auto_round:auto_gptq", False, "gptq"),
        ("auto_round", False, "gptq_v2"),
        ("auto_round:gptqmodel", False, "gptq_v2"),
        ("auto_round:auto_awq", False, "gemm"),
    ],
)
def test_auto_round(tmp_path, rng, packing, sym, stored_as):
    layer = build.make(rng, sym=sym)
    # about half of its scales are negative
    layer.scales *= rng.choice([-1, 1], layer.scales.shape).astype(np.float16)
    tensors = layer.awq() if stored_as == "gemm" else layer.gptq(stored_as, g_idx=False)
    config = AUTO_ROUND | {"packing_format": packing, "sym": sym}
    checkpoint = opened(tmp_path, {"x": tensors}, config)
    build.check(checkpoint.linear("x"), layer)
    assert checkpoint.layers()[0].format == stored_as


def test_overrides_of_auto_round_by_layer(tmp_path, rng):
    layers = {
        "layers.0.q_proj": build.make(rng, sym=True),
        "layers.1.q_proj": build.make(rng, sym=True, group_size=16),
        "layers.0.down_proj": build.make(rng, sym=True, group_size=-1),
    }
    extra = {
        "layers.1.q_proj": {"group_size": 16}, ".*down.*": {"group_size": -1},
        "lm_head": {"bits": 8}, "layers.0.gate": {"bits": 16},
    }  # fmt: skip
    stored = {name: layer.gptq(g_idx=False) for name, layer in layers.items()}
    stored |= dict.fromkeys(("lm_head", "layers.0.gate"), stored["layers.0.q_proj"])
    checkpoint = opened(tmp_path, stored, AUTO_ROUND | {"sym": True, "extra_config": extra})
    for name, layer in layers.items():
        build.check(checkpoint.linear(name), layer)
    with pytest.raises(CheckpointError, match=r"^lm_head: .* bits must be 4; got 8$"):
        checkpoint.linear("lm_head")
    with pytest.raises(CheckpointError, match=r"extra_config 'layers\.0\.gate' says that layers"):
        checkpoint.linear("layers.0.gate")


# (name of a stored layer, prefix, projections)
NAMES = {
    "Qwen3-MoE": ("mlp.experts.{e}.{p}", "mlp.experts.{e}", ("gate_proj", "up_proj")),
    "Mixtral": ("block_sparse_moe.experts.{e}.{p}", "block_sparse_moe.experts.{e}", ("w1", "w3")),
    "Llama-4": ("feed_forward.experts.{e}.{p}", "feed_forward.experts.{e}", ("gate_up_proj",)),
    "projections first": ("mlp.experts.{p}.{e}", "mlp.experts.{p}.{e}", ("gate_projs", "up_projs")),
    "gpt-oss": ("mlp.experts.gate_up_projs.{e}", "mlp.experts.gate_up_projs.{e}", ()),
}


@pytest.mark.parametrize("model", NAMES)
def test_names_of_experts(tmp_path, rng, model):
    stored_as, prefix, projections = NAMES[model]
    layers = {
        (e, p): build.make(rng, N=8 * (1 + i))
        for e in range(11)
        for i, p in enumerate(projections or ("",))
    }
    stored = {
        f"model.layers.0.{stored_as}".replace("{e}", str(e)).replace("{p}", p): layer.gptq()
        for (e, p), layer in layers.items()
    }
    config = {"group_size": 32}
    checkpoint = opened(tmp_path, stored, config)
    experts = list(checkpoint.experts(f"model.layers.0.{prefix}", projections))
    assert len(experts) == 11
    for e, expert in enumerate(experts):
        build.check(expert, build.beside(*(layers[e, p] for p in projections or ("",))))


def stacked(layers):
    """Return tensors [E, ...] of layers, but for a shape, which is every expert's."""
    parts = {name: [layer[name] for layer in layers] for name in layers[0]}
    return {
        name: arrays[0] if arrays[0].ndim == 1 and "shape" in name else np.stack(arrays)
        for name, arrays in parts.items()
    }


@pytest.mark.parametrize("kind", ["gptq", "awq", "compressed"])
def test_experts_in_one_tensor(tmp_path, rng, kind):
    experts = {p: [build.make(rng, bias=True) for _ in range(3)] for p in ("gate_up", "down")}
    stored = {
        f"mlp.experts.{p}_proj": stacked([getattr(layer, kind)() for layer in layers])
        for p, layers in experts.items()
    }
    config = {"gptq": {"group_size": 32}, "awq": AWQ | {"group_size": 32},
              "compressed": compressed_config()}[kind]  # fmt: skip
    checkpoint = opened(tmp_path, stored, config)
    got = list(checkpoint.experts("mlp.experts", ["gate_up_proj"]))
    for expert, layer in zip(got, experts["gate_up"], strict=True):
        build.check(expert, layer)
    assert got[2].name == "mlp.experts.gate_up_proj"
    down = list(checkpoint.experts("mlp.experts.down_proj"))
    for expert, layer in zip(down, experts["down"], strict=True):
        build.check(expert, layer)
    assert [(i.name, i.experts, i.K, i.N, i.sym) for i in checkpoint.layers()] == [
        ("mlp.experts.down_proj", 3, 64, 64, False), ("mlp.experts.gate_up_proj", 3, 64, 64, False),
    ]  # fmt: skip


def test_one_layer_is_no_stack(tmp_path, rng):
    checkpoint = opened(tmp_path, {"mlp.experts.up": build.make(rng).gptq()}, {"group_size": 32})
    with pytest.raises(CheckpointError, match=r"mlp\.experts\.up is one layer, no stack of expert"):
        checkpoint.experts("mlp.experts", ["up"])


def test_shared_experts_are_layers(tmp_path, rng):
    layers = [build.make(rng, N=8), build.make(rng, N=8)]
    names = (f"mlp.shared_experts.{p}_proj" for p in ("gate", "up"))
    stored = {name: layer.gptq() for name, layer in zip(names, layers, strict=True)}
    checkpoint = opened(tmp_path, stored, {"group_size": 32})
    build.check(checkpoint.linear("mlp.shared_experts.gate_up_proj"), build.beside(*layers))


F8 = np.zeros((8, 8), ml_dtypes.float8_e4m3fn)
BYTES = np.zeros((8, 4), np.uint8)
# the tensors of a layer, and what it is called
OTHERS = {
    "fp8": ({"x.weight": F8, "x.weight_scale": np.ones(1, np.float32)}, "fp8 (x.weight is F8_E4M3"),
    "DeepSeek's fp8": ({"x.weight": F8, "x.weight_scale_inv": np.ones((1, 1), np.float32)}, "fp8"),
    "int8": ({"x.weight": F8.view(np.int8), "x.weight_scale": np.ones((8, 1), np.float16)}, "int8"),
    "NVFP4": ({"x.weight_packed": BYTES, "x.weight_scale": F8}, "NVFP4 (x.weight_packed is U8)"),
    "ModelOpt's": ({"x.weight": BYTES, "x.weight_scale": F8}, "NVFP4 (x.weight is U8)"),
    "MXFP4": ({"x.weight_packed": BYTES, "x.weight_scale": BYTES}, "MXFP4 (x.weight_packed is U8)"),
    "gpt-oss": ({"x_blocks": BYTES, "x_scales": BYTES}, "MXFP4 (x_blocks is U8)"),
    "bitsandbytes": ({"x.weight": BYTES, "x.weight.absmax": BYTES[0]}, "bitsandbytes (x.weight is"),
    "EXL2": ({"x.q_weight": F8.view(np.int8)}, "EXL2 (x.q_weight is I8)"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_not_int4_is_named_with_its_layer(tmp_path, rng, kind):
    tensors, words = OTHERS[kind]
    good = build.make(rng)
    checkpoint = opened(tmp_path, {"good": good.gptq()}, {"group_size": 32}, **tensors)
    build.check(checkpoint.linear("good"), good)
    with pytest.raises(CheckpointError) as error:
        checkpoint.linear("x")
    assert str(error.value).startswith(f"{tmp_path}: x is {words}")
    assert str(error.value).endswith("and only int4 is read")
    assert [info.error for info in checkpoint.layers()] == [None, str(error.value)]
    # a loader of the rest does not take its bytes for values
    assert [name for name, _ in checkpoint.others()] == []


def test_values_of_8_bits_without_a_scale_are_what_they_are(tmp_path, rng):
    layers = {"good": build.make(rng).gptq()}
    checkpoint = opened(tmp_path, layers, {"group_size": 32}, **{"x.weight": F8})
    assert [name for name, _ in checkpoint.others()] == ["x.weight"]


@pytest.mark.parametrize("config", [{"quant_method": "fp8"}, {"quant_method": "mxfp4"}])
def test_a_method_that_is_not_int4_is_refused_with_a_layer(tmp_path, config):
    tensors, _ = OTHERS["fp8"]
    with pytest.raises(CheckpointError) as error:
        opened(tmp_path, {}, config, **tensors)
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/config.json: quantization_config: quant_method must be")
    assert message.endswith("; x is fp8 (x.weight is F8_E4M3), and only int4 is read")


def test_a_tensor_of_a_layer_is_known_by_its_name():
    assert layer_of("a.b.qweight") == ("a.b", "qweight")
    assert layer_of("a.experts.gate_up_proj_blocks") == ("a.experts.gate_up_proj", "blocks")
    assert layer_of("weight") == ("", "weight")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n"


@pytest.mark.parametrize("name", ["model.safetensors", "quantize_config.json"])
def test_a_pointer_of_git_lfs_is_named(tmp_path, rng, name):
    folder = build.write(tmp_path, {"x": build.make(rng).gptq()}, {"group_size": 32})
    (folder / name).write_bytes(POINTER)
    with pytest.raises(CheckpointError) as error:
        GptqCheckpoint.open(folder)
    assert str(error.value) == (
        f"{folder}/{name} is a git-lfs pointer, not the file itself: run `git lfs pull`"
    )


def test_files_of_other_kinds_are_named(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(64))
    with pytest.raises(CheckpointError, match=r"model\.gguf is a GGUF file; only safetensors are"):
        TensorFiles.open(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match=r"no \.safetensors file; model\.gguf is GGUF, which"):
        TensorFiles.open(tmp_path)
    (tmp_path / "model.gguf").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is PyTorch's pickles, which"):
        TensorFiles.open(tmp_path)


def test_a_file_cut_while_it_is_listed_is_an_error(tmp_path, rng):
    folder = build.write(tmp_path, {"x": build.make(rng).gptq()}, {"group_size": 32})
    checkpoint = GptqCheckpoint.open(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors was cut short while it was"):
        checkpoint.layers()


def test_an_index_of_many_shards(tmp_path, rng):
    """A name is looked up once: each of a thousand shards holds one layer."""
    layer = build.make(rng, 8, 8, 8)
    names = [f"layers.{i}.x" for i in range(200)]
    shards = {f"model-{i}.safetensors": {name: layer.gptq()} for i, name in enumerate(names)}
    folder = build.write_sharded(tmp_path, shards, {"group_size": 8})
    checkpoint = GptqCheckpoint.open(folder)
    assert checkpoint.names == names
    build.check(checkpoint.linear("layers.150.x"), layer)
    save_file({"other": np.zeros(1)}, folder / "model-7.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor layers\.7\.x\.\w+ is not in model-7"):
        GptqCheckpoint.open(folder)
