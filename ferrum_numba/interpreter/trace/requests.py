"""What a warp's request to memory costs: sectors of global memory, wavefronts of shared memory.

A request is one instruction of one warp. In global memory it touches **sectors** of 32 bytes.
Shared memory has 32 banks of 4 bytes, and gives a word of each of them in a **wavefront**: a
request of 4 bytes a lane is one wavefront if no two lanes want different words of a bank. Wider
requests are made in passes, of 16 lanes at 8 bytes each, of 8 lanes at 16. Loads in which the
lanes of pairs (l, l ^ 1) or (l, l ^ 2) want the same take half the passes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ferrum_numba.interpreter.memory import Array

SECTOR_BYTES = 32
BANKS, BANK_BYTES = 32, 4
WARP_SIZE = 32
# addresses that differ by this much are in the same bank, and at the same place of a sector
_PERIOD_BYTES = BANKS * BANK_BYTES
# no lane of a warp asks here
_NOBODY = -1


class Cost(NamedTuple):
    """What a request costs.

    units:        sectors, or wavefronts
    least:        as few as would bring the same bytes; wavefronts without conflicts
    stride_bytes: from each lane that takes part to the next; None where it is not the same
    """

    units: int
    least: int
    stride_bytes: int | None


def sectors(address: Array, size_bytes: int) -> Cost:
    """Return the sectors that lanes touch which access so many bytes each, at [n] addresses."""
    base = int(address[0]) // _PERIOD_BYTES * _PERIOD_BYTES
    return _sectors((address.astype(np.int64) - base).tobytes(), size_bytes)


def bulk_sectors(address: Array, size_bytes: int) -> Cost:
    """Return the sectors that one bulk copy reads, given as pieces of so many bytes."""
    # there is no pattern of lanes to be known again
    return _sectors.__wrapped__(address.astype(np.int64).tobytes(), size_bytes)


@lru_cache(maxsize=4096)
def _sectors(address: bytes, size_bytes: int) -> Cost:
    places = np.frombuffer(address, np.int64)
    ends = -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES
    steps = np.arange(0, ends, SECTOR_BYTES)
    touched = np.unique((places[:, None] + steps) // SECTOR_BYTES)
    wanted = len(np.unique(places)) * size_bytes
    return Cost(len(touched), -(-wanted // SECTOR_BYTES), _stride(places))


def wavefronts(lane: Array, address: Array, size_bytes: int, *, pairs: bool) -> Cost:
    """Return the wavefronts of lanes that access shared memory.

    Args:
        lane:  [n] which lanes of the warp; of `ldmatrix` the rows, whose bytes are a lane's
        pairs: whether lanes that want the same make it shorter: a load's do
    """
    base = int(address[0]) // _PERIOD_BYTES * _PERIOD_BYTES
    places = address.astype(np.int64) - base
    return _wavefronts(lane.astype(np.int64).tobytes(), places.tobytes(), size_bytes, pairs)


@lru_cache(maxsize=4096)
def _wavefronts(lane: bytes, address: bytes, size_bytes: int, pairs: bool) -> Cost:
    places = np.frombuffer(address, np.int64)
    of_lane = np.full(WARP_SIZE, _NOBODY, np.int64)
    of_lane[np.frombuffer(lane, np.int64)] = places
    counts = [
        _conflicts(of_lane[part], size_bytes)
        for part in _passes(of_lane, size_bytes, pairs)
        if (of_lane[part] != _NOBODY).any()
    ]
    return Cost(sum(counts), len(counts), _stride(places))


def _passes(of_lane: Array, size_bytes: int, pairs: bool) -> list[slice]:
    """Return the lanes of each pass."""
    words = max(size_bytes // BANK_BYTES, 1)
    if words == 1:
        return [slice(0, WARP_SIZE)]
    # what may become one pass if its pairs want the same: two passes
    both = WARP_SIZE // words * 2
    found = []
    for first in range(0, WARP_SIZE, both):
        middle, end = first + both // 2, first + both
        if pairs and _paired(of_lane[first:end]):
            found.append(slice(first, end))
        else:
            found += [slice(first, middle), slice(middle, end)]
    return found


def _paired(of_lane: Array) -> bool:
    lanes = np.arange(len(of_lane))
    for step in (1, 2):
        other = of_lane[lanes ^ step]
        if ((of_lane == other) | (of_lane == _NOBODY) | (other == _NOBODY)).all():
            return True
    return False


def _conflicts(of_lane: Array, size_bytes: int) -> int:
    """Return the wavefronts of a pass: the most words that are wanted of one bank."""
    asked = of_lane[of_lane != _NOBODY] // BANK_BYTES
    words = np.unique(asked[:, None] + np.arange(max(size_bytes // BANK_BYTES, 1)))
    return int(np.bincount(words % BANKS).max())


def _stride(places: Array) -> int | None:
    steps = np.unique(np.diff(places))
    return int(steps[0]) if len(steps) == 1 else None
