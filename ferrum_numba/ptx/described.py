"""An instruction in words: `help`, the site and `list --instructions` show the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
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
