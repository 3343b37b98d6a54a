"""The space of a kernel's configs, as data: a product of values, and one predicate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from itertools import product
from typing import Any, TypeVar

from ferrum_numba.errors import ConfigError

ConfigType = TypeVar("ConfigType")


def space(
    config: type[ConfigType],
    *,
    where: Callable[[ConfigType], bool] | None = None,
    **axes: Iterable[Any],
) -> tuple[ConfigType, ...]:
    """Return all configs of a product of values, the first values first.

    Configs that contradict themselves (ConfigError) are left out, and those `where` is false for.

    Args:
        config: frozen dataclass
        where:  which configs are worth trying
        axes:   values of a field, by its name; fields not named keep their default

    Raises:
        ConfigError: an axis is no field of the config, or nothing is left.
    """
    known = {field.name for field in fields(config)}  # type: ignore[arg-type]
    unknown = axes.keys() - known
    if unknown:
        raise ConfigError(f"{config.__name__} has no field {', '.join(sorted(unknown))}")
    found = []
    for values in product(*(tuple(values) for values in axes.values())):
        try:
            candidate = config(**dict(zip(axes, values, strict=True)))
        except ConfigError:
            continue
        if where is None or where(candidate):
            found.append(candidate)
    if not found:
        raise ConfigError(f"no {config.__name__} is left of the space of {', '.join(axes)}")
    return tuple(found)
