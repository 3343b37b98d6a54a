"""What one JSON object says of a checkpoint, by our names: every spelling of every exporter.

Nothing is filled in here: what is not said is missing, so that two sources can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ferrum_numba.door import shown
from ferrum_numba.errors import CheckpointError
from ferrum_numba.gptq import compressed_config, rules

# our name -> what tools call it; all that are given must agree
SYNONYMS = {
    "bits": ("bits", "w_bit", "wbits"),
    "group_size": ("group_size", "q_group_size"),
    "desc_act": ("desc_act",),
    "sym": ("zero_point", "sym"),
    "quant_method": ("quant_method", "method"),
    "checkpoint_format": ("checkpoint_format", "format", "version", "is_marlin_format"),
    "packing_format": ("packing_format",),
    "lm_head": ("lm_head",),
    "pack_dtype": ("pack_dtype",),
    "data_type": ("data_type",),
    "act_bits": ("act_bits",),
}
# where the first that is given decides: exporters leave a `sym` that means nothing beside AWQ's own
DECIDED = ("sym",)
KINDS: dict[str, type] = {
    "bits": int, "group_size": int, "quant_method": str, "checkpoint_format": str,
    "packing_format": str, "pack_dtype": str, "data_type": str, "act_bits": int,
}  # fmt: skip
WORDS = {int: "a whole number", bool: "true or false", str: "a string"}
# other spellings of a method, hyphens and all
METHODS = {"auto_round": "auto-round", "autoround": "auto-round", "intel/auto-round": "auto-round",
           "compressed_tensors": "compressed-tensors"}  # fmt: skip
# other spellings of a format; gptq_p has the tensors of gptq_v2 where codes have 4 bits
SPELLINGS = {"gptq_p": "gptq_v2", "gemvfast": "gemv_fast", "llm_awq": "llm-awq"}
# auto-round's names of packings, of which each means one format: those that hold the name of a GPTQ
# kernel of its own store zero points as they are, auto_gptq's less 1
PACKINGS = {
    "auto": "gptq", "auto_gptq": "gptq", "auto_round:auto_gptq": "gptq", "auto_round:gptq": "gptq",
    "auto_round:gptq:exllamav2": "gptq", "auto_round:auto_gptq:exllamav2": "gptq",
    "auto_round:gptq:tritonv2": "gptq", "auto_round:auto_gptq:tritonv2": "gptq",
    "gptq": "gptq", "gptq:exllamav2": "gptq", "gptq:tritonv2": "gptq", "gptq:triton": "gptq",
    "gptq:cuda": "gptq",
    "auto_round": "gptq_v2", "auto_round:gptqmodel": "gptq_v2", "auto_round:exllamav2": "gptq_v2",
    "auto_round:tritonv2": "gptq_v2",
    "auto_awq": "gemm", "awq": "gemm", "awq:gemm": "gemm", "auto_awq:gemm": "gemm",
    "auto_round:auto_awq": "gemm", "auto_round:awq": "gemm", "auto_round:awq:gemm": "gemm",
    "auto_round:auto_awq:gemm": "gemm",
}  # fmt: skip


def said(found: Any, source: str) -> dict[str, Any]:
    """Return what a config says; a null where nothing else is said stays None.

    source: names the config in errors

    Raises:
        CheckpointError: a value of another type, or two that contradict each other; it names
            source and key.
    """
    if not isinstance(found, dict):
        raise CheckpointError(f"{source} must be a JSON object; got {shown(found)}")
    method = _method(found)
    if method == compressed_config.METHOD or (method is None and "config_groups" in found):
        return compressed_config.said(found, source)
    if method == "auto-round" and "packing_format" not in found and "backend" in found:
        # before 0.4 the name of the kernel said how the weight was packed
        found = {**found, "packing_format": found["backend"]}
    elif found.get("backend") == "llm-awq":
        found = {**found, "version": "llm-awq"}
    values = plain(found, source)
    if method is None and _is_marlin_of_awq(found):
        values["quant_method"] = "awq"
    layer_rules = (
        *rules.extra_config(found.get("extra_config"), source),
        *rules.dynamic(found.get("dynamic"), source),
    )
    return values | {"rules": layer_rules} if layer_rules else values


def plain(found: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return what an object says of all layers, or a rule of its layers."""
    values: dict[str, Any] = {}
    for name, synonyms in SYNONYMS.items():
        given = {key: _value(name, key, found[key], source) for key in synonyms if key in found}
        told = {key: value for key, value in given.items() if value is not None}
        if len(set(told.values())) > 1 and name not in DECIDED:
            words = " and ".join(f"{key} = {shown(found[key])}" for key in told)
            raise CheckpointError(f"{source}: {words} contradict each other")
        if given:
            values[name] = next(iter(told.values()), None)
    if values.get("packing_format") is not None:
        values["checkpoint_format"] = _packing(values.pop("packing_format"), source)
    return values


def _is_marlin_of_awq(found: Mapping[str, Any]) -> bool:
    """Tell whether a config without a method is AutoAWQ's own: GPTQ calls no format a version."""
    version, *others = (
        found.get(key) for key in ("version", "checkpoint_format", "format", "is_marlin_format")
    )
    of_marlin = isinstance(version, str) and _spelled("checkpoint_format", version) == "marlin"
    return of_marlin and all(other is None for other in others)


def _method(found: Mapping[str, Any]) -> str | None:
    for key in SYNONYMS["quant_method"]:
        if isinstance(found.get(key), str):
            return _spelled("quant_method", found[key])
    return None


def _spelled(name: str, value: str) -> str:
    value = value.strip().lower()
    return {"quant_method": METHODS, "checkpoint_format": SPELLINGS}.get(name, {}).get(value, value)


def _packing(packing: str, source: str) -> str:
    if packing not in PACKINGS:
        raise CheckpointError(
            f"{source}: packing_format {shown(packing)} is none of int4 that is read; those "
            "are auto_round:auto_gptq, auto_round:auto_awq, auto_round and their older names"
        )
    return PACKINGS[packing]


def _value(name: str, key: str, value: Any, source: str) -> Any:
    """Return a key's value in the sense of our name for it, or None."""
    if value is None:
        return None
    # flags in their own words
    flag = key in ("zero_point", "is_marlin_format")
    kind = bool if flag else KINDS.get(name, bool)
    # True is an int to Python
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CheckpointError(f"{source}: {key} must be {WORDS[kind]}; got {shown(value)}")
    if key == "zero_point":
        return not value
    if key == "is_marlin_format":
        return "marlin" if value else None
    return _spelled(name, value) if isinstance(value, str) else value
