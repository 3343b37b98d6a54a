"""Rules of a config for some of its layers: GPTQModel's `dynamic`, auto-round's `extra_config`.

The first rule that a layer's name matches counts, and only that. What a pattern means is its
writer's business: `dynamic` matches from the start of a name, `extra_config` anywhere in it.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ferrum_numba.errors import CheckpointError

# classes such as [[:digit:]] are other engines'; Python reads them as something else
POSIX = re.compile(r"\[[:.=]\^?\w+[:.=]\]")
# what has nothing else is a name, not a pattern; its dots are dots
NAME = re.compile(r"[\w.-]+")
SIXTEEN_BITS = 16


@dataclass(frozen=True)
class Rule:
    """What differs in the layers of a name.

    key:     as the config has it, with where it stands, such as dynamic '-:.*gate$'
    pattern: matched from the start of a layer's name
    changes: keys and values as a config has them; None: the layer is not quantised
    refusal: why such layers cannot be read, if they cannot
    """

    key: str
    pattern: re.Pattern[str]
    changes: Mapping[str, Any] | None
    refusal: str | None = None


def dynamic(found: Any, source: str) -> tuple[Rule, ...]:
    """Return GPTQModel's rules; the prefix "-:" says not quantised, "+:" means nothing.

    Raises:
        CheckpointError: they are no object of patterns and objects.
    """
    rules = []
    for key, changes in _items("dynamic", found, source):
        where = f"dynamic {key!r}"
        pattern = compiled(key.removeprefix("-:").removeprefix("+:"), f"{source}: {where}")
        rules.append(Rule(where, pattern, None if key.startswith("-:") else changes))
    return tuple(rules)


def extra_config(found: Any, source: str) -> tuple[Rule, ...]:
    """Return auto-round's rules, names before patterns; 16 bits say not quantised.

    Raises:
        CheckpointError: they are no object of patterns and objects.
    """
    names, patterns = [], []
    for key, changes in _items("extra_config", found, source):
        if not changes:
            continue
        where, bits = f"extra_config {key!r}", changes.get("bits")
        kept = isinstance(bits, int) and bits >= SIXTEEN_BITS
        if NAME.fullmatch(key):
            names.append(Rule(where, exactly(key), None if kept else changes))
        else:
            compiled(key, f"{source}: {where}")
            anywhere = compiled(f".*?(?:{key})", where)
            patterns.append(Rule(where, anywhere, None if kept else changes))
    return (*names, *patterns)


def exactly(name: str) -> re.Pattern[str]:
    """Return the pattern that only this name matches."""
    return re.compile(rf"{re.escape(name)}\Z")


def compiled(pattern: str, where: str) -> re.Pattern[str]:
    """Return a pattern that means here what it means to its writer.

    Raises:
        CheckpointError: it is none, or has classes that Python reads otherwise.
    """
    posix = POSIX.search(pattern)
    if posix is not None:
        raise CheckpointError(
            f"{where}: {posix[0]} is a class of another engine than Python's; write a range, such "
            "as [0-9]"
        )
    try:
        with warnings.catch_warnings():
            # a bracket in a class may mean something else one day
            warnings.simplefilter("ignore", FutureWarning)
            return re.compile(pattern)
    except re.error as error:
        raise CheckpointError(f"{where} is no pattern of names: {error}") from error


def _items(what: str, found: Any, source: str) -> list[tuple[str, Mapping[str, Any]]]:
    if not isinstance(found, dict | None):
        raise CheckpointError(f"{source}: {what} must be an object; got {json.dumps(found)}")
    for key, changes in (found or {}).items():
        if not isinstance(changes, dict):
            raise CheckpointError(
                f"{source}: {what} {key!r} must be an object; got {json.dumps(changes)}"
            )
    return list((found or {}).items())
