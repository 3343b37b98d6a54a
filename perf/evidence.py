"""What noise does to a final, simulated: the table of docs/tuning.md#evidence.

    python -m ferrum_numba.perf.evidence

holds 1,500 finals a line and writes the table anew. It takes a few minutes and no GPU; a slow test
says when the table is older than the rules.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ferrum_numba.errors import FerrumError, StoreError
from ferrum_numba.tune.noise import NOISES, Figures, Noise, equals, figures, rivals

PAGE = Path(__file__).resolve().parent.parent / "docs" / "tuning.md"
COMMAND = "python -m ferrum_numba.perf.evidence"
BEGIN, END = f"<!-- simulated: begin: {COMMAND} -->\n", "<!-- simulated: end -->\n"
# of each noise and each kind of field
FINALS = 500
HEAD = (
    "| noise of the board | wrong | open | rounds | two equals told apart | eight equals told apart"
    " | interval holds |",
    "|---|--:|--:|--:|--:|--:|--:|",
)


def fields() -> list[list[list[float]]]:
    """Return the true times of all finals: of rivals, of two equals and of eight."""
    return [rivals(8, FINALS), equals(2, FINALS), equals(8, FINALS)]


def simulated(noise: Noise) -> list[Figures]:
    """Return the figures of a noise, one of each kind of field."""
    return [figures(noise, field) for field in fields()]


def line(noise: Noise, found: Sequence[Figures]) -> str:
    """Return the line of a noise in the table."""
    among, two, eight = found
    held = min(one.held for one in found)
    shares = (f"{share:.1%}" for share in (two.falsely, eight.falsely, held))
    cells = [noise.name, f"{among.wrong:.1%}", f"{among.undecided:.0%}", f"{among.rounds:.0f}"]
    return f"| {' | '.join([*cells, *shares])} |"


def write(path: Path, lines: Sequence[str]) -> None:
    """Put the lines into a page, in place of those that are there.

    Raises:
        StoreError: the page is not here, or has no place for them.
    """
    if not path.is_file():
        raise StoreError(f"{path}: is not here; this command is for a checkout")
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise StoreError(f"{path} has no table to replace: it begins with {BEGIN.strip()}")
    text = "\n".join([*HEAD, *lines]) + "\n"
    path.write_text(f"{before}{begin}{text}{end}{after}", encoding="utf-8")


def main(words: Sequence[str] | None = None) -> None:
    """Simulate, and write the table anew."""
    argparse.ArgumentParser(prog=COMMAND, description=__doc__.partition("\n")[0]).parse_args(words)
    lines = []
    for noise in NOISES:
        lines.append(line(noise, simulated(noise)))
        print(lines[-1], flush=True)
    write(PAGE, lines)


if __name__ == "__main__":
    try:
        main()
    except FerrumError as error:
        print(f"evidence: {error}", file=sys.stderr)
        sys.exit(2)
