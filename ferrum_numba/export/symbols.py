"""The names of programs in an export: the kernel's, then what of its config is compiled in.

`decode_tm8_wn2_wk4_sk128_bps2_c2_early_gs128_fp16` is `decode` with tile_m = 8, warps_n = 2 and so
on: fields by their initials, true ones by their name, false ones not at all, types by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ferrum_numba.contract import Config, Kernel

# fields that only a launch knows: configs that differ in nothing else are one program
LAUNCH_ONLY: Mapping[str, frozenset[str]] = {
    "marlin": frozenset({"blocks_per_sm"}),
    "prefill": frozenset({"stripes"}),
    "w4a16_gptq": frozenset({"split_k"}),
}


def compiled_in(kernel: Kernel, config: Config) -> dict[str, Any]:
    """Return the fields of a config that decide its program."""
    apart = LAUNCH_ONLY.get(kernel.name, frozenset())
    return {name: value for name, value in asdict(config).items() if name not in apart}


def symbol(kernel: Kernel, config: Config) -> str:
    """Return the entry symbol of a config's program: the same on every machine."""
    parts = (_part(name, value) for name, value in compiled_in(kernel, config).items())
    return "_".join([kernel.name, *(part for part in parts if part)])


def _part(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else ""
    if isinstance(value, str):
        return value
    initials = "".join(word[0] for word in name.split("_"))
    # the only negative one: a group that is the whole of K
    return f"{initials}all" if value == -1 else f"{initials}{value}"
