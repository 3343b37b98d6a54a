"""The tile scheduler of the designs with stripes: equal runs of steps, one a block.

A slice is all of K of one output tile, a step the K that a block takes at once. The steps of all
slices are numbered K first and cut into stripes of equal length, so every SM streams the same
number of bytes, whatever the shape (cut.py says how). What a stripe has of one slice is a segment.
With 3 slices of 3 steps, and 5 blocks:

    slice 0: 0 0 1    slice 1: 1 2 2    slice 2: 3 3 4
"""

from collections.abc import Callable
from typing import Any

from numba import cuda
from numba.cuda.types import uint32

# what a design's parts hand to each other: a function that is inlined where a kernel calls it
DeviceFunction = Callable[..., Any]


@cuda.jit(device=True, forceinline=True)
def stripe_bounds(index, stripe_steps, num_steps):
    """Return the first step of a stripe, and the one after its last."""
    first, end = uint32(index * stripe_steps), num_steps
    if uint32(end - first) > stripe_steps:
        end = uint32(first + stripe_steps)
    return first, end


@cuda.jit(device=True, forceinline=True)
def first_segment(first, end, k_steps):
    """Return a stripe's first slice, its first step of it, and the step after its last of it."""
    slice_id = uint32(first // k_steps)
    k_step = uint32(first - uint32(slice_id * k_steps))
    k_stop = uint32(k_step + uint32(end - first))
    if k_stop > k_steps:
        k_stop = k_steps
    return slice_id, k_step, k_stop


@cuda.jit(device=True, forceinline=True)
def next_segment(slice_id, k_stop, end, k_steps):
    """Return the next slice of a stripe and the step after its last of it, 0 if none is left."""
    done = uint32(uint32(slice_id * k_steps) + k_stop)
    k_stop = uint32(0)
    if done < end:
        k_stop = uint32(end - done) if uint32(end - done) < k_steps else k_steps
    return uint32(slice_id + 1), k_stop


@cuda.jit(device=True, forceinline=True)
def settle(slice_id, k_step, k_stop, first_step, end, k_steps):
    """Return this step, or that which is a warp's first of a later slice.

    k_stop is 0 if none is left.

    first_step: of a slice for this warp, or warpgroup: they take turns along K
    """
    while k_step >= k_stop and k_stop > 0:
        slice_id, k_stop = next_segment(slice_id, k_stop, end, k_steps)
        k_step = first_step
    return slice_id, k_step, k_stop
