"""Configs of checkpoints that say exactly what is in them, in each format's words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ferrum_numba.errors import ProblemError


class Kind(NamedTuple):
    """What a config says of one layer.

    K:          rows
    group_size: rows that share a scale, up to K
    sym:        every zero point is 8
    act_order:  rows' groups are permuted
    """

    K: int
    group_size: int
    sym: bool = True
    act_order: bool = False

    def fits(self, group_size: int) -> bool:
        """Tell whether a config's group size is that of this layer."""
        return self.group_size == (self.K if group_size == -1 else min(group_size, self.K))


def gptq(
    layers: Mapping[str, Kind], kept: Iterable[str], checkpoint_format: str, *, lm_head: bool
) -> dict[str, Any]:
    """Return a config of GPTQ's tensors, or of legacy Marlin's.

    layers:            what is quantised, by name
    kept:              linear layers that are not
    checkpoint_format: "gptq", "gptq_v2" or "marlin"
    lm_head:           the head is among the layers
    """
    usual = usual_size(layers)
    rules: dict[str, dict[str, Any]] = {}
    for size in sorted({kind.group_size for kind in layers.values() if not kind.fits(usual)}):
        unlike = [n for n, k in layers.items() if k.group_size == size and not k.fits(usual)]
        found = patterns(unlike, layers.keys() - set(unlike))
        rules |= {f"+:{pattern}$": {"group_size": size} for pattern in found}
    # a loader takes every other linear layer for quantised
    rules |= {f"-:{pattern}$": {} for pattern in patterns(kept, layers)}
    config = {
        "bits": 4,
        "group_size": usual,
        "desc_act": any(kind.act_order for kind in layers.values()),
        "sym": all(kind.sym for kind in layers.values()),
        "lm_head": lm_head,
        "quant_method": "gptq",
        "checkpoint_format": checkpoint_format,
        "pack_dtype": "int32",
    }
    return config | ({"dynamic": rules} if rules else {})


def awq(layers: Mapping[str, Kind], kept: Iterable[str]) -> dict[str, Any]:
    """Return a config of AWQ's tensors.

    Raises:
        ProblemError: layers of two group sizes, which it cannot say.
    """
    usual = usual_size(layers)
    for name, kind in layers.items():
        if not kind.fits(usual):
            raise ProblemError(
                f"{name}: an AWQ config has one group size; others have {usual}, this layer has "
                f"{kind.group_size}"
            )
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": usual,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": list(kept),
    }


def compressed_tensors(layers: Mapping[str, Kind], kept: Iterable[str]) -> dict[str, Any]:
    """Return a config of compressed-tensors' pack-quantized tensors."""
    sym = all(kind.sym for kind in layers.values())
    by_size: dict[int, list[str]] = {}
    usual = usual_size(layers)
    for name, kind in layers.items():
        by_size.setdefault(usual if kind.fits(usual) else kind.group_size, []).append(name)
    groups = {}
    for number, (size, names) in enumerate(by_size.items()):
        targets = ["Linear"]
        if len(by_size) > 1:
            targets = [f"re:{p}$" for p in patterns(names, layers.keys() - set(names))]
        groups[f"group_{number}"] = _scheme(targets, size, sym)
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [f"re:{pattern}$" for pattern in patterns(kept, layers)],
        "kv_cache_scheme": None,
    }


def _scheme(targets: list[str], group_size: int, sym: bool) -> dict[str, Any]:
    one_group = group_size == -1
    weights = {
        "num_bits": 4, "type": "int", "symmetric": sym, "dynamic": False, "actorder": None,
        "strategy": "channel" if one_group else "group",
        "group_size": None if one_group else group_size,
    }  # fmt: skip
    return {
        "targets": targets, "weights": weights, "input_activations": None,
        "output_activations": None,
    }  # fmt: skip


def usual_size(layers: Mapping[str, Kind]) -> int:
    """Return the group size that most layers have, -1 where it is all of K."""
    sizes = {-1 if kind.fits(-1) else kind.group_size for kind in layers.values()}
    # what one group is to a short layer, a size is to all
    return max(sizes, key=lambda size: (sum(k.fits(size) for k in layers.values()), size))


def patterns(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return regular expressions, without an end, that match these names and none of the others.

    Names that differ in their numbers share one where it matches no other.
    """
    taken = {_numberless(name) for name in others}
    found: dict[str, None] = {}
    for name in names:
        pattern = _numberless(name)
        found[re.escape(name) if pattern in taken else pattern] = None
    return list(found)


def _numberless(name: str) -> str:
    parts = (r"\d+" if part.isdecimal() else re.escape(part) for part in name.split("."))
    return r"\.".join(parts)
