"""From a config to a cubin with its registers, spills, shared memory and SASS; no GPU needed.

Nothing here imports a compiler before one is needed: what was compiled before runs without.
"""

from typing import TYPE_CHECKING, Any

from ferrum_numba.compile.binary import Binary
from ferrum_numba.compile.lookup import available, build, need_compiler, program_fingerprint
from ferrum_numba.compile.occupancy import blocks_per_sm, occupancy_limits
from ferrum_numba.compile.pool import Job, build_many

if TYPE_CHECKING:
    from ferrum_numba.compile.compiler import build_program, probe
    from ferrum_numba.compile.fingerprint import function_fingerprint

__all__ = [
    "Binary",
    "Job",
    "available",
    "blocks_per_sm",
    "build",
    "build_many",
    "build_program",
    "function_fingerprint",
    "occupancy_limits",
    "probe",
    "program_fingerprint",
]


def __getattr__(name: str) -> Any:
    """Return what only the compiler has, importing it now.

    Raises:
        ToolchainError: it is not installed
    """
    if name not in ("build_program", "function_fingerprint", "probe"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(need_compiler(), name)
