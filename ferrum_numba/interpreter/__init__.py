"""Run a kernel's own source on the CPU, 32 lanes in lock step."""

from ferrum_numba.interpreter.memory import Window
from ferrum_numba.interpreter.numba_types import typing_context
from ferrum_numba.interpreter.schedule import SCHEDULES, Schedule
from ferrum_numba.interpreter.scheduler import run, run_some
from ferrum_numba.interpreter.trace import Line, Requests, Tracer

__all__ = [
    "SCHEDULES",
    "Line",
    "Requests",
    "Schedule",
    "Tracer",
    "Window",
    "run",
    "run_some",
    "typing_context",
]
