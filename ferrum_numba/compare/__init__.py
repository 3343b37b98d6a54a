"""Two of a kind against each other: designs or configs of this tree, or two revisions of it.

Both are timed in turn on one GPU, round after round, until the rounds decide: `designs`,
`revisions`. Two files that hold what was measured before need no GPU: `results.pairs`.
"""

from ferrum_numba.compare.built import Built, counter_deltas, deltas, of_row

__all__ = ["Built", "counter_deltas", "deltas", "of_row"]
