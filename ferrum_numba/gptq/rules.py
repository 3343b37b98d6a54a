"""Rules of a config for some of its layers: GPTQModel's `dynamic`, auto-round's `extra_config`.

The first rule that a layer's name matches counts, and only that. What a pattern means is its
writer's business: `dynamic` matches from the start of a name, `extra_config` anywhere in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ferrum_numba.door import quoted, shown
from ferrum_numba.errors import CheckpointError
from ferrum_numba.gptq.patterns import Budget, Exactly, Pattern

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
    pattern: Pattern | Exactly
    changes: Mapping[str, Any] | None
    refusal: str | None = None


def dynamic(found: Any, source: str) -> tuple[Rule, ...]:
    """Return GPTQModel's rules; the prefix "-:" says not quantised, "+:" means nothing.

    Raises:
        CheckpointError: they are no object of patterns and objects.
    """
    rules, budget = [], Budget()
    for key, changes in _items("dynamic", found, source):
        where = f"dynamic {quoted(key)}"
        text = key.removeprefix("-:").removeprefix("+:")
        pattern = Pattern(text, f"{source}: {where}", budget)
        rules.append(Rule(where, pattern, None if key.startswith("-:") else changes))
    return tuple(rules)


def extra_config(found: Any, source: str) -> tuple[Rule, ...]:
    """Return auto-round's rules, names before patterns; 16 bits say not quantised.

    Raises:
        CheckpointError: they are no object of patterns and objects.
    """
    names, patterns, budget = [], [], Budget()
    for key, changes in _items("extra_config", found, source):
        if not changes:
            continue
        where, bits = f"extra_config {quoted(key)}", changes.get("bits")
        kept = isinstance(bits, int) and bits >= SIXTEEN_BITS
        if NAME.fullmatch(key):
            names.append(Rule(where, Exactly(key), None if kept else changes))
        else:
            pattern = Pattern(key, f"{source}: {where}", budget, anywhere=True)
            patterns.append(Rule(where, pattern, None if kept else changes))
    return (*names, *patterns)


class Rules:
    """Rules in their order, found by a name: those of one name at once, patterns one by one."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._exact: dict[str, int] = {}
        self._others: list[int] = []
        for place, rule in enumerate(rules):
            named = rule.pattern.name if isinstance(rule.pattern, Exactly) else None
            if named is None:
                self._others.append(place)
            else:
                self._exact.setdefault(named, place)
        self._rules = rules

    def find(self, name: str) -> Rule | None:
        """Return the first rule that a name matches.

        Raises:
            CheckpointError: a pattern takes too long.
        """
        named = self._exact.get(name, len(self._rules))
        for place in self._others:
            if place > named:
                break
            if self._rules[place].pattern.match(name):
                return self._rules[place]
        return self._rules[named] if named < len(self._rules) else None


def _items(what: str, found: Any, source: str) -> list[tuple[str, Mapping[str, Any]]]:
    if not isinstance(found, dict | None):
        raise CheckpointError(f"{source}: {what} must be an object; got {shown(found)}")
    for key, changes in (found or {}).items():
        if not isinstance(changes, dict):
            raise CheckpointError(
                f"{source}: {what} {quoted(key)} must be an object; got {shown(changes)}"
            )
    return list((found or {}).items())
