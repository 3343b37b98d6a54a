"""Sectors and wavefronts of the patterns that every guide of optimisation has."""

import numpy as np
import pytest

from ferrum_numba.interpreter.trace.requests import Cost, bulk_sectors, sectors, wavefronts

LANES = np.arange(32)
# of a buffer that begins at a sector
BASE = 1 << 40


def global_at(offset):
    return np.asarray(BASE + offset, np.uint64)


@pytest.mark.parametrize(
    ("offset", "size_bytes", "want"),
    [
        (4 * LANES, 4, Cost(4, 4, 4)),
        (16 * LANES, 16, Cost(16, 16, 16)),
        # one word for all, and a word of each line
        (0 * LANES, 4, Cost(1, 1, 0)),
        (128 * LANES, 4, Cost(32, 4, 128)),
        # every other word, and a run that begins in the middle of a sector
        (8 * LANES, 4, Cost(8, 4, 8)),
        (4 * LANES + 16, 4, Cost(5, 4, 4)),
        # eight rows of 16 bytes, each wanted by four lanes
        (256 * (LANES // 4), 16, Cost(8, 4, None)),
        (2 * LANES, 2, Cost(2, 2, 2)),
        (np.array([64]), 4, Cost(1, 1, None)),
    ],
)
def test_sectors(offset, size_bytes, want):
    assert sectors(global_at(offset), size_bytes) == want


def test_a_bulk_copy_reads_whole_rows():
    rows = (np.arange(4)[:, None] * 512 + np.arange(0, 64, 16)).ravel()
    assert bulk_sectors(global_at(rows), 16)[:2] == (8, 8)


@pytest.mark.parametrize(
    ("offset", "size_bytes", "want"),
    [
        (4 * LANES, 4, (1, 1)),
        (4 * LANES[::-1], 4, (1, 1)),
        # all the same word, and halves of one
        (0 * LANES, 4, (1, 1)),
        (2 * LANES, 2, (1, 1)),
        # two-way, eight-way, and all in one bank
        (8 * LANES, 4, (2, 1)),
        (32 * LANES, 4, (8, 1)),
        (128 * LANES, 4, (32, 1)),
        # an odd row keeps a column apart
        (4 * 33 * LANES, 4, (1, 1)),
        # half and quarter warps
        (8 * LANES, 8, (2, 2)),
        (16 * LANES, 16, (4, 4)),
        (128 * LANES, 16, (32, 4)),
        (128 * LANES, 8, (32, 2)),
        # pairs that want the same, next to each other or next but one
        (8 * (LANES // 2), 8, (1, 1)),
        (16 * (LANES // 2), 16, (2, 2)),
        (16 * (LANES // 4 * 2 + LANES % 2), 16, (2, 2)),
        (0 * LANES, 16, (2, 2)),
    ],
)
def test_wavefronts_of_a_load(offset, size_bytes, want):
    address = np.asarray(1024 + offset, np.uint32)
    assert wavefronts(LANES, address, size_bytes, pairs=True)[:2] == want


def test_stores_and_rows_of_matrices_gain_nothing_from_pairs():
    address = np.asarray(1024 + 16 * (LANES // 2), np.uint32)
    assert wavefronts(LANES, address, 16, pairs=False)[:2] == (4, 4)


def test_lanes_that_are_off_ask_for_nothing():
    lanes = np.array([0, 8, 9])
    address = np.asarray(1024 + 128 * np.arange(3), np.uint32)
    # lanes 8 and 9 are of one pass, lane 0 of another
    assert wavefronts(lanes, address, 16, pairs=False)[:2] == (3, 2)


def test_it_matters_where_in_the_banks_not_where_in_memory():
    for first in (1024, 1024 + 128, 1024 + 128 * 77):
        address = np.asarray(first + 32 * LANES, np.uint32)
        assert wavefronts(LANES, address, 4, pairs=True) == Cost(8, 1, 32)
