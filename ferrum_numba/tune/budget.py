"""How much time there is: of a whole search, and of it for each problem."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Deadline:
    """A moment by which to be done.

    at: by `time.monotonic`, s; infinite for never
    """

    at: float = math.inf

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """Return the deadline so many seconds from now; never for None."""
        return cls() if seconds is None else cls(time.monotonic() + seconds)

    @property
    def left_s(self) -> float:
        """Seconds until then, never below 0."""
        return max(0.0, self.at - time.monotonic())

    def passed(self) -> bool:
        """Tell whether the time is up."""
        return self.left_s == 0.0

    def share(self, part: float) -> Deadline:
        """Return the deadline after a part of the time that is left."""
        return self if math.isinf(self.at) else Deadline(time.monotonic() + self.left_s * part)


NEVER = Deadline()
