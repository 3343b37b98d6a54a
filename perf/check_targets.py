"""Whether recorded results reach the targets of `perf/targets.toml`, a line a target.

    python -m ferrum_numba.perf.check_targets [perf/results/h200]

exits with 1 where one is missed, with both numbers in its line; a target that nothing was measured
for is said, and misses nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ferrum_numba import results, shipped
from ferrum_numba.errors import FerrumError, StoreError
from ferrum_numba.results.targets import evaluate, load_targets

MISSED = 1
CEILINGS = "ceilings"


def main(words: Sequence[str] | None = None) -> int:
    """Print a line a target; 1 where one is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    usual = shipped.results_folder() / "h200"
    parser.add_argument("folder", nargs="?", type=Path, default=usual, metavar="FOLDER")
    parser.add_argument("--targets", type=Path, default=shipped.targets_path(), metavar="FILE")
    args = parser.parse_args(words)
    targets = load_targets(args.targets)
    files = {path.stem: results.load(path) for path in sorted(args.folder.glob("*.json"))}
    if not files:
        raise StoreError(f"{args.folder} has no result files")
    ceilings = files.pop(CEILINGS).rows if CEILINGS in files else []
    found = evaluate(targets, [row for file in files.values() for row in file.rows], ceilings)
    print("\n".join(one.text for one in found))
    return MISSED if any(one.met is False for one in found) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FerrumError as error:
        print(f"check_targets: {error}", file=sys.stderr)
        sys.exit(2)
