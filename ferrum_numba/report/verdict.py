"""The report's first page: what the rows say, by fixed rules, and nothing they do not say."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ferrum_numba.report.advice import AT_ROOF, WORTH, advice, because
from ferrum_numba.report.beside import peer_of, sources_of
from ferrum_numba.report.blocks import Emphasis, Paragraph, Table, per_cent, significant
from ferrum_numba.report.data import Group
from ferrum_numba.report.sources import Sources
from ferrum_numba.results import Row, size_of
from ferrum_numba.roofline.bound import LATENCY_BOUND_US, Limit, clocked
from ferrum_numba.roofline.points import Peer
from ferrum_numba.words import counted

LIMIT_WORDS: dict[Limit, str] = {
    "latency": f"the launch (bound below {LATENCY_BOUND_US:.0f} µs)",
    "memory": "memory",
    "tensor": "tensor cores",
    "unpack": "unpacking",
    "unknown": "unknown (no ceilings)",
}
# the same where there is little room
BOUND_BY = LIMIT_WORDS | {"latency": "launch", "unknown": "unknown"}


@dataclass(frozen=True)
class Finding:
    """What one Op's fastest rows reach where one limit binds.

    rows:     the winners, of which `reached` has the fraction of the bound
    """

    group: Group
    limit: Limit
    rows: tuple[Row, ...]
    reached: tuple[float, ...]

    @property
    def median(self) -> float:
        """Return the fraction of the bound in the median."""
        return statistics.median(self.reached)

    @property
    def worst(self) -> tuple[float, Row]:
        """Return the lowest fraction and its row."""
        return min(zip(self.reached, self.rows, strict=True), key=lambda pair: pair[0])

    @property
    def best(self) -> tuple[float, Row]:
        """Return the highest fraction and its row."""
        return max(zip(self.reached, self.rows, strict=True), key=lambda pair: pair[0])

    @property
    def room(self) -> float:
        """Return the part of the time above the bound, summed over the problems."""
        return sum(max(0.0, 1 - fraction) for fraction in self.reached)

    @property
    def where(self) -> str:
        """Return the range of sizes."""
        sizes = [size for row in self.rows if (size := size_of(row.problem)) is not None]
        if not sizes:
            return ""
        ends = f"{min(sizes)} to {max(sizes)}" if min(sizes) < max(sizes) else str(sizes[0])
        return f"{self.group.size_name} {ends}"

    @property
    def shapes(self) -> dict[str, float]:
        """Return the lowest fraction of every shape."""
        least: dict[str, float] = {}
        for fraction, row in zip(self.reached, self.rows, strict=True):
            shape = self.group.shape(row.problem)
            least[shape] = min(fraction, least.get(shape, fraction))
        return least


def findings(group: Group) -> list[Finding]:
    """Return what was reached, for each limit that some problem has."""
    found: dict[Limit, list[tuple[Row, float]]] = {}
    for winner in group.winners.values():
        bound = group.bound(winner.row)
        if bound is not None:
            pair = (winner.row, bound.us / winner.row.us)
            found.setdefault(bound.limit, []).append(pair)
    return [
        Finding(group, limit, *zip(*found[limit], strict=True))
        for limit in LIMIT_WORDS
        if limit in found
    ]


def sentence(finding: Finding) -> str:
    """Return the verdict on one limit: what was reached, worst, because."""
    group, reached = finding.group, finding.reached
    at_roof = sum(fraction >= AT_ROOF for fraction in reached)
    whole = sum(fraction >= AT_ROOF for fraction in finding.shapes.values())
    low, bad = finding.worst
    text = f"{per_cent(finding.median)} of the bound in the median"
    if len(reached) > 1:
        text += f", {per_cent(AT_ROOF)} or more on {at_roof} of {counted(len(reached), 'problem')}"
        text += f" and all of {whole} of {len(finding.shapes)} shapes" if whole else ""
    text += f"; worst {per_cent(low)} at {group.name(bad.problem)} ({bad.kernel})"
    return f"{text}, because {because(group, bad)}."


def verdict(group: Group) -> list[Paragraph]:
    """Return the paragraphs about one group: one for each limit, then what is missing."""
    found = []
    for finding in findings(group):
        binds = "bind" if finding.limit == "tensor" else "binds"
        where = f", {finding.where}" if finding.where else ""
        lead = f"{group.label}, where {LIMIT_WORDS[finding.limit]} {binds}{where}:"
        found.append(Paragraph(sentence(finding), lead))
    missing = len(group.problems) - len(group.winners)
    if missing:
        text = f"{missing} of {counted(len(group.problems), 'problem')} without a correct, trusted"
        found.append(Paragraph(f"{text} time.", f"{group.label}:"))
    untrusted = sum(bool(row.untrusted) for row in group.rows)
    if untrusted:
        text = f"{counted(untrusted, 'row')} marked untrusted when measured."
        found.append(Paragraph(text, f"{group.label}:"))
    return found


def in_detail(group: Group) -> list[Paragraph]:
    """Return what shapes are called; then a paragraph a limit: who is fastest, against whom."""
    named = [Paragraph(text, "Shapes:")] if (text := _naming(group)) else []
    return named + [
        Paragraph(_leaders(finding), f"{LIMIT_WORDS[finding.limit].capitalize()}, {finding.where}:")
        for finding in findings(group)
    ]


def _naming(group: Group) -> str:
    """Return what the names of a group's shapes mean; nothing where they are fields by name."""
    problem = group.problems[0]
    if not {"K", "N"} <= problem.keys():
        return ""
    if "num_experts" in problem:
        text = (
            "E experts, k of them a token, K→N of the weights of one, then the fields that differ"
        )
        return f"{text}; {group.size_name} are those of a call."
    return f"K×N of the weights, then the fields that differ; {group.size_name} rows a call."


def _leaders(finding: Finding) -> str:
    group = finding.group
    kernels = Counter(row.kernel for row in finding.rows).most_common()
    leaders = ", ".join(f"{name} on {count}" for name, count in kernels)
    high, good = finding.best
    text = f"fastest design: {leaders}; best {per_cent(high)} at {group.name(good.problem)} "
    text += f"({good.kernel})."
    held = [h for row in finding.rows if (h := _held(group, row)) is not None]
    if held and statistics.median(held) - finding.median > WORTH:
        reached = per_cent(statistics.median(held))
        text += f" At the clocks that the board held, {reached} of the bound in the median."
    for kind in ("4-bit", "fp16"):
        text += _against(group, finding.rows, kind)
    return text


def _held(group: Group, row: Row) -> float | None:
    """Return the fraction reached of the bound at the SM clock that the board held."""
    bound = group.bound(row)
    return None if bound is None else clocked(bound, row.clock_mhz_after) / row.us


def ratios(group: Group, rows: Iterable[Row], kind: str) -> list[tuple[float, Peer, Row]]:
    """Return peer's time over ours for the best peer of a kind, where the peers have a time."""
    found = [(peer_of(group, row.problem, kind), row) for row in rows]
    return [(peer.us / row.us, peer, row) for peer, row in found if peer is not None]


def _against(group: Group, rows: Iterable[Row], kind: str) -> str:
    found = ratios(group, rows, kind)
    if not found:
        return ""
    who = "the best 4-bit peer" if kind == "4-bit" else found[0][1].name
    ahead = sum(ratio > 1 for ratio, _, _ in found)
    middle = significant(statistics.median(ratio for ratio, _, _ in found), 3)
    lowest, peer, row = min(found, key=lambda item: item[0])
    least = group.name(row.problem) + (f", {peer.name}" if kind == "4-bit" else "")
    text = f" Against {who}: faster on {ahead} of {len(found)}, {middle}× in the median"
    return f"{text}, least {significant(lowest, 3)}× ({least})."


def glance(found: Sequence[Finding]) -> Table:
    """Return the verdict as a table: a line an Op and limit."""
    rows, emphasis = [], []
    for finding in found:
        low, bad = finding.worst
        group = finding.group
        rows.append((
            group.label, BOUND_BY[finding.limit], finding.where, str(len(finding.rows)),
            Counter(row.kernel for row in finding.rows).most_common(1)[0][0],
            per_cent(finding.median), per_cent(finding.best[0]), per_cent(low),
            f"{group.name(bad.problem)}, {bad.kernel}",
            *(_ahead(ratios(group, finding.rows, kind)) for kind in ("4-bit", "fp16")),
        ))  # fmt: skip
        good: Emphasis = "tie" if finding.median >= AT_ROOF else ""
        emphasis.append(good)
    columns = (
        "Op", "bound by", "sizes", "problems", "fastest on most", "median", "best", "worst",
        "worst at", "4-bit peer / ours", "fp16 peer / ours",
    )  # fmt: skip
    groups = list({id(f.group): f.group for f in found}.values())
    peers = [peer for group in groups for peer in group.peers]
    units = (
        "% of the bound (modelled) that the fastest design reaches; peers: median ratio of times"
    )
    units += ", and on how many problems ours is faster"
    regimes = ", ".join(sorted({f.group.regime for f in found}))
    of = sources_of(peers)
    return Table("At a glance", regimes, units, columns, tuple(rows), tuple(emphasis), of=of)


def _ahead(found: Sequence[tuple[float, Peer, Row]]) -> str:
    if not found:
        return ""
    ahead = sum(ratio > 1 for ratio, _, _ in found)
    middle = significant(statistics.median(ratio for ratio, _, _ in found), 3)
    return f"{middle}×, {ahead} of {len(found)}"


def next_steps(found: Sequence[Finding]) -> list[Paragraph]:
    """Return what to do next, where the most of the problems' time is above the bound first."""
    ordered = sorted(found, key=lambda finding: -finding.room)
    steps = []
    for number, finding in enumerate(ordered, 1):
        group = finding.group
        spills = sum(bool(row.spill_bytes) for row in finding.rows)
        text = f"{advice(finding.limit, finding.median, finding.worst[1], group)}."
        if spills:
            text += f" {counted(spills, 'winner')} spill registers to memory: remove that first."
        room = per_cent(finding.room / len(finding.rows))
        problems = counted(len(finding.rows), "problem")
        lead = (
            f"{number}. {group.label}, {LIMIT_WORDS[finding.limit]} ({problems}, on average {room} "
        )
        steps.append(Paragraph(text[0].upper() + text[1:], f"{lead}of the time above the bound):"))
    return steps


def summary(sources: Sources, found: Sequence[Group]) -> list[Paragraph]:
    """Return the paragraphs of the whole report: every group's, then plan and checks."""
    paragraphs = [one for group in found for one in verdict(group)]
    if not found:
        text = "no figure in this report is the time of a kernel."
        paragraphs.append(Paragraph(text, "Nothing was measured:"))
    for title in dict.fromkeys(group.gpu for group in found):
        (first, *_) = [group for group in found if group.gpu == title]
        paragraphs.append(Paragraph(_bound_words(first), f"The bound on {title} (modelled):"))
    if sources.plan:
        good = sum(row.status == "ok" for row in sources.plan)
        where = f" for {sources.gpu['name']}" if sources.gpu else ""
        text = f"{counted(len(sources.plan), 'candidate')}, {good} ok."
        paragraphs.append(Paragraph(text, f"Plan{where} (modelled):"))
    if sources.checks:
        passed = sum(row.ok for row in sources.checks)
        hows = " and ".join(sorted({row.how for row in sources.checks}))
        text = f"{passed} of {len(sources.checks)} passed."
        paragraphs.append(Paragraph(text, f"Checks against the reference ({hows}):"))
    return paragraphs


def _bound_words(group: Group) -> str:
    bounds = [bound for row in group.rows[:1] if (bound := group.bound(row)) is not None]
    if not bounds:
        return "the ceilings are unknown."
    terms = ", ".join(f"{t.ceiling.name} {t.ceiling.text}" for t in bounds[0].terms)
    measured = [t.ceiling for t in bounds[0].terms if t.ceiling.source == "measured"]
    text = f"the longest of {terms}, and a launch of {bounds[0].launch_us:.2g} µs"
    if not measured:
        return f"{text}; datasheet figures, no ceilings of this GPU were measured."
    run = group.runs.get(measured[0].date)
    where = f" on board {run.board}, {run.date} (run {run.number})" if run else ""
    others = {r.board for r in group.runs.values()} - ({run.board} if run else set())
    note = "; other boards of this model may differ by some per cent" if others else ""
    return f"{text}; ceilings measured{where}{note}."
