"""What a program takes of the machine, and by how much two of them differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ferrum_numba.contract import Config, Kernel, describe

if TYPE_CHECKING:
    from ferrum_numba.compile import Binary
    from ferrum_numba.results import Row

RESOURCES = ("registers", "spill_bytes", "smem_bytes")


@dataclass(frozen=True)
class Built:
    """A kernel's program.

    config:    its fields by name
    registers, spill_bytes: of a thread; None where unknown
    smem_bytes: of a block, likewise
    mix:       how often each opcode stands in its SASS; empty where nobody can tell
    """

    kernel: str
    config: Mapping[str, Any]
    registers: int | None = None
    spill_bytes: int | None = None
    smem_bytes: int | None = None
    source_hash: str = ""
    mix: Mapping[str, int] = field(default_factory=dict)


def of_binary(kernel: Kernel, config: Config, binary: Binary) -> Built:
    """Return what a compiled program takes."""
    # not above: files are compared without a compiler
    from ferrum_numba.compile.sass import instruction_mix

    return Built(
        kernel.name, describe(config), binary.registers, binary.spill_bytes, binary.smem_bytes,
        binary.fingerprint, instruction_mix(binary.cubin) or {},
    )  # fmt: skip


def of_row(row: Row) -> Built:
    """Return what the program of a row takes; files have no SASS."""
    return Built(
        row.kernel, row.config, row.registers, row.spill_bytes, row.smem_bytes, row.source_hash
    )


def deltas(old: Built, new: Built) -> dict[str, Any]:
    """Return what the new takes more than the old, and under `sass` how many of each opcode.

    What is not known of both is left out.
    """
    found: dict[str, Any] = {}
    for name in RESOURCES:
        before, after = getattr(old, name), getattr(new, name)
        if before is not None and after is not None:
            found[name] = after - before
    if old.mix and new.mix:
        both = {**new.mix, **old.mix}
        change = {code: new.mix.get(code, 0) - old.mix.get(code, 0) for code in both}
        kept = sorted((code for code in change if change[code]), key=lambda c: -abs(change[c]))
        found["sass"] = {code: change[code] for code in kept}
    return found


def counter_deltas(old: Row, new: Row) -> dict[str, Any]:
    """Return what a profiler counted more of the new row: bytes, shares, and stalls by reason.

    Nothing where one of them was not counted. A stall that only one of them has among its largest
    is left out: that of the other is not known.
    """
    before, after = (row.more.get("counters") or {} for row in (old, new))
    found: dict[str, Any] = {
        name: after[name] - before[name]
        for name in before
        if name in after and isinstance(after[name], int | float)
    }
    stalls = before.get("stalls", {}), after.get("stalls", {})
    both = {name: stalls[1][name] - stalls[0][name] for name in stalls[0] if name in stalls[1]}
    return found | ({"stalls": both} if both else {})
