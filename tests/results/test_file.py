"""Result files: what is written is read, what is damaged is named, what is newer holds."""

import errno
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from result_rows import json_row, make_environment, make_row

from ferrum_numba import perf, results, whole
from ferrum_numba.errors import StoreError
from ferrum_numba.results import ResultFile

IN_FINAL = {"rounds": [[10.0], [10.0] * 2], "contest": "a"}


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "h200" / "w4a16_gemm.json"
    file = ResultFile(make_environment(), [make_row(us=10.123456789), make_row(M=2)])
    results.save(path, file)
    found = results.load(path)
    assert found.environment == file.environment
    assert found.rows[0].us == 10.1235
    assert [row.problem["M"] for row in found.rows] == [1, 2]
    # a row a line
    assert path.read_text().count('{"kernel"') == 2
    assert [p.name for p in path.parent.iterdir()] == ["w4a16_gemm.json"]


def test_whoever_may_read_the_folder_may_read_what_is_saved(tmp_path):
    path, plain = tmp_path / "a.json", tmp_path / "plain"
    plain.touch()
    results.save(path, ResultFile(make_environment(), [make_row()]))
    assert path.stat().st_mode == plain.stat().st_mode


def test_an_infinite_error_is_stored_as_null(tmp_path):
    path = tmp_path / "a.json"
    row = make_row(rel_error=float("inf"), ok=False, status="wrong")
    results.save(path, ResultFile(make_environment(), [row]))
    assert json.loads(path.read_text())["rows"][0]["rel_error"] is None


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    results.save(path, ResultFile(make_environment(), [make_row()]))
    before = path.read_bytes()
    with pytest.raises(TypeError):
        results.save(path, ResultFile(make_environment(), [make_row(extra=object())]))
    with pytest.raises(StoreError, match="row 0: us must be above 0, got -1"):
        results.save(path, ResultFile(make_environment(), [make_row(us=-1.0)]))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"us": "fast"}, "row 0: us must be int or float or null, got 'fast'"),
        ({"ok": 1}, "row 0: ok must be bool, got 1"),
        ({"registers": True}, "row 0: registers must be int or null, got True"),
        ({"status": "nice"}, "row 0: status must be one of"),
        ({"samples": []}, "row 0: is measured and has no us or no samples"),
        ({"us": None}, "row 0: is measured and has no us or no samples"),
        ({"us": 0}, "row 0: us must be above 0, got 0"),
        ({"us": -1.5}, "row 0: us must be above 0, got -1.5"),
        ({"us": float("nan")}, "row 0: us must be above 0, got nan"),
        ({"us_low": 0.0}, "row 0: us_low must be above 0, got 0.0"),
        ({"us_high": float("inf")}, "row 0: us_high must be above 0, got inf"),
        ({"samples": 3}, "row 0: samples must be list, got 3"),
        ({"samples": [1, "2"]}, r"row 0: samples\[1\] must be a number above 0, got '2'"),
        ({"samples": [0.0]}, r"row 0: samples\[0\] must be a number above 0, got 0.0"),
        ({"samples": [True]}, r"row 0: samples\[0\] must be a number above 0, got True"),
        ({"problem": []}, r"row 0: problem must be dict, got \[\]"),
        ({"problem": {"M": "1"}}, "row 0: problem.M must be an integer above 0, got '1'"),
        ({"problem": {"N": 0}}, "row 0: problem.N must be an integer above 0, got 0"),
        ({"problem": {"K": 1.5}}, "row 0: problem.K must be an integer above 0, got 1.5"),
        ({"problem": {"M": True}}, "row 0: problem.M must be an integer above 0, got True"),
        ({"problem": {"sizes": [1]}}, r"row 0: problem.sizes must be text, .*got \[1\]"),
        ({"run": 7}, "row 0: run must be str, got 7"),
        ({"problem": {"tokens": 0}}, "row 0: problem.tokens must be an integer above 0, got 0"),
        ({"peer": "humming"}, "row 0: of a peer, kind must be 4-bit, fp16, W4A8, fp8, got"),
        ({"flops": "many"}, "row 0: flops must be int or float or null, got 'many'"),
        ({"rounds": [[10.0], []]}, "row 0: rounds must be lists of samples, none of them empty"),
        ({"rounds": [10.0]}, "row 0: rounds must be lists of samples, none of them empty"),
        ({"rounds": [[10.0], [9.0]]}, "row 0: rounds must hold the samples, all of them in"),
        ({"rounds": [[10.0] * 3]}, "row 0: rounds need a contest, and a contest needs rounds"),
        ({"contest": "a"}, "row 0: rounds need a contest, and a contest needs rounds"),
        ({**IN_FINAL, "round_mhz": [1.0]}, "row 0: round_mhz must have one clock a round, got 1"),
        ({**IN_FINAL, "round_mhz": [0, 1]}, r"row 0: round_mhz must be .* null, got \[0, 1\]"),
        ({"throttled": [3]}, "row 0: throttled must be places of the 3 samples, got 3"),
        ({"throttled": [True]}, "row 0: throttled must be places of the 3 samples, got True"),
        ({"board_factor": 0.0}, "row 0: board_factor must be above 0, got 0.0"),
        ({"arch": "banana"}, "row 0: arch must be one such as sm_90a, got 'banana'"),
        ({"config": {"tile_m": 0}}, "row 0: config.tile_m must be an integer above 0, got 0"),
        ({"config": {"tile_m": 1e400}}, r"row 0: config.tile_m must be within .*, got inf"),
        ({"problem": {"M": 10**15}}, r"row 0: problem.M must be within .*, got 1000000000000000"),
        ({"gbps": float("inf")}, "row 0: gbps must be 0 or above, and finite, got inf"),
        ({"flops": -1}, "row 0: flops must be 0 or above, and finite, got -1"),
        ({"throttle": 3}, "row 0: throttle: expected array [|] null, got int"),
        ({"clock_mhz": ["fast"]}, r"row 0: clock_mhz\[0\]: expected float [|] null, got str"),
        ({"config": {"tile": {}}}, "row 0: config.tile must be text, a number, a bool or null,"),
    ],
    ids=lambda value: " ".join(f"{a}={b}" for a, b in value.items()) if type(value) is dict else "",
)
def test_a_damaged_row_is_named(tmp_path, change, words):
    path = tmp_path / "a.json"
    text = {"schema": 1, "environment": make_environment(), "rows": [json_row(**change)]}
    path.write_text(json.dumps(text))
    with pytest.raises(StoreError, match=rf"a\.json: {words}"):
        results.load(path)


def test_what_only_finals_have_is_written_of_them_alone(tmp_path):
    path = tmp_path / "a.json"
    seen = {**IN_FINAL, "round_mhz": [1980.0, None], "throttled": [2], "board_factor": 1.02}
    rows = [make_row(), make_row(M=2, **seen)]
    results.save(path, ResultFile(make_environment(), rows))
    plain, final = json.loads(path.read_text())["rows"]
    assert not seen.keys() & plain.keys()
    assert {name: final[name] for name in seen} == seen
    found = results.load(path).rows[1]
    assert found.rounds == ((10.0,), (10.0, 10.0))
    assert (found.round_mhz, found.throttled, found.board_factor) == ((1980.0, None), (2,), 1.02)
    assert found == replace(rows[1], run=found.run, board=found.board)


def test_a_row_is_of_the_board_that_its_run_was_on(tmp_path):
    path = tmp_path / "a.json"
    first, last = ({**make_environment(f"2026-0{i}"), "uuid": f"board {i}"} for i in (1, 2))
    rows = [make_row(run="2026-01", board="whatever"), make_row(M=2, run="2026-02")]
    results.save(path, ResultFile(last, rows, [first]))
    assert "whatever" not in path.read_text()
    assert [row.board for row in results.load(path).rows] == ["board 1", "board 2"]


def test_a_row_without_a_time_is_whole():
    row = json_row(status="refused", us=None, samples=[], config={"split": None, "name": "a"})
    results.validate({"environment": make_environment(), "earlier": [], "rows": [row]})


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "h200").write_text("a file, where the folder would be")
    path = tmp_path / "h200" / "a.json"
    with pytest.raises(StoreError, match=r"h200/a\.json: cannot be written: (File|Not a dir)"):
        results.save(path, ResultFile(make_environment(), [make_row()]))


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(whole, "write_bytes", refused)
    with pytest.raises(StoreError, match=r"a\.json: cannot be written: Permission denied$"):
        results.save(tmp_path / "a.json", ResultFile(make_environment(), [make_row()]))


def test_a_missing_field_is_named(tmp_path):
    path = tmp_path / "a.json"
    row = json_row()
    del row["seed"]
    path.write_text(json.dumps({"schema": 1, "environment": make_environment(), "rows": [row]}))
    with pytest.raises(StoreError, match="row 0: has no seed"):
        results.load(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "needs schema 1, got 'list'"),
        ('{"schema": 2}', "needs schema 1, got 2"),
        ('{"schema": 1, "rows": []}', "environment has no gpu, uuid"),
        ('{"schema": 1, "environment": {}, "rows": {}}', "rows must be a list"),
    ],
    ids=["cut", "list", "schema", "environment", "rows"],
)
def test_a_damaged_file_is_named(tmp_path, text, words):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=words):
        results.load(path)


@pytest.mark.parametrize("part", ["environment", "earlier"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ([], "must be an object, got list"),
        ({"dram_bytes": "140 GB"}, "has a wrong dram_bytes: it must be an integer above 0"),
        ({"arch": "hopper"}, "has a wrong arch: it must be one such as sm_90a, got 'hopper'"),
        ({"colour": "green"}, ""),
        (5, "must be an object, got int"),
    ],
    ids=["list", "text", "arch", "newer", "number"],
)
def test_the_facts_of_every_runs_gpu_are_checked(tmp_path, part, change, words):
    path, good = tmp_path / "a.json", make_environment()
    facts = {**good["gpu_facts"], **change} if isinstance(change, dict) else change
    bad = {**good, "gpu_facts": facts}
    file = {"schema": 1, "environment": good, "rows": [json_row()], "earlier": [good]}
    path.write_text(json.dumps({**file, part: [bad] if part == "earlier" else bad}))
    if not words:
        assert results.load(path).rows
        return
    place = part.replace("earlier", r"earlier\[0\]")
    with pytest.raises(StoreError, match=rf"{place}\.gpu_facts {words}"):
        results.load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"date": []}, "environment.date: expected str, got array"),
        ({"uuid": 5}, "environment.uuid: expected str [|] null, got int"),
        ({"versions": []}, "environment.versions: expected object, got array"),
        ({"policy": "fast"}, "environment.policy: expected object, got str"),
        ({"yardstick": [{"us": 0}]}, r"environment.yardstick\[.*\].us: expected float > 0"),
    ],
)
def test_the_environment_of_every_run_is_checked(tmp_path, change, words):
    path = tmp_path / "a.json"
    environment = {**make_environment(), **change}
    path.write_text(json.dumps({"schema": 1, "environment": environment, "rows": [json_row()]}))
    with pytest.raises(StoreError, match=rf"a\.json: {words}"):
        results.load(path)


def test_what_is_wrong_is_said_in_short(tmp_path):
    path = tmp_path / "a.json"
    row = json_row(ok="y" * 10**6)
    path.write_text(json.dumps({"schema": 1, "environment": make_environment(), "rows": [row]}))
    with pytest.raises(StoreError, match=r"row 0: ok must be bool, got 'y{200} \.\.\.'$"):
        results.load(path)


@pytest.mark.parametrize("digits", [400, 5000])
def test_numbers_of_many_digits_are_no_json(tmp_path, digits):
    path = tmp_path / "a.json"
    path.write_text('{"schema": ' + "9" * digits + "}")
    with pytest.raises(StoreError, match=r"is not JSON: it has a number of [45]"):
        results.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"none\.json: cannot be read: No such file"):
        results.load(tmp_path / "none.json")


def test_a_new_row_replaces_the_old_one_of_its_key():
    old = [make_row(us=10.0), make_row(us=11.0, M=2), make_row(us=12.0, regime="warm")]
    new = [make_row(us=9.0, source_hash="def"), make_row(us=8.0, config={"tile_m": 32})]
    merged = results.merge_rows(old, new)
    assert [row.us for row in merged] == [9.0, 11.0, 12.0, 8.0]


def test_rows_keep_the_environment_they_were_measured_in(tmp_path):
    path = tmp_path / "a.json"
    first = make_environment("2026-01-01")
    results.save(path, ResultFile(first, [make_row(), make_row(M=2)]))
    second = make_environment("2026-02-02")
    rows = [make_row(us=9.0, run="2026-02-02")]
    merged = results.merge(results.load(path), ResultFile(second, rows))
    results.save(path, merged)
    found = results.load(path)
    assert found.environment == second
    assert found.earlier == [first]
    assert [found.environment_of(row)["date"] for row in found.rows] == ["2026-02-02", "2026-01-01"]


def test_an_environment_without_rows_is_forgotten():
    first, second = make_environment("2026-01-01"), make_environment("2026-02-02")
    old = ResultFile(first, [make_row(run="2026-01-01")])
    new = ResultFile(second, [make_row(run="2026-02-02")])
    assert results.merge(old, new).earlier == []


RECORDED = sorted((Path(perf.__file__).parent / "results").glob("*/*.json"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_file_is_saved_as_it_was(tmp_path, path):
    results.save(tmp_path / path.name, results.load(path))
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_there_are_recorded_files():
    assert {path.stem for path in RECORDED} == {"ceilings", "grouped_gemm", "w4a16_gemm"}


def test_fields_of_newer_code_are_kept(tmp_path):
    path = tmp_path / "a.json"
    row = {**json_row(), "run": "2026-01-01", "fan_rpm": 900, "swarm": {"of": [1, None]}}
    text = {"schema": 1, "environment": make_environment("2026-01-01"), "rows": [row]}
    path.write_text(json.dumps(text))
    results.save(path, results.load(path))
    (saved,) = json.loads(path.read_text())["rows"]
    assert row.items() <= saved.items()
    # what was not in the row is said to be unknown
    added = {name: value for name, value in saved.items() if name not in row}
    assert added == {"flops": None, "bytes": None, "stage": "", "untrusted": ""}


def test_a_number_that_nobody_took_is_nan():
    row = make_row(us=None, samples=[], status="refused")
    assert math.isnan(row.us)
    assert results.file.plain(row.to_json())["us"] is None


def test_a_row_knows_what_was_seen_of_the_board():
    row = make_row(throttle=["power cap"], clock_mhz=[1980.0, 1605.0])
    assert (row.throttle, row.clock_mhz_after) == (("power cap",), 1605.0)
    assert (make_row().throttle, make_row().clock_mhz_after) == ((), None)
