"""All combinations of some cases, of which every run has a few: each case of each axis, or more.

The others are for `make slow`.
"""

from itertools import product

import pytest


def crossed(*axes, marks=pytest.mark.slow):
    """Return parameters of a test: every combination, those beside the diagonal marked."""
    axes = [list(axis) for axis in axes]
    longest = max(map(len, axes))
    few = [[i % len(axis) for axis in axes] for i in range(longest)]
    return [
        pytest.param(
            *(axis[i] for axis, i in zip(axes, places, strict=True)),
            marks=() if list(places) in few else marks,
            id="-".join(str(axis[i]) for axis, i in zip(axes, places, strict=True)),
        )
        for places in product(*(range(len(axis)) for axis in axes))
    ]
