"""What a GPU's facts must look like, as files have them."""

from __future__ import annotations

import re

# every kernel's programs are named by the digest of that file among others: a change there would
# have all that ship compiled again
from ferrum_numba.gpu import _facts_error


def facts_error(facts: object) -> str | None:
    """Return what keeps facts, as a file has them, from being a `Gpu`; None where they are one."""
    wrong = _facts_error(facts)
    if (
        wrong is None
        and isinstance(facts, dict)
        and not re.fullmatch(r"sm_\d+[af]?", facts["arch"])
    ):
        return f"has a wrong arch: it must be one such as sm_90a, got {facts['arch']!r}"
    return wrong
