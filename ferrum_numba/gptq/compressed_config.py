"""compressed-tensors' config: groups of layers by their targets, and the layers to ignore.

A target is a layer's name, "re:" and a pattern, or the name of a class such as Linear; in this
order they count. What is no int4 weight for 16-bit activations is no fault of the config: its
layers are refused one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ferrum_numba.door import quoted, shown
from ferrum_numba.errors import CheckpointError
from ferrum_numba.gptq.patterns import Budget, Exactly, Pattern
from ferrum_numba.gptq.rules import Rule

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
    # of the whole model
    refusal_of_all = _global_refusal(found, source)
    rules: list[tuple[int, Rule]] = []
    budget = Budget()
    for name in groups:
        group = _object(groups, name, f"{source}: config_groups")
        where = f"config_groups {quoted(name)}"
        weights = _optional(group, "weights", f"{source}: {where}")
        changes = _changes(weights, f"{source}: {where}")
        refusal = refusal_of_all or _refusal(
            group, weights, found.get("format"), f"{source}: {where}"
        )
        for target in _strings(group, "targets", f"{source}: {where}"):
            for rank, pattern in _matched(
                target, f"{source}: {where} target {quoted(target)}", budget
            ):
                key = f"{where} target {quoted(target)}"
                rules.append((rank, Rule(key, pattern, changes, refusal)))
    # stable: among alike targets the first counts
    rules.sort(key=lambda ranked: ranked[0])
    rest = Rule("config_groups without a target for it", Exactly(None), None)
    return {
        "quant_method": METHOD,
        "checkpoint_format": FORMAT,
        "rules": (*_ignored(found, source, budget), *(rule for _, rule in rules), rest),
    }


def _ignored(found: Mapping[str, Any], source: str, budget: Budget) -> Iterator[Rule]:
    for target in _strings(found, "ignore", source):
        where = f"ignore {quoted(target)}"
        for rank, pattern in _matched(target, f"{source}: {where}", budget):
            # a class says nothing of a name
            if rank < 2:
                yield Rule(where, pattern, None)


def _matched(target: str, where: str, budget: Budget) -> Iterator[tuple[int, Pattern | Exactly]]:
    """Yield how early a target counts and its pattern of names; nothing for other modules."""
    if target.startswith(PATTERN):
        yield 1, Pattern(target.removeprefix(PATTERN), where, budget)
    elif "." in target or not target[:1].isupper():
        yield 0, Exactly(target)
    elif not any(word in target for word in NOT_LINEAR):
        yield 2, Exactly(None)


def _changes(weights: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a group's weights in GPTQ's keys."""
    size = weights.get("group_size")
    channel = weights.get("strategy") == "channel" or size is None
    return {
        "bits": _bits(weights, 8, f"{where} weights"),
        "group_size": -1 if channel else size,
        "sym": weights.get("symmetric", True),
        "desc_act": weights.get("actorder") in ("group", "dynamic", True),
    }


def _refusal(
    group: Mapping[str, Any], weights: Mapping[str, Any], stored_as: Any, where: str
) -> str | None:
    """Return why layers of a group are not what is read here."""
    if not weights:
        return "has no weights: only activations are quantised"
    kind, bits = weights.get("type", "int"), weights.get("num_bits", 8)
    activations = _optional(group, "input_activations", where)
    of_activations = _bits(activations, ACTIVATION_BITS, f"{where} input_activations")
    stored_as = group.get("format") or stored_as
    if kind != "int":
        return f"is {stored_as}, {kind} of {bits} bits; only int4 is read"
    if bits != 4:
        return None
    if stored_as != FORMAT:
        return f"is stored as {stored_as}; only {FORMAT} is read"
    if weights.get("strategy", "group") not in ("group", "channel"):
        return f"has scales by {weights['strategy']}; only group and channel are read"
    if of_activations < ACTIVATION_BITS:
        return f"is for activations of {of_activations} bits; only 16 bits are run"
    return None


def _global_refusal(found: Mapping[str, Any], source: str) -> str | None:
    sparse = _optional(found, "sparsity_config", source).get("format", "dense")
    if sparse != "dense":
        return f"is sparse ({sparse}); only dense weights are read"
    where = f"{source}: transform_config"
    transforms = _optional(_optional(found, "transform_config", source), "config_groups", where)
    for name in transforms:
        places = _object(transforms, name, f"{where}: config_groups").get("apply") or []
        if not isinstance(places, list) or not all(isinstance(place, dict) for place in places):
            raise CheckpointError(
                f"{where}: config_groups {quoted(name)}: apply must be objects; got {shown(places)}"
            )
        if any(place.get("location") in ONLINE for place in places):
            return (
                f"needs its activations rotated (transform_config {quoted(name)}); that is not done"
            )
    return None


def _bits(found: Mapping[str, Any], default: int, where: str) -> int:
    bits = found.get("num_bits", default)
    if type(bits) is not int:
        raise CheckpointError(f"{where}: num_bits must be a whole number; got {shown(bits)}")
    return bits


def _optional(found: Mapping[str, Any], key: str, source: str) -> dict[str, Any]:
    """Return an object, or an empty one where there is none or null."""
    return {} if found.get(key) is None else _object(found, key, source)


def _object(found: Mapping[str, Any], key: str, source: str) -> dict[str, Any]:
    value = found.get(key)
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: {key} must be an object; got {shown(value)}")
    return value


def _strings(found: Mapping[str, Any], key: str, source: str) -> list[str]:
    value = found.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CheckpointError(f"{source}: {key} must be strings; got {shown(value)}")
    return value
