"""The report as a list of blocks, in the order a kernel engineer needs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ferrum_numba.errors import StoreError
from ferrum_numba.report import goals, html, markdown
from ferrum_numba.report.blocks import (
    Block,
    Heading,
    Paragraph,
    Picture,
    Table,
    from_json,
    to_json,
)
from ferrum_numba.report.curve import curve_tables
from ferrum_numba.report.data import Group, groups, machines
from ferrum_numba.report.difference import difference
from ferrum_numba.report.drawing import Drawer
from ferrum_numba.report.other_tables import (
    check_failures,
    check_table,
    covered,
    each_check,
    plan_losers,
    plan_table,
    provenance_tables,
)
from ferrum_numba.report.pictures import file_names, modelled_roofline, pictures, unsearched
from ferrum_numba.report.runs import runs_of
from ferrum_numba.report.sources import Sources
from ferrum_numba.report.tables import (
    ceiling_table,
    config_table,
    design_table,
    failure_table,
    fastest_table,
    slow_table,
)
from ferrum_numba.report.verdict import findings, glance, in_detail, next_steps, summary
from ferrum_numba.results.file import load_json

TITLE = "ferrum-numba report"
SCHEMA = 2
MAX_REASONS = 40


@dataclass(frozen=True, repr=False)
class Document:
    """A report: what all its forms are written from, and what `report.json` holds."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def pictures(self) -> list[Picture]:
        """Return the pictures in their order."""
        return [block for block in self.blocks if isinstance(block, Picture)]

    def to_json(self) -> dict[str, Any]:
        """Return the report as its JSON has it."""
        return {"schema": SCHEMA, "title": self.title, "blocks": [to_json(b) for b in self.blocks]}

    @classmethod
    def load(cls, path: str | Path) -> Document:
        """Read a `report.json`.

        Raises:
            StoreError: missing, damaged or of another schema.
        """
        found = load_json(path, SCHEMA)
        try:
            return cls(str(found["title"]), tuple(from_json(one) for one in found["blocks"]))
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path}: is no report.json: {error}") from error

    def __repr__(self) -> str:
        return markdown.render(self.title, self.verdict.blocks)

    def _repr_html_(self) -> str:
        drawer = Drawer()
        svgs = {picture.name: drawer.draw(picture)[0] for picture in self.pictures}
        return html.fragment(self.blocks, svgs)

    @property
    def verdict(self) -> Document:
        """Return the first page alone: what was reached, and what to do next."""
        heads = [i for i, block in enumerate(self.blocks) if isinstance(block, Heading)]
        end = heads[2] if len(heads) > 2 else len(self.blocks)
        return Document(self.title, self.blocks[:end])


def document(sources: Sources) -> Document:
    """Return the whole report."""
    found = groups(sources)
    gpus = sorted({group.gpu for group in found})
    title = f"{TITLE}: {', '.join(gpus)}" if gpus else TITLE
    return Document(title, tuple(_blocks(sources, found)))


def _blocks(sources: Sources, found: Sequence[Group]) -> Iterator[Block]:
    all_findings = [finding for group in found for finding in findings(group)]
    yield Heading("Verdict")
    yield from summary(sources, found)
    yield from goals.in_short(sources)
    if all_findings:
        yield glance(all_findings)
        yield Heading("What to do next")
        yield from next_steps(all_findings)
    if sources.compare:
        yield from difference(sources.compare, found, sources.coming)
    yield from goals.section(sources)
    yield from _asked(sources, found)
    if not found:
        yield from _section("Roofline (modelled)", modelled_roofline(sources))
    yield from _ops(sources, found)
    runs = runs_of((*sources.files, *sources.ceilings))
    ceilings = [ceiling_table(one, runs) for one in machines(sources) if one.ceilings]
    yield from _section("Ceilings", ceilings)
    yield from _plan(sources)
    yield from _checks(sources)
    yield from _section("Provenance", provenance_tables(sources))


def _ops(sources: Sources, found: Sequence[Group]) -> Iterator[Block]:
    """Return a section an Op; where it has several GPUs or regimes, a part for each."""
    names = file_names(found)
    ops = [group.op for group in found]
    for i, (group, name) in enumerate(zip(found, names, strict=True)):
        if group.op not in ops[:i]:
            yield Heading(group.op)
        if ops.count(group.op) > 1:
            yield Heading(group.title, 3)
        yield from in_detail(group)
        yield from pictures(group, sources, name)
        yield from unsearched(group)
        yield from _tables(group)


def _tables(group: Group) -> Iterator[Table]:
    yield fastest_table(group)
    if len(group.designs) > 1:
        yield design_table(group)
    folded = [config_table(group), *curve_tables(group), slow_table(group), failure_table(group)]
    yield from (table for table in folded if table.rows)


def _asked(sources: Sources, found: Sequence[Group]) -> Iterator[Block]:
    """Return what was asked for by name, before all else that is known."""
    if not sources.asked:
        return
    own = [group.only(sources.asked) for group in found]
    own = [group for group in own if group.rows]
    yield Heading("What was asked for")
    if not own:
        yield Paragraph("None of it has been measured yet.")
    for group, name in zip(own, file_names(own), strict=True):
        title = f"asked for: {group.title}"
        some = [p for p in pictures(group, sources, f"asked-{name}") if p.kind != "landscape"]
        whole = next(full for full in found if full.title == group.title)
        for picture in some:
            data = {**picture.data, "designs": whole.designs}
            head, _, _ = picture.title.rpartition(f": {group.title}")
            yield replace(picture, title=f"{head}, {title}", data=data)
        for table in (fastest_table(group), design_table(group)):
            yield replace(table, title=table.title.replace(group.title, title))


def _section(title: str, content: Sequence[Block]) -> list[Block]:
    """Return a section, or nothing where it would be empty."""
    return [Heading(title), *content] if content else []


def _plan(sources: Sources) -> list[Block]:
    if not sources.plan:
        return []
    losers = plan_losers(sources)
    content: list[Block] = [plan_table(sources)]
    if losers.rows:
        content.append(replace(_first(losers, MAX_REASONS), folded=True))
    return _section("Plan (modelled)", content)


def _first(table: Table, count: int) -> Table:
    """Return a table cut to its first rows, saying so in its title."""
    if len(table.rows) <= count:
        return table
    title = f"{table.title}: the first {count} of {len(table.rows)} reasons"
    return replace(table, title=title, rows=table.rows[:count])


def _checks(sources: Sources) -> list[Block]:
    if not sources.checks:
        return []
    failures = check_failures(sources.checks)
    content: list[Block] = [Paragraph(covered(sources.checks)), check_table(sources.checks)]
    content += [failures] if failures.rows else []
    return _section("Checks", [*content, each_check(sources.checks)])
