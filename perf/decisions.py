"""What to run on a GPU, made from its recorded results: what a layer reads in their place.

    python -m ferrum_numba.perf.decisions

writes decisions/<gpu>.json for every GPU that there are results of. `add_run` does so too; a test
says when a file is older than its results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ferrum_numba import results, shipped
from ferrum_numba.errors import FerrumError
from ferrum_numba.kernels import APART, KERNELS
from ferrum_numba.results.decisions import Decision, save_decisions

# the regime whose winner runs: a model's layers find their weights in device memory, not in L2
REGIME = "cold"
COMMAND = "python -m ferrum_numba.perf.decisions"


def decided(folder: Path) -> list[Decision]:
    """Return what the results of one GPU decide, for every kernel that a layer may run."""
    # a layer runs no expert apart
    kernels = [kernel for kernel in KERNELS if kernel not in APART]
    ops = dict.fromkeys(kernel.op.name for kernel in kernels)
    names = {kernel.name for kernel in kernels}
    files = [path for op in ops if (path := folder / f"{op}.json").is_file()]
    rows = [row for path in files for row in results.load(path).rows if row.kernel in names]
    return results.decide(rows, REGIME)


def write(gpu_key: str, path: Path) -> int:
    """Write the decisions for a GPU, and return how many there are."""
    found = decided(shipped.results_folder() / gpu_key)
    head = {"gpu": gpu_key, "regime": REGIME, "made_by": COMMAND}
    save_decisions(path, head, found)
    return len(found)


def gpu_keys() -> list[str]:
    """Return the GPUs that there are recorded results of."""
    return sorted(path.name for path in shipped.results_folder().iterdir() if path.is_dir())


def main(words: Sequence[str] | None = None) -> None:
    """Write the decisions for every GPU."""
    argparse.ArgumentParser(prog=COMMAND, description=__doc__.partition("\n")[0]).parse_args(words)
    for key in gpu_keys():
        path = shipped.decisions_path(key)
        print(f"{write(key, path)} decisions are in {path}")


if __name__ == "__main__":
    try:
        main()
    except FerrumError as error:
        print(f"decisions: {error}", file=sys.stderr)
        sys.exit(2)
