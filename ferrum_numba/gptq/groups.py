"""The group of each row: a stored g_idx, what it means, and that of some rows of a layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ProblemError


@dataclass(frozen=True, eq=False)
class Regular:
    """The groups of some rows, as many as their group size divides K into.

    used:       [U] which of the given groups they are, in order
    num_unused: groups more, which no row is in
    g_idx:      [K] int32, the group of each row among these; None where rows are in order
    """

    used: Array
    num_unused: int
    g_idx: Array | None
    group_size: int


def in_order(K: int, group_size: int) -> Array:
    """Return [K] int32, the group of each row where they are in order: k // group_size."""
    return np.arange(K, dtype=np.int32) // np.int32(group_size)


def checked(
    name: str, g_idx: Array | None, K: int, G: int, group_size: int, *, desc_act: bool
) -> Array | None:
    """Return a stored g_idx, or None where it means rows in order.

    name:       of the layer
    g_idx:      [K] int32, or None where none is stored
    G:          rows of scales
    group_size: 1 to K

    Raises:
        ProblemError: desc_act without a g_idx, or a group that has no scales.
    """
    several = group_size < K
    if g_idx is None:
        if desc_act and several:
            raise ProblemError(
                f"{name}: g_idx is missing; desc_act with {G} groups needs [{K}] int32"
            )
        return None
    if ceil_div(K, group_size) == G and np.array_equal(g_idx, in_order(K, group_size)):
        return None
    low, high = int(g_idx.min()), int(g_idx.max())
    if several and low == high == 0:
        # a buffer that nobody filled
        if desc_act:
            raise ProblemError(
                f"{name}: g_idx is 0 for all of K = {K}; desc_act with groups of {group_size} rows "
                "needs the group of each"
            )
        return None
    if low < 0 or high >= G:
        raise ProblemError(f"{name}: g_idx must be 0..{G - 1}; got {low}..{high}")
    return g_idx


def regular(g_idx: Array, G: int, group_size: int) -> Regular | None:
    """Return the groups of rows that need not be all rows of a layer; None for those of a layer.

    Groups that no row is in are left out where each of the rest has its rows. Where they have not,
    the group size is what divides K into about G, and unused groups make up the number.

    g_idx:      [K] int32, 0 to G - 1
    G:          rows of scales
    group_size: of the layer, 1 to K
    """
    K = len(g_idx)
    if ceil_div(K, group_size) == G:
        return None
    used, found = np.unique(g_idx, return_inverse=True)
    if len(used) != ceil_div(K, group_size) or uneven(found, len(used), group_size):
        # of K and G alone: the same for all experts of a stack
        group_size = max(1, K // G)
        if G <= K:
            used, found = np.arange(G), g_idx
    found = found.astype(np.int32)
    ordered = np.array_equal(found, in_order(K, group_size))
    return Regular(
        used, ceil_div(K, group_size) - len(used), None if ordered else found, group_size
    )


def uneven(g_idx: Array, G: int, group_size: int) -> str | None:
    """Return which group has another number of rows than in order, or None where none has."""
    got = np.bincount(g_idx, minlength=G)
    want = np.bincount(in_order(len(g_idx), group_size), minlength=G)
    for group in np.flatnonzero(got != want)[:1]:
        return f"group {group} has {got[group]} rows, not {want[group]}"
    return None
