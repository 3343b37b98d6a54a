"""A trace: what the lines of a kernel do on a problem, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ferrum_numba import interpreter
from ferrum_numba.check import Checked, on_interpreter
from ferrum_numba.contract import Config, Kernel, Problem, describe
from ferrum_numba.gpu import KNOWN, Gpu
from ferrum_numba.interpreter import Line, Requests
from ferrum_numba.interpreter.trace.lines import GLOBAL, SHARED, Kind, total
from ferrum_numba.shown import Grid, Part, Sentences, Shown, unlike, usual_fields, words
from ferrum_numba.tracing.remarks import remarks_on
from ferrum_numba.tracing.table import COLUMNS, rows_of
from ferrum_numba.words import counted


@dataclass(frozen=True, repr=False)
class Trace(Shown):
    """What warps did in one run of a kernel on the interpreter; shown as a table in notebooks.

    problem, config: their fields by name
    checked:         what the check of that run said of the result
    num_blocks, num_warps: that ran
    in_flight:       bytes of copies that a block had in flight at most, begun and not waited for
    lines:           at which instructions of `ptx` were executed, file by file
    remarks:         what is wrong, a sentence each, the costliest first
    sizes, differs:  the fields of both that are not at their default
    """

    kernel: str
    problem: Mapping[str, Any]
    config: Mapping[str, Any]
    checked: Checked
    num_blocks: int
    num_warps: int
    in_flight: int
    lines: tuple[Line, ...]
    remarks: tuple[str, ...]
    sizes: Mapping[str, Any] = field(default_factory=dict)
    differs: Mapping[str, Any] = field(default_factory=dict)

    def total(self, *kinds: Kind) -> Requests:
        """Return the requests of some kinds of all lines together."""
        return total(self.lines, kinds)

    @property
    def instructions(self) -> int:
        """PTX instructions that warps executed."""
        return sum(line.instructions for line in self.lines)

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        kinds = [kind for kind in (*GLOBAL, *SHARED) if self.total(kind).count]
        return {
            "kernel": self.kernel, "problem": dict(self.problem), "config": dict(self.config),
            "checked": asdict(self.checked), "num_blocks": self.num_blocks,
            "num_warps": self.num_warps, "in_flight": self.in_flight,
            "instructions": self.instructions,
            "totals": {kind: asdict(self.total(kind)) for kind in kinds},
            "lines": [line.to_json() for line in self.lines], "remarks": list(self.remarks),
        }  # fmt: skip

    def parts(self) -> Iterable[Part]:
        """Return a row a line, and what is wrong."""
        rows = tuple(tuple(row[column] for column in COLUMNS) for row in rows_of(self.lines))
        config = words(self.differs) or "the default config"
        warps = f"{counted(self.num_warps, 'warp')} of {counted(self.num_blocks, 'block')}"
        title = f"{self.kernel} on {words(self.sizes)}, {config}: {warps}"
        wrong = f"the result is wrong, and what was counted may be too: {self.checked.reason}"
        said = (*self.remarks, *([] if self.checked.ok else [wrong]))
        return [Grid(title, COLUMNS, rows), Sentences(said)]

    def __repr__(self) -> str:
        return str(self)


def trace(
    kernel: Kernel,
    problem: Problem,
    config: Config | None = None,
    *,
    arch: str | None = None,
    gpu: Gpu = KNOWN["h200"],
    seed: int = 0,
) -> Trace:
    """Run a kernel's source on the CPU and count, line by line, what its warps do.

    What is counted, and how far it is what a GPU counts, is in docs/trace.md#columns.

    Args:
        config: None: the kernel's default
        arch:   what the program is built for; None: the GPU's
        gpu:    whose facts the launch is made for
        seed:   of the inputs

    Raises:
        ToolchainError: numba, which knows the types of what a kernel computes, does not work.
    """
    usual = kernel.default(problem, gpu)
    config = usual if config is None else config
    tracer = interpreter.Tracer()
    checked = on_interpreter(
        kernel, config, problem, arch=arch or gpu.arch, gpu=gpu, seed=seed, trace=tracer
    )
    lines = tuple(tracer.lines)
    return Trace(
        kernel.name, describe(problem), describe(config), checked, tracer.num_blocks,
        tracer.num_warps, tracer.in_flight, lines, tuple(remarks_on(lines)),
        unlike(describe(problem), usual_fields(type(problem))),
        unlike(describe(config), describe(usual)),
    )  # fmt: skip
