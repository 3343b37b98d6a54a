"""What a report is made from: result files sorted into boards, and which rows of them win."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from ferrum_numba.gpu import KNOWN
from ferrum_numba.results import (
    CheckRow,
    Planned,
    ResultFile,
    Row,
    Winner,
    best,
    rank,
    size_name,
    size_of,
    winners,
)
from ferrum_numba.results.row import MEASURED, problem_key
from ferrum_numba.roofline.model import (
    Ceiling,
    Peer,
    Point,
    datasheet,
    doubt,
    measured_ceilings,
    number,
    point,
    shape_of,
    varying,
)

REGIMES = ("cold", "warm", "eager")
FACT_NAMES = ("dram_gbps", "tensor_tflops")
Key = tuple[tuple[str, Any], ...]
Facts = Mapping[str, Any]
Standing = Literal["best", "tie", "slower"]


@dataclass(frozen=True)
class Sources:
    """Everything a report can be made from; each part may be missing.

    files:    results of `tune`
    ceilings: results of the ceiling kernels: DRAM read, mma.sync, wgmma, an empty launch
    plan:     candidates as `tune.plan` returns them; modelled
    checks:   of kernels against their reference
    peers:    tables of others' times: {"gpu", "date", "source", "regime", "rows": [{"op",
              "problem", "peer", "kind": "4-bit" or "fp16", "us"}]}; a row is beside every result
              whose problem has the peer's values in the fields that the peer's problem names
    gpu:      facts of the GPU that the plan is for
    """

    files: Sequence[ResultFile] = ()
    ceilings: Sequence[ResultFile] = ()
    plan: Sequence[Planned] = ()
    checks: Sequence[CheckRow] = ()
    peers: Sequence[Facts] = ()
    gpu: Facts | None = None


@dataclass(frozen=True)
class Board:
    """All results of one Op in one regime on one GPU.

    rows:      as stored, the losers among them; none of a peer's
    ceilings:  of this GPU, measured and datasheet
    bound:     which ceilings the rows' `bound_us` comes from, in words
    peers:     of the same GPU, regime and problems
    """

    gpu: str
    uuid: str
    op: str
    regime: str
    rows: tuple[Row, ...]
    ceilings: tuple[Ceiling, ...]
    bound: str
    peers: tuple[Peer, ...]

    @property
    def title(self) -> str:
        """Return what the board is, for headings."""
        return f"{self.gpu}, {self.op}, {self.regime}"

    @cached_property
    def problems(self) -> list[Mapping[str, Any]]:
        """Return every problem once, in the order of the rows."""
        return list({problem_key(row.problem): row.problem for row in self.rows}.values())

    @property
    def size_name(self) -> str:
        """Return what the problems' size is called, M or tokens."""
        return size_name(self.problems[0])

    def shape(self, problem: Mapping[str, Any]) -> str:
        """Return the name of a problem without its size."""
        return shape_of(problem, self._shown)

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
        found = (point(row, self.shape(row.problem), self.ceilings) for row in rows)
        return [p for p in found if p is not None]

    @cached_property
    def _believed(self) -> list[Row]:
        """Return the rows that beat no ceiling: only a report knows what the machine can do."""
        return [row for row in self.rows if not doubt(row, self.ceilings)]


def boards(sources: Sources) -> list[Board]:
    """Return the results by GPU, Op and regime, never mixed; peers' rows beside this house's.

    The GPU of the newest results comes first, and the cold regime.
    """
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    environments: dict[tuple[str, str], Facts] = {}
    for file in sources.files:
        for row in file.rows:
            environment = file.environment_of(row)
            machine = (str(environment["gpu"]), str(environment.get("uuid", "")))
            known = environments.setdefault(machine, environment)
            environments[machine] = max(known, environment, key=lambda found: str(found["date"]))
            groups.setdefault((*machine, row.op, row.regime), []).append(row)
    ours = [key for key, rows in groups.items() if any(not row.peer for row in rows)]
    order = sorted(ours, key=lambda k: (k[0], k[1], _rank(k[3]), -len(groups[k]), k[2]))
    order.sort(key=lambda k: str(environments[k[:2]]["date"]), reverse=True)
    return [_board(key, groups[key], environments[key[:2]], sources) for key in order]


@dataclass(frozen=True)
class Machine:
    """One GPU and its ceilings, measured and datasheet."""

    gpu: str
    uuid: str
    ceilings: tuple[Ceiling, ...]


def machines(sources: Sources) -> list[Machine]:
    """Return every GPU that results, ceilings or the plan are of."""
    found: dict[tuple[str, str], Facts] = {}
    for file in (*sources.files, *sources.ceilings):
        for environment in (file.environment, *file.earlier):
            machine = (str(environment["gpu"]), str(environment.get("uuid", "")))
            found[machine] = environment.get("gpu_facts") or {}
    if sources.gpu and all(sources.gpu["name"] != gpu for gpu, _ in found):
        found[str(sources.gpu["name"]), ""] = sources.gpu
    return [
        Machine(gpu, uuid, (*_measured(gpu, uuid, sources.ceilings), *ceilings_of(facts)))
        for (gpu, uuid), facts in sorted(found.items(), key=lambda item: item[0])
    ]


def _rank(regime: str) -> int:
    return REGIMES.index(regime) if regime in REGIMES else len(REGIMES)


def _board(
    key: tuple[str, str, str, str], rows: list[Row], environment: Facts, sources: Sources
) -> Board:
    gpu, uuid, op, regime = key
    facts = environment.get("gpu_facts") or {}
    ceilings = (*_measured(gpu, uuid, sources.ceilings), *ceilings_of(facts))
    names = {gpu.casefold(), str(facts.get("key", "")).casefold()}
    tables = [t for t in sources.peers if str(t.get("gpu", "")).casefold() in names]
    tables = [t for t in tables if t.get("regime") == regime]
    own = tuple(row for row in rows if not row.peer)
    problems = {problem_key(row.problem): row.problem for row in own}.values()
    tables += [_peer_table(row) for row in rows if row.peer and row.status == MEASURED and row.ok]
    peers = tuple(_peers(op, problems, tables))
    return Board(gpu, uuid, op, regime, own, ceilings, _bound_words(facts), peers)


def _peer_table(row: Row) -> Facts:
    """Return a peer's row as a table of others' times has it."""
    named = {"op": row.op, "problem": row.problem, "peer": row.peer, "kind": row.more["kind"]}
    source = "measured in turn with ours"
    return {"date": row.run[:10], "source": source, "rows": [{**named, "us": row.us}]}


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


def _bound_words(facts: Facts) -> str:
    numbers = [number(facts, name) for name in FACT_NAMES]
    if None in numbers:
        return "ceilings that the file does not name"
    recorded = any(c.source == "measured" for c in ceilings_of(facts))
    source = "measured ceilings" if recorded else "datasheet ceilings"
    return f"{source} of {numbers[0]:.0f} GB/s and {numbers[1]:.4g} TFLOP/s"


def _measured(gpu: str, uuid: str, files: Sequence[ResultFile]) -> list[Ceiling]:
    """Return the ceilings measured on this very GPU, else on another one of its model."""
    rows: dict[bool, list[Row]] = {True: [], False: []}
    for file in files:
        for row in file.rows:
            environment = file.environment_of(row)
            if environment["gpu"] == gpu:
                rows[environment.get("uuid", "") == uuid].append(row)
    return measured_ceilings(rows[True] or rows[False])


def _peers(
    op: str, problems: Iterable[Mapping[str, Any]], tables: Sequence[Facts]
) -> Iterable[Peer]:
    problems = list(problems)
    shown = varying(problems)
    for table in tables:
        for row in table["rows"]:
            for problem in problems:
                named = row["problem"].items()
                if row["op"] == op and all(problem.get(k) == v for k, v in named):
                    yield Peer(
                        name=str(row["peer"]),
                        kind=row["kind"],
                        shape=shape_of(problem, shown),
                        size=size_of(problem),
                        us=float(row["us"]),
                        date=str(table.get("date", "")),
                        source=str(table.get("source", "")),
                    )


def peer_of(board: Board, problem: Mapping[str, Any], kind: str) -> Peer | None:
    """Return the fastest peer of a kind on a problem."""
    shape, size = board.shape(problem), size_of(problem)
    found = [p for p in board.peers if (p.kind, p.shape, p.size) == (kind, shape, size)]
    return min(found, key=lambda p: p.us, default=None)


def slug(text: str) -> str:
    """Return a text as a file name or id."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
