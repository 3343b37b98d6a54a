"""The table of layers of experts: it is what is recorded, of one contest a problem."""

from dataclasses import replace
from statistics import median

import pytest

from ferrum_numba import results
from ferrum_numba.contract import describe
from ferrum_numba.errors import StoreError
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.perf import experts_table
from ferrum_numba.perf.experts_table import BEGIN, END, contests, table, with_table
from ferrum_numba.results import ResultFile, Row

PROBLEM = describe(GroupedProblem(4, 8, 2, 256, 128))
OURS = Row(
    "grouped_decode", "grouped_gemm", PROBLEM, {}, us=8.0, samples=(8.0,), bound_us=5.0, ok=True,
    run="2026-02-02",
)  # fmt: skip
PEER = replace(
    OURS, kernel="humming", us=12.0, samples=(12.0,), more={"peer": "humming", "kind": "4-bit"}
)


def environment(date, command):
    return {
        "gpu": "NVIDIA H200", "driver": "580.1", "date": date, "uuid": "0123abcd-9999",
        "commit": "71559805c92b", "command": command, "read_gbps": [4071.0, 4068.2],
    }  # fmt: skip


CONTEST = environment("2026-02-02", "python -m ferrum_numba.perf.peers_moe")
FILE = ResultFile(CONTEST, [OURS, PEER])


def test_the_page_is_current():
    text = experts_table.PAGE.read_text()
    assert text == with_table(text, results.load(experts_table.RESULTS)), experts_table.COMMAND


def test_the_readme_says_what_the_table_does():
    ratios = []
    for rows in contests(results.load(experts_table.RESULTS)):
        ours = min(row.us for row in rows if not row.peer)
        ratios += [row.us / ours for row in rows if row.kernel == "humming"]
    faster = sum(ratio > 1 for ratio in ratios)
    said = (
        f"on {faster} of {len(ratios)} problems, timed in turn on one board, "
        f"{median(ratios):.2f} times in the median"
    )
    assert said in " ".join((experts_table.PAGE.parent.parent / "README.md").read_text().split())


def test_a_problem_is_a_line_with_its_peers():
    lines = table(FILE).splitlines()
    assert lines[2].endswith("| 5.0 | **8.0** | `grouped_decode` | 12.0 |  | 1.50 |")
    assert "board `0123abcd`, 2026-02-02, commit `7155980`" in lines[-1]
    assert "a plain read there: 4071 GB/s before and 4068 after" in lines[-1]


def test_what_was_not_timed_in_turn_with_peers_is_not_shown():
    tuned = environment("2026-02-02", "ferrum-numba tune")
    assert contests(replace(FILE, environment=tuned)) == []


def test_of_two_contests_the_newer_is_shown_and_nothing_of_the_other():
    old = environment("2026-01-01", CONTEST["command"])
    rows = [replace(OURS, config={"a": 1}, us=1.0, run="2026-01-01"), *FILE.rows]
    assert contests(ResultFile(CONTEST, rows, [old])) == [FILE.rows]


def test_a_page_without_the_lines_is_refused():
    with pytest.raises(StoreError, match="has no lines <!-- measured: begin"):
        with_table("# Layers of experts", FILE)


def test_it_is_written(tmp_path, monkeypatch, capsys):
    page = tmp_path / "experts.md"
    page.write_text(f"# a\n{BEGIN}old\n{END}\nb\n")
    monkeypatch.setattr(experts_table, "PAGE", page)
    experts_table.main()
    assert (
        page.read_text() == f"# a\n{BEGIN}{table(results.load(experts_table.RESULTS))}\n{END}\nb\n"
    )
    assert str(page) in capsys.readouterr().out


def test_outside_a_checkout_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(experts_table, "PAGE", tmp_path / "experts.md")
    with pytest.raises(StoreError, match="this command is for a checkout"):
        experts_table.main()
