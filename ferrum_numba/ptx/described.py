"""An instruction in words: `help`, the site and `list --instructions` show the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

# of PTX that is shown whole; longer is that of a table, such as a tensor map's fields
LONGEST_LINES = 12


class _Said:
    """A type as a signature shows it: by its name alone."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def signature(operands: Mapping[str, Any], result: Any) -> inspect.Signature:
    """Return operands and result, with the names of their types; `constant` is an immediate."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature(
        [
            inspect.Parameter(name, kind, annotation=_Said(getattr(one, "name", "constant")))
            for name, one in operands.items()
        ],
        return_annotation=_Said(result.name) if result else inspect.Signature.empty,
    )


def shown(template: str) -> list[str]:
    """Return the lines of an instruction's PTX, the first of many."""
    lines = template.splitlines()
    return lines if len(lines) <= LONGEST_LINES else [*lines[:LONGEST_LINES], "…"]


def help_text(twin: Callable[..., Any], template: str) -> str:
    """Return what `help` says: the twin's docstring, and the PTX."""
    code = "".join(f"\n    {line}" for line in shown(template))
    return f"{inspect.cleandoc(twin.__doc__ or '')}\n\nPTX:{code}"


@dataclass(frozen=True)
class Described:
    """An instruction, or a function that makes some.

    operands: the types' names by the operands' names
    result:   the type's name, None where there is none
    arch:     the first architecture that has it, None of a function
    summary:  the first line of what it does
    ptx:      the template, None of a function
    """

    name: str
    module: str
    signature: str
    operands: Mapping[str, str]
    result: str | None
    arch: str | None
    summary: str
    ptx: str | None


def declared(module: ModuleType) -> list[tuple[str, Any]]:
    """Return the public instructions of a module, and the functions that make some."""
    from ferrum_numba import ptx
    from ferrum_numba.ptx.instruction import Instruction

    return [
        (name, value)
        for name, value in vars(module).items()
        if name in ptx.__all__
        and (isinstance(value, Instruction) or value.__module__ == module.__name__)
    ]


def vocabulary() -> Iterator[Described]:
    """Yield all instructions and the functions that make some, by name."""
    from ferrum_numba import ptx

    for name in sorted(ptx.__all__):
        one = getattr(ptx, name)
        if callable(one):
            yield described(name, one)


def described(name: str, one: Any) -> Described:
    """Return an instruction, or a function that makes some, in words."""
    kinds = inspect.signature(one, eval_str=not hasattr(one, "template"))
    result = kinds.return_annotation
    return Described(
        name=name,
        module=one.__module__,
        signature=f"{name}{kinds}",
        operands={n: _word(parameter.annotation) for n, parameter in kinds.parameters.items()},
        result=None if result is inspect.Signature.empty else _word(result),
        arch=getattr(one, "arch", None),
        summary=inspect.cleandoc(one.__doc__ or "").partition("\n")[0],
        ptx=getattr(one, "template", None),
    )


def _word(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
