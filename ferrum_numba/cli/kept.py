"""The ceilings of a board, which are measured once a day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferrum_numba.cli.ceilings import SUSTAINED_S, sustained, unsustained
from ferrum_numba.cli.output import make_folder
from ferrum_numba.cli.session import Session
from ferrum_numba.cli.tune import by_op
from ferrum_numba.contract import Kernel, Op

if TYPE_CHECKING:
    from ferrum_numba.results import ResultFile
    from ferrum_numba.roofline import Ceiling

KEPT = timedelta(days=1)
CEILINGS = "ceilings"


def is_of_ceilings(path: Path) -> bool:
    """Tell whether a result file's place says that it has ceilings."""
    return CEILINGS in (path.stem, path.parent.name)


def ceiling_files(session: Session, key: str) -> list[ResultFile]:
    """Return the ceilings of a GPU that ship and those of the store."""
    from ferrum_numba import results

    paths = session.result_paths(key, both=True)
    return [results.load(path) for path in paths if is_of_ceilings(path)]


def known_ceilings(session: Session) -> list[Ceiling]:
    """Return what is known of the GPU's ceilings: measured on one of its boards, and stated."""
    from ferrum_numba.report.data import boards_of, drawn

    facts: Any = session.gpu
    boards = boards_of(facts.name, ceiling_files(session, facts.key))
    return list(drawn(facts.name, boards, asdict(facts)))


@dataclass
class Kept:
    """A board's ceilings, kept for a day.

    ops: of the ceiling kernels that run on this GPU
    """

    path: Path
    ops: list[tuple[Op, list[Kernel]]]
    file: ResultFile | None

    @classmethod
    def of(cls, session: Session) -> Kept:
        """Return what is kept of this session's board."""
        from ferrum_numba import results

        facts = session.gpu
        path = session.store / facts.key / CEILINGS / f"{facts.uuid or 'board'}.json"
        ops = by_op([kernel for kernel in session.ceilings if kernel.runs_on(facts)])
        return cls(path, ops, results.load(path) if path.exists() else None)

    def fresh(self, op: Op) -> bool:
        """Return whether an Op's ceilings were measured within a day."""
        dates = [row.run for row in self.file.rows if row.op == op.name] if self.file else []
        oldest = datetime.now(UTC) - KEPT
        return bool(dates) and all(datetime.fromisoformat(date) > oldest for date in dates)

    def merge(self, found: ResultFile) -> None:
        """Keep new ceilings."""
        from ferrum_numba import results

        self.file = results.merge(self.file, found) if self.file else found
        self._save()

    def sustain(self, op: Op, kernels: Sequence[Kernel]) -> None:
        """Measure what a hot board holds of an Op's ceilings, where that is not known."""
        assert self.file is not None, "all Ops were measured before"
        names = {kernel.name for kernel in kernels}
        own = [row for row in self.file.rows if row.op == op.name and row.kernel in names]
        if unsustained(own):
            held = dict(zip(map(id, own), sustained(kernels, own, SUSTAINED_S), strict=True))
            self.file.rows = [held.get(id(row), row) for row in self.file.rows]
            self._save()

    def _save(self) -> None:
        from ferrum_numba import results

        assert self.file is not None, "there is something to keep"
        make_folder(self.path.parent)
        results.save(self.path, self.file)
