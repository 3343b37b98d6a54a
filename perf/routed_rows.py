"""Rows and table lines of what was timed on a layer of experts: ours, and peers' as any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ferrum_numba import results
from ferrum_numba.contract import Op, Problem, describe
from ferrum_numba.gpu import Gpu
from ferrum_numba.kernels.grouped import OP, GroupedProblem, experts_hit
from ferrum_numba.measure import Samples
from ferrum_numba.perf.routed_rivals import Rival
from ferrum_numba.results import Row
from ferrum_numba.results.row import FINAL, MEASURED
from ferrum_numba.tune import bound_us

HEAD = (
    "| layer | routing | tokens | experts | bound | ours | its kernel | humming | cuBLAS an expert "
    "| humming / ours |",
    "|---|---|--:|--:|--:|--:|---|--:|--:|--:|",
)


def row_of(
    problem: Problem, rival: Rival, error: float, taken: Sequence[Samples], gpu: Gpu, op: Op = OP
) -> Row:
    """Return a row of a result file; of a peer, `peer` and `kind` say whose it is."""
    work = op.work(problem)
    samples = tuple(us for one in taken for us in one.us)
    us, low, high = results.median_interval(samples)
    bound = bound_us(work, gpu)
    more: dict[str, Any] = {
        "calls": taken[-1].calls,
        "clock_mhz": [taken[0].clock_mhz[0], taken[-1].clock_mhz[1]],
        "power_w": taken[-1].power_w,
        "temperature_c": taken[-1].temperature_c,
        "throttle": sorted({reason for one in taken for reason in one.throttle}),
    }
    if rival.peer:
        more |= {"peer": rival.peer, "kind": rival.kind}
    return Row(
        rival.name, op.name, describe(problem), rival.config, gpu.arch, "cold", us, low, high,
        samples, work.bytes / us / 1e3, work.flops / us / 1e6, work.flops, work.bytes, bound,
        bound / us, rel_error=error, ok=True, status=MEASURED, stage=FINAL, more=more,
        **rival.resources,
    )  # fmt: skip


def line(rows: Sequence[Row]) -> str:
    """Return a problem's line: the fastest of ours, of humming and of cuBLAS, us a call."""
    problem = GroupedProblem(**rows[0].problem)

    def first(kind: str) -> Row | None:
        found = [row for row in rows if row.more.get("kind", "") == kind]
        return min(found, key=lambda row: row.us, default=None)

    def us(row: Row | None) -> str:
        return "" if row is None else f"{row.us:.1f}"

    ours, humming, cublas = first(""), first("4-bit"), first("fp16")
    ratio = f"{humming.us / ours.us:.2f}" if ours and humming else ""
    name = f"E{problem.num_experts} k{problem.top_k} {problem.K}→{problem.N}"
    return (
        f"| {name} | {problem.routing} | {problem.tokens} | {experts_hit(problem)} | "
        f"{rows[0].bound_us:.1f} | {f'**{us(ours)}**' if ours else ''} | "
        f"{f'`{ours.kernel}`' if ours else ''} | {us(humming)} | {us(cublas)} | {ratio} |"
    )
