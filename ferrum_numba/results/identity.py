"""What a stored time holds for: when a row answers for a measurement, and what keeps it from that.

A time holds for one program on one kind of GPU under one driver, taken by one policy. The program's
fingerprint names its source and the toolchain it was compiled with. The GPU is what its kernels can
tell apart: its architecture, SMs, memory and L2. Its product name is only what people call it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ferrum_numba.gpu import GIB
from ferrum_numba.results.row import Row, same

# what stands between a source and its cubin, by the names of an environment's versions
TOOLCHAIN = ("numba", "numba-cuda", "nvidia-nvvm", "nvvm", "nvidia-nvjitlink")


def identity(source_hash: str, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be equal for a time to hold, by name."""
    return {
        **model(environment),
        "driver": environment["driver"],
        "policy": environment["policy"],
        "program": source_hash,
    }


def model(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what kernels can tell apart of the GPU, by name."""
    facts = environment["gpu_facts"]
    return {
        "architecture": facts.get("arch"),
        "number of SMs": facts.get("num_sms"),
        # drivers differ in the megabytes that they keep for themselves
        "memory in GiB": round(facts.get("dram_bytes", 0) / GIB),
        "L2 in bytes": facts.get("l2_bytes"),
    }


def board_factors(here: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, float]:
    """Return what a board takes over what the first of its model took, by what bounds the work.

    Of two yardsticks that are bound alike, by "memory" or by the "tensor" cores, the first counts.

    Args:
        here, first: environments whose yardsticks are the same, or that have none
    """
    timed = [*zip(here.get("yardstick", ()), first.get("yardstick", ()), strict=True)]
    return {one.get("bound", ""): one["us"] / other["us"] for one, other in reversed(timed)}


def compares(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether times of two runs compare: of one board, or of two with one yardstick."""
    return then["uuid"] == now["uuid"] or one_yardstick(then, now)


def one_yardstick(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether the same programs were timed on both boards, beside what was to be tuned."""
    before, after = (
        [{**one, "us": None} for one in side.get("yardstick", ())] for side in (then, now)
    )
    return bool(before) and same(before, after)


def differences(
    row: Row, then: Mapping[str, Any], wanted: Row, now: Mapping[str, Any]
) -> list[str]:
    """Return why a stored row does not answer for a wanted one, in words; empty if it does.

    Args:
        row, then:   the stored row, and the environment it was measured in
        wanted, now: what is asked for, and the environment here
    """
    before, after = identity(row.source_hash, then), identity(wanted.source_hash, now)
    found = [
        _in_words(name, before[name], after[name])
        for name in before
        if name != "program" and not same(before[name], after[name])
    ]
    if before["program"] != after["program"]:
        found.append(_other_program(then["versions"], now["versions"]))
    if not compares(then, now):
        found.append(f"another board, {_short(then)}, and no yardstick was timed on both")
    if row.untrusted:
        found.append(f"not trusted: {row.untrusted}")
    return found


def _in_words(name: str, before: Any, after: Any) -> str:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        names = [one for one in {**before, **after} if before.get(one) != after.get(one)]
        before, after = ({one: side.get(one) for one in names} for side in (before, after))
        changed = ", ".join(f"{one} was {before[one]}, is {after[one]}" for one in names)
        return f"another {name}: {changed}"
    return f"another {name}: was {before}, is {after}"


def _other_program(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    changed = [
        f"{name} was {before.get(name)}, is {after.get(name)}"
        for name in TOOLCHAIN
        # nvvm is only known of what was compiled in that run
        if before.get(name) and after.get(name) and before[name] != after[name]
    ]
    if changed:
        return f"another program: {', '.join(changed)}"
    return "another program: the kernel's source changed, with the same toolchain"


def _short(environment: Mapping[str, Any]) -> str:
    return str(environment["uuid"]).removeprefix("GPU-")[:8] or "unnamed"
