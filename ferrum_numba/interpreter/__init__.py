"""Run a kernel's own source on the CPU, 32 lanes in lock step."""

from ferrum_numba.interpreter.numba_types import typing_context
from ferrum_numba.interpreter.schedule import SCHEDULES, Schedule
from ferrum_numba.interpreter.scheduler import run

__all__ = ["SCHEDULES", "Schedule", "run", "typing_context"]
