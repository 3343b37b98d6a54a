"""Result files sorted by Op, and which rows of them win."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from ferrum_numba.gpu import KNOWN
from ferrum_numba.report.runs import Run, named, runs_of
from ferrum_numba.report.sources import Asked, Facts, Key, Sources
from ferrum_numba.results import (
    ResultFile,
    Row,
    Winner,
    best,
    rank,
    size_name,
    size_of,
    winners,
)
from ferrum_numba.results.row import problem_key
from ferrum_numba.roofline.bound import Bound
from ferrum_numba.roofline.ceilings import Ceiling, datasheet, measured_ceilings
from ferrum_numba.roofline.points import Peer, Point, doubt, point, row_bound, shape_of, varying

REGIMES = ("cold", "warm", "eager")
FACT_NAMES = ("dram_gbps", "tensor_tflops")
Standing = Literal["best", "tie", "slower"]


@dataclass(frozen=True)
class Group:
    """All results of one Op in one regime on one model of GPU, of whichever boards and runs.

    rows:     as stored, the losers among them; none of a peer's
    facts:    of the GPU, as the newest run has them
    ceilings: what is drawn: measured on one board, the datasheet's beside
    boards:   measured ceilings of each board that has some, by uuid
    runs:     that rows come from, by date
    peers:    of the same GPU, regime and problems
    label:    what tells it from the other groups of the report
    """

    gpu: str
    op: str
    regime: str
    rows: tuple[Row, ...]
    facts: Facts
    ceilings: tuple[Ceiling, ...]
    boards: Mapping[str, tuple[Ceiling, ...]]
    runs: Mapping[str, Run]
    peers: tuple[Peer, ...]
    label: str = ""

    @property
    def title(self) -> str:
        """Return what the group is, for titles."""
        return f"{self.op}, {self.gpu}, {self.regime}"

    @cached_property
    def problems(self) -> list[Mapping[str, Any]]:
        """Return every problem once, in the order of the rows."""
        return list({problem_key(row.problem): row.problem for row in self.rows}.values())

    @property
    def size_name(self) -> str:
        """Return what the problems' size is called, M or tokens."""
        return size_name(self.problems[0])

    @property
    def designs(self) -> list[str]:
        """Return all designs, whose colours are the same in every picture."""
        return sorted({row.kernel for row in self.rows})

    def shape(self, problem: Mapping[str, Any]) -> str:
        """Return the name of a problem without its size."""
        return shape_of(problem, self._shown)

    def name(self, problem: Mapping[str, Any]) -> str:
        """Return the name of a problem."""
        size = size_of(problem)
        return self.shape(problem) + ("" if size is None else f", {self.size_name}={size}")

    def ceilings_for(self, row: Row) -> tuple[Ceiling, ...]:
        """Return the ceilings of the board a row is of, else of another of its model."""
        run = self.runs.get(row.run)
        own = self.boards.get(str(run.environment.get("uuid", "")) if run else "")
        if own is None:
            return self.ceilings
        return (*own, *(c for c in self.ceilings if c.source == "datasheet"))

    def bound(self, row: Row) -> Bound | None:
        """Return the bound of a row's problem on its board, modelled."""
        return row_bound(row, self.ceilings_for(row))

    def of(self, rows: Iterable[Row]) -> str:
        """Return which board, date and commit some rows are of."""
        return named((row.run for row in rows), self.runs)

    def only(self, asked: Asked) -> Group:
        """Return the group with the rows that were asked for."""
        return replace(self, rows=tuple(row for row in self.rows if asked.concerns(row)))

    @cached_property
    def _shown(self) -> frozenset[str]:
        return varying(self.problems)

    @cached_property
    def best(self) -> dict[tuple[str, Key], Row]:
        """Return the row that won for every (kernel, problem), the first by `rank` first."""
        found = sorted(best(self._believed), key=rank)
        return {(row.kernel, problem_key(row.problem)): row for row in found}

    @cached_property
    def winners(self) -> dict[Key, Winner]:
        """Return the winner of every problem that has a row to believe, likewise."""
        found = sorted(winners(self._believed), key=lambda winner: rank(winner.row))
        return {problem_key(winner.row.problem): winner for winner in found}

    def standing(self, row: Row) -> Standing:
        """Return whether a row is its problem's winner, cannot be told from it, or is slower."""
        winner = self.winners[problem_key(row.problem)]
        if row is winner.row:
            return "best"
        near = any(row is other for other in (*winner.ties, *winner.undecided))
        return "tie" if near else "slower"

    @cached_property
    def points(self) -> list[Point]:
        """Return what the figures show: the best rows, and rows in doubt that would beat them."""
        doubted: dict[tuple[str, Key], Row] = {}
        timed = [row for row in self.rows if not math.isnan(row.us)]
        for row in sorted(timed, key=rank):
            key = (row.kernel, problem_key(row.problem))
            wins = key not in self.best or row.us < self.best[key].us
            if wins and doubt(row, self.ceilings):
                doubted.setdefault(key, row)
        rows = [*self.best.values(), *doubted.values()]
        found = (point(row, self.shape(row.problem), self.ceilings_for(row)) for row in rows)
        return [p for p in found if p is not None]

    @cached_property
    def _believed(self) -> list[Row]:
        """Return the rows that beat no ceiling: only a report knows what the machine can do."""
        return [row for row in self.rows if not doubt(row, self.ceilings)]


def groups(sources: Sources) -> list[Group]:
    """Return the results by Op, GPU and regime, never mixed; peers' rows beside this house's.

    The Op of the newest results comes first, what was asked for before it, and the cold regime.
    """
    from ferrum_numba.report.beside import peers_of

    runs = runs_of((*sources.files, *sources.ceilings))
    found: dict[tuple[str, str, str], list[Row]] = {}
    for file in sources.files:
        for row in file.rows:
            environment = file.environment_of(row)
            # of a row that names no run, it is the last one's
            dated = row if row.run else replace(row, run=str(environment["date"]))
            found.setdefault((row.op, str(environment["gpu"]), row.regime), []).append(dated)
    result = []
    for (op, gpu, regime), rows in found.items():
        own = tuple(row for row in rows if not row.peer)
        if not own:
            continue
        newest = max(own, key=lambda row: row.run)
        facts = runs[newest.run].environment.get("gpu_facts") or {}
        by_board = boards_of(gpu, sources.ceilings)
        label = (
            f"{op}, {regime}" if len({key[1] for key in found}) == 1 else f"{op}, {gpu}, {regime}"
        )
        ceilings = drawn(gpu, by_board, facts)
        group = Group(gpu, op, regime, own, facts, ceilings, by_board, runs, (), label)
        result.append(replace(group, peers=tuple(peers_of(group, rows, sources.peers))))
    result.sort(key=lambda g: (g.gpu, _rank(g.regime)))
    result.sort(key=lambda g: max(row.run for row in g.rows), reverse=True)
    first = {g.op: i for i, g in reversed(list(enumerate(result)))}
    result.sort(key=lambda g: (not _asked(g, sources.asked), first[g.op], g.gpu, _rank(g.regime)))
    return result


def _asked(group: Group, asked: Asked) -> bool:
    return bool(asked) and any(asked.concerns(row) for row in group.rows)


@dataclass(frozen=True)
class Machine:
    """One model of GPU and its ceilings, measured and datasheet."""

    gpu: str
    ceilings: tuple[Ceiling, ...]


def machines(sources: Sources) -> list[Machine]:
    """Return every model of GPU that results, ceilings or the plan are of."""
    found: dict[str, Facts] = {}
    for file in (*sources.files, *sources.ceilings):
        for environment in (file.environment, *file.earlier):
            found[str(environment["gpu"])] = environment.get("gpu_facts") or {}
    if sources.gpu:
        found.setdefault(str(sources.gpu["name"]), sources.gpu)
    return [
        Machine(gpu, drawn(gpu, boards_of(gpu, sources.ceilings), facts))
        for gpu, facts in sorted(found.items())
    ]


def boards_of(gpu: str, files: Sequence[ResultFile]) -> dict[str, tuple[Ceiling, ...]]:
    """Return the measured ceilings of each board of a model, the last measured board first."""
    rows: dict[str, list[Row]] = {}
    for file in files:
        for row in file.rows:
            environment = file.environment_of(row)
            if environment["gpu"] == gpu:
                dated = row if row.run else replace(row, run=str(environment["date"]))
                rows.setdefault(str(environment.get("uuid", "")), []).append(dated)
    newest = sorted(rows, key=lambda board: max(row.run for row in rows[board]), reverse=True)
    return {board: tuple(measured_ceilings(rows[board], board)) for board in newest}


def drawn(
    gpu: str, by_board: Mapping[str, tuple[Ceiling, ...]], facts: Facts
) -> tuple[Ceiling, ...]:
    """Return the ceilings to draw: those of the board measured last, and the datasheet's."""
    measured = next((found for found in by_board.values() if found), ())
    return (*measured, *ceilings_of(facts))


def ceilings_of(facts: Facts) -> list[Ceiling]:
    """Return the ceilings in a GPU's facts: the datasheet's, and recorded ones that differ."""
    known = KNOWN.get(str(facts.get("key", "")))
    sheet = asdict(known) if known else {**facts, "source": "table"}
    found = datasheet(sheet)
    if facts.get("source") == "recorded":
        # a recorded GPU whose ceilings nobody measured still carries those of the table
        own = [name for name in FACT_NAMES if facts.get(name) != sheet.get(name)]
        found += datasheet({"source": "recorded", **{name: facts[name] for name in own}})
    return found


def _rank(regime: str) -> int:
    return REGIMES.index(regime) if regime in REGIMES else len(REGIMES)


def slug(text: str) -> str:
    """Return a text as a file name or id."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
