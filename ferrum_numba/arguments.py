"""What a kernel's function takes, what its program says of it, and what a launch gives."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ferrum_numba.contract import Parameter, Program


def refuses_names(program: Program) -> str | None:
    """Return why a function takes its program's parameters in another order, or None.

    A function may have another name for one of them, such as one that holds the config's size.
    """
    taken = inspect.signature(program.function).parameters.values()
    if any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in taken):
        return None
    own, said = [one.name for one in taken], [one.name for one in program.parameters]
    moved = any(name in own and own.index(name) != place for place, name in enumerate(said))
    if len(own) == len(said) and not moved:
        return None
    return (
        f"{program.function.__name__} takes ({', '.join(own)}), and its Program's parameters are "
        f"({', '.join(said)}): they must be the same names in the same order"
    )


def lacks_scalar(parameters: Sequence[Parameter], scalars: Mapping[str, int]) -> str | None:
    """Return which scalar a launch does not give, or None."""
    for one in parameters:
        if one.kind != "pointer" and one.name not in scalars:
            return f"no scalar is given for the parameter {one.name}"
    return None
