"""The marks between which a profiler looks, where it was told to wait for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cuda.bindings import driver

from ferrum_numba.launch.device import call


@contextmanager
def profiled() -> Iterator[None]:
    """Let an attached profiler see what is launched inside."""
    call(driver.cuProfilerStart)
    try:
        yield
    finally:
        call(driver.cuProfilerStop)
