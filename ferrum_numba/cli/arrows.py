"""`compare --roofline`: from the old to the new, under the ceilings that are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ferrum_numba import gpu
from ferrum_numba.cli.kept import ceiling_files
from ferrum_numba.cli.output import say, writing
from ferrum_numba.cli.session import Session
from ferrum_numba.errors import StoreError
from ferrum_numba.words import counted

if TYPE_CHECKING:
    from ferrum_numba.results.pairs import Pair


def draw(session: Session, pairs: Sequence[Pair]) -> None:
    """Write the picture of a comparison that `--roofline` names.

    Raises:
        StoreError: nothing of it can be drawn, or the file cannot be written.
    """
    from ferrum_numba.report.arrows import arrows
    from ferrum_numba.report.data import boards_of, drawn
    from ferrum_numba.report.drawing import Drawer
    from ferrum_numba.results.file import write_text

    args = session.args
    facts = _gpu(session)
    ceilings = drawn(
        facts.name, boards_of(facts.name, ceiling_files(session, facts.key)), asdict(facts)
    )
    both = [(pair.old, pair.new) for pair in pairs if pair.old is not None and pair.new is not None]
    title = f"From {Path(args.old).name} to {Path(args.new).name}: {facts.name}"
    picture = arrows("arrows", title, both, lambda row: ceilings, ceilings)
    if picture is None:
        raise StoreError(f"{args.roofline} is not drawn: no problem has a time and work in both")
    with writing(args.roofline):
        write_text(Path(args.roofline), Drawer().draw(picture)[0])
    say(f"{args.roofline} has {len(picture.data['before'])} of {counted(len(pairs), 'problem')}")


def _gpu(session: Session) -> gpu.Gpu:
    """Return the GPU that was compared on: that of the files, or the one at hand."""
    path = Path(session.args.old)
    return gpu.find(str(path)) if path.is_file() else gpu.live()
