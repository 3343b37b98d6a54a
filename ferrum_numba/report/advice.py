"""Why a kernel is as far from its bound as it is, and what to change: fixed rules on the model."""

from __future__ import annotations

from collections.abc import Sequence

from ferrum_numba.report.blocks import significant
from ferrum_numba.report.data import Group
from ferrum_numba.results import Row
from ferrum_numba.results.row import problem_key
from ferrum_numba.roofline.bound import TERM_WORDS, Limit, Piece, pieces
from ferrum_numba.roofline.ceilings import Ceiling

# fractions of the bound from which a kernel counts as being at the roof, and as near it
AT_ROOF, NEAR_ROOF = 0.9, 0.75
# what `measure` says where power kept the clocks down
POWER_CAP = "power cap"
# a part of the time that is worth a word
WORTH = 0.03


def pieces_of(group: Group, row: Row) -> list[Piece]:
    """Return where a row's time goes, modelled; nothing where its bound is unknown."""
    bound = group.bound(row)
    if bound is None:
        return []
    num_sms = group.facts.get("num_sms")
    return pieces(row, bound, group.ceilings_for(row), num_sms)


def because(group: Group, row: Row) -> str:
    """Return why a row takes more than its longest term: the largest pieces of the rest."""
    found = [piece for piece in pieces_of(group, row) if piece.name not in TERM_WORDS.values()]
    found = [piece for piece in found if piece.us > WORTH * row.us]
    alone = len({kernel for kernel, key in group.best if key == problem_key(row.problem)}) == 1
    lone = "no other design was measured there; " if alone and len(group.designs) > 1 else ""
    if not found:
        return "it is at its bound"
    found.sort(key=lambda piece: -piece.us)
    reasons = [_words(piece, row) for piece in found[:2]]
    if row.spill_bytes:
        reasons.append(f"{row.spill_bytes} bytes a thread spill to memory")
    return lone + " and ".join(reasons)


def _words(piece: Piece, row: Row) -> str:
    part = f"{significant(piece.us, 3)} of its {significant(row.us, 3)} µs"
    match piece.name:
        case "launch":
            return f"{part} are the launch"
        case "ramp":
            return f"{part} pass before the first bytes are there"
        case "tail":
            return f"{part} are the last wave ({piece.why})"
        case "clocks":
            cap = "the power cap" if POWER_CAP in row.throttle else "something"
            return f"{part} are lost to low clocks ({cap} held the {piece.why})"
        case _:
            return f"{part} are in no term of the model"


def advice(limit: Limit, fraction: float, worst: Row, group: Group) -> str:
    """Return what to change, by the limit and how near it is."""
    if limit == "latency":
        return (
            "launch, ramp-up and tail weigh as much as the work: earlier first loads, one wave "
            "of blocks, a programmatic launch, or a fusion with the neighbouring kernel"
        )
    if limit == "unknown":
        return "measure the ceilings, so that the limit is known"
    if fraction >= AT_ROOF:
        what = {"memory": "bytes", "tensor": "FLOPs"}.get(limit, "instructions")
        return f"nothing in the kernel: it is at the roof, only fewer {what} are faster"
    if limit == "unpack":
        return "fewer instructions a weight: a wider unpacking, or each weight unpacked once"
    if limit == "memory":
        return _memory_advice(fraction, worst)
    return _tensor_advice(worst, group.ceilings_for(worst))


def _memory_advice(fraction: float, worst: Row) -> str:
    if fraction >= NEAR_ROOF:
        return (
            "the rest is start, tail and uneven shares: split the weights evenly over the SMs "
            "and issue the first loads earlier"
        )
    now = f" (now {worst.blocks_per_sm} blocks an SM)" if worst.blocks_per_sm else ""
    return f"more bytes in flight: more stages, wider loads or more blocks an SM{now}"


def _tensor_advice(worst: Row, ceilings: Sequence[Ceiling]) -> str:
    text = _slower_instruction(worst.tflops, ceilings) or (
        "the tensor cores wait: hide loads and dequantisation behind the products (more stages, "
        "larger tiles, separate producer warps)"
    )
    if POWER_CAP not in worst.throttle:
        return text
    clock = f" at {worst.clock_mhz_after:.0f} MHz" if worst.clock_mhz_after else ""
    return (
        f"{text}; the worst ran into the power cap{clock}: there, fewer instructions and bytes "
        "are faster even where they do not limit"
    )


def _slower_instruction(tflops: float, ceilings: Sequence[Ceiling]) -> str:
    """Return that a kernel is at the rate of mma.sync, if it is; only wgmma goes further."""
    tensors = [c for c in ceilings if c.kind == "tensor" and c.source == "measured"]
    synchronous = [c for c in tensors if "wgmma" not in c.name and "mma" in c.name]
    for low in synchronous:
        for high in (c for c in tensors if "wgmma" in c.name):
            if AT_ROOF * low.rate <= tflops <= low.rate < high.rate:
                return (
                    f"{tflops:.0f} TFLOP/s is what {low.name} gives on this GPU "
                    f"({low.rate:.0f}); only {high.name} ({high.rate:.0f}) goes further"
                )
    return ""
