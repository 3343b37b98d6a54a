"""compressed-tensors' config: groups of layers by their targets, and the layers to ignore.

A target is a layer's name, "re:" and a pattern, or the name of a class such as Linear; in this
order they count. What is no int4 weight for 16-bit activations is no fault of the config: its
layers are refused one by one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ferrum_numba.errors import CheckpointError
from ferrum_numba.gptq.rules import Rule, compiled, exactly

METHOD = "compressed-tensors"
FORMAT = "pack-quantized"
PATTERN = "re:"
# classes of modules that hold no linear layer
NOT_LINEAR = ("Attention", "Embedding", "Norm")
ACTIVATION_BITS = 16
# places of a rotation that is done while the model runs: the weight alone is not the layer
ONLINE = ("input", "output")


def said(found: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return what a config says, by our names: everything is in its rules.

    Raises:
        CheckpointError: a value of another type.
    """
    groups = _object(found, "config_groups", source)
    rules: list[tuple[int, Rule]] = []
    for name in groups:
        group = _object(groups, name, f"{source}: config_groups")
        where = f"config_groups {name!r}"
        changes = _changes(group.get("weights") or {}, f"{source}: {where}")
        refusal = _global_refusal(found) or _refusal(group, found.get("format"))
        for target in _strings(group, "targets", f"{source}: {where}"):
            for rank, pattern in _matched(target, f"{source}: {where} target {target!r}"):
                key = f"{where} target {target!r}"
                rules.append((rank, Rule(key, pattern, changes, refusal)))
    # stable: among alike targets the first counts
    rules.sort(key=lambda ranked: ranked[0])
    anything = compiled("", source)
    rest = Rule("config_groups without a target for it", anything, None)
    return {
        "quant_method": METHOD,
        "checkpoint_format": FORMAT,
        "rules": (*_ignored(found, source), *(rule for _, rule in rules), rest),
    }


def _ignored(found: Mapping[str, Any], source: str) -> Iterator[Rule]:
    for target in _strings(found, "ignore", source):
        where = f"ignore {target!r}"
        for rank, pattern in _matched(target, f"{source}: {where}"):
            # a class says nothing of a name
            if rank < 2:
                yield Rule(where, pattern, None)


def _matched(target: str, where: str) -> Iterator[tuple[int, Any]]:
    """Yield how early a target counts and its pattern of names; nothing for other modules."""
    if target.startswith(PATTERN):
        yield 1, compiled(target.removeprefix(PATTERN), where)
    elif "." in target or not target[:1].isupper():
        yield 0, exactly(target)
    elif not any(word in target for word in NOT_LINEAR):
        yield 2, compiled("", where)


def _changes(weights: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a group's weights in GPTQ's keys."""
    if not isinstance(weights, dict):
        raise CheckpointError(f"{where}: weights must be an object; got {json.dumps(weights)}")
    size = weights.get("group_size")
    channel = weights.get("strategy") == "channel" or size is None
    return {
        "bits": weights.get("num_bits", 8),
        "group_size": -1 if channel else size,
        "sym": weights.get("symmetric", True),
        "desc_act": weights.get("actorder") in ("group", "dynamic", True),
    }


def _refusal(group: Mapping[str, Any], stored_as: Any) -> str | None:
    """Return why layers of a group are not what is read here."""
    weights = group.get("weights")
    if not weights:
        return "has no weights: only activations are quantised"
    kind, bits = weights.get("type", "int"), weights.get("num_bits", 8)
    stored_as = group.get("format") or stored_as
    if kind != "int":
        return f"is {stored_as}, {kind} of {bits} bits; only int4 is read"
    if bits != 4:
        return None
    if stored_as != FORMAT:
        return f"is stored as {stored_as}; only {FORMAT} is read"
    if weights.get("strategy", "group") not in ("group", "channel"):
        return f"has scales by {weights['strategy']}; only group and channel are read"
    activations = group.get("input_activations") or {}
    if activations.get("num_bits", ACTIVATION_BITS) < ACTIVATION_BITS:
        return f"is for activations of {activations['num_bits']} bits; only 16 bits are run"
    return None


def _global_refusal(found: Mapping[str, Any]) -> str | None:
    sparse = (found.get("sparsity_config") or {}).get("format", "dense")
    if sparse != "dense":
        return f"is sparse ({sparse}); only dense weights are read"
    transforms = (found.get("transform_config") or {}).get("config_groups") or {}
    for name, transform in transforms.items():
        places = [place.get("location") for place in transform.get("apply", [])]
        if any(place in ONLINE for place in places):
            return f"needs its activations rotated (transform_config {name!r}); that is not done"
    return None


def _object(found: Mapping[str, Any], key: str, source: str) -> dict[str, Any]:
    value = found.get(key)
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: {key} must be an object; got {json.dumps(value)}")
    return value


def _strings(found: Mapping[str, Any], key: str, source: str) -> list[str]:
    value = found.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CheckpointError(f"{source}: {key} must be strings; got {json.dumps(value)}")
    return value
