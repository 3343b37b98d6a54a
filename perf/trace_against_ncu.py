"""A trace against what ncu counts of the same launches: sectors, wavefronts and bank conflicts.

    python -m ferrum_numba.perf.trace_against_ncu --out FILE     # on a GPU, with ncu on the path
    python -m ferrum_numba.perf.trace_against_ncu --trace-only   # the traces alone, anywhere

Five kernels on small problems, in configs whose blocks do not poll for each other's sums, so that
the numbers do not depend on who was first; then one request of one warp in many patterns, from
which the model of requests is read off. FILE has both sides. Exit status 1: one of the five kernels
differs by more than 2 %. What is comparable is in docs/trace.md#ncu.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ferrum_numba import whole
from ferrum_numba.cli.counters import command_of, find_ncu, pages
from ferrum_numba.cli.output import say
from ferrum_numba.cli.tables import print_table
from ferrum_numba.contract import Config, Kernel, Problem, describe
from ferrum_numba.errors import DeviceError
from ferrum_numba.gpu import KNOWN, Gpu
from ferrum_numba.kernels import GROUPED, PACKED, RAW
from ferrum_numba.kernels.ceilings.patterns import OP as PATTERN
from ferrum_numba.kernels.ceilings.patterns import Patterns
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.kernels.w4a16 import W4A16Problem

# how far a trace of a kernel may be from ncu, of the larger of both or of its wavefronts
WITHIN = 0.02
TIMEOUT_S = 500.0
_GLOBAL = "l1tex__t_sectors_pipe_lsu_mem_global_op_{}.sum"
_WAVES = "smsp__sass_l1tex_data_pipe_lsu_wavefronts_mem_shared_op_{}.sum"
_CONFLICTS = "smsp__sass_l1tex_data_bank_conflicts_pipe_lsu_mem_shared_op_{}.sum"
_SHARED = {
    "ld.shared": "ld", "st.shared": "st", "ldmatrix": "ldsm", "stmatrix": "stsm",
    "cp.async to shared": "ldgsts",
}  # fmt: skip
Launch = tuple[Kernel, Config, Problem]


@dataclass(frozen=True)
class Quantity:
    """What both sides count: of a trace the requests of a kind, of ncu a metric.

    conflicts: what is beyond the least, not all of it
    """

    name: str
    kind: str
    metric: str
    conflicts: bool = False

    def traced(self, totals: Mapping[str, Mapping[str, int]]) -> int:
        """Return what a trace has of it."""
        found = totals.get(self.kind)
        if found is None:
            return 0
        return found["units"] - found["least"] if self.conflicts else found["units"]


QUANTITIES = (
    *(
        Quantity(f"{kind} sectors", kind, _GLOBAL.format(op))
        for kind, op in (("ld.global", "ld"), ("st.global", "st"), ("cp.async", "ldgsts"))
    ),
    *(Quantity(f"{kind} wavefronts", kind, _WAVES.format(op)) for kind, op in _SHARED.items()),
    *(
        Quantity(f"{kind} conflicts", kind, _CONFLICTS.format(op), conflicts=True)
        for kind, op in _SHARED.items()
    ),
)
# asked one group after the other, for a group with a metric that is not there gives nothing; what
# no quantity is held against is kept to be looked at
GROUPS = (
    tuple(q.metric for q in QUANTITIES if q.metric.startswith("l1tex")),
    tuple(q.metric for q in QUANTITIES if q.metric.startswith("smsp")),
    (
        "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum",
        "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_st.sum",
        "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum",
        "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_st.sum",
        "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum",
        "l1tex__t_requests_pipe_lsu_mem_global_op_st.sum",
        "l1tex__m_xbar2l1tex_read_bytes_mem_global_op_tma_ld.sum", "smsp__inst_executed.sum",
    ),
    (
        "memory_l1_wavefronts_shared", "memory_l1_wavefronts_shared_ideal",
        "memory_l2_theoretical_sectors_global", "memory_l2_theoretical_sectors_global_ideal",
    ),
)  # fmt: skip


def kernels() -> list[Launch]:
    """Return the five kernels, on problems whose launches a GPU and the interpreter make alike."""
    gpu, known = KNOWN["h200"], cast(tuple[Kernel, ...], (*RAW, *PACKED, *GROUPED))
    by_name = {kernel.name: kernel for kernel in known}
    problems: dict[str, Problem] = {
        "decode": W4A16Problem(M=1, N=256, K=512),
        "marlin": W4A16Problem(M=16, N=256, K=512),
        "w4a16_gptq": W4A16Problem(M=16, N=256, K=512),
        "prefill": W4A16Problem(M=64, N=256, K=256),
        "grouped_decode": GroupedProblem(tokens=16, num_experts=4, top_k=2, N=256, K=256),
    }
    found: list[Launch] = []
    for name, problem in problems.items():
        kernel = by_name[name]
        config = kernel.default(problem, gpu)
        if name == "grouped_decode":
            # stripes of whole slices: no block waits for another's sums
            config = replace(config, whole=True)
        reason = kernel.misfit(config, problem, gpu)
        assert reason is None, f"{name}: {reason}"
        found.append((kernel, config, problem))
    return found


def patterns() -> list[Launch]:
    """Return one request in each of the patterns."""
    return [(Patterns(), problem, problem) for problem in PATTERN.tests]


def traced(launches: Sequence[Launch], gpu: Gpu) -> Iterator[dict[str, Any]]:
    """Yield what a trace counts of each launch, by kind.

    Raises:
        AssertionError: a result is wrong, so what was counted may be too.
    """
    from ferrum_numba.tracing import trace

    for kernel, config, problem in launches:
        found = trace(kernel, problem, config, gpu=gpu)
        assert found.checked.ok, f"{kernel.name} {problem}: {found.checked.reason}"
        totals = found.to_json()["totals"]
        yield {
            "kernel": kernel.name, "problem": describe(problem), "config": describe(config),
            "trace": {
                kind: {name: of[name] for name in ("count", "lanes", "units", "least")}
                for kind, of in totals.items()
            },
        }  # fmt: skip


def launch_all(launches: Sequence[Launch]) -> None:
    """Launch everything once unseen, then once between the marks that ncu looks for."""
    from ferrum_numba.compile import build
    from ferrum_numba.launch import Device, OperandSet
    from ferrum_numba.launch.profiler import profiled

    device, calls = Device.open(), []
    for kernel, config, problem in launches:
        operands = OperandSet(device, kernel, problem)
        calls.append(operands.bind(config, build(kernel, config, device.gpu.arch)).prepared())
    for call in calls:
        call(0)
        device.synchronize()
    with profiled():
        for call in calls:
            call(0)
            device.synchronize()


def counted(what: str, number: int) -> list[dict[str, float]]:
    """Return what ncu counts of each launch, by metric; a group that it has not is said.

    Raises:
        DeviceError: it has none of them.
    """
    found: list[dict[str, float]] = [{} for _ in range(number)]
    child = (sys.executable, "-m", "ferrum_numba.perf.trace_against_ncu", "--launch", what)
    for group in GROUPS:
        command = [*command_of(find_ncu(), group, launches=number), *child]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        rows = pages(done.stdout)
        if len(rows) != number:
            said = (done.stdout + done.stderr).strip().splitlines()[-3:]
            say(f"{what}: ncu counts {len(rows)} of {number} launches by {group[0]} …: {said}")
            continue
        for one, row in zip(found, rows, strict=True):
            one |= {metric: row[metric] for metric in group if metric in row}
    if not any(found):
        raise DeviceError(f"ncu counts nothing of {what}")
    return found


def compared(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return both sides of each quantity that either has, and how far they are apart."""
    found = []
    for quantity in QUANTITIES:
        by_trace, by_ncu = quantity.traced(row["trace"]), row["ncu"].get(quantity.metric)
        if by_ncu is None or not (by_trace or by_ncu):
            continue
        # conflicts are few or none: they are held against the wavefronts that they add to
        all_of_it = replace(quantity, conflicts=False).traced(row["trace"])
        scale = max(by_trace, by_ncu, all_of_it)
        found.append(
            {
                "kernel": row["kernel"],
                "quantity": quantity.name,
                "trace": by_trace,
                "ncu": by_ncu,
                "apart": abs(by_trace - by_ncu) / scale,
            }
        )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Trace, count, write and compare; 1 where a kernel is too far apart."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", metavar="FILE", help="both sides, as JSON")
    parser.add_argument("--trace-only", action="store_true", help="what a trace counts, on stdout")
    parser.add_argument("--launch", choices=("kernels", "patterns"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    launches = {"kernels": kernels(), "patterns": patterns()}
    if args.launch:
        launch_all(launches[args.launch])
        return 0
    if args.trace_only:
        print(json.dumps(list(traced(launches["kernels"], KNOWN["h200"])), indent=1))
        return 0
    from ferrum_numba import gpu

    facts = gpu.live()
    found: dict[str, Any] = {"gpu": facts.name, "ncu": _version()}
    for what, some in launches.items():
        rows = zip(traced(some, facts), counted(what, len(some)), strict=True)
        found[what] = [{**row, "ncu": by_ncu} for row, by_ncu in rows]
    if args.out:
        whole.write_bytes(Path(args.out), (json.dumps(found, indent=1) + "\n").encode())
    return _show(found)


def _version() -> str:
    done = subprocess.run([find_ncu(), "--version"], capture_output=True, text=True)
    return done.stdout.strip().rpartition("\n")[2]


def _show(found: Mapping[str, Any]) -> int:
    columns = ("kernel", "quantity", "trace", "ncu", "apart")
    rows = [one for row in found["kernels"] for one in compared(row)]
    print_table(rows, columns, "kernels")
    of_patterns = [
        {**one, "kernel": " ".join(map(str, row["problem"].values()))}
        for row in found["patterns"]
        for one in compared(row)
        if one["apart"] > WITHIN
    ]
    print_table(of_patterns, columns, "patterns that differ")
    return int(any(one["apart"] > WITHIN for one in rows))


if __name__ == "__main__":
    sys.exit(main())
