"""Times that can be trusted: three regimes, every sample kept, intervals and verdicts."""

from ferrum_numba.measure.clocks import Reading, read_clocks
from ferrum_numba.measure.statistics import Verdict, compare, median_interval
from ferrum_numba.measure.timing import REGIMES, Policy, Samples, host_time_us, measure

__all__ = [
    "REGIMES",
    "Policy",
    "Reading",
    "Samples",
    "Verdict",
    "compare",
    "host_time_us",
    "measure",
    "median_interval",
    "read_clocks",
]
