"""What a kernel's config is on a GPU that need not be there: launch, memory, lanes, code, bound."""

from ferrum_numba.explain.facts import Explanation, Occupancy, explain

__all__ = ["Explanation", "Occupancy", "explain"]
