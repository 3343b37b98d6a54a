"""What a launch is expected to take: a sum of terms, each with a cost fitted to recorded times.

A term is a time, or a count, that a design's launch shows before it runs; which terms a design has
is in its `estimate.py`, with their costs as `python -m ferrum_numba.perf.fit_estimates` finds them.
It is for ranking configs, not for believing.
"""

from collections.abc import Mapping

from ferrum_numba.gpu import Gpu

# of the GPU that the costs were fitted on; instructions take longer at a lower clock
FITTED_MHZ = 1980.0
# what of the datasheet's bandwidth a plain read gets
READ_SHARE = 0.9


def read_us(size_bytes: float, gpu: Gpu) -> float:
    """Return the time in which memory gives so many bytes to the whole GPU."""
    return size_bytes / (READ_SHARE * gpu.dram_gbps * 1e3)


def slower(gpu: Gpu) -> float:
    """Return how much longer a cycle is than on the GPU that the costs were fitted on."""
    return FITTED_MHZ / gpu.clock_mhz


def total_us(costs: Mapping[str, float], terms: Mapping[str, float]) -> float:
    """Return the terms times their costs."""
    return sum(costs[name] * value for name, value in terms.items())
