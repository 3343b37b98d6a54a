"""A search's progress in a notebook's cell."""

import sys
from types import ModuleType

import pytest

from ferrum_numba.cli import progress
from ferrum_numba.tune import NotebookBar, notebook


class Cell:
    """Stands for the place that IPython shows something in."""

    def __init__(self):
        self.shown = []

    def update(self, bar):
        self.shown.append(bar._repr_html_())


@pytest.fixture
def cells(monkeypatch):
    """Return the cells of a notebook that is made up."""
    found = []

    def display(bar, *, display_id):
        assert display_id
        found.append(Cell())
        found[-1].update(bar)
        return found[-1]

    module = ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return found


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(notebook.time, "monotonic", lambda: now[0])
    return now


def test_a_bar_is_drawn_once_and_then_changed_where_it_is(cells, clock):
    bar = NotebookBar("gemm")
    for done in range(3):
        clock[0] += 1
        bar(done, 3, "decode <b>")
    (cell,) = cells
    assert len(cell.shown) == 3
    assert cell.shown[-1] == (
        '<div><progress value="2" max="3"></progress> 2 of 3 gemm decode &lt;b&gt;</div>'
    )


def test_a_browser_is_not_sent_more_than_it_can_show_but_the_end(cells, clock):
    bar = NotebookBar("gemm")
    for done in range(101):
        clock[0] += 0.01
        bar(done, 100)
    (cell,) = cells
    assert 5 <= len(cell.shown) <= 8
    assert "100 of 100" in cell.shown[-1]


def test_of_an_unknown_total_and_without_ipython(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    bar = NotebookBar("plan")
    assert bar._repr_html_() == "<div><progress></progress> 0 of 0 plan</div>"
    bar(1, 2, "x")
    assert "1 of 2 plan x" in bar._repr_html_()


def test_commands_show_it_where_they_run_in_a_notebook(cells, monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    with progress.progress("w4a16_gemm") as report:
        report(1, 1)
    assert "1 of 1 w4a16_gemm" in cells[0].shown[-1]
