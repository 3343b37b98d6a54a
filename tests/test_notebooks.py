"""The notebooks of docs/notebooks show what comes out of them, and no more than belongs there."""

import re
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="nbclient, of the extra dev, runs notebooks")
pytest.importorskip("ipykernel", reason="ipykernel, of the extra dev, runs notebooks")
import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# of this run or machine: folders, dates with a time, escapes of a terminal, addresses of objects
VOLATILE = re.compile(r"/tmp/|/home/|/root/|/work/|\d\d:\d\d:\d\d|\x1b|object at 0x")


@pytest.fixture
def runner():
    loader = SourceFileLoader("notebooks", str(ROOT / ".ci" / "notebooks"))
    module = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_shows_what_comes_out(runner, path):
    assert runner.stale(path) is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_was_run_from_top_to_bottom_and_is_small(runner, path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert VOLATILE.findall(str([cell.get("outputs") for cell in code])) == []
    assert path.stat().st_size <= runner.MOST_BYTES


def notebook_of(*outputs, tags=()):
    cell = nbformat.v4.new_code_cell("x", outputs=list(outputs), metadata={"tags": list(tags)})
    return nbformat.v4.new_notebook(cells=[cell])


def plain(text, **more):
    return nbformat.v4.new_output("display_data", {"text/plain": text, **more})


def test_what_varies_is_compared_by_kind_and_all_else_by_its_text(runner):
    def shown(*outputs, **how):
        return list(runner.shown(notebook_of(*outputs, **how)))

    assert shown(plain("a")) != shown(plain("b"))
    assert shown(plain("a"), tags=["varies"]) == shown(plain("b"), tags=["varies"])
    other = plain("a", **{"text/html": "b"})
    assert shown(plain("a"), tags=["varies"]) != shown(other, tags=["varies"])
    pictures = [plain("a", **{"text/html": f"t<svg>{i}</svg>"}) for i in (1, 2)]
    assert shown(pictures[0]) == shown(pictures[1])


def test_a_changed_output_is_stale(runner, monkeypatch, tmp_path):
    path = tmp_path / "one.ipynb"
    nbformat.write(notebook_of(plain("before")), path)
    monkeypatch.setattr(runner, "executed", lambda path: notebook_of(plain("after")))
    assert "one.ipynb: cell 0 shows other than it did" in runner.stale(path)


def test_what_is_of_one_run_is_taken_out(runner):
    text = nbformat.v4.new_output("stream", text="at /tmp/x/a.py:3")
    notebook = notebook_of(text, plain("/tmp/x/b.py:4"), tags=["varies"])
    notebook.cells[0].metadata["execution"] = {"iopub.execute_input": "2026-12-01T00:00:00Z"}
    found = runner.stripped(notebook, "/tmp/x")
    (cell,) = found.cells
    assert cell.metadata == {"tags": ["varies"]}
    assert [cell.outputs[0].text, cell.outputs[1].data["text/plain"]] == ["at a.py:3", "b.py:4"]
