"""How a checkpoint says it was quantised: its JSON, in the dialects of GPTQ's and AWQ's tools."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ferrum_numba.errors import CheckpointError

# where a config may stand; the first that is there wins
FILES = ("quantize_config.json", "quant_config.json")
MODEL_FILE, SECTION = "config.json", "quantization_config"
# our name -> what tools call it; all that are given must agree
SYNONYMS = {
    "bits": ("bits", "w_bit", "wbits"),
    "group_size": ("group_size", "q_group_size"),
    "desc_act": ("desc_act",),
    "sym": ("sym", "zero_point"),
    "quant_method": ("quant_method", "method"),
    "checkpoint_format": ("checkpoint_format", "format", "version", "is_marlin_format"),
    "lm_head": ("lm_head",),
    "pack_dtype": ("pack_dtype",),
}
KINDS: dict[str, type] = {"bits": int, "group_size": int, "quant_method": str,
         "checkpoint_format": str, "pack_dtype": str}  # fmt: skip
# what models call the experts of a token
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_k")
WORDS = {int: "a whole number", bool: "true or false", str: "a string"}
# method -> formats of its checkpoints that can be read, the default first
FORMATS = {"gptq": ("gptq", "gptq_v2", "marlin"), "awq": ("gemm",), "marlin": ("marlin",)}


@dataclass(frozen=True)
class GptqConfig:
    """What a checkpoint's layers have in common, and the rules for those that differ.

    bits:              of a code; 4
    group_size:        rows that share a scale; -1 for all of them
    desc_act:          rows may be in act-order; then there is a g_idx
    sym:               every zero point is 8, whatever is stored; a file that does not say so may
                       be symmetric all the same, as its zero points show
    quant_method:      "gptq", "awq" or "marlin"
    checkpoint_format: "gptq", "gptq_v2", "gemm" (AWQ's) or "marlin"
    lm_head:           the head is quantised too
    dynamic:           pattern of layer names -> what differs there; None: is not quantised
    source:            the file it was read from; every error names it
    """

    bits: int = 4
    group_size: int = 128
    desc_act: bool = False
    sym: bool = False
    quant_method: str = "gptq"
    checkpoint_format: str = "gptq"
    lm_head: bool = False
    dynamic: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    source: str = "config"

    @classmethod
    def load(cls, folder: str | Path) -> GptqConfig:
        """Read a folder's quantize_config.json, or quant_config.json, or the one in config.json.

        Raises:
            CheckpointError: there is none, it is damaged, or what it says is not supported.
        """
        for path in (Path(folder) / name for name in FILES):
            if path.exists():
                return cls.parse(read_json(path), str(path))
        path = Path(folder) / MODEL_FILE
        found = read_json(path).get(SECTION) if path.exists() else None
        if found is None:
            raise CheckpointError(
                f"{folder} has no {FILES[0]} and no {MODEL_FILE} with a {SECTION}; "
                "a quantised checkpoint needs one of them"
            )
        return cls.parse(found, f"{path}: {SECTION}")

    @classmethod
    def parse(cls, found: Any, source: str = "config") -> GptqConfig:
        """Return the config of a JSON object; keys that mean nothing here are ignored.

        Raises:
            CheckpointError: a value of another type, one that is not supported, or two that
                contradict each other; it names source, key, found and needed.
        """
        if not isinstance(found, dict):
            raise CheckpointError(f"{source} must be a JSON object; got {found!r}")
        values = _supported(_values(found, source), source)
        return cls(**values, dynamic=_rules(found.get("dynamic"), source), source=source)

    def for_layer(self, name: str) -> GptqConfig | None:
        """Return the config of one layer: the first rule that its name matches, applied.

        Returns:
            None where a rule says that the layer is not quantised.

        Raises:
            CheckpointError: what the rule says is not supported; it names the layer.
        """
        for pattern, changes in self.dynamic.items():
            if re.match(pattern, name):
                if changes is None:
                    return None
                source = f"{self.source}: dynamic {pattern!r}"
                usual = {key: getattr(self, key) for key in SYNONYMS if key != "pack_dtype"}
                values = usual | _values(changes, source)
                return replace(self, **_supported(values, f"{name}: {source}"))
        return self


def experts_per_token(folder: str | Path) -> int | None:
    """Return how many experts a token of the model has, as its config.json says; None if not.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = Path(folder) / MODEL_FILE
    if not path.exists():
        return None
    model = read_json(path)
    sections = (model, model.get("text_config"))
    said = (s.get(name) for s in sections if isinstance(s, dict) for name in TOP_K)
    return next((value for value in said if type(value) is int), None)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        CheckpointError: it cannot be read, or is no JSON object; it names the file.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    # what is no UTF-8 is a ValueError too; a nest of 10^5 brackets a RecursionError
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {str(error).lower()}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} must be a JSON object; got {type(found).__name__}")
    return found


def _values(found: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return what an object says, by our names; null says nothing."""
    values: dict[str, Any] = {}
    for name, synonyms in SYNONYMS.items():
        given: dict[str, Any] = {}
        for key in synonyms:
            value = _value(name, key, found.get(key), source)
            if value is not None:
                given[key] = value
        if len(set(given.values())) > 1:
            said = " and ".join(f"{key} = {json.dumps(found[key])}" for key in given)
            raise CheckpointError(f"{source}: {said} contradict each other")
        if given:
            values[name] = next(iter(given.values()))
    return values


def _value(name: str, key: str, value: Any, source: str) -> Any:
    """Return a key's value in the sense of our name for it, or None."""
    if value is None:
        return None
    # flags in their own words
    flag = key in ("zero_point", "is_marlin_format")
    kind = bool if flag else KINDS.get(name, bool)
    # True is an int to Python
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CheckpointError(f"{source}: {key} must be {WORDS[kind]}; got {json.dumps(value)}")
    if key == "zero_point":
        return not value
    if key == "is_marlin_format":
        return "marlin" if value else None
    return value.lower() if isinstance(value, str) else value


def _supported(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Return values with the method's own format where none is given, or say what cannot be."""
    values = dict(values)
    _need(source, "pack_dtype", values.pop("pack_dtype", "int32"), ("int32",))
    method = values.setdefault("quant_method", "gptq")
    _need(source, "quant_method", method, tuple(FORMATS))
    stored = values.setdefault("checkpoint_format", FORMATS[method][0])
    _need(source, f"checkpoint_format of {method}", stored, FORMATS[method])
    _need(source, "bits", values.get("bits", 4), (4,))
    size = values.get("group_size", 128)
    if size != -1 and size < 1:
        raise CheckpointError(f"{source}: group_size must be -1 or at least 1; got {size}")
    if stored in ("gemm", "marlin"):
        _need(source, f"desc_act of {stored}", values.get("desc_act", False), (False,))
    return values


def _need(source: str, key: str, got: Any, known: tuple[Any, ...]) -> None:
    if got not in known:
        wanted = " or ".join(json.dumps(value) for value in known)
        raise CheckpointError(f"{source}: {key} must be {wanted}; got {json.dumps(got)}")


def _rules(found: Any, source: str) -> dict[str, Mapping[str, Any] | None]:
    """Return GPTQModel's `dynamic`; the prefix "-:" becomes None, "+:" means nothing."""
    rules: dict[str, Mapping[str, Any] | None] = {}
    if not isinstance(found, dict | None):
        raise CheckpointError(f"{source}: dynamic must be an object; got {json.dumps(found)}")
    for key, changes in (found or {}).items():
        pattern = key.removeprefix("-:").removeprefix("+:")
        try:
            re.compile(pattern)
        except re.error as error:
            raise CheckpointError(
                f"{source}: dynamic {key!r} is no pattern of names: {error}"
            ) from error
        if not isinstance(changes, dict):
            raise CheckpointError(
                f"{source}: dynamic {key!r} must be an object; got {json.dumps(changes)}"
            )
        rules[pattern] = None if key.startswith("-:") else changes
    return rules
