"""The heats of a problem: which configs are checked and timed alone, in which order, how many."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ferrum_numba.contract import Config, Kernel, Problem
from ferrum_numba.results import Row
from ferrum_numba.results.row import MEASURED
from ferrum_numba.tune.searchers import Exhaustive, Searcher

# (factor, configs): a design that takes so much longer than the best so far, after so many of its
# configs, is left: what its others could gain does not make up for it
HOPELESS = ((3.0, 1), (1.5, 3))


@dataclass
class Entry:
    """One kernel in the heats of a problem.

    space:       its configs, in its own order
    configs:     of these such that may run, the likeliest first
    first:       of these the default and the incumbent, which are measured whatever happens
    expected_us: by the model, of the likeliest
    rows:        what is known of them by now, and of those that cannot run
    """

    kernel: Kernel
    space: Sequence[Config]
    configs: Sequence[Config]
    first: Sequence[Config]
    searcher: Searcher
    expected_us: float = math.inf
    rows: dict[Config, Row] = field(default_factory=dict)
    best_us: float | None = None
    num_timed: int = 0

    def told(self, config: Config, row: Row) -> None:
        """Take a row in."""
        self.rows[config] = row
        timed = row.status == MEASURED
        self.searcher.tell(config, row.us if timed else None)
        self.num_timed += 1
        if timed:
            self.best_us = min(self.best_us or row.us, row.us)


@dataclass(frozen=True)
class Heats:
    """Measures the entries of one problem.

    measure: gives the row of a kernel's config; `best_us`, its kernel's best so far, lets it drop
             what is far slower
    passed:  tells that the time is up
    roof_us: a time that is good enough, 0 for none
    """

    problem: Problem
    entries: Sequence[Entry]
    measure: Callable[[Kernel, Config, Problem, float | None], Row]
    passed: Callable[[], bool]
    roof_us: float = 0.0

    def run(self) -> None:
        """Measure defaults and incumbents, then what is asked for, the best design first."""
        for entry in sorted(self.entries, key=lambda entry: entry.expected_us):
            for config in entry.first:
                self._measure(entry, config)
        for entry in sorted(self.entries, key=lambda entry: entry.best_us or math.inf):
            self._search(entry)

    def _search(self, entry: Entry) -> None:
        while asked := entry.searcher.ask():
            for config in asked:
                if self._enough(entry):
                    return
                self._measure(entry, config)

    def _measure(self, entry: Entry, config: Config) -> None:
        # a kernel is compared with itself: a slower design still gets its best time in full
        entry.told(config, self.measure(entry.kernel, config, self.problem, entry.best_us))

    def _enough(self, entry: Entry) -> bool:
        """Tell whether nothing more of a kernel is to be measured."""
        best_us = min((e.best_us for e in self.entries if e.best_us), default=math.inf)
        if self.passed() or best_us <= self.roof_us:
            return True
        if isinstance(entry.searcher, Exhaustive):
            return False
        behind = (entry.best_us or math.inf) / best_us
        return any(behind > factor and entry.num_timed >= few for factor, few in HOPELESS)
