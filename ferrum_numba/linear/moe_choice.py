"""Which grouped GEMMs a layer of experts runs: what was measured, where it serves, or a default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from math import log
from typing import Any

from ferrum_numba.contract import describe
from ferrum_numba.errors import ProblemError
from ferrum_numba.gpu import Gpu
from ferrum_numba.kernels.grouped import GroupedKernel, GroupedProblem
from ferrum_numba.linear.choice import kernel_for
from ferrum_numba.results.decisions import Choice, Decision

# rows of an expert that is hit, up to which kernels that stream weights come first
FEW_ROWS = 8
# of a launch in a graph, and a byte of its memory
NODE_US, BYTE_US = 0.8, 1 / 4e6
# of a gate that is a launch of its own: two columns read, one written, for each of the result
GATE_BYTES = 6


def grouped_choice(
    problem: GroupedProblem,
    kernels: Sequence[GroupedKernel],
    decisions: Sequence[Decision],
    gpu: Gpu,
    *,
    num_ids: int = 0,
    invariant: bool = False,
) -> Choice:
    """Return what to run a grouped GEMM with.

    Args:
        num_ids:   ids of which a map says the expert, 0 for no map; with one, ids are not read
                   directly
        invariant: a row has the same bits whatever the others are

    Raises:
        ProblemError: no kernel can run it; says why each cannot.
    """
    choice = kernel_for(problem, _in_order(problem, kernels, num_ids), decisions, gpu)
    assert isinstance(choice.kernel, GroupedKernel), "it is one of those"
    others = [kernel for kernel in kernels if kernel is not choice.kernel]
    for kernel, config in _configs([choice.kernel, *others], choice, problem, gpu):
        if num_ids and kernel.reads(config) == "ids":
            continue
        if invariant and not kernel.is_invariant(config):
            continue
        if config == choice.config:
            return choice
        return Choice(kernel, config, f"{choice.rule}, of those that may be chosen")
    raise ProblemError(f"no config of {', '.join(k.name for k in kernels)} may run {problem}")


def _configs(
    kernels: Sequence[GroupedKernel], choice: Choice, problem: GroupedProblem, gpu: Gpu
) -> Iterator[tuple[GroupedKernel, Any]]:
    """Yield the choice, then what else fits, in the order of each kernel's space."""
    yield kernels[0], choice.config
    for kernel in kernels:
        if kernel.refuses(problem) is not None:
            continue
        for generic in kernel.configs(gpu):
            config = kernel.specialise(generic, problem)
            if kernel.misfit(config, problem, gpu) is None:
                yield kernel, config


def _in_order(
    problem: GroupedProblem, kernels: Sequence[GroupedKernel], num_ids: int
) -> list[GroupedKernel]:
    """Return the kernels as they are where experts have few rows, else the other way round."""
    E, k = problem.num_experts, problem.top_k
    all_experts = num_ids or E
    hit = E * (1 - (1 - min(k / all_experts, 1)) ** problem.tokens)
    rows = problem.num_pairs * E / all_experts / hit
    return list(kernels if rows <= FEW_ROWS else reversed(kernels))


def is_fused(
    problem: GroupedProblem, kernels: Sequence[GroupedKernel], decisions: Sequence[Decision]
) -> bool:
    """Tell whether GEMM 1 applies the gate: unless it was measured to take longer so.

    Where both were measured for the nearest number of tokens; the gate's own launch as modelled.

    problem: not gated
    """
    names = {kernel.name for kernel in kernels}
    known = [found for found in decisions if found.kernel in names]
    gated, plain = _times(known, replace(problem, gated=True)), _times(known, problem)
    both = gated.keys() & plain.keys()
    if not both:
        return True
    tokens = min(both, key=lambda there: (abs(log(there / problem.tokens)), there))
    gate_bytes = GATE_BYTES * tokens * problem.top_k * problem.N // 2
    return gated[tokens] <= plain[tokens] + NODE_US + gate_bytes * BYTE_US


def _times(decisions: Sequence[Decision], problem: GroupedProblem) -> Mapping[int, float]:
    """Return the least time of such a problem by tokens, in µs."""
    wanted = _less_tokens(describe(problem))
    # a field that came later than a decision
    usual = {f.name: f.default for f in fields(problem) if f.default is not MISSING}
    times: dict[int, float] = {}
    for found in decisions:
        there = {**usual, **found.problem}
        if _less_tokens(there) == wanted:
            tokens = there["tokens"]
            times[tokens] = min(found.us, times.get(tokens, found.us))
    return times


def _less_tokens(problem: Mapping[str, Any]) -> dict[str, Any]:
    return {name: problem[name] for name in problem if name not in ("tokens", "routing")}
