"""How the host cuts steps into stripes, which stripes.py walks on the device."""

from typing import NamedTuple

from ferrum_numba.division import ceil_div


class Stripes(NamedTuple):
    """How steps are cut: so many stripes of so many steps, the last of what is left."""

    num_stripes: int
    stripe_steps: int


def cut(num_steps: int, most: int) -> Stripes:
    """Return as few stripes as give every one the same number of steps; no more than `most`."""
    stripe_steps = ceil_div(num_steps, most)
    return Stripes(ceil_div(num_steps, stripe_steps), stripe_steps)
