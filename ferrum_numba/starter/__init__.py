"""A package of one's own to begin with: a kernel that passes its check, or a design's copy."""

from ferrum_numba.starter.copied import like
from ferrum_numba.starter.fresh import fresh, refuse_name

__all__ = ["fresh", "like", "refuse_name"]
