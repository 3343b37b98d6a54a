"""What faults and mutants of the shipped kernels are run on: what `check` runs by default."""

from __future__ import annotations

from ferrum_numba import check
from ferrum_numba.cases import Case, cases_of
from ferrum_numba.contract import Kernel
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels import KERNELS, MOE, TOOLS

H200 = KNOWN["h200"]
NAMED: dict[str, Kernel] = {kernel.name: kernel for kernel in (*KERNELS, *MOE, *TOOLS)}


def run(case: Case, orders: int = 1) -> check.Checked:
    """Return what the interpreter says of a case."""
    return check.on_interpreter(*case[:3], gpu=case.gpu, runs=orders, races=True)


def cases(kernel: str) -> list[Case]:
    """Return what a kernel is checked on by default, its corners first."""
    found = list(cases_of(NAMED[kernel], H200))
    tests = len(found) - len(NAMED[kernel].corners())
    return found[tests:] + found[:tests]
