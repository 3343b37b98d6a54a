"""What is read of which exporter's checkpoints: docs/checkpoints.md#table, by trying it.

Each case is a tiny checkpoint, written by the formulas of its format with the config that its
exporter writes; "right" is what was read to the last bit.

    python tests/support/checkpoint_table.py

writes the table into the page.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import gptq_layers as build
import ml_dtypes
import numpy as np

from ferrum_numba import FerrumError, GptqCheckpoint

PAGE = Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
EXPORTERS = ("GPTQModel", "auto-round", "llm-compressor", "AutoAWQ", "optimum", "others")
GROUP, LAYER, FILE = 32, "model.layers.0.self_attn.q_proj", "quantization_config"
PARTS = {"F8": np.zeros((64, 64), ml_dtypes.float8_e4m3fn), "U8": np.zeros((64, 32), np.uint8)}


@dataclass
class Case:
    """A checkpoint of one exporter.

    configs: file -> config; the key "config.json" is its quantization_config
    write:   returns the tensors of a layer, by the last part of their names
    kind:    of layer, as `gptq_layers.make` takes it
    read:    whether it is to be read
    """

    format: str
    exporter: str
    configs: dict
    write: Callable | None = None
    kind: dict = field(default_factory=dict)
    read: bool = True


def gptq(stored_as="gptq", g_idx=True):
    return lambda layer: layer.gptq(stored_as, g_idx)


def others(**tensors):
    return lambda layer: tensors


def gptqmodel(**more):
    config = {
        "bits": 4, "group_size": GROUP, "desc_act": False, "lm_head": False, "method": "gptq",
        "quant_method": "gptq", "format": "gptq", "checkpoint_format": "gptq", "sym": True,
        "pack_dtype": "int32", "dynamic": None, "meta": {"act_group_aware": True},
    } | more  # fmt: skip
    if "format" in more:
        config["checkpoint_format"] = config["format"]
    if "method" in more:
        config["quant_method"] = config["method"]
    return {"quantize_config.json": config, "config.json": config}


def auto_round(packing, **more):
    config = {
        "bits": 4, "group_size": GROUP, "sym": True, "data_type": "int", "act_bits": 16,
        "quant_method": "auto-round", "packing_format": packing, "autoround_version": "0.16.1",
        "block_name_to_quantize": "model.layers",
    } | more  # fmt: skip
    return {"quantization_config.json": config, "config.json": config}


def auto_round_as(method, **more):
    config = {
        "bits": 4, "group_size": GROUP, "sym": True, "data_type": "int", "provider": "auto-round",
        "quant_method": method, "autoround_version": "0.16.1",
    } | more  # fmt: skip
    return {"quantization_config.json": config, "config.json": config}


def compressed(form="pack-quantized", size=GROUP, kind="int", bits=4, sym=True, **more):
    weights = {
        "num_bits": bits,
        "type": kind,
        "symmetric": sym,
        "dynamic": False,
        "strategy": "channel" if size is None else "group",
        "group_size": size,
    } | more
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "format": form}
    return {"config.json": {
        "quant_method": "compressed-tensors", "format": form, "version": "0.19.0",
        "config_groups": {"group_0": group}, "ignore": ["lm_head"], "kv_cache_scheme": None,
    }}  # fmt: skip


def autoawq(version, zero_point=True):
    own = {"zero_point": zero_point, "q_group_size": GROUP, "w_bit": 4, "version": version.upper()}
    model = {"quant_method": "awq", "zero_point": zero_point, "group_size": GROUP, "bits": 4,
             "version": version, "modules_to_not_convert": None}  # fmt: skip
    return {"quant_config.json": own, "config.json": model}


def optimum(own, model, **more):
    config = {"bits": 4, "group_size": GROUP, "desc_act": False, "quant_method": "gptq", "meta":
              {"quantizer": ["optimum:2.3.0", "gptqmodel:7.7.0"]}} | more  # fmt: skip
    return {"quantize_config.json": config | {"checkpoint_format": own},
            "config.json": config | {"checkpoint_format": model}}  # fmt: skip


def refused(*what):
    return Case(*what, read=False)


SYM, ACT = {"sym": True}, {"act_order": True}
FP8 = others(weight=PARTS["F8"], weight_scale=np.ones(1, np.float32))
NVFP4 = others(weight_packed=PARTS["U8"], weight_scale=PARTS["F8"][:, :4])
MXFP4 = others(weight_packed=PARTS["U8"], weight_scale=PARTS["U8"][:, :2])
EIGHT_BITS = others(qweight=np.zeros((16, 64), np.int32))

CASES = (
    Case("GPTQ v1, symmetric", "GPTQModel", gptqmodel(), gptq(), SYM),
    Case("GPTQ v1, symmetric", "auto-round", auto_round_as("gptq"), gptq(), SYM),
    Case("GPTQ v1, symmetric", "optimum", optimum("gptq", "gptq_v2", sym=True), gptq(), SYM),
    Case("GPTQ v1, asymmetric", "GPTQModel", gptqmodel(sym=False), gptq()),
    Case("GPTQ v1, asymmetric", "auto-round", auto_round_as("gptq", sym=False), gptq()),
    Case("GPTQ v1, act-order", "GPTQModel", gptqmodel(desc_act=True, sym=False), gptq(), ACT),
    Case("GPTQ v1, act-order", "optimum", optimum("gptq", "gptq", sym=False, desc_act=True),
         gptq(), ACT),
    Case("GPTQ v1, one group", "GPTQModel", gptqmodel(group_size=-1), gptq(),
         SYM | {"group_size": -1}),
    Case("GPTQ v2", "GPTQModel", gptqmodel(sym=False, format="gptq_v2"), gptq("gptq_v2")),
    Case("GPTQ v2", "optimum", optimum("gptq_v2", "gptq_v2", sym=False), gptq("gptq_v2")),
    refused("GPTQ v1 and v2 in two files", "others", optimum("gptq", "gptq_v2", sym=False), gptq()),
    Case("gptq_p", "GPTQModel", gptqmodel(sym=False, format="gptq_p"), gptq("gptq_v2")),
    Case("GPTQ's Marlin", "others", gptqmodel(format="marlin", is_marlin_format=True),
         build.Layer.marlin, SYM),
    refused("GPTQ, 8 bits", "GPTQModel", gptqmodel(bits=8), EIGHT_BITS),
    refused("GPTQ, 8 bits", "auto-round", auto_round_as("gptq", bits=8), EIGHT_BITS),
    Case("AWQ gemm", "GPTQModel", gptqmodel(method="awq", format="gemm", sym=False),
         build.Layer.awq),
    Case("AWQ gemm", "auto-round", auto_round_as("awq", version="gemm", zero_point=True, sym=False),
         build.Layer.awq),
    Case("AWQ gemm", "AutoAWQ", autoawq("gemm"), build.Layer.awq),
    Case("AWQ gemm, symmetric", "auto-round",
         auto_round_as("awq", version="gemm", zero_point=False), build.Layer.awq, SYM),
    Case("AWQ gemv", "GPTQModel", gptqmodel(method="awq", format="gemv", sym=False),
         lambda layer: layer.gemv(4)),
    Case("AWQ gemv", "AutoAWQ", autoawq("gemv"), lambda layer: layer.gemv(4)),
    Case("AWQ gemv_fast", "GPTQModel", gptqmodel(method="awq", format="gemv_fast", sym=False,
         pack_dtype="int16"), lambda layer: layer.gemv_fast(4)),
    Case("AWQ gemv_fast", "AutoAWQ", autoawq("gemv_fast"), lambda layer: layer.gemv_fast(4)),
    Case("AWQ Marlin", "AutoAWQ", autoawq("marlin", False), build.Layer.awq_marlin, SYM),
    Case("AWQ llm-awq", "GPTQModel", gptqmodel(method="awq", format="llm-awq", sym=False,
         pack_dtype="int16"), lambda layer: layer.gemv_fast(4, "scaled_zeros")),
    refused("AWQ without qzeros", "others", autoawq("gemm"),
         lambda layer: {k: v for k, v in layer.awq().items() if k != "qzeros"}, SYM),
    Case("auto_round:auto_gptq", "auto-round", auto_round("auto_round:auto_gptq"),
         gptq(g_idx=False), SYM),
    Case("auto_round:auto_awq", "auto-round", auto_round("auto_round:auto_awq", sym=False),
         build.Layer.awq),
    Case("auto_round", "auto-round", auto_round("auto_round", sym=False),
         gptq("gptq_v2", g_idx=False)),
    Case("pack-quantized, symmetric", "llm-compressor", compressed(),
         lambda layer: layer.compressed(True), SYM),
    Case("pack-quantized, symmetric", "auto-round", compressed(),
         lambda layer: layer.compressed(True), SYM),
    Case("pack-quantized, asymmetric", "llm-compressor", compressed(sym=False),
         build.Layer.compressed),
    Case("pack-quantized, asymmetric", "auto-round", compressed(sym=False), build.Layer.compressed),
    Case("pack-quantized, channel", "llm-compressor", compressed(size=None, strategy="channel"),
         lambda layer: layer.compressed(True), SYM | {"group_size": -1}),
    Case("pack-quantized, act-order group", "llm-compressor",
         compressed(sym=False, actorder="group"), lambda layer: layer.compressed(g_idx=True), ACT),
    Case("pack-quantized, act-order static", "llm-compressor",
         compressed(sym=False, actorder="static"), build.Layer.compressed),
    refused("pack-quantized, 8 bits", "llm-compressor", compressed(bits=8),
         lambda layer: layer.compressed(True), SYM),
    refused("fp8", "llm-compressor", compressed("float-quantized", None, "float", 8), FP8),
    refused("fp8", "others", {"config.json": {"quant_method": "fp8"}}, FP8),
    refused("NVFP4", "llm-compressor", compressed("nvfp4-pack-quantized", 16, "float"), NVFP4),
    refused("MXFP4", "llm-compressor", compressed("mxfp4-pack-quantized", 32, "float"), MXFP4),
    refused("GGUF", "others", {}),
)  # fmt: skip


def outcome(case, rng):
    """Return "right", or why the case was refused; a wrong weight is an error of this test."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        layer = build.make(rng, **({"group_size": GROUP} | case.kind))
        write(case, layer, place)
        try:
            with GptqCheckpoint.open(place) as checkpoint:
                got = checkpoint.linear(LAYER)
        except FerrumError as error:
            return str(error).replace(folder, "model_dir")
        build.check(got, layer)
        return "right"


def write(case, layer, place):
    """Write a case's checkpoint."""
    if case.write is None:
        (place / "model-q4_k.gguf").write_bytes(b"GGUF")
    else:
        build.write(place, {LAYER: case.write(layer)})
    for file, config in case.configs.items():
        text = {FILE: config} if file == "config.json" else config
        (place / file).write_text(json.dumps(text))


def table():
    """Return the table in Markdown, and the refusals below it."""
    rng = np.random.default_rng(0)
    notes, rows = [], {}
    for case in CASES:
        said = outcome(case, rng)
        if said != "right":
            notes += [said] if said not in notes else []
            said = f"refused [{notes.index(said) + 1}]"
        rows.setdefault(case.format, {})[case.exporter] = said
    lines = [f"| | {' | '.join(EXPORTERS)} |", f"|---{'|---' * len(EXPORTERS)}|"]
    for name, cells in rows.items():
        lines.append(f"| {name} | {' | '.join(cells.get(e, '') for e in EXPORTERS)} |")
    return "\n".join([*lines, "", *(f"{i}. `{note}`" for i, note in enumerate(notes, 1))])


def with_table(page, text):
    """Return a page with this table between its marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(), table()))
