"""From a config to a cubin with its registers, spills, shared memory and SASS; no GPU needed."""

from ferrum_numba.compile.binary import Binary
from ferrum_numba.compile.build import build, build_program, probe, program_fingerprint
from ferrum_numba.compile.fingerprint import function_fingerprint
from ferrum_numba.compile.occupancy import blocks_per_sm
from ferrum_numba.compile.pool import Job, build_many

__all__ = [
    "Binary",
    "Job",
    "blocks_per_sm",
    "build",
    "build_many",
    "build_program",
    "function_fingerprint",
    "probe",
    "program_fingerprint",
]
