"""The measured tables: the README's six rows and the page of all of them are what is recorded."""

from dataclasses import replace
from pathlib import Path

import pytest

from ferrum_numba import results
from ferrum_numba.errors import StoreError
from ferrum_numba.perf import readme_table
from ferrum_numba.results import ResultFile, Row

ROOT = Path(__file__).resolve().parents[2]
PROBLEM = {"M": 1, "N": 8192, "K": 8192, "group_size": 128}
ROW = Row("decode", "w4a16_gemm", PROBLEM, {}, us=9.6, samples=(9.6,), ok=True, run="2026-01-01")


def environment(date, uuid="e6ff34d5-30cf", dirty=False):
    return {
        "gpu": "NVIDIA H200", "driver": "580.1", "date": date, "uuid": uuid, "dirty": dirty,
        "commit": "71559805c92b", "command": "ferrum-numba tune",
    }  # fmt: skip


FILE = ResultFile(environment("2026-02-02", "0123abcd-9999", dirty=True), [ROW])
FILE.earlier.append(environment("2026-01-01"))


@pytest.fixture(scope="module")
def recorded():
    return results.load(readme_table.RESULTS)


def test_the_readme_is_current(recorded):
    text = (ROOT / "README.md").read_text()
    assert text == readme_table.with_table(text, recorded), readme_table.COMMAND


def test_the_page_is_current(recorded):
    assert (ROOT / "docs" / "results.md").read_text() == readme_table.page(recorded), (
        readme_table.COMMAND
    )


def test_the_readme_shows_the_middle_weight():
    assert readme_table.README_SHAPE == (8192, 8192)
    assert set(readme_table.README_M) <= set(readme_table.SIZES_M)


def test_the_readme_has_six_rows_and_the_page_all(recorded):
    count = len(readme_table.SHAPES) * len(readme_table.SIZES_M)
    for text, rows in (
        (readme_table.readme_table(recorded), 6),
        (readme_table.page(recorded).split("## ")[1], count),
    ):
        assert sum(line.startswith("| ") for line in text.splitlines()) == 2 + rows


def test_a_line_has_the_winner_and_the_baseline():
    slow, final = replace(ROW, kernel="marlin", us=16.9), replace(ROW, config={"a": 1}, us=9.7)
    (line,) = readme_table.lines(replace(FILE, rows=[ROW, slow, replace(final, stage="final")]))
    assert (line.shape, line.m, line.fastest.us, line.baseline.us) == ((8192, 8192), 1, 9.7, 16.9)


@pytest.mark.parametrize("change", [{"regime": "warm"}, {"ok": False}, {"untrusted": "others ran"}])
def test_what_does_not_count_is_not_shown(change):
    assert readme_table.lines(replace(FILE, rows=[replace(ROW, **change)])) == []


def test_a_time_names_its_run():
    text = readme_table.page(
        replace(FILE, rows=[ROW, replace(ROW, kernel="marlin", us=16.9, run="")])
    )
    assert "| **9.6** | `decode` | 1 | 16.9 | 2 | 16.2 vLLM Marlin | 39.3 |" in text
    assert (
        "| 1 | 2026-01-01 UTC | `e6ff34d5` | `7155980` | 580.1 | 1 | `ferrum-numba tune` |" in text
    )
    assert "| 2 | 2026-02-02 UTC | `0123abcd` | `7155980` with changes |" in text
    assert "NVIDIA H200, driver 580.1; 2 runs on 2 boards" in text


def test_a_peer_that_was_not_measured_leaves_its_cell_empty():
    assert readme_table.peer_cell((8192, 8192), 3, "4-bit") == ""


def test_a_readme_without_the_lines_is_refused():
    with pytest.raises(StoreError, match="has no lines <!-- measured: begin"):
        readme_table.with_table("# ferrum-numba", FILE)


def test_both_are_written(tmp_path, monkeypatch, capsys, recorded):
    readme, page = tmp_path / "README.md", tmp_path / "results.md"
    readme.write_text(f"# a\n{readme_table.BEGIN}old\n{readme_table.END}\nb\n")
    monkeypatch.setattr(readme_table, "README", readme)
    monkeypatch.setattr(readme_table, "PAGE", page)
    readme_table.main()
    assert page.read_text() == readme_table.page(recorded)
    assert readme_table.readme_table(recorded) in readme.read_text()
    assert readme.read_text().startswith("# a\n")
    assert readme.read_text().endswith(f"{readme_table.END}\nb\n")
    assert str(page) in capsys.readouterr().out


def test_outside_a_checkout_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(readme_table, "README", tmp_path / "README.md")
    with pytest.raises(StoreError, match="this command is for a checkout"):
        readme_table.main()
