"""The ceilings of a board: the best config of each ceiling kernel, in a burst and sustained.

A row of a ceiling has, besides its time: `ceiling` (what is at its limit, of which type, fed or
not), `rate` with its `unit`, and `sustained`, the same after seconds, with clock and power.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from functools import reduce
from typing import TYPE_CHECKING, Any

from ferrum_numba import gpu
from ferrum_numba.cli.output import say
from ferrum_numba.cli.progress import progress
from ferrum_numba.cli.session import Session
from ferrum_numba.cli.tables import print_table
from ferrum_numba.contract import Config, Kernel, Problem
from ferrum_numba.errors import FerrumError

if TYPE_CHECKING:
    from ferrum_numba.results import ResultFile, Row

Timed = Callable[[Session, Sequence[Kernel], Sequence[Any]], "ResultFile"]
# long enough for power, and with it the clocks, to settle
SUSTAINED_S = 2.0
LATENCY = "latency"
COLUMNS = (
    "ceiling", "of", "config", "rate", "low", "high", "unit", "sustained", "kept", "clock_mhz",
    "power_w", "held_by",
)  # fmt: skip


def measured_ceilings(session: Session, timed: Timed, sustained_s: float) -> ResultFile:
    """Time the spaces of the ceiling kernels, then sustain the best of each for so long.

    sustained_s: 0 leaves it out
    """
    from ferrum_numba import results

    if not session.ceilings:
        raise FerrumError("no ceiling kernels were handed to the command line")
    facts = gpu.live()
    # another GPU's kernels have no config here
    kernels = [kernel for kernel in session.ceilings if kernel.runs_on(facts)]
    ops = {kernel.op.name: kernel.op for kernel in kernels}
    # smaller tests are there to be checked; the last one is large enough to be a ceiling. An Op at
    # a time, because several have problems of one kind
    files = [
        timed(session, [kernel for kernel in kernels if kernel.op is op], [op.tests[-1]])
        for op in ops.values()
    ]
    file = reduce(results.merge, files)
    file.rows = [with_rate(row, _kernel(kernels, row)) for row in file.rows]
    if sustained_s:
        file.rows = sustained(kernels, file.rows, sustained_s)
    return file


def with_rate(row: Row, kernel: Kernel) -> Row:
    """Return a row that says what it is a ceiling of, and its rate."""
    rate = getattr(kernel, "rate", None)
    if rate is None:
        return row
    about = asdict(rate)
    more = {**row.more, "ceiling": about, "unit": about.pop("unit"), "rate": None}
    if row.us > 0:
        more["rate"] = rate.of(row.us, _work(kernel))
    return replace(row, more=more)


def best_rows(rows: Iterable[Row]) -> list[Row]:
    """Return the fastest right row of each ceiling kernel."""
    found: dict[str, Row] = {}
    for row in rows:
        if row.ok and row.us > 0 and row.us < getattr(found.get(row.kernel), "us", float("inf")):
            found[row.kernel] = row
    return list(found.values())


def _kernel(kernels: Iterable[Kernel], row: Row) -> Kernel:
    return next(kernel for kernel in kernels if kernel.name == row.kernel)


def _work(kernel: Kernel) -> Any:
    return kernel.op.work(kernel.op.tests[-1])


def unsustained(rows: Iterable[Row]) -> list[Row]:
    """Return the ceilings that can get hot and of which nobody knows what a hot board holds."""
    return [row for row in best_rows(rows) if _is_held(row) and "sustained" not in row.more]


def sustained(kernels: Sequence[Kernel], rows: Sequence[Row], seconds: float) -> list[Row]:
    """Return the rows, the best of each kernel with what the board holds for so long.

    What fails is said, and its row stays as it is.

    Raises:
        DeviceError: another process is measuring on the GPU.
    """
    from ferrum_numba.tune.exclusive import exclusive

    wanted, found = unsustained(rows), {id(row): row for row in rows}
    with exclusive(gpu.live()), progress("sustained") as bar:
        for done, row in enumerate(wanted):
            bar(done, len(wanted), row.kernel)
            kernel = _kernel(kernels, row)
            asked = (kernel, kernel.config(**row.config), kernel.op.tests[-1], row.regime, seconds)
            try:
                taken = apart(_sustain, asked)
            except (FerrumError, BrokenProcessPool) as error:
                say(f"{row.kernel} is not sustained: {error}")
                continue
            # of those who check, every kernel here has rate
            taken["rate"] = kernel.rate.of(taken["us"], _work(kernel))  # type: ignore[attr-defined]
            found[id(row)] = replace(row, more={**row.more, "sustained": taken})
    return [found[id(row)] for row in rows]


def apart(function: Callable[[Any], dict[str, Any]], asked: Any) -> dict[str, Any]:
    """Return what a function answers in a process of its own.

    A context on the GPU that outlived it would stand beside all that is measured later.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, asked).result()


def _sustain(asked: tuple[Kernel, Config, Problem, str, float]) -> dict[str, Any]:
    """Return what the board does in the second half of so many seconds."""
    from ferrum_numba.compile import build
    from ferrum_numba.launch import Device, OperandSet
    from ferrum_numba.measure import Policy
    from ferrum_numba.measure.sustained import sustain

    kernel, config, problem, regime, seconds = asked
    device, policy = Device.open(), Policy()
    operands = OperandSet(device, kernel, problem, rotate_bytes=policy.rotate_bytes(device.gpu))
    calls = operands.bind(config, build(kernel, config, device.gpu.arch)).calls()
    return asdict(sustain(device, calls, regime, policy, seconds))


def _is_held(row: Row) -> bool:
    """Tell whether a ceiling can get hot: a latency does not."""
    return row.more.get("ceiling", {}).get("kind") not in (None, LATENCY)


def show_ceilings(session: Session, rows: Iterable[Row], title: str) -> None:
    """Print the best of each ceiling, in a burst and sustained."""
    print_table([_line(row) for row in best_rows(rows)], COLUMNS, title)


def _line(row: Row) -> dict[str, Any]:
    """Return a ceiling in words: an interval of time is one of rates."""
    about, rate, unit = row.more.get("ceiling", {}), row.more.get("rate"), row.more.get("unit")
    sustained = row.more.get("sustained", {})
    clocks = row.more.get("clock_mhz") or [None]
    ends = [rate and rate * row.us / end for end in (row.us_high, row.us_low)]
    if unit == "us":
        ends = [rate and rate * end / row.us for end in (row.us_low, row.us_high)]
    kept = sustained.get("rate")
    of = [about.get("kind"), about.get("dtype"), "fed" if about.get("fed") else ""]
    return {
        "ceiling": row.kernel, "of": " ".join(filter(None, of)), "config": dict(row.config),
        "rate": rate, "low": ends[0], "high": ends[1], "unit": unit, "sustained": kept,
        "kept": kept / rate if kept and rate else None,
        "clock_mhz": sustained.get("clock_mhz", clocks[-1]),
        "power_w": sustained.get("power_w", row.more.get("power_w")),
        "held_by": ", ".join(sustained.get("throttle", ())),
    }  # fmt: skip
