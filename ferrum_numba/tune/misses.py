"""Which candidates a tune here would measure, and why the store does not answer for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferrum_numba.contract import Kernel, Problem, describe
from ferrum_numba.results import Row
from ferrum_numba.results.store import NAME, Store
from ferrum_numba.tune.space import Progress, concerns, feasible, program_of, silent

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu


def why_miss(
    kernels: Sequence[Kernel],
    problems: Sequence[Problem],
    gpu: Gpu,
    environment: Mapping[str, Any],
    store_path: str | Path,
    *,
    limit: int | None = None,
    progress: Progress = silent,
) -> list[tuple[Row, str | None]]:
    """Return every candidate of one Op as a row, and why it would be measured; None if it is known.

    Args:
        environment: of a tune that would begin now
        store_path:  result file, beside which the store lies

    Raises:
        StoreError: the file or the store cannot be read.
    """
    pairs = [
        (kernel, problem, config)
        for kernel in kernels
        for problem in problems
        if concerns(kernel, problem)
        for config in feasible(kernel, problem, gpu, limit)[0]
    ]
    place = Path(store_path).parent / NAME
    found = []
    # where there is none, asking makes none
    with Store(place if place.exists() else ":memory:") as store:
        store.read_file(store_path)
        for done, (kernel, problem, config) in enumerate(pairs, start=1):
            program = program_of(kernel, config, gpu.arch)
            wanted = Row(
                kernel.name, kernel.op.name, describe(problem), describe(config), gpu.arch,
                source_hash=program or "",
            )  # fmt: skip
            found.append((wanted, store.why_miss(wanted, environment)))
            progress(done, len(pairs), kernel.name)
    return found
