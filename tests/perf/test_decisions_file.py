"""The decisions that ship: made of the recorded results, and as good as they are."""

import pytest

from ferrum_numba import results, shipped
from ferrum_numba.errors import StoreError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.linear.choice import kernel_for, readers
from ferrum_numba.perf import add_run, decisions
from ferrum_numba.perf.readme_table import RESULTS
from ferrum_numba.results.decisions import Decision, load_decisions, save_decisions

H200 = KNOWN["h200"]
# beside those that were measured
BETWEEN = (3, 5, 7, 11, 15, 18, 25, 40, 49, 80, 100, 160, 200, 300, 500, 700, 1500, 2500, 5000)


@pytest.mark.parametrize("key", decisions.gpu_keys())
def test_the_decisions_are_those_of_today_s_results(key, tmp_path):
    decisions.write(key, tmp_path / "new.json")
    new, shown = (tmp_path / "new.json").read_text(), shipped.decisions_path(key).read_text()
    assert new == shown, f"run {decisions.COMMAND}"


def test_there_are_no_decisions_without_results():
    paths = shipped.decisions_path("h200").parent.iterdir()
    assert sorted(path.stem for path in paths) == decisions.gpu_keys()


def won(rows, kernels):
    """Return one decision a problem: what won it of all rows of some kernels."""
    names = {kernel.name for kernel in kernels}
    found = results.winners(row for row in rows if row.kernel in names and row.regime == "cold")
    rows = [winner.row for winner in found]
    return [Decision(r.op, r.problem, r.kernel, r.config, r.us, r.stage) for r in rows]


@pytest.mark.parametrize(
    ("kind", "dense"), [("marlin", False), ("marlin", True), ("raw", False)], ids=str
)
def test_the_file_chooses_what_all_rows_would(kind, dense, monkeypatch):
    monkeypatch.setattr("ferrum_numba.linear.choice.lacking", lambda kernel: None)
    rows, kernels = results.load(RESULTS).rows, readers(kind, dense=dense)
    of_all, of_file = won(rows, kernels), load_decisions(shipped.decisions_path("h200"))
    measured = {W4A16Problem(**row.problem) for row in rows}
    shapes = {(p.N, p.K, p.bias) for p in measured} | {(4096, 8192, False), (2048, 2048, True)}
    between = {W4A16Problem(M, N, K, bias=bias) for M in BETWEEN for N, K, bias in shapes}
    for problem in measured | between:
        got = kernel_for(problem, kernels, of_file, H200)
        assert got == kernel_for(problem, kernels, of_all, H200)
        assert got.measured


def test_a_run_that_is_added_to_the_recorded_results_is_decided(tmp_path, monkeypatch):
    folder, path = tmp_path / "results", tmp_path / "decisions" / "h200.json"
    monkeypatch.setattr(shipped, "results_folder", lambda: folder)
    monkeypatch.setattr(shipped, "decisions_path", lambda key: path)
    file = results.load(RESULTS)
    store, run = folder / "h200" / "w4a16_gemm.json", tmp_path / "run.json"
    results.save(store, results.ResultFile(file.environment, file.rows[:40], file.earlier))
    results.save(run, results.ResultFile(file.environment, file.rows[40:80], file.earlier))
    add_run.main([str(run), "--results", str(store)])
    assert load_decisions(path) == results.decide(results.load(store).rows)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"schema": 9}', "needs schema 1, got 9"),
        ('{"schema": 1}', "is damaged: decisions: expected array"),
        ('{"schema": 1, "decisions": [{"op": "w4a16_gemm"}]}', "is damaged: .*missing"),
    ],
    ids=["schema", "empty", "cut"],
)
def test_damaged_decisions_are_named(tmp_path, text, words):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(StoreError, match=rf"a\.json: {words}"):
        load_decisions(tmp_path / "a.json")


def test_what_is_saved_is_loaded(tmp_path):
    found = [Decision("op", {"M": 1}, "kernel", {"tile_m": 16, "name": None}, 1.5, "final")]
    save_decisions(tmp_path / "a.json", {"gpu": "h200"}, found)
    assert load_decisions(tmp_path / "a.json") == found
