"""What a kernel wastes, by source line and without a GPU: the interpreter counts."""

from ferrum_numba.tracing.trace import Trace, trace

__all__ = ["Trace", "trace"]
