"""The account of a GPU: how long a search held it, and how much of that kernels were timed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Held:
    """What a GPU was held for.

    A GPU is held from the first measurement, when its process starts, to the end of the last.
    Inside timed kernels are the replays of candidates, by the GPU's own events: samples, and the
    warm-up before them; not what a check launches, nor anything between two replays.

    spent_s: seconds by what was done: "heats", "finals", or "waiting" for operands of a problem
    busy_s:  seconds of these inside timed kernels
    """

    spent_s: dict[str, float] = field(default_factory=dict)
    busy_s: dict[str, float] = field(default_factory=dict)
    _began: float | None = field(default=None, init=False)
    _ended: float = field(default=0.0, init=False)
    _others_s: float = field(default=0.0, init=False)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Count the time of a block."""
        began = time.monotonic()
        if self._began is None:
            self._began = began
        try:
            yield
        finally:
            self._ended = time.monotonic()
            self.spent_s[what] = self.spent_s.get(what, 0.0) + self._ended - began

    def take(self, other: Held) -> None:
        """Count what another GPU was held for, too."""
        for mine, theirs in ((self.spent_s, other.spent_s), (self.busy_s, other.busy_s)):
            for what, seconds in theirs.items():
                mine[what] = mine.get(what, 0.0) + seconds
        self._others_s += other.held_s

    def add(self, what: str, seen: Mapping[str, Any]) -> None:
        """Count what a measurer says that it replayed: `busy_us`."""
        self.busy_s[what] = self.busy_s.get(what, 0.0) + float(seen.get("busy_us", 0.0)) / 1e6

    @property
    def held_s(self) -> float:
        """Seconds that the GPU was held; of several, together."""
        return self._others_s + (0.0 if self._began is None else self._ended - self._began)

    @property
    def busy(self) -> float:
        """The part of it inside timed kernels."""
        return sum(self.busy_s.values()) / self.held_s if self.held_s else 0.0

    def sentence(self) -> str:
        """Return the account in a sentence."""
        parts = [
            f"{what} {seconds:.0f} s, {self.busy_s.get(what, 0.0) / seconds:.0%}"
            for what, seconds in self.spent_s.items()
            if seconds > 0
        ]
        whole = f"GPU held {self.held_s:.0f} s, {self.busy:.0%} of it inside timed kernels"
        return f"{whole} ({'; '.join(parts)})" if parts else whole
