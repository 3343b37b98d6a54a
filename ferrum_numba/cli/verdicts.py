"""The verdicts of a comparison, as lines of a table and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ferrum_numba.cli.names import brief, in_words
from ferrum_numba.cli.tables import print_table

if TYPE_CHECKING:
    from ferrum_numba.results import Row
    from ferrum_numba.results.pairs import Pair

COLUMNS = (
    "problem",
    "old",
    "new",
    "old_us",
    "new_us",
    "new/old",
    "low",
    "high",
    "verdict",
    "delta",
)
# opcodes of a SASS delta that a line has room for
OPCODES = 4
# counters that are shares, in words
SHARES = {"l2_hit": "L2 hits", "issue": "issue slots", "tensor": "tensor cores"}
KEPT = (
    "kernel", "config", "us", "us_low", "us_high", "fraction", "registers", "spill_bytes",
    "smem_bytes", "status",
)  # fmt: skip


def told(pair: Pair, delta: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pair as JSON: the verdict is of the new, `ratio` its time over that of the old."""
    return {
        "op": pair.op, "problem": dict(pair.problem), "regime": pair.regime,
        "verdict": pair.verdict.name, "ratio": pair.verdict.ratio, "low": pair.verdict.low,
        "high": pair.verdict.high, "why": pair.why, "old": _of(pair.old), "new": _of(pair.new),
        "delta": dict(delta),
    }  # fmt: skip


def _of(row: Row | None) -> dict[str, Any] | None:
    if row is None:
        return None
    known = asdict(row)
    return {name: known[name] for name in KEPT}


def show(
    pairs: Sequence[Pair], lines: Sequence[Mapping[str, Any]], kinds: Mapping[str, type]
) -> None:
    """Print a line a problem, the reasons that no sample tells, and how many of each verdict.

    kinds: the dataclass of problems, by Op: of a problem there is what is not at its default
    """
    shown = []

    def named(pair: Pair) -> str:
        kind = kinds.get(pair.op)
        return brief(pair.problem, kind) if kind else in_words(pair.problem)

    for pair, line in zip(pairs, lines, strict=True):
        old, new = line["old"] or {}, line["new"] or {}
        shown.append({
            "problem": f"{named(pair)} {pair.regime}",
            "old": old.get("kernel"), "new": new.get("kernel"),
            "old_us": old.get("us"), "new_us": new.get("us"), "new/old": line["ratio"],
            "low": line["low"], "high": line["high"], "verdict": line["verdict"],
            "delta": _words(line["delta"]),
        })  # fmt: skip
    print_table(shown, COLUMNS, folded=("problem", "delta"))
    for pair in pairs:
        if pair.why:
            print(f"{named(pair)}: {pair.why}")
    counts: Counter[str] = Counter(pair.verdict.name for pair in pairs)
    order = ("FASTER", "SAME", "SLOWER", "UNDECIDED")
    print(", ".join(f"{counts[name]} {name}" for name in order) + ", of the new against the old")


def _words(delta: Mapping[str, Any]) -> str:
    nested = ("sass", "counters")
    words = [f"{name} {delta[name]:+d}" for name in delta if name not in nested and delta[name]]
    sass = list(delta.get("sass", {}).items())
    words += [f"{code} {count:+d}" for code, count in sass[:OPCODES]]
    if len(sass) > OPCODES:
        words.append(f"and {len(sass) - OPCODES} opcodes more")
    return ", ".join([*words, *_counted(delta.get("counters", {}))])


def _counted(counters: Mapping[str, Any]) -> list[str]:
    """Return what changed of what was counted, in words: MB, per cent of the whole, warps."""
    words = []
    if "dram_bytes" in counters:
        words.append(f"DRAM {counters['dram_bytes'] / 1e6:+.3g} MB")
    words += [
        f"{name} {100 * counters[field]:+.1f} % points"
        for field, name in SHARES.items()
        if field in counters
    ]
    return words + [f"{name} {warps:+.2g}" for name, warps in counters.get("stalls", {}).items()]
