"""Checks and traces by the interpreter: what they are built for, and how long they will take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from ferrum_numba import gpu
from ferrum_numba.cases import Case
from ferrum_numba.cli.output import say
from ferrum_numba.cli.progress import Progress
from ferrum_numba.cli.session import TUNED_GPU
from ferrum_numba.errors import ProblemError
from ferrum_numba.words import counted

if TYPE_CHECKING:
    from ferrum_numba.check import Checked
    from ferrum_numba.gpu import Gpu
    from ferrum_numba.tracing import Trace

Check = Callable[[Case], "Checked"]
# one case in so many runs twice: in another order, on the same workspace
TWICE_IN = 4
# one core's seconds a byte and FLOP of least work, of the GEMMs that ship: right within a factor of
# three from 10**6 bytes on, which is enough to tell a minute from an hour
BYTE_S, FLOP_S = 3e-6, 8e-8
# from so long on it is said before it begins
LONG_S = 120.0


def facts_for(arch: str | None) -> Gpu:
    """Return the GPU that configs are chosen and launches made for: one of the architecture."""
    tuned = gpu.find(TUNED_GPU)
    if arch is None or arch == tuned.arch:
        return tuned
    for known in gpu.KNOWN.values():
        if known.arch == arch:
            return known
    return replace(tuned, arch=arch, name=f"a GPU of {arch}")


def on_interpreter(orders: int | None = None) -> Check:
    """Return the check by the interpreter.

    orders: in which every case runs; None: one in four in two of them, the others in one
    """
    from ferrum_numba import check

    if orders is not None and not 1 <= orders <= check.MOST_ORDERS:
        raise ProblemError(f"--orders is 1 to {check.MOST_ORDERS}; got {orders}")
    done = count()

    def one(case: Case) -> Checked:
        runs = orders or (1 if next(done) % TWICE_IN else 2)
        return check.on_interpreter(*case[:3], arch=case.gpu.arch, gpu=case.gpu, runs=runs)

    return one


def traced(cases: Sequence[Case], bar: Progress) -> Iterator[Trace]:
    """Yield the trace of each case as it is done."""
    from ferrum_numba.tracing import trace

    for done, case in enumerate(cases):
        bar(done, len(cases))
        yield trace(case.kernel, case.problem, case.config, arch=case.gpu.arch, gpu=case.gpu)
        bar(done + 1, len(cases))


def say_how_long(cases: Sequence[Case], orders: int | None) -> None:
    """Say what the cases will take, where it is long."""
    runs = orders or 1 + 1 / TWICE_IN
    work = [case.kernel.op.work(case.problem) for case in cases]
    seconds = runs * sum(BYTE_S * one.bytes + FLOP_S * one.flops for one in work)
    if seconds >= LONG_S:
        say(
            f"{counted(len(cases), 'check')} on the interpreter will take roughly "
            f"{_in_words(seconds)}; Ctrl-C keeps what is done, and smaller sizes find the same "
            "mistakes"
        )


def _in_words(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.0f} hours"
