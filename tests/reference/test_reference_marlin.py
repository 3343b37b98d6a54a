"""The reference of Marlin's layouts and of its stripe partition."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferrum_numba.reference import marlin_layout
from ferrum_numba.reference.gptq import unpack_nibbles
from ferrum_numba.reference.marlin import stripes


def test_a_packed_weight_equals_a_loop_over_the_closed_form(rng):
    codes = rng.integers(0, 16, size=(32, 192), dtype=np.uint8)
    packed = marlin_layout.pack_weight(codes)
    assert packed.shape == (2, 384)
    assert packed.dtype == np.int32
    for k_tile, n_tile, lane, j in np.ndindex(2, 3, 32, 4):
        word = int(packed[k_tile, 128 * n_tile + 4 * lane + j]) & 0xFFFFFFFF
        for p in range(8):
            half, sel = p >> 2, p & 3
            k = 16 * k_tile + 2 * (lane & 3) + half + 8 * (sel & 1)
            n = 64 * n_tile + 16 * j + 8 * (sel >> 1) + (lane >> 2)
            assert word >> 4 * p & 15 == codes[k, n]


def test_one_code_lands_in_one_known_nibble():
    codes = np.zeros((16, 64), np.uint8)
    # row 9 = 8 + 2*0 + 1: lane % 4 = 0, half 1, pair 1; column 27 = 16*1 + 8 + 3: word 1, block 1
    codes[9, 27] = 15
    packed = marlin_layout.pack_weight(codes).view(np.uint32)
    assert np.flatnonzero(packed).tolist() == [4 * (4 * 3 + 0) + 1]
    assert packed.max() == 15 << 4 * (4 * 1 + 2 * 1 + 1)


def test_the_order_of_a_tile_is_a_permutation():
    order = marlin_layout.tile_order()
    assert order.shape == (32, 4, 8)
    assert sorted(order.reshape(-1).tolist()) == list(range(1024))
    # the first lane's first word: rows 0, 8 of columns 0, 8, then rows 1, 9
    assert [divmod(int(i), 64) for i in order[0, 0]] == [
        (0, 0), (8, 0), (0, 8), (8, 8), (1, 0), (9, 0), (1, 8), (9, 8),
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(16, 64), (48, 64), (16, 192), (64, 320)], ids=str)
def test_a_weight_survives_packing(rng, shape):
    codes = rng.integers(0, 16, size=shape, dtype=np.uint8)
    packed = marlin_layout.pack_weight(codes)
    np.testing.assert_array_equal(marlin_layout.unpack_weight(packed), codes)


@pytest.mark.parametrize("grouped", [True, False], ids=["grouped", "single"])
def test_permuted_scales_equal_the_formula(grouped):
    old = np.arange(3 * 192, dtype=np.float16).reshape(3, 192)
    new = marlin_layout.permute_scales(old, grouped)
    assert new.dtype == np.float16
    assert sorted(new[0].tolist()) == sorted(old[0].tolist())
    for g, first in np.ndindex(3, 3 if grouped else 6):
        if grouped:
            for i, jj in np.ndindex(8, 8):
                assert new[g, 64 * first + 8 * i + jj] == old[g, 64 * first + i + 8 * jj]
        else:
            for i, m in np.ndindex(4, 8):
                column = 2 * i + (0, 1, 8, 9, 16, 17, 24, 25)[m]
                assert new[g, 32 * first + 8 * i + m] == old[g, 32 * first + column]
    np.testing.assert_array_equal(marlin_layout.unpermute_scales(new, grouped), old)


def test_the_two_orders_of_scales_differ():
    scales = np.arange(64, dtype=np.float16)[None]
    grouped = marlin_layout.permute_scales(scales, True)
    assert (grouped != marlin_layout.permute_scales(scales, False)).any()


def test_packed_zero_points_equal_the_formula(rng):
    zero_points = rng.integers(0, 16, size=(2, 128), dtype=np.uint8)
    packed = marlin_layout.pack_zero_points(zero_points)
    assert packed.shape == (2, 16)
    assert packed.dtype == np.int32
    for g, word in np.ndindex(2, 16):
        tile, i = divmod(word, 8)
        for p, jj in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            nibble = int(packed[g, word]) >> 4 * p & 15
            assert nibble == zero_points[g, 64 * tile + i + 8 * jj]
    np.testing.assert_array_equal(marlin_layout.unpack_zero_points(packed), zero_points)


def test_a_zero_point_word_is_ordered_like_the_weight_words_of_its_lanes():
    # decoding both with the same instructions gives weight and zero point of the same column
    column = np.arange(64, dtype=np.uint8) % 16
    codes = np.broadcast_to(column, (16, 64)).copy()
    weight_words = marlin_layout.pack_weight(codes).reshape(32, 4)
    zero_words = marlin_layout.pack_zero_points(column[None]).reshape(8)
    for lane, j in np.ndindex(32, 4):
        zeros = unpack_nibbles(zero_words)[lane // 4]
        weights = unpack_nibbles(weight_words)[lane, j]
        # a word decodes to pairs (p, p + 4); so do the zero points: tile j uses columns 2j, 2j + 1
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        assert weights[0] == zeros[order.index(2 * j)]
        assert weights[2] == zeros[order.index(2 * j + 1)]


def test_wrong_shapes_are_refused_in_numbers():
    with pytest.raises(
        ValueError, match=r"codes must be \[multiple of 16, .* 64\]; got \[24, 64\]"
    ):
        marlin_layout.pack_weight(np.zeros((24, 64), np.uint8))
    with pytest.raises(ValueError, match=r"\[K/16, multiple of 128\] int32; got \[1, 64\] int32"):
        marlin_layout.unpack_weight(np.zeros((1, 64), np.int32))
    with pytest.raises(ValueError, match=r"scales must be \[G, multiple of 64\]; got \[1, 96\]"):
        marlin_layout.permute_scales(np.zeros((1, 96), np.float16), False)
    with pytest.raises(ValueError, match=r"zero points must be .* 64\]; got \[1, 32\]"):
        marlin_layout.pack_zero_points(np.zeros((1, 32), np.uint8))


def test_a_partition_drawn_by_hand():
    # 3 x 3 tiles, 5 blocks: runs of two
    shares = [tuple(share) for share in stripes(5, 3, 3)]
    assert shares == [
        (0, 0, 0, 0, 2, 2, 1),
        (1, 0, 0, 2, 1, 2, 0),
        (1, 0, 1, 0, 1, 2, 1),
        (2, 0, 1, 1, 2, 2, 0),
        (3, 0, 2, 0, 2, 2, 1),
        (4, 0, 2, 2, 1, 2, 0),
    ]


sizes = st.tuples(
    st.integers(1, 40), st.integers(1, 12), st.integers(1, 8), st.integers(1, 3), st.integers(1, 4)
)


@settings(max_examples=300)
@given(sizes=sizes)
def test_a_partition_covers_every_tile_once_and_numbers_its_shares(sizes):
    grid, groups, n_tiles, parallel, group_tiles = sizes
    k_tiles = groups * group_tiles
    shares = stripes(grid, k_tiles, n_tiles, parallel, group_tiles)
    columns = defaultdict(list)
    for share in shares:
        assert share.k_first % group_tiles == 0
        columns[share.problem, share.n_tile].append(share)
    assert len(columns) == n_tiles * parallel
    for column in columns.values():
        # from the top down: tiles without gap, block ids grow, turns count down to the bottom
        tiles = [k for s in column for k in range(s.k_first, s.k_first + s.k_count)]
        assert tiles == list(range(k_tiles))
        assert [s.block for s in column] == sorted({s.block for s in column})
        assert [s.turn for s in column] == list(range(len(column) - 1, -1, -1))
        assert {s.num_shares for s in column} == {len(column)}
    loads = defaultdict(int)
    for share in shares:
        loads[share.block] += share.k_count
    length = -(-k_tiles * n_tiles * parallel // grid)
    assert max(loads.values()) <= group_tiles * -(-length // group_tiles)
    assert [s.block for s in shares] == sorted(s.block for s in shares)


@settings(max_examples=300)
@given(sizes=sizes)
def test_a_partition_equals_the_formulas_of_the_marlin_kernel(sizes):
    grid, groups, n_tiles, parallel, group_tiles = sizes
    k_tiles = groups * group_tiles
    length = -(-k_tiles * n_tiles * parallel // grid)
    length = group_tiles * -(-length // group_tiles)
    for share in stripes(grid, k_tiles, n_tiles, parallel, group_tiles):
        column = share.problem * n_tiles + share.n_tile
        start = max(length * share.block, k_tiles * column)
        first = length * -(-k_tiles * column // length)
        offset = first - k_tiles * column
        count = -(-(k_tiles - offset) // length) + (offset > 0)
        if length * share.block < first or (offset == 0 and start == first):
            index = count - 1
        else:
            index = count - 1 - (length * share.block - first) // length - (offset > 0)
        # the kernel's formula counts a column that ends inside its first run as one
        assert share.num_shares == max(count, 1)
        assert share.turn == max(index, 0)


def test_wrong_partitions_are_refused_in_numbers():
    with pytest.raises(ValueError, match=r"at least 1; got grid 0, 3 x 3 tiles"):
        stripes(0, 3, 3)
    with pytest.raises(ValueError, match=r"10 K tiles do not divide into groups of 4"):
        stripes(5, 10, 3, group_tiles=4)
