"""What a kernel is checked on where nobody says what: its Op's tests, and its own corners."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from ferrum_numba.contract import Config, Kernel, Problem
from ferrum_numba.gpu import Gpu


class Case(NamedTuple):
    """What is checked: a config on a problem, launched for a GPU, or for fewer of its SMs."""

    kernel: Kernel
    config: Config
    problem: Problem
    gpu: Gpu


def cases_of(kernel: Kernel, gpu: Gpu) -> Iterator[Case]:
    """Yield what a kernel is checked on by default: its Op's tests, then its own corners."""
    if not kernel.runs_on(gpu):
        return
    for problem in kernel.op.tests:
        if kernel.refuses(problem) is None:
            yield Case(kernel, kernel.default(problem, gpu), problem, gpu)
    for corner in kernel.corners():
        facts = replace(gpu, num_sms=corner.num_sms or gpu.num_sms)
        config = corner.config or kernel.default(corner.problem, facts)
        config = kernel.specialise(config, corner.problem)
        # some of them are of newer GPUs only
        if corner.config is None or kernel.misfit(config, corner.problem, facts) is None:
            yield Case(kernel, config, corner.problem, facts)
