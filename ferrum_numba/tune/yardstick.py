"""How boards of one model compare: by one program on one problem, timed on each of them first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from ferrum_numba.compile import Binary
from ferrum_numba.contract import Kernel, Problem, describe
from ferrum_numba.results.row import MEASURED
from ferrum_numba.tune.model import bound_by
from ferrum_numba.tune.worker import Candidate, Measurer

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu
    from ferrum_numba.tune.space import Binaries

# the first of them wakes the board
RUNS = 4


@dataclass(frozen=True)
class Yardstick:
    """One program, the kernel's default, on one problem."""

    kernel: Kernel
    problem: Problem

    def candidate(self, gpu: Gpu, binaries: Binaries) -> Candidate | None:
        """Return what to measure, None where it does not compile."""
        config = self.kernel.default(self.problem, gpu)
        binary = binaries[self.kernel.name, config]
        if not isinstance(binary, Binary):
            return None
        return Candidate(self.kernel, config, self.problem, binary)


def yardsticks_of(ceilings: Iterable[Kernel], gpu: Gpu) -> list[Yardstick]:
    """Return the first ceiling that memory bounds and the first that the tensor cores do.

    Each on the last of its Op's tests: smaller ones are there to be checked, that one is large
    enough to be a ceiling.
    """
    found: dict[str, Yardstick] = {}
    for kernel in ceilings:
        problem = kernel.op.tests[-1]
        if kernel.runs_on(gpu) and kernel.refuses(problem) is None:
            bound = bound_by(kernel.op.work(problem), gpu)
            found.setdefault(bound, Yardstick(kernel, problem))
    return list(found.values())


def time_yardsticks(
    yardsticks: Sequence[Yardstick], gpu: Gpu, binaries: Binaries, measurer: Measurer
) -> list[dict[str, Any]]:
    """Return what each yardstick takes on a board, as an environment keeps it.

    Empty if one of them cannot be timed: two boards compare by all of them or by none.
    """
    found = []
    for yardstick in yardsticks:
        candidate = yardstick.candidate(gpu, binaries)
        if candidate is None:
            return []
        outcomes = [measurer.run(candidate, None) for _ in range(RUNS)]
        if any(outcome.status != MEASURED for outcome in outcomes):
            return []
        found.append(
            {
                "kernel": yardstick.kernel.name,
                "problem": describe(yardstick.problem),
                "config": describe(candidate.config),
                "program": candidate.binary.fingerprint,
                "bound": bound_by(yardstick.kernel.op.work(yardstick.problem), gpu),
                "us": median(us for outcome in outcomes[1:] for us in outcome.us),
            }
        )
    return found
