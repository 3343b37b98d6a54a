"""The fastest configs of a result file against cuBLAS fp16, on this GPU, in the same minutes.

    python -m ferrum_numba.perf.against_cublas --m 128,1024

prints µs a call, for each M of the peers' weights. Boards of one model differ by some per cent and
a hot one is slower than a cool one, so only times that were taken in turn say who is ahead. cuBLAS
gets dense weights, rotated as ours are, as PyTorch calls it: the better of x w and of x (w^T)^T.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from ferrum_numba import results
from ferrum_numba.compile import Binary, Job, build_many
from ferrum_numba.contract import Config, Kernel
from ferrum_numba.errors import FerrumError, StoreError
from ferrum_numba.kernels import KERNELS
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.launch import Device, OperandSet
from ferrum_numba.measure import Policy, measure
from ferrum_numba.perf.problems import PROBLEM_SETS
from ferrum_numba.perf.readme_table import RESULTS, best_rows

# even, so that each order occurs as often as its reverse
TURNS = 4
POLICY = Policy(samples=9, warmup_ms=150.0)
SIZES_M = (128, 256, 512, 1024, 2048, 4096)
HEAD = (
    "| K × N | M | ours | its kernel | cuBLAS fp16 | cuBLAS / ours |",
    "|---|--:|--:|---|--:|--:|",
)
Call = Callable[[int], Any]


class Found(NamedTuple):
    """A problem, and what was fastest for it."""

    problem: W4A16Problem
    kernel: Kernel
    config: Config


class Timed(NamedTuple):
    """Medians over all turns, µs a call."""

    found: Found
    ours_us: float
    cublas_us: float


def fastest(rows: Iterable[results.Row], sizes_m: Sequence[int]) -> list[Found]:
    """Return the fastest config of every peers' problem with one of these M, without cuBLAS."""
    kernels = {kernel.name: kernel for kernel in KERNELS if not kernel.needs_cublas}
    best = best_rows(rows)
    found = []
    for problem in PROBLEM_SETS["h200-peers"]:
        if problem.M not in sizes_m:
            continue
        sizes = (problem.K, problem.N, problem.M)
        of_problem = [best[*sizes, name] for name in kernels if (*sizes, name) in best]
        if of_problem:
            row = min(of_problem, key=results.rank)
            kernel = kernels[row.kernel]
            config = results.stored_config(kernel, row.config)
            if config is not None:
                found.append(Found(problem, kernel, config))
    return found


def in_turn(device: Device, found: Found, binary: Binary) -> Timed:
    """Time a config and cuBLAS, the order reversed from turn to turn."""
    rotate_bytes = POLICY.rotate_bytes(device.gpu)
    operands = OperandSet(device, found.kernel, found.problem, rotate_bytes=rotate_bytes)
    ours: Sequence[Call] = operands.bind(found.config, binary).calls()
    rivals = [ours, *dense(found.problem, rotate_bytes)]
    taken: list[list[float]] = [[] for _ in rivals]
    for turn in range(TURNS):
        order = range(len(rivals))
        for i in order if turn % 2 == 0 else reversed(order):
            taken[i] += measure(device, rivals[i], "cold", POLICY).us
    ours_us, *others_us = map(median, taken)
    return Timed(found, ours_us, min(others_us))


def dense(problem: W4A16Problem, rotate_bytes: int) -> list[Sequence[Call]]:
    """Return calls of PyTorch's product with copies of a dense weight, in both layouts."""
    import torch

    M, N, K = problem.M, problem.N, problem.K
    copies = 1 + rotate_bytes // (2 * K * N)
    x, out = (torch.randn(M, n, device="cuda", dtype=torch.float16) for n in (K, N))
    weights = torch.randn(copies, K, N, device="cuda", dtype=torch.float16) / 16
    columns = weights.transpose(1, 2).contiguous().transpose(1, 2)

    def product(weight: Any) -> Call:
        def launch(stream: int) -> None:
            with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
                torch.mm(x, weight, out=out)

        return launch

    return [[product(weight) for weight in layout] for layout in (weights, columns)]


def table(timed: Iterable[Timed]) -> str:
    """Return the Markdown table."""
    lines = list(HEAD)
    for (problem, kernel, _), ours_us, cublas_us in timed:
        lines.append(
            f"| {problem.K} × {problem.N} | {problem.M} | **{ours_us:.1f}** | `{kernel.name}` | "
            f"{cublas_us:.1f} | {cublas_us / ours_us:.2f} |"
        )
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Time what a result file has for the M that were asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--m", type=_sizes, default=SIZES_M, metavar="M,M,…")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    args = parser.parse_args(words)
    wanted = fastest(results.load(args.results).rows, args.m)
    if not wanted:
        raise StoreError(f"{args.results} has no row with M = {', '.join(map(str, args.m))}")
    device = Device.open()
    jobs = {found: Job(found.kernel, found.config, device.gpu.arch) for found in wanted}
    built = dict(build_many(list(dict.fromkeys(jobs.values()))))
    timed = []
    for found, job in jobs.items():
        binary = built[job]
        if not isinstance(binary, Binary):
            raise binary
        timed.append(in_turn(device, found, binary))
    environment = results.environment(device.gpu, POLICY, ())
    commit = (environment["commit"] or "unknown")[:7]
    print(
        f"{device.gpu.name}, driver {environment['driver']}, {environment['date'][:10]}, "
        f"commit {commit}: µs a call, {TURNS} turns\n"
    )
    print(table(timed))


def _sizes(words: str) -> list[int]:
    return [int(word) for word in words.split(",")]


if __name__ == "__main__":
    try:
        main()
    except (FerrumError, ImportError) as error:
        print(f"against_cublas: {error}", file=sys.stderr)
        sys.exit(2)
