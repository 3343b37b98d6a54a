"""What warps do, counted by line: instructions, sectors, wavefronts, waits, idle lanes, copies."""

from ferrum_numba.interpreter.trace.lines import Line, Requests
from ferrum_numba.interpreter.trace.tracer import Tracer

__all__ = ["Line", "Requests", "Tracer"]
