"""Which grouped GEMMs a layer of experts runs: what was measured, where it serves, or a default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from math import log
from typing import Any

from ferrum_numba.contract import describe
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ProblemError
from ferrum_numba.gpu import Gpu
from ferrum_numba.kernels.grouped import GroupedKernel, GroupedProblem, expected_hits
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
    # where some experts are elsewhere, those here have the rows of so many tokens
    alike = problem
    if num_ids:
        alike = replace(problem, tokens=ceil_div(problem.tokens * problem.num_experts, num_ids))
    able = [kernel for kernel in kernels if kernel.refuses(problem) is None]
    choice = kernel_for(alike, _in_order(alike, able or kernels), decisions, gpu)
    assert isinstance(choice.kernel, GroupedKernel), "it is one of those"

    def may_run(kernel: GroupedKernel, config: Any) -> bool:
        if num_ids and kernel.reads(config) == "ids":
            return False
        return kernel.is_invariant(config) or not invariant

    if may_run(choice.kernel, choice.config):
        return choice
    others = [kernel for kernel in able if kernel is not choice.kernel]
    for kernel in (choice.kernel, *others):
        found = [c for c in kernel.fitting(alike, gpu) if may_run(kernel, c)]
        if found:
            config = min(found, key=lambda config: _unlike(config, choice.config))
            return Choice(kernel, config, f"{choice.rule}, of those that may be chosen")
    raise ProblemError(f"no config of {', '.join(k.name for k in kernels)} may run {problem}")


def _unlike(config: Any, wanted: Any) -> int:
    """Return in how many fields a config differs from another."""
    ours, theirs = describe(config), describe(wanted)
    return sum(theirs.get(name) != value for name, value in ours.items())


def _in_order(problem: GroupedProblem, kernels: Sequence[GroupedKernel]) -> list[GroupedKernel]:
    """Return the kernels as they are where experts have few rows, else the other way round."""
    rows = problem.num_pairs / expected_hits(problem)
    return list(kernels if rows <= FEW_ROWS else reversed(kernels))


def is_fused(
    problem: GroupedProblem, kernels: Sequence[GroupedKernel], decisions: Sequence[Decision]
) -> bool:
    """Tell whether GEMM 1 applies the gate: unless it was measured to take longer so.

    Where both were measured for the nearest number of tokens, of one routing, which is the
    problem's if it can be; the gate's own launch as modelled.

    problem: not gated
    """
    names = {kernel.name for kernel in kernels}
    known = [found for found in decisions if found.kernel in names]
    gated, plain = _times(known, replace(problem, gated=True)), _times(known, problem)
    both = gated.keys() & plain.keys()
    if not both:
        return True

    def distance(there: tuple[int, str]) -> tuple[float, bool, int]:
        tokens, routing = there
        return abs(log(tokens / problem.tokens)), routing != problem.routing, tokens

    nearest = min(both, key=distance)
    gate_bytes = GATE_BYTES * nearest[0] * problem.top_k * problem.N // 2
    return gated[nearest] <= plain[nearest] + NODE_US + gate_bytes * BYTE_US


def _times(
    decisions: Sequence[Decision], problem: GroupedProblem
) -> Mapping[tuple[int, str], float]:
    """Return the least time of such a problem by tokens and routing, in µs."""
    wanted = _less_tokens(describe(problem))
    # a field that came later than a decision
    usual = {f.name: f.default for f in fields(problem) if f.default is not MISSING}
    times: dict[tuple[int, str], float] = {}
    for found in decisions:
        there = {**usual, **found.problem}
        if _less_tokens(there) == wanted:
            measured = there["tokens"], there["routing"]
            times[measured] = min(found.us, times.get(measured, found.us))
    return times


def _less_tokens(problem: Mapping[str, Any]) -> dict[str, Any]:
    return {name: problem[name] for name in problem if name not in ("tokens", "routing")}
