"""Patterns of layers' names that a config brings along, matched in bounded time.

Python's own `re` has no end to what it may take, and RE2, which has, lacks the lookaheads that
configs use, such as ^(?!.*experts).*_proj$. `regex` has Python's syntax and a time limit.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import regex

from ferrum_numba.errors import CheckpointError

# of all patterns of a config, on all names of a checkpoint: a hundred times what a model takes
MOST_S = 10.0
# of one match: a plain one takes a microsecond
MATCH_S = 0.25
# a pattern of it compiles in a tenth of a second
MOST_CHARACTERS = 4096
# of all repetitions of a pattern together, whose parts `regex` counts out one by one
MOST_REPEATED = 100_000
REPEATED = re.compile(r"\{(\d*)(?:,(\d*))?\}")
# classes such as [[:digit:]] are other engines'; Python reads them as something else
POSIX = re.compile(r"\[[:.=]\^?\w+[:.=]\]")
# {e<=1} means a number of mistakes, to `regex` alone
FUZZY = re.compile(r"\{[^{}]*[a-zA-Z][^{}]*\}")


class Budget:
    """The time that patterns have, all of a config together."""

    def __init__(self) -> None:
        self.left_s = MOST_S

    @contextmanager
    def spent(self, where: str) -> Iterator[float]:
        """Give the seconds that a block may take, and count what it took.

        Raises:
            CheckpointError: there are none left, or the block ran out of them.
        """
        began = time.perf_counter()
        try:
            if self.left_s <= 0:
                raise TimeoutError
            yield min(MATCH_S, self.left_s)
        except (TimeoutError, MemoryError) as error:
            # once is enough: the next name is not tried
            self.left_s = 0.0
            raise CheckpointError(
                f"{where} takes too long to match names; it repeats repetitions"
            ) from error
        finally:
            self.left_s -= time.perf_counter() - began


class Pattern:
    """A pattern of names, matched from their start; `where` names it in errors."""

    def __init__(self, text: str, where: str, budget: Budget, *, anywhere: bool = False) -> None:
        """Compile it.

        anywhere: it may begin in the middle of a name

        Raises:
            CheckpointError: it is none, is too long, or has what Python reads otherwise.
        """
        self._where, self._budget = where, budget
        self._meaning = text, anywhere
        _refuse(text, where)
        try:
            with warnings.catch_warnings(), budget.spent(where):
                # a bracket in a class may mean something else one day
                warnings.simplefilter("ignore", FutureWarning)
                warnings.simplefilter("ignore", DeprecationWarning)
                compiled = regex.compile(text, regex.VERSION0)
        except (regex.error, RecursionError, OverflowError) as error:
            why = "it is nested too deep" if isinstance(error, RecursionError) else error
            raise CheckpointError(f"{where} is no pattern of names: {why}") from error
        self._match = compiled.search if anywhere else compiled.match

    def match(self, name: str) -> bool:
        """Tell whether a name matches.

        Raises:
            CheckpointError: it takes too long, for this name or with all until now.
        """
        with self._budget.spent(self._where) as timeout_s:
            return self._match(name, timeout=timeout_s) is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self._meaning == other._meaning

    def __hash__(self) -> int:
        return hash(self._meaning)


@dataclass(frozen=True)
class Exactly:
    """The pattern that one name alone matches; None for all names."""

    name: str | None

    def match(self, name: str) -> bool:
        """Tell whether a name matches."""
        return self.name is None or name == self.name


def _refuse(text: str, where: str) -> None:
    if len(text) > MOST_CHARACTERS:
        raise CheckpointError(
            f"{where} has a pattern of {len(text):,} characters; "
            f"{MOST_CHARACTERS:,} are read at most"
        )
    posix = POSIX.search(text)
    if posix is not None:
        raise CheckpointError(
            f"{where}: {posix[0]} is a class of another engine than Python's; write a range, such "
            "as [0-9]"
        )
    repeated = 1
    for found in REPEATED.finditer(text):
        repeated *= max(1, *(int(part[:9] or 0) for part in found.groups(default="")))
        if repeated > MOST_REPEATED:
            raise CheckpointError(
                f"{where} repeats more than {MOST_REPEATED:,} times, which no name does"
            )
    fuzzy = FUZZY.search(text)
    if fuzzy is not None:
        raise CheckpointError(f"{where}: {fuzzy[0]} is no repetition of Python's")
