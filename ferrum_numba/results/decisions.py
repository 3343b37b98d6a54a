"""What to run: decisions made from measured rows, their file, and the rule for other problems.

    {"schema": 1, "gpu": "h200", "regime": "cold", ..., "decisions": [{...}, ...]}

A decision is the row that won a problem for one kernel, less all that running needs not know. Every
kernel has its own, because not every kernel can read every weight's layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ferrum_numba.contract import Config, Kernel, Problem, describe
from ferrum_numba.door import in_words
from ferrum_numba.errors import ConfigError, ProblemError, StoreError
from ferrum_numba.results.display import of_decisions
from ferrum_numba.results.file import load_json, write_json
from ferrum_numba.results.row import Row, num_tiles, problem_key, same, size_name
from ferrum_numba.results.validate import MOST, sizes_error
from ferrum_numba.results.winners import first_of_each, rank, standings
from ferrum_numba.shown import Part, Shown

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu

SCHEMA = 1
# sizes of problems, and what an e-fold of each counts: rows decide between designs, the others
# between tiles
SIZES = {"M": 2.0, "tokens": 2.0, "num_experts": 1.0, "top_k": 1.0, "N": 1.0, "K": 1.0}
# what no program is made for: of two decisions, the one that is alike in these is nearer
PREFERRED = ("routing", "per_pair", "weighted")


@dataclass(frozen=True)
class Decision(Shown):
    """What won a problem, of the configs of one kernel.

    problem, config: their fields by name
    us, stage:       its time, and how it was taken
    place:           among all kernels' decisions on the problem, from 0: the one that won it
    """

    op: str
    problem: Mapping[str, Any]
    kernel: str
    config: Mapping[str, Any]
    us: float
    stage: str
    place: int = 0

    def parts(self) -> Iterable[Part]:
        """Return it as a table of one line."""
        return of_decisions([self])


@dataclass(frozen=True)
class Choice:
    """What to run for a problem, and the rule that said so.

    measured: something of its kind was; else it is the default of a kernel that can run it
    """

    kernel: Kernel
    config: Config
    rule: str
    measured: bool = True


def decide(rows: Iterable[Row], regime: str = "cold") -> list[Decision]:
    """Return the decisions that rows of one regime allow."""
    return [
        Decision(row.op, row.problem, row.kernel, row.config, row.us, row.stage, place)
        for standing in standings(row for row in rows if row.regime == regime)
        for place, row in enumerate(standing)
    ]


def load_decisions(path: str | Path) -> list[Decision]:
    """Read decisions from a file.

    Raises:
        StoreError: missing, damaged, or of another schema.
    """
    # whoever imports this need not read any
    import msgspec

    try:
        stated = load_json(path, SCHEMA).get("decisions")
        found = msgspec.convert(stated, list[Decision])
    except msgspec.ValidationError as error:
        words = in_words(error)
        where = "" if words.startswith("[") else ": "
        raise StoreError(f"{path}: is damaged: decisions{where}{words}") from error
    for i, one in enumerate(found):
        wrong = sizes_error(one.problem, one.config)
        if wrong is None and not (0 < one.us < MOST and one.place >= 0):
            wrong = f"us must be above 0 and place no less, got {one.us!r} and {one.place!r}"
        if wrong is not None:
            raise StoreError(f"{path}: is damaged: decisions[{i}]: {wrong}")
    return found


def save_decisions(
    path: str | Path, head: Mapping[str, Any], decisions: Iterable[Decision]
) -> None:
    """Write decisions, one a line, after what a reader should know of them.

    Raises:
        StoreError: the folder cannot be made or written.
    """
    write_json(path, {"schema": SCHEMA, **head}, "decisions", map(asdict, decisions))


def choose(
    decisions: Iterable[Decision], problem: Problem, kernels: Sequence[Kernel], gpu: Gpu
) -> Choice:
    """Return the kernel and config to run a problem with, of kernels that this machine can launch.

    The kernel that won this very problem, else one of its kind, which differs in sizes alone, or in
    what no program is made for, with the config that won there: of the nearest shape, at the M, or
    the tokens, whose winner would take the least, by the number of its tiles. A stored config that
    the kernel no longer has, or that does not fit, is passed over for that of its next nearest win
    whose tiles hold as many rows, or its default; a field that came later than the row is at its
    default. What won on a weight of another shape is passed over too where the kernel's default
    knows better. Where nothing was measured, the default of the first kernel that can run it.

    Raises:
        ProblemError: no kernel can run it; says why each cannot.
    """
    refusals = {kernel.name: _refusal(kernel, problem, gpu) for kernel in kernels}
    able = {kernel.name: kernel for kernel in kernels if refusals[kernel.name] is None}
    won = _won(decisions, kernels, problem)
    near = [found for found in _nearest(won, problem) if found.decision.kernel in able]
    if near:
        return _choice(able[near[0].decision.kernel], near, problem, gpu)
    if able:
        kernel = next(iter(able.values()))
        config = kernel.default(problem, gpu)
        return Choice(kernel, config, f"default of {kernel.name}", measured=False)
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
    raise ProblemError(f"no kernel can run {problem}: {reasons}")


def _won(
    decisions: Iterable[Decision], kernels: Sequence[Kernel], problem: Problem
) -> list[Decision]:
    """Return the decision that won each problem of the Op, among these kernels."""
    names = {(k.name, k.op.name) for k in kernels if isinstance(problem, k.op.problem)}
    known = [found for found in decisions if (found.kernel, found.op) in names]
    # how far one was behind in its final counts for more than its time, which may be of another
    # board; decisions from before places have none
    return first_of_each(
        known,
        lambda found: (found.op, problem_key(found.problem)),
        lambda found: (found.place, rank(found)),
    )


def _refusal(kernel: Kernel, problem: Problem, gpu: Gpu) -> str | None:
    """Return why a kernel cannot run a problem on a GPU, or None."""
    if not isinstance(problem, kernel.op.problem):
        return f"it computes {kernel.op.name}"
    refusal = kernel.refuses(problem)
    if refusal is None and not kernel.runs_on(gpu):
        return f"it has no config for {gpu.name}"
    return refusal


class _Near(NamedTuple):
    """A decision near a problem, the rule's name, and whether it is of a weight of its shape."""

    decision: Decision
    rule: str
    same_shape: bool


def _choice(kernel: Kernel, near: Sequence[_Near], problem: Problem, gpu: Gpu) -> Choice:
    """Return a kernel with the config of its nearest win that fits, or its default.

    Of wins further on, those with no fewer tiles than here: the default knows more than the others.
    """
    usual, wanted = _defaults(type(problem)), describe(problem)
    for i, (found, rule, same_shape) in enumerate(near):
        if found.kernel != kernel.name or (kernel.models_shapes and not same_shape):
            continue
        config = stored_config(kernel, found.config)
        if config is None or kernel.misfit(config, problem, gpu) is not None:
            continue
        there = {**usual, **found.problem}
        if i == 0 or num_tiles(found.config, wanted) <= num_tiles(found.config, there):
            return Choice(kernel, config, rule)
    return Choice(kernel, kernel.default(problem, gpu), f"{near[0].rule}, in its default config")


def _nearest(decisions: Iterable[Decision], problem: Problem) -> Iterator[_Near]:
    """Yield decisions on what differs from a problem in sizes alone, nearest first.

    The shapes by their distance and that of the nearest M; of a shape the one of this very M, then
    those alike in what is preferred, then by what its config would take for it.
    """
    wanted, usual = describe(problem), _defaults(type(problem))
    sizes, preferred = ([n for n in names if n in wanted] for names in (SIZES, PREFERRED))
    swept = size_name(wanted)
    shapes: dict[tuple[Any, ...], list[tuple[Decision, dict[str, Any]]]] = {}
    for decision in decisions:
        there = {**usual, **decision.problem}
        if there.keys() == wanted.keys() and same(
            {**wanted, **_of(there, [*sizes, *preferred])}, there
        ):
            shape = tuple(there[name] for name in sizes if name != swept)
            shapes.setdefault(shape, []).append((decision, there))

    def distance(found: Iterable[tuple[Decision, dict[str, Any]]]) -> float:
        return min(
            sum(SIZES[name] * abs(log(there[name] / wanted[name])) for name in sizes)
            for _, there in found
        )

    for found in sorted(shapes.values(), key=distance):
        for one, there in sorted(found, key=lambda item: _expected(item[0], item[1], wanted)):
            differing = [name for name in sizes if there[name] != wanted[name]]
            same_shape = differing in ([], [swept])
            told = differing if same_shape else sizes
            told = [*told, *(name for name in preferred if there[name] != wanted[name])]
            named = ", ".join(f"{name} = {there[name]}" for name in told)
            yield _Near(one, f"measured at {named}" if named else "measured", same_shape)


def _expected(
    decision: Decision, there: Mapping[str, Any], wanted: Mapping[str, Any]
) -> tuple[bool, int, float]:
    """Return whether a decision is on another M, how unlike it is, and what its config would take.

    For fewer rows no less than for its own, for more as much as there are more tiles.
    """
    unlike = sum(there[name] != wanted[name] for name in PREFERRED if name in wanted)
    swept = size_name(wanted)
    if swept not in there:
        return False, unlike, decision.us
    more = num_tiles(decision.config, wanted) / num_tiles(decision.config, there)
    return there[swept] != wanted[swept], unlike, decision.us * max(1.0, more)


def _of(problem: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: problem[name] for name in names}


def stored_config(kernel: Kernel, stored: Mapping[str, Any]) -> Config | None:
    """Return a stored config, or None if the kernel's configs have other fields by now.

    A field that came later is at its default.
    """
    known = {field.name for field in fields(kernel.config)}
    needed = known - _defaults(kernel.config).keys()
    if not needed <= stored.keys() <= known:
        return None
    import msgspec

    try:
        # a number where a word belongs would be found by whatever counts with it
        return msgspec.convert(stored, kernel.config)
    # of a kernel of one's own that msgspec has no type for, or a config that contradicts itself
    except (TypeError, msgspec.ValidationError, ConfigError):
        return None


def _defaults(kind: type) -> dict[str, Any]:
    """Return the fields of a problem or config that have a default."""
    return {field.name: field.default for field in fields(kind) if field.default is not MISSING}
