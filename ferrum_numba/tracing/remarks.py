"""What a trace shows to be wrong, in sentences that name the line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ferrum_numba.interpreter import Line, Requests
from ferrum_numba.interpreter.trace.lines import GLOBAL, Kind

# as many times the least that are said; runs that begin in the middle of a sector are below it
_SECTORS, _WAVEFRONTS = 1.5, 1.25
# lanes of 32, and the part of all instructions from which it matters that they are idle
_LANES, _SHARE = 24, 0.02
_WARP_SIZE = 32
_VERBS: dict[Kind, str] = {
    "ld.global": "reads", "st.global": "writes", "red.global": "changes", "cp.async": "copies",
    "cp.async.bulk": "copies", "ld.shared": "reads", "st.shared": "writes",
    "red.shared": "changes", "ldmatrix": "reads rows of matrices", "cp.async to shared": "copies",
    "stmatrix": "writes rows of matrices",
}  # fmt: skip


def remarks_on(lines: Sequence[Line]) -> list[str]:
    """Return what is wrong: sectors and wavefronts, the most wasted first, then idle lanes."""
    wasteful: list[tuple[int, str]] = []
    for line in lines:
        for kind, requests in line.requests.items():
            say = _uncoalesced if kind in GLOBAL else _conflicting
            limit = _SECTORS if kind in GLOBAL else _WAVEFRONTS
            if requests.units >= limit * requests.least:
                wasted = requests.units - requests.least
                wasteful.append((wasted, say(line, kind, requests)))
    # sorting keeps the order of lines where they waste the same
    found = [text for _, text in sorted(wasteful, key=lambda one: -one[0])]
    return found + list(_idle(lines))


def _uncoalesced(line: Line, kind: Kind, requests: Requests) -> str:
    each, least = _each(requests)
    sectors = f"{each} sectors a warp where {least} would do"
    return f"{line.place} {_VERBS[kind]} {sectors}: {_apart(requests)}"


def _conflicting(line: Line, kind: Kind, requests: Requests) -> str:
    each, least = _each(requests)
    ways = requests.worst / requests.needed
    return (
        f"{line.place} {_VERBS[kind]} with bank conflicts, {ways:.3g}-way: {each} wavefronts a "
        f"warp where {least} would do; {_apart(requests)}"
    )


def _each(requests: Requests) -> tuple[str, str]:
    return f"{requests.units / requests.count:.3g}", f"{requests.least / requests.count:.3g}"


def _apart(requests: Requests) -> str:
    """Return how lanes lie in the worst request."""
    if requests.stride_bytes is None:
        return "its lanes are not evenly apart"
    return f"neighbouring lanes are {abs(requests.stride_bytes)} bytes apart"


def _idle(lines: Sequence[Line]) -> Iterator[str]:
    instructions = sum(line.instructions for line in lines)
    for line in lines:
        share = line.instructions / instructions
        if line.for_one or line.lanes >= _LANES or share < _SHARE:
            continue
        here = line.here / line.executed
        away = {"on another way or gone": _WARP_SIZE - here, "predicated off": here - line.lanes}
        where = ", ".join(f"{lanes:.3g} {how}" for how, lanes in away.items() if lanes >= 0.5)
        yield (
            f"{line.place} keeps {_WARP_SIZE - line.lanes:.3g} of 32 lanes idle on average "
            f"({where}), in {share:.0%} of all instructions"
        )
