"""Add a run, of another board perhaps, to the recorded results.

    ferrum-numba tune prefill --problem h200-peers --store /tmp/run
    python -m ferrum_numba.perf.add_run /tmp/run/h200/w4a16_gemm.json

Boards of one model differ by some per cent, so times of two of them do not say which of two configs
is the faster. What a kernel takes for a problem is therefore recorded of the newest run that
measured it, as a whole; of earlier runs stays what it did not try and what none of its times for
that problem comes near. Where the fastest row of an earlier run goes, its rows of other kernels go
too: they would look like what that run found. A peer's row stays until that peer is measured again.

What is decided by the recorded results is then written anew; see `perf.decisions`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ferrum_numba import results, shipped
from ferrum_numba.contract import describe
from ferrum_numba.errors import FerrumError
from ferrum_numba.kernels import KERNELS
from ferrum_numba.perf import decisions
from ferrum_numba.perf.readme_table import RESULTS
from ferrum_numba.results import ResultFile, Row, stored_config
from ferrum_numba.results.row import MEASURED

# what an older row must be faster by, more than boards usually differ by
AHEAD = 0.03


class _Run(NamedTuple):
    """What a new run measured.

    configs:    those it tried, by problem and kernel
    fastest_us: the best of its times, by problem
    """

    configs: dict[tuple[str, str], set[str]]
    fastest_us: dict[str, float]

    def outdoes(self, row: Row) -> bool:
        """Return whether it measured a row again, or what it did not try is no faster."""
        problem, kernel, config = _about(row)
        configs = self.configs.get((problem, kernel))
        if configs is None or row.peer:
            return configs is not None
        ahead = row.status == MEASURED and problem in self.fastest_us
        ahead = ahead and row.us < (1 - AHEAD) * self.fastest_us[problem]
        return not ahead or config in configs


def add(old: ResultFile, new: ResultFile) -> ResultFile:
    """Return both files as one, with what was measured again only as the newer has it."""
    run, leaders = _run(new.rows), _leaders(old.rows)

    def stays(row: Row) -> bool:
        if row.peer:
            return not run.outdoes(row)
        problem, kernel, _ = _about(row)
        leader = leaders.get((row.run, problem), row)
        again = (problem, kernel) in run.configs
        return not run.outdoes(row) and (again or not run.outdoes(leader))

    kept = ResultFile(old.environment, [row for row in old.rows if stays(row)], old.earlier)
    merged = results.merge(kept, new)
    earlier = [_without_place(environment) for environment in merged.earlier]
    return ResultFile(_without_place(merged.environment), merged.rows, earlier)


def _run(rows: Iterable[Row]) -> _Run:
    run = _Run({}, {})
    for row in rows:
        problem, kernel, config = _about(row)
        run.configs.setdefault((problem, kernel), set()).add(config)
        if row.status == MEASURED and not row.peer:
            run.fastest_us[problem] = min(row.us, run.fastest_us.get(problem, row.us))
    return run


def _leaders(rows: Iterable[Row]) -> dict[tuple[str, str], Row]:
    """Return the row that led every run on every problem."""
    leaders: dict[tuple[str, str], Row] = {}
    timed = [row for row in rows if row.status == MEASURED and not row.peer]
    for row in sorted(timed, key=results.rank):
        leaders.setdefault((row.run, _about(row)[0]), row)
    return leaders


def _without_place(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return an environment whose command does not say where the run was stored."""
    command = re.sub(r" --store[ =]\S+", "", environment["command"])
    return {**environment, "command": command}


def _about(row: Row) -> tuple[str, str, str]:
    """Return a row's problem, with its regime, its kernel, and its config as of today's fields."""
    kernel = {kernel.name: kernel for kernel in KERNELS}.get(row.kernel)
    config = None if kernel is None else stored_config(kernel, row.config)
    if config is not None:
        row = replace(row, config=describe(config))
    op, name, problem, text, regime = row.key
    return f"{op} {problem} {regime}", name, text


def main(words: Sequence[str] | None = None) -> None:
    """Add the runs that are named, in their order."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    args = parser.parse_args(words)
    runs = [results.load(path) for path in args.runs]
    file = results.load(args.results)
    for run in runs:
        file = add(file, run)
    results.save(args.results, file)
    print(f"{len(file.rows)} rows are in {args.results}")
    if args.results.resolve().is_relative_to(shipped.results_folder()):
        decisions.main([])


if __name__ == "__main__":
    try:
        main()
    except FerrumError as error:
        print(f"add_run: {error}", file=sys.stderr)
        sys.exit(2)
