"""What the results were to reach, and whether they do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ferrum_numba.report.blocks import (
    Block,
    Emphasis,
    Heading,
    Paragraph,
    Table,
    per_cent,
)
from ferrum_numba.report.sources import Sources
from ferrum_numba.results import ResultFile, Row
from ferrum_numba.results.targets import OF, Reached, evaluate
from ferrum_numba.words import counted

WORDS = {True: "met", False: "MISSED", None: "not measured"}
COLUMNS = (
    "target", "Op", "share of", "at least", "worst", "median", "problems that reach it",
    "of them must", "worst at", "verdict",
)  # fmt: skip


def reached(sources: Sources) -> list[Reached]:
    """Return what became of each target, on each GPU that results are of."""
    if sources.targets is None:
        return []
    rows, ceilings = _by_gpu(sources.files), _by_gpu(sources.ceilings)
    targets = sources.targets[1]
    # without a result they are targets all the same
    return [
        one
        for gpu in rows or {"": []}
        for one in evaluate(targets, rows.get(gpu, []), ceilings.get(gpu, []))
    ]


def _by_gpu(files: Sequence[ResultFile]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for file in files:
        for row in file.rows:
            found.setdefault(str(file.environment_of(row)["gpu"]), []).append(row)
    return found


def in_short(sources: Sources) -> Iterator[Paragraph]:
    """Return how many targets are met, and each that is missed with both numbers."""
    if sources.targets is None:
        return
    found = reached(sources)
    met, missed = ([one for one in found if one.met is is_met] for is_met in (True, False))
    text = f"{len(met)} of {counted(len(found), 'target')} met, {len(missed)} missed"
    unknown = len(found) - len(met) - len(missed)
    text += f", {unknown} without a measurement." if unknown else "."
    yield Paragraph(text, f"Targets of {sources.targets[0]}:")
    for one in missed:
        yield Paragraph(f"{_miss(one)}.", "Target missed:")


def _miss(one: Reached) -> str:
    target, (_, worst) = one.target, one.shares[0]
    must = "all" if target.share == 1 else f"{per_cent(target.share)} of them"
    return (
        f"{target.name}: at least {per_cent(target.at_least)} of {target.of} wanted, "
        f"{per_cent(worst)} reached at worst ({one.worst_at}); {one.good} of "
        f"{counted(len(one.shares), 'problem')} reach it, and {must} must"
    )


def section(sources: Sources) -> Iterator[Block]:
    """Return the section on targets: a line each."""
    if sources.targets is None:
        return
    yield Heading("Targets")
    found = reached(sources)
    emphasis: list[Emphasis] = [_emphasis(one) for one in found]
    what = "; ".join(f"{name}: {words}" for name, words in OF.items())
    regimes = ", ".join(sorted({one.target.regime for one in found}))
    yield Table(
        f"Targets of {sources.targets[0]}", regimes, f"share reached by the fastest of a problem, "
        f"of {what}", COLUMNS, tuple(map(_cells, found)), tuple(emphasis),
    )  # fmt: skip


def _emphasis(one: Reached) -> Emphasis:
    return "bad" if one.met is False else ""


def _cells(one: Reached) -> tuple[str, ...]:
    target = one.target
    wanted = (target.name, target.op, target.of, per_cent(target.at_least))
    verdict = WORDS[one.met]
    if not one.shares:
        return (*wanted, "", "", "", per_cent(target.share), "", verdict)
    return (
        *wanted, per_cent(one.shares[0][1]), per_cent(one.median),
        f"{one.good} of {len(one.shares)}", per_cent(target.share), one.worst_at, verdict,
    )  # fmt: skip
