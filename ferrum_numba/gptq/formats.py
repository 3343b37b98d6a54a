"""Every format of a layer, and the loader that reads it; and layers that no loader reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ferrum_numba.gptq import awq, compressed, gemv, legacy_marlin
from ferrum_numba.gptq.config import GptqConfig
from ferrum_numba.gptq.files import Entry
from ferrum_numba.gptq.stored import Parts, Stored
from ferrum_numba.gptq.tensors import GptqTensors


def read_gptq(parts: Parts, config: GptqConfig) -> Stored:
    """Return a stored layer of GPTQ's own layout: views of the file."""
    layer = GptqTensors.make(
        parts.name, parts.need("qweight"), parts.need("scales"), parts.optional("qzeros"),
        parts.optional("g_idx"), parts.optional("bias"), group_size=config.group_size,
        sym=config.sym, desc_act=config.desc_act, checkpoint_format=config.checkpoint_format,
        zero_overflow=config.zero_overflow,
    )  # fmt: skip
    return Stored(layer)


READERS: dict[str, Callable[[Parts, GptqConfig], Stored]] = {
    "gptq": read_gptq,
    "gptq_v2": read_gptq,
    "marlin": legacy_marlin.read,
    "gemm": awq.read,
    "gemv": gemv.read,
    "gemv_fast": gemv.read_fast,
    "llm-awq": gemv.read_llm_awq,
    "awq_marlin": legacy_marlin.read_awq,
    "pack-quantized": compressed.read,
}
# the tensor that makes a layer, by format; every other format has a qweight
WEIGHTS = {"marlin": "B", "pack-quantized": "weight_packed"}
MAKERS = ("qweight", "weight_packed")
# last parts of names of the tensors that make a layer, of any format
PARTS = frozenset({
    "qweight", "scales", "qzeros", "g_idx", "bias", "scaled_zeros", *legacy_marlin.NAMES,
    "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx",
})  # fmt: skip
SCALED = frozenset({"scales", "s", "weight_scale", "bias"})
FP8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FN", "F8_E5M2FNUZ", "F8_E4M3FNUZ")
MATRIX = 2
# of a weight of bytes, as exporters call them
SCALES = ("weight_scale", "weight_scale_inv", "scale_weight", "SCB")
# last parts of names that only layers of another kind have
ELSEWHERE = {"q_weight": "EXL2", "trellis": "EXL3", "W_q": "HQQ"}
# of 10^6 tensors' names, the last parts that say what a layer is
TELLING = frozenset({*MAKERS, *ELSEWHERE, "B", "blocks", "weight"})
# gpt-oss' experts have no dot before these
STACKED = ("_blocks", "_scales")


def weight_of(stored_as: str) -> str:
    """Return the last part of the name of the tensor that makes a layer of a format."""
    return WEIGHTS.get(stored_as, "qweight")


def outlined(stored_as: str) -> frozenset[str]:
    """Return the last parts of names of tensors of which a layer's shape and types are enough."""
    weights = frozenset({*MAKERS, *WEIGHTS.values()})
    # a layer of these is known by its scales' padding, and by what they make of zero points
    return weights if stored_as in ("gemv", "gemv_fast", "llm-awq") else weights | SCALED


def layer_of(tensor: str) -> tuple[str, str]:
    """Return the layer that a tensor's name says it is of, and the last part of the name."""
    layer, dot, part = tensor.rpartition(".")
    if part.endswith(STACKED):
        stack, _, ending = part.rpartition("_")
        return f"{layer}{dot}{stack}", ending
    # bitsandbytes' scales are called after the weight
    return layer.removesuffix(".weight"), part


def find_layers(entries: Mapping[str, Entry]) -> dict[str, str | None]:
    """Return the quantised layers: name -> None, or what it is where that is no int4 weight."""
    found: dict[str, str | None] = {}
    for tensor, entry in entries.items():
        layer, part = layer_of(tensor)
        if part not in TELLING:
            continue
        kind = _other_kind(layer, part, entry, entries)
        if kind is not None:
            found.setdefault(layer, f"{kind} ({tensor} is {entry.dtype})")
        elif part in MAKERS or (part == "B" and entry.dtype == "I32"):
            found[layer] = None
    return found


def _other_kind(layer: str, part: str, entry: Entry, entries: Mapping[str, Entry]) -> str | None:
    """Return what a tensor shows its layer to be, if it shows anything."""
    if part in ELSEWHERE:
        return ELSEWHERE[part]
    if part == "blocks" and entry.dtype == "U8":
        return "MXFP4"
    # a norm's vector may be of any type
    if part not in ("weight", "weight_packed") or len(entry.shape) < MATRIX:
        return None
    if entry.dtype == "U8":
        return _of_bytes(layer, entries)
    # without a scale the values are what they are
    if not any(f"{layer}.{scale}" in entries for scale in SCALES):
        return None
    return "fp8" if entry.dtype in FP8 else {"I8": "int8"}.get(entry.dtype)


def _of_bytes(layer: str, entries: Mapping[str, Entry]) -> str:
    """Return what a weight of bytes is, as its scales show."""
    scale = entries.get(f"{layer}.weight_scale")
    if scale is None:
        return "bitsandbytes"
    return "NVFP4" if scale.dtype in FP8 else "MXFP4"
