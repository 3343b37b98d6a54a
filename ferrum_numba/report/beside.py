"""Other people's times beside this house's: of the same run where there are some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ferrum_numba.results import Row, size_of
from ferrum_numba.results.row import MEASURED, problem_key
from ferrum_numba.roofline.points import Peer

if TYPE_CHECKING:
    from ferrum_numba.report.data import Group
    from ferrum_numba.report.sources import Facts

# of a peer's time: taken in the run of our fastest row, in another run of ours, by others
SAME_RUN, MEASURED_HERE, TABLE = range(3)


def peers_of(group: Group, rows: Iterable[Row], tables: Sequence[Facts]) -> list[Peer]:
    """Return the peers' times for a group's problems.

    A time taken in the same run as ours is preferred to one of another run, and that to an older
    table's, for each problem and kind of peer.
    """
    ours = {problem_key(problem) for problem in group.problems}
    beside = [row for row in rows if row.peer and problem_key(row.problem) in ours]
    found = [_measured(group, row) for row in beside if _good(row)]
    names = {group.gpu.casefold(), str(group.facts.get("key", "")).casefold()}
    for table in tables:
        if str(table.get("gpu", "")).casefold() in names and table.get("regime") == group.regime:
            found += _tabled(group, table)
    least: dict[tuple[str, str, int | None], int] = {}
    for peer in found:
        least[_about(peer)] = min(peer.rank, least.get(_about(peer), TABLE))
    return [peer for peer in found if peer.rank == least[_about(peer)]]


def _about(peer: Peer) -> tuple[str, str, int | None]:
    return peer.kind, peer.shape, peer.size


def _good(row: Row) -> bool:
    return row.status == MEASURED and row.ok and not row.untrusted


def _measured(group: Group, row: Row) -> Peer:
    """Return the time of a peer's row."""
    winner = group.winners.get(problem_key(row.problem))
    same = winner is not None and winner.row.run == row.run
    return _peer(
        group, row.problem, row.peer, row.more["kind"], row.us, row.run[:10],
        "measured in turn with ours" if same else "measured on another day or board",
        SAME_RUN if same else MEASURED_HERE,
    )  # fmt: skip


def _tabled(group: Group, table: Facts) -> Iterable[Peer]:
    for row in table["rows"]:
        for problem in group.problems if row["op"] == group.op else ():
            if all(problem.get(name) == value for name, value in row["problem"].items()):
                yield _peer(
                    group, problem, str(row["peer"]), row["kind"], float(row["us"]),
                    str(table.get("date", "")), str(table.get("source", "")), TABLE,
                )  # fmt: skip


def _peer(
    group: Group, problem: Mapping[str, Any], name: str, kind: Any, us: float, date: str,
    source: str, rank: int,
) -> Peer:  # fmt: skip
    return Peer(name, kind, group.shape(problem), size_of(problem), us, date, source, rank)


def peer_of(group: Group, problem: Mapping[str, Any], kind: str) -> Peer | None:
    """Return the fastest peer of a kind on a problem."""
    shape, size = group.shape(problem), size_of(problem)
    found = [p for p in group.peers if (p.kind, p.shape, p.size) == (kind, shape, size)]
    return min(found, key=lambda p: p.us, default=None)


def sources_of(peers: Iterable[Peer]) -> str:
    """Return where peers' times come from, in a sentence; nothing without peers."""
    found = sorted({f"{p.date}, {p.source}" for p in peers})
    return f"peers: {'; '.join(found)}" if found else ""
