"""The ceilings of this house against plain copies and cuBLAS, in turn on one board.

    python -m ferrum_numba.perf.ceilings_against

prints a line for each: the ceiling's rate, the other's, and their ratio, in a burst and sustained.
The goal is a ratio of at least 0.97: a ceiling that somebody else passes is none. It needs PyTorch.
cuBLAS multiplies 8192 x 8192 x 8192 of the same numbers as the ceiling's: a board that multiplies
zeros is faster. A copy is cudaMemcpy of 1 GiB, as PyTorch calls it; a fill and a read are its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from ferrum_numba.compile import build
from ferrum_numba.contract import Kernel
from ferrum_numba.errors import FerrumError
from ferrum_numba.kernels.ceilings import CEILINGS
from ferrum_numba.kernels.ceilings.elements import ELEMENTS, Element
from ferrum_numba.launch import Device, OperandSet
from ferrum_numba.measure import Policy, Timer
from ferrum_numba.measure.sustained import sustain
from ferrum_numba.perf.routed_rivals import Call, on_stream

GOAL = 0.97
# even, so that each order occurs as often as its reverse
TURNS = 4
POLICY = Policy(samples=9, warmup_ms=100.0)
COPY_BYTES = 2**30
GEMM = 8192
HEAD = (
    "| ceiling | of | rate | other | rate | ratio | sustained | other's | ratio | clock, power |",
    "|---|---|--:|---|--:|--:|--:|--:|--:|---|",
)


@dataclass(frozen=True)
class Other:
    """Somebody else's way to the same limit.

    amount: bytes or operations of a call
    unit:   as of the ceiling's rate
    """

    name: str
    call: Call
    amount: float
    unit: str

    def rate(self, us: float) -> float:
        """Return its rate where a call takes so long."""
        return self.amount / us / (1e3 if self.unit == "GB/s" else 1e6)


@dataclass(frozen=True)
class Against:
    """A ceiling and the others that it is held against."""

    names: tuple[str, ...]
    others: Sequence[Other]


def contests(wanted: Sequence[str]) -> Iterator[Against]:
    """Yield what is held against what: memory first, then a type after the other."""
    if "memory" in wanted:
        read, copied, filled = memory()
        yield Against(("dram_read", "dram_read_bulk"), [read])
        yield Against(("dram_copy",), [copied])
        yield Against(("dram_write",), [filled])
    for element in ELEMENTS:
        if element.name in wanted:
            word = "" if element.name == "fp16" else f"_{element.name}"
            names = tuple(
                f"{kind}{word}" for kind in ("wgmma", "wgmma_fed", "mma_sync", "mma_sync_fed")
            )
            yield Against(names, list(gemms(element)))


def memory() -> tuple[Other, Other, Other]:
    """Return a plain read, copy and fill of 1 GiB."""
    import torch

    ends = -(2**31), 2**31 - 1
    source = torch.randint(*ends, (COPY_BYTES // 4,), device="cuda", dtype=torch.int32)
    target = torch.empty_like(source)
    total = torch.empty((), device="cuda", dtype=torch.int64)
    launches: dict[str, tuple[Callable[[], Any], int]] = {
        "torch.sum": (lambda: torch.sum(source, dim=0, out=total), 1),
        "cudaMemcpy": (lambda: target.copy_(source), 2),
        "torch.fill_": (lambda: target.fill_(1), 1),
    }
    read, copied, filled = (
        Other(name, on_stream(launch), times * COPY_BYTES, "GB/s")
        for name, (launch, times) in launches.items()
    )
    return read, copied, filled


def gemms(element: Element) -> Iterator[Other]:
    """Yield cuBLAS's product of a type; of whatever this PyTorch cannot multiply, nothing."""
    import torch

    rng = np.random.default_rng(0)
    bits = {1: np.uint8, 2: np.int16}[element.size_bytes]
    dtype = {
        "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn,
        "int8": torch.int8,
    }[element.name]  # fmt: skip

    def matrix() -> Any:
        numbers: Any = element.random((GEMM, GEMM), rng)  # type: ignore[no-untyped-call]
        return torch.tensor(numbers.view(bits), device="cuda").view(dtype)

    # of a K by columns, as 8-bit products need it
    a, b = matrix(), matrix().t()
    one = torch.ones((), device="cuda")
    launches: dict[str, Callable[[], Any]] = {}
    if element.name == "fp8":
        launches["torch._scaled_mm"] = lambda: torch._scaled_mm(
            a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    elif element.name == "int8":
        sums = torch.empty(GEMM, GEMM, device="cuda", dtype=torch.int32)
        launches["torch._int_mm"] = lambda: torch._int_mm(a, b, out=sums)
    else:
        out = torch.empty(GEMM, GEMM, device="cuda", dtype=dtype)
        launches["torch.mm"] = lambda: torch.mm(a, b, out=out)
    for name, launch in launches.items():
        try:
            launch()
            torch.cuda.synchronize()
        except (RuntimeError, ValueError, AttributeError) as reason:
            print(f"{name} is left out: {str(reason).splitlines()[0]}", file=sys.stderr)
            continue
        yield Other(name, on_stream(launch), 2.0 * GEMM**3, element.unit)


def in_turn(device: Device, calls: Sequence[Sequence[Call]]) -> list[float]:
    """Return the median time of a call of each, the order reversed from turn to turn."""
    timers = [Timer(device, some, "cold", POLICY) for some in calls]
    taken: list[list[float]] = [[] for _ in calls]
    try:
        for turn in range(TURNS):
            order = range(len(calls))
            for i in order if turn % 2 == 0 else reversed(order):
                taken[i] += timers[i].take(POLICY.samples, POLICY.warmup_ms).us
    finally:
        for timer in timers:
            timer.close()
    return [median(some) for some in taken]


def best_calls(device: Device, kernel: Kernel) -> list[Any]:
    """Return the calls of a ceiling kernel with its fastest config, by a quick look."""
    problem = kernel.op.tests[-1]
    operands = OperandSet(device, kernel, problem, rotate_bytes=POLICY.rotate_bytes(device.gpu))
    quick = replace(POLICY, samples=3)
    best: tuple[float, list[Any]] | None = None
    for config in kernel.fitting(problem, device.gpu):
        calls = operands.bind(config, build(kernel, config, device.gpu.arch)).calls()
        with Timer(device, calls, "cold", quick) as timer:
            us = median(timer.take(quick.samples, 20.0).us)
        if best is None or us < best[0]:
            best = us, calls
    assert best is not None, "a kernel that runs on a GPU has a config for it"
    return best[1]


def lines(device: Device, against: Against, seconds: float) -> Iterator[tuple[str, float]]:
    """Yield a line of the table for each ceiling, and its ratio to the best of the others."""
    by_name = {kernel.name: kernel for kernel in CEILINGS}
    for name in against.names:
        kernel = by_name[name]
        if not kernel.runs_on(device.gpu):
            continue
        calls = best_calls(device, kernel)
        us, *others_us = in_turn(device, [calls, *([other.call] for other in against.others)])
        work = kernel.op.work(kernel.op.tests[-1])
        rate = kernel.rate.of(us, work)  # type: ignore[attr-defined]
        held = sustain(device, calls, "cold", POLICY, seconds) if seconds else None
        for other, other_us in zip(against.others, others_us, strict=True):
            there = other.rate(other_us)
            cells = [name, kernel.rate.dtype or kernel.rate.kind, f"{rate:.0f} {other.unit}"]  # type: ignore[attr-defined]
            cells += [other.name, f"{there:.0f}", f"{rate / there:.3f}"]
            if held is None:
                yield _line([*cells, "", "", "", ""]), rate / there
                continue
            sustained = kernel.rate.of(held.us, work)  # type: ignore[attr-defined]
            theirs = sustain(device, [other.call], "cold", POLICY, seconds)
            kept = other.rate(theirs.us)
            state = f"{held.clock_mhz} MHz {held.power_w} W, {theirs.clock_mhz} {theirs.power_w}"
            yield (
                _line(
                    [*cells, f"{sustained:.0f}", f"{kept:.0f}", f"{sustained / kept:.3f}", state]
                ),
                rate / there,
            )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(words: Sequence[str] | None = None) -> int:
    """Measure what was asked for, print the table; 1 where a kind's best is below the goal."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    known = ("memory", *(element.name for element in ELEMENTS))
    parser.add_argument("--only", action="append", choices=known, help="may be given again")
    parser.add_argument("--sustained", type=float, default=2.0, metavar="S", help="0: none")
    args = parser.parse_args(words)
    import torch

    device = Device.open()
    # makes the context that this device has opened PyTorch's own
    torch.cuda.init()
    print("\n".join(HEAD))
    short = []
    for against in contests(args.only or known):
        ratios = []
        for line, ratio in lines(device, against, args.sustained):
            print(line, flush=True)
            ratios.append(ratio)
        if ratios and max(ratios) < GOAL:
            short.append(f"{against.names[0]}: {max(ratios):.3f}")
    if short:
        print(f"below {GOAL:g} of the others' rate: {', '.join(short)}")
    return int(bool(short))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (FerrumError, ImportError) as error:
        print(f"ceilings_against: {error}", file=sys.stderr)
        sys.exit(2)
