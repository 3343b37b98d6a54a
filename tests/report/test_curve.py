"""Steps of the time over M: told where tiles do not explain them."""

import pytest
from synthetic import synthetic_environment, synthetic_row

from ferrum_numba.report import Sources, document, groups
from ferrum_numba.report.curve import LEAST_SIZES, curve_tables, explained
from ferrum_numba.results import ResultFile

SIZES = (1, 2, 4, 8, 16, 32, 64, 65, 128, 256, 512, 1024)


def tiled(size, tile_m, us=1000.0):
    return synthetic_row("decode", size, us, config={"tile_m": tile_m})


def group_of(rows):
    (found,) = groups(Sources([ResultFile(synthetic_environment(), rows)]))
    return found


@pytest.mark.parametrize(
    ("before", "after", "most"),
    [
        # one tile before and after
        (tiled(9, 16), tiled(16, 16), 1.0),
        (tiled(64, 64), tiled(65, 64), 2.0),
        # two tiles of the kernel before, one of the one after: it takes the larger for the excuse
        (tiled(8, 8), tiled(9, 16), 2.0),
        (tiled(256, 128), tiled(257, 128), 1.5),
        # without a tile, as many times as there are rows
        (synthetic_row(size=64, config={}), synthetic_row(size=96, config={}), 1.5),
    ],
)
def test_a_step_is_explained_by_the_number_of_tiles(before, after, most):
    assert explained(before, after) == most


def test_a_step_that_no_tile_explains_is_told():
    # 64 rows need one tile of 64 and take 1 ms; 65 need two, and take three times as long
    times = dict.fromkeys(SIZES, 1000.0) | {size: 3000.0 for size in SIZES if size > 64}
    (table,) = curve_tables(group_of([tiled(size, 64, us) for size, us in times.items()]))
    assert table.title == "Steps of K×N 8192×28672, gemm, NVIDIA H200, cold: M = 1 to 1024"
    assert table.emphasis == tuple("bad" if size == 65 else "" for size in SIZES)
    assert table.rows[7] == ("65", "decode", "3000", "3.00", "2.00", "steps up")


def test_only_the_fastest_of_a_size_counts():
    rows = [tiled(size, 64) for size in SIZES]
    slower = [synthetic_row("slow", size, 1900.0, config={"tile_m": 64}) for size in SIZES]
    (table,) = curve_tables(group_of(rows + slower))
    assert {row[1] for row in table.rows} == {"decode"}
    assert set(table.emphasis) == {""}


def test_few_sizes_are_no_curve():
    few = [tiled(size, 64) for size in SIZES[: LEAST_SIZES - 1]]
    assert curve_tables(group_of(few)) == []


def test_the_report_has_it():
    sources = Sources([ResultFile(synthetic_environment(), [tiled(size, 64) for size in SIZES])])
    titles = [getattr(block, "title", "") for block in document(sources).blocks]
    assert any(title.startswith("Steps of K×N 8192×28672") for title in titles)
