"""From measured rows to a decision: who won a problem, by how much, and what to run next time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from math import log
from typing import TYPE_CHECKING, Any, NamedTuple

from ferrum_numba.contract import Config, Kernel, Problem, describe
from ferrum_numba.errors import ProblemError
from ferrum_numba.launch import lacking
from ferrum_numba.measure import compare
from ferrum_numba.results import Row, num_tiles, same

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu

# sizes of problems, and what an e-fold of each counts: M decides between designs, N and K between
# tiles
SIZES = {"M": 2.0, "N": 1.0, "K": 1.0}
# what is slower than the winner by more than this cannot be its equal
NEAR = 1.1


@dataclass(frozen=True)
class Winner:
    """The fastest row of a problem, and the rows that cannot be told from it.

    ties:      as fast as the winner, within the tie band
    undecided: the samples do not say
    """

    row: Row
    ties: list[Row] = field(default_factory=list)
    undecided: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Choice:
    """What to run for a problem, and the rule that said so."""

    kernel: Kernel
    config: Config
    rule: str


def winners(rows: Iterable[Row]) -> list[Winner]:
    """Return the winner of every (op, problem, regime), in the order of their first rows."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["status"] == "measured" and row["ok"] and not row.get("untrusted"):
            about = repr((row["op"], sorted(row["problem"].items()), row["regime"]))
            groups.setdefault(about, []).append(row)
    return [_winner(group) for group in groups.values()]


def _winner(rows: Sequence[Row]) -> Winner:
    # times of a final were taken in turn; others may owe a per cent to the clocks of their moment
    finalists = [row for row in rows if row.get("stage") == "final"]
    first = min(finalists or rows, key=lambda row: float(row["us"]))
    found = Winner(first)
    for row in rows:
        if row is first or row["us"] > NEAR * first["us"]:
            continue
        verdict = compare(first["samples"], row["samples"])
        if verdict.name == "SAME":
            found.ties.append(row)
        elif verdict.name == "UNDECIDED":
            found.undecided.append(row)
    return found


def choose(
    rows: Iterable[Row],
    problem: Problem,
    kernels: Sequence[Kernel],
    gpu: Gpu,
    regime: str = "cold",
) -> Choice:
    """Return the kernel and config to run a problem with.

    The kernel that won this very problem, else one of its kind, which differs in sizes alone, with
    the config that won there: of the nearest shape, at the M whose winner would take the least,
    by the number of its tiles. A stored config that the kernel no longer has, or that does not fit,
    is passed over for that of its next nearest win whose tiles hold as many rows, or its default; a
    field that came later than the row is at its default. What won on a weight of another shape is
    passed over too where the kernel's default knows better. Where nothing was measured, the default
    of the first kernel that can run it. A kernel that goes on with cuBLAS is passed over where
    there is none.

    Raises:
        ProblemError: no kernel can run it; says why each cannot.
    """
    kernels = [kernel for kernel in kernels if lacking(kernel) is None]
    op = {kernel.op.name: kernel.op for kernel in kernels if isinstance(problem, kernel.op.problem)}
    measured = [
        winner.row
        for winner in winners(row for row in rows if row["op"] in op)
        if winner.row["regime"] == regime
    ]
    refusals = {kernel.name: _refusal(kernel, problem, gpu) for kernel in kernels}
    able = {kernel.name: kernel for kernel in kernels if refusals[kernel.name] is None}
    near = [found for found in _nearest(measured, problem) if found.row["kernel"] in able]
    if near:
        return _choice(able[near[0].row["kernel"]], near, problem, gpu)
    if able:
        kernel = next(iter(able.values()))
        return Choice(kernel, kernel.default(problem, gpu), f"default of {kernel.name}")
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
    raise ProblemError(f"no kernel can run {problem}: {reasons}")


def _refusal(kernel: Kernel, problem: Problem, gpu: Gpu) -> str | None:
    """Return why a kernel cannot run a problem on a GPU, or None."""
    if not isinstance(problem, kernel.op.problem):
        return f"it computes {kernel.op.name}"
    refusal = kernel.refuses(problem)
    if refusal is None and not kernel.runs_on(gpu):
        return f"it has no config for {gpu.name}"
    return refusal


class _Near(NamedTuple):
    """A row for a problem, the rule's name, and whether it is of a weight of the same shape."""

    row: Row
    rule: str
    same_shape: bool


def _choice(kernel: Kernel, near: Sequence[_Near], problem: Problem, gpu: Gpu) -> Choice:
    """Return a kernel with the config of its nearest win that fits, or its default.

    Of wins further on, those with no fewer tiles than here: the default knows more than the others.
    """
    m = describe(problem).get("M", 0)
    for i, (row, rule, same_shape) in enumerate(near):
        if row["kernel"] != kernel.name or (kernel.models_shapes and not same_shape):
            continue
        config = stored_config(kernel, row["config"])
        if config is None or kernel.misfit(config, problem, gpu) is not None:
            continue
        if i == 0 or num_tiles(row, m) <= num_tiles(row, row["problem"].get("M", 0)):
            return Choice(kernel, config, rule)
    return Choice(kernel, kernel.default(problem, gpu), f"{near[0].rule}, in its default config")


def _nearest(rows: Iterable[Row], problem: Problem) -> Iterator[_Near]:
    """Yield rows that differ from a problem in sizes alone, nearest first.

    The shapes by their distance and that of the nearest M; of a shape the row of this very M, then
    by what its config would take for it.
    """
    wanted, usual = describe(problem), _defaults(type(problem))
    sizes = [name for name in SIZES if name in wanted]
    shapes: dict[tuple[Any, ...], list[tuple[Row, dict[str, Any]]]] = {}
    for row in rows:
        there = {**usual, **row["problem"]}
        if there.keys() == wanted.keys() and same({**wanted, **_of(there, sizes)}, there):
            shape = tuple(there[name] for name in sizes if name != "M")
            shapes.setdefault(shape, []).append((row, _of(there, sizes)))

    def distance(found: Iterable[tuple[Row, dict[str, Any]]]) -> float:
        return min(
            sum(SIZES[name] * abs(log(there[name] / wanted[name])) for name in sizes)
            for _, there in found
        )

    for found in sorted(shapes.values(), key=distance):
        for row, there in sorted(found, key=lambda item: _expected(item[0], item[1], wanted)):
            differing = [name for name in sizes if there[name] != wanted[name]]
            same_shape = differing in ([], ["M"])
            named = ", ".join(f"{n} = {there[n]}" for n in (differing if same_shape else sizes))
            yield _Near(row, f"measured at {named}" if named else "measured", same_shape)


def _expected(row: Row, there: Mapping[str, int], wanted: Mapping[str, Any]) -> tuple[bool, float]:
    """Return whether a row is of another M, and what its config would take for the wanted one.

    For fewer rows no less than for its own, for more as much as there are more tiles.
    """
    if "M" not in there:
        return False, row["us"]
    more = num_tiles(row, wanted["M"]) / num_tiles(row, there["M"])
    return there["M"] != wanted["M"], row["us"] * max(1.0, more)


def _of(problem: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: problem[name] for name in names}


def stored_config(kernel: Kernel, stored: Mapping[str, Any]) -> Config | None:
    """Return a stored config, or None if the kernel's configs have other fields by now.

    A field that came later is at its default.
    """
    known = {field.name for field in fields(kernel.config)}
    needed = known - _defaults(kernel.config).keys()
    return kernel.config(**stored) if needed <= stored.keys() <= known else None


def _defaults(kind: type) -> dict[str, Any]:
    """Return the fields of a problem or config that have a default."""
    return {field.name: field.default for field in fields(kind) if field.default is not MISSING}
