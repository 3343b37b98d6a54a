"""The fastest time from the smallest size to the largest, and where it steps up."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ferrum_numba.report.blocks import Emphasis, Table, significant
from ferrum_numba.report.data import Group
from ferrum_numba.results import Row, num_tiles, size_of
from ferrum_numba.roofline.points import natural, titled

# of a shape, for its sizes to be a curve
LEAST_SIZES = 12
# what a step may exceed its explanation by: what two measurements of one program may differ by
SLACK = 0.05


def curve_tables(group: Group) -> list[Table]:
    """Return a table for every shape that was measured at many sizes."""
    shapes: dict[str, list[Row]] = {}
    for row in (winner.row for winner in group.winners.values()):
        if size_of(row.problem) is not None:
            shapes.setdefault(group.shape(row.problem), []).append(row)
    return [
        _table(group, shape, sorted(rows, key=_size))
        for shape, rows in sorted(shapes.items(), key=lambda item: natural(item[0]))
        if len(rows) >= LEAST_SIZES
    ]


def explained(before: Row, after: Row) -> float:
    """Return the largest step that tiles explain, from one size to the next.

    The step is that of the number of tiles, of the kernel before or of the one after.
    """
    configs = (before.config, after.config)
    return max(num_tiles(one, after.problem) / num_tiles(one, before.problem) for one in configs)


def _table(group: Group, shape: str, rows: Sequence[Row]) -> Table:
    cells = [_cells(rows[0], "", "", "")]
    emphasis: list[Emphasis] = [""]
    for before, after in pairwise(rows):
        step, most = after.us / before.us, explained(before, after)
        steps_up = step > most * (1 + SLACK)
        cells.append(_cells(after, f"{step:.2f}", f"{most:.2f}", "steps up" if steps_up else ""))
        emphasis.append("bad" if steps_up else "")
    name = group.size_name
    units = (
        f"µs per call of the fastest kernel; step = time / time of the {name} before; explained: "
        f"the same ratio of the tiles' number, and {SLACK:.0%} more is noise"
    )
    columns = (name, "design", "µs", "step", "explained", "verdict")
    title = (
        f"Steps of {titled(shape)}, {group.title}: {name} = {_size(rows[0])} to {_size(rows[-1])}"
    )
    of = group.of(rows)
    return Table(
        title, group.regime, units, columns, tuple(cells), tuple(emphasis), of, folded=True
    )


def _cells(row: Row, *rest: str) -> tuple[str, ...]:
    return str(_size(row)), row.kernel, significant(row.us), *rest


def _size(row: Row) -> int:
    size = size_of(row.problem)
    assert size is not None, "the problem has a size"
    return size
