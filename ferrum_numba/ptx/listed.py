"""All instructions, as `list --instructions`, the site and its pages show them.

Apart from `described`, which every instruction imports: what a program is made of would be all of
them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ferrum_numba import ptx
from ferrum_numba.ptx.instruction import Instruction


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
    return [
        (name, value)
        for name, value in vars(module).items()
        if name in ptx.__all__
        and (isinstance(value, Instruction) or value.__module__ == module.__name__)
    ]


def vocabulary() -> Iterator[Described]:
    """Yield all instructions and the functions that make some, by name."""
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
