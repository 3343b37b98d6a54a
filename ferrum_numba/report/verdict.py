"""The report's first paragraph: what the rows say, by fixed rules, and nothing they do not say."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from ferrum_numba.report.blocks import significant, span
from ferrum_numba.report.data import Board, Sources, peer_of
from ferrum_numba.results import Row, size_of
from ferrum_numba.roofline.model import LATENCY_BOUND_US, Ceiling, limit_of

# fractions of the bound from which a kernel counts as being at the roof, and as near it
AT_ROOF, NEAR_ROOF = 0.9, 0.75
# what `measure` says where power kept the clocks down
POWER_CAP = "power cap"
LIMIT_WORDS = {
    "latency": f"Latency-bound (bound below {LATENCY_BOUND_US:.0f} µs)",
    "memory": "Memory-bound",
    "tensor": "Tensor-bound",
    "unknown": "Of unknown limit (no ceilings)",
}


def verdict(board: Board) -> list[str]:
    """Return the paragraphs about one board: one, then one for each limit its problems have."""
    won = [winner.row for winner in board.winners.values()]
    total = len(board.problems)
    untrusted = sum(bool(row.untrusted) for row in board.rows)
    head = f"{board.title}: {_count(total, 'problem')}, {len(won)} with a correct, trusted time."
    if untrusted:
        head += f" {_count(untrusted, 'row')} marked untrusted when measured."
    head += f" The bound is the slower of memory and tensor cores at {board.bound}."
    groups: dict[str, list[Row]] = {}
    for row in won:
        groups.setdefault(limit_of(row, board.ceilings), []).append(row)
    return [head, *(_limit(board, name, groups[name]) for name in LIMIT_WORDS if name in groups)]


def _limit(board: Board, limit: str, rows: Sequence[Row]) -> str:
    """Return what is best where this limits, how far it is from the bound, and what to change."""
    sizes = [float(size) for row in rows if (size := size_of(row.problem)) is not None]
    where = f", {board.size_name} {span(sizes)}" if sizes else ""
    kernels = Counter(row.kernel for row in rows).most_common()
    leaders = " and ".join(f"{name} on {count} of {len(rows)}" for name, count in kernels)
    text = f"{LIMIT_WORDS[limit]} ({_count(len(rows), 'problem')}{where}): fastest is {leaders}."
    fractions = [(row.fraction, row) for row in rows if not math.isnan(row.fraction)]
    if fractions:
        values = [fraction for fraction, _ in fractions]
        worst, row = min(fractions, key=lambda pair: pair[0])
        text += f" The winners reach {span(values, 2)} of the bound"
        text += f" (median {statistics.median(values):.2f}); furthest is {_name(board, row)}"
        text += f" with {row.kernel} at {worst:.2f}."
        text += f" Next: {_advice(limit, statistics.median(values), row, board.ceilings)}."
    spills = sum(bool(row.spill_bytes) for row in rows)
    if spills:
        text += (
            f" {_count(spills, 'winner')} of these spill registers to memory: remove that first."
        )
    return text + _power(rows) + _against(board, rows, "4-bit") + _against(board, rows, "fp16")


def _name(board: Board, row: Row) -> str:
    size = size_of(row.problem)
    return board.shape(row.problem) + ("" if size is None else f", {board.size_name}={size}")


def _advice(limit: str, fraction: float, worst: Row, ceilings: Sequence[Ceiling]) -> str:
    """Return what to change, by the limit and how near it is."""
    if limit == "latency":
        return (
            "launch, ramp-up and tail weigh as much as the work: earlier first loads, one wave "
            "of blocks, a programmatic launch, or a fusion with the neighbouring kernel"
        )
    if limit == "unknown":
        return "measure the ceilings, so that the limit is known"
    if fraction >= AT_ROOF:
        what = "bytes" if limit == "memory" else "FLOPs"
        return f"nothing in the kernel: it is at the roof, only fewer {what} are faster"
    if limit == "memory":
        return _memory_advice(fraction, worst)
    return _tensor_advice(worst, ceilings)


def _memory_advice(fraction: float, worst: Row) -> str:
    if fraction >= NEAR_ROOF:
        return (
            "the rest is start, tail and uneven shares: split the weights evenly over the SMs "
            "and issue the first loads earlier"
        )
    now = f" (now {worst.blocks_per_sm} blocks an SM)" if worst.blocks_per_sm else ""
    return f"more bytes in flight: more stages, wider loads or more blocks an SM{now}"


def _tensor_advice(worst: Row, ceilings: Sequence[Ceiling]) -> str:
    tensors = [c for c in ceilings if c.kind == "tensor" and c.source == "measured"]
    synchronous = [c for c in tensors if "wgmma" not in c.name and "mma" in c.name]
    faster = [c for c in tensors if "wgmma" in c.name]
    tflops = worst.tflops
    for low in synchronous:
        for high in faster:
            if AT_ROOF * low.rate <= tflops <= low.rate < high.rate:
                return (
                    f"{tflops:.0f} TFLOP/s is what {low.name} gives on this GPU "
                    f"({low.rate:.0f}); only {high.name} ({high.rate:.0f}) goes further"
                )
    return (
        "the tensor cores wait: hide loads and dequantisation behind the products (more stages, "
        "larger tiles, separate producer warps)"
    )


def _power(rows: Sequence[Row]) -> str:
    """Return how many ran into the power cap, and at what clocks they ended."""
    capped = [row for row in rows if POWER_CAP in row.throttle]
    if not capped:
        return ""
    readings = [row.clock_mhz_after for row in capped]
    ended = [float(clock) for clock in readings if clock is not None]
    clocks = f", ending at {span(ended)} MHz" if ended else ""
    return (
        f" {_count(len(capped), 'winner')} of {len(rows)} ran into the power cap{clocks}: there, "
        "fewer instructions and bytes are faster even where they do not limit."
    )


def _against(board: Board, rows: Iterable[Row], kind: str) -> str:
    """Return how the winners compare with the best peer of a kind, where the peers have a time."""
    found = [(peer_of(board, row.problem, kind), row) for row in rows]
    ratios = [(peer.us / row.us, peer, row) for peer, row in found if peer is not None]
    if not ratios:
        return ""
    who = "the best 4-bit peer" if kind == "4-bit" else ratios[0][1].name
    values = [ratio for ratio, _, _ in ratios]
    ahead = sum(value > 1 for value in values)
    text = f" Against {who} ({ratios[0][1].date}): faster on {ahead} of {len(values)}"
    text += f", {significant(statistics.median(values), 3)}× in the median"
    lowest, peer, row = min(ratios, key=lambda item: item[0])
    least = _name(board, row) + (f", {peer.name}" if kind == "4-bit" else "")
    return f"{text}, least {significant(lowest, 3)}× ({least})."


def summary(sources: Sources, found: Sequence[Board]) -> list[str]:
    """Return the paragraphs of the whole report: every board's, then plan and checks."""
    texts = [text for board in found for text in verdict(board)]
    if not found:
        texts.append("Nothing was measured: no figure in this report is the time of a kernel.")
    if sources.plan:
        good = sum(row.status == "ok" for row in sources.plan)
        where = f" for {sources.gpu['name']}" if sources.gpu else ""
        texts.append(
            f"Plan{where} (modelled): {_count(len(sources.plan), 'candidate')}, {good} ok."
        )
    if sources.checks:
        passed = sum(row.ok for row in sources.checks)
        hows = " and ".join(sorted({row.how for row in sources.checks}))
        total = len(sources.checks)
        texts.append(f"Checks against the reference ({hows}): {passed} of {total} passed.")
    return texts


def _count(number_of: int, noun: str) -> str:
    return f"{number_of} {noun}{'' if number_of == 1 else 's'}"
