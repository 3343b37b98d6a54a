"""Results: typed rows, their files, where they come from, who won, and what to run therefore."""

from ferrum_numba.results.decisions import Choice, Decision, choose, decide, stored_config
from ferrum_numba.results.file import ResultFile, load, merge, merge_rows, save
from ferrum_numba.results.provenance import driver_version, environment, versions
from ferrum_numba.results.row import Row, num_tiles, same, size_name, size_of
from ferrum_numba.results.statistics import Verdict, compare, compare_rounds, median_interval
from ferrum_numba.results.unmeasured import Candidates, CheckRow, Checks, Planned
from ferrum_numba.results.validate import ENVIRONMENT, validate
from ferrum_numba.results.winners import Winner, best, compare_rows, counts, rank, winners

__all__ = [
    "ENVIRONMENT",
    "Candidates",
    "CheckRow",
    "Checks",
    "Choice",
    "Decision",
    "Planned",
    "ResultFile",
    "Row",
    "Verdict",
    "Winner",
    "best",
    "choose",
    "compare",
    "compare_rounds",
    "compare_rows",
    "counts",
    "decide",
    "driver_version",
    "environment",
    "load",
    "median_interval",
    "merge",
    "merge_rows",
    "num_tiles",
    "rank",
    "same",
    "save",
    "size_name",
    "size_of",
    "stored_config",
    "validate",
    "versions",
    "winners",
]
