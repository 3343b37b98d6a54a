"""Times that can be trusted: three regimes, every sample kept."""

from ferrum_numba.measure.clocks import Reading, read_clocks
from ferrum_numba.measure.timing import REGIMES, Policy, Samples, Timer, host_time_us, measure

__all__ = [
    "REGIMES",
    "Policy",
    "Reading",
    "Samples",
    "Timer",
    "host_time_us",
    "measure",
    "read_clocks",
]
