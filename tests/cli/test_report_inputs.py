"""What `ferrum-numba report` is given: files that are not what they should be, and targets."""

import json
from dataclasses import replace

import pytest
from axpy import Axpy, Problem

from ferrum_numba import cli, gpu, results
from ferrum_numba.measure import Policy
from ferrum_numba.report import Document
from ferrum_numba.report.drawing import Drawer

H200 = replace(gpu.KNOWN["h200"], source="live", uuid="GPU-here")
RUN = "2026-11-01T00:00:00.000+00:00"
SAMPLES = (50.0, 50.1, 50.2)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "_driver_gpus", lambda: "there is none")
    monkeypatch.setattr(Drawer, "draw", lambda self, picture: ("<svg></svg>", b""))


@pytest.fixture
def run(capsys):
    def run(*argv):
        status = cli.main((Axpy(),), {"small": (Problem(64),)}, ("report", *argv, "--out", "r"))
        return status, *capsys.readouterr()

    return run


@pytest.fixture(params=["a GPU", "no GPU"])
def where(request, monkeypatch):
    """Have a GPU, or none: a mistake is said before anything is measured."""
    if request.param == "a GPU":
        monkeypatch.setattr(gpu, "driver_present", lambda: True)
        monkeypatch.setattr(gpu, "live", lambda: H200)


def result_file():
    """Return what a good result file has."""
    environment = {**results.environment(H200, Policy(), ["ferrum-numba", "tune"]), "date": RUN}
    row = results.Row(
        "axpy", "axpy", {"n": 64}, {"num_threads": 64, "fault": ""}, us=50.1, us_low=50.0,
        us_high=50.2, samples=SAMPLES, gbps=0.02, tflops=3e-6, flops=128, bytes=768,
        bound_us=25.0, fraction=0.5, ok=True, run=RUN,
    )  # fmt: skip
    return results.ResultFile(environment, [row])


@pytest.fixture
def stored(tmp_path):
    """Return the result file of the store as JSON, and where it is."""
    path = tmp_path / "results/h200/axpy.json"
    results.save(path, result_file())
    return json.loads(path.read_text()), path


def contradict(found):
    found["rows"][0]["us"] = 10 * found["rows"][0]["us"]


def of_another_gpu(found):
    found["environment"]["gpu_facts"]["key"] = "a10"
    found["environment"]["gpu"] = "NVIDIA A10"


def of_another_op(found):
    found["rows"][0]["op"] = "other"


def of_another_schema(found):
    found["schema"] = 7


def without_rows(found):
    found["rows"] = []


CHANGES = {
    "contradiction": contradict, "gpu": of_another_gpu, "op": of_another_op,
    "schema": of_another_schema, "no rows": without_rows, "empty": None,
}  # fmt: skip


def spoil(found, path, case):
    change = CHANGES[case]
    if change:
        change(found)
    path.write_text(json.dumps(found) if change else "")


def one_sentence(answer, words, folder):
    status, out, err = answer
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert words in err
    assert not (folder / "r").exists()


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("contradiction", "axpy.json: row 0: us is 501, and half of its samples are between"),
        ("gpu", "axpy.json: it is of the GPU a10, where results of h200 belong"),
        ("op", "axpy.json: it is of the Op other, where results of axpy belong"),
        ("schema", "axpy.json: needs schema 1, got 7"),
        ("no rows", "axpy.json: has no rows"),
        ("empty", "axpy.json: is empty"),
    ],
)
def test_a_bad_result_file_is_one_sentence_and_no_report(run, stored, case, words, tmp_path):
    spoil(*stored, case)
    one_sentence(run("--problem", "n=64"), words, tmp_path)


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("contradiction", "old.json: row 0: us is 501"),
        ("gpu", "old.json: it is of the GPU NVIDIA A10; there are results of NVIDIA H200"),
        ("op", "old.json: it is of the Op other; there are results of axpy"),
        ("schema", "old.json: needs schema 1, got 7"),
        ("no rows", "old.json: has no rows"),
        ("empty", "old.json: is empty"),
    ],
)
def test_older_results_that_do_not_fit_are_one_sentence_and_no_report(
    run, stored, case, words, tmp_path
):
    spoil(stored[0], tmp_path / "old.json", case)
    one_sentence(run("--problem", "n=64", "--compare", "old.json"), words, tmp_path)


def test_older_results_of_other_problems_are_said_to_be(run, stored, tmp_path):
    found, _ = stored
    found["rows"][0]["problem"] = {"n": 65}
    (tmp_path / "old.json").write_text(json.dumps(found))
    assert run("--problem", "n=64", "--compare", "old.json")[0] == 0
    assert "none of its 1 problem has a result now" in (tmp_path / "r/report.md").read_text()


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON"),
        ("{}", "needs schema 2, got None"),
        ('{"schema": 2, "title": "t"}', "is no report.json"),
        ('{"schema": 2, "title": "t", "blocks": [{"block": "poem"}]}', "is no report.json"),
        # of whatever Op and GPU: a result file is no report
        ("results", "needs schema 2, got 1"),
    ],
)
def test_what_is_no_report_is_one_sentence(run, stored, text, words, tmp_path):
    text = stored[1].read_text() if text == "results" else text
    (tmp_path / "report.json").write_text(text)
    one_sentence(run("--from", "report.json"), f"ferrum-numba: report.json: {words}", tmp_path)


@pytest.mark.parametrize("option", ["--compare", "--targets"])
def test_a_report_of_before_has_no_results_to_hold_against_others(run, option, tmp_path):
    answer = run("--from", "report.json", option, "file")
    one_sentence(answer, f"{option} needs results: --from has what was made of them", tmp_path)


def targets(folder, at_least, op="axpy"):
    text = f'[[target]]\nname = "all"\nop = "{op}"\nof = "bound"\nat_least = {at_least}\n'
    (folder / "mine.toml").write_text(text)
    return "--targets", "mine.toml"


def section(folder):
    """Return the table of targets, and all that is said of them on the first page."""
    found = Document.load(folder / "r/report.json")
    (table,) = [b for b in found.blocks if getattr(b, "title", "").startswith("Targets of")]
    said = [f"{b.lead} {b.text}" for b in found.verdict.blocks if hasattr(b, "lead")]
    return table, [one for one in said if one.startswith("Target")]


def test_a_target_that_is_missed_is_status_1_and_a_line_with_both_numbers(run, stored, tmp_path):
    status, out, _ = run("--problem", "n=64", *targets(tmp_path, 0.6))
    assert status == 1
    assert out.splitlines()[-1].startswith(
        "MISSED: all: at least 60% of bound on 0 of 1 problem (needs 100%); median 50%, worst 50%"
    )
    table, said = section(tmp_path)
    assert table.emphasis == ("bad",)
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert [cells[c] for c in ("at least", "worst", "verdict")] == ["60 %", "50 %", "MISSED"]
    assert said[0] == "Targets of mine.toml: 0 of 1 target met, 1 missed."
    assert "all: at least 60 % of bound wanted, 50 % reached at worst" in said[1]
    for name in ("report.html", "report.md"):
        assert "MISSED" in (tmp_path / "r" / name).read_text()


@pytest.mark.parametrize(
    ("at_least", "op", "word"), [(0.4, "axpy", "met"), (0.4, "gemm", "not measured")]
)
def test_what_is_met_or_was_not_measured_is_status_0(run, stored, at_least, op, word, tmp_path):
    status, out, _ = run("--problem", "n=64", *targets(tmp_path, at_least, op), "--json")
    assert status == 0
    (told,) = json.loads(out)["targets"]
    assert told["met"] is {"met": True, "not measured": None}[word]
    assert section(tmp_path)[0].rows[0][-1] == word


def test_the_targets_of_the_house_are_the_default(run, stored, tmp_path):
    assert run("--problem", "n=64", "--targets")[0] == 0
    table, _ = section(tmp_path)
    assert table.title == "Targets of targets.toml"
    assert len(table.rows) >= 8
    assert run("--problem", "n=64")[0] == 0
    assert "Targets" not in (tmp_path / "r/report.md").read_text()


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("text", [None, "", "[[target]]\nname = 3\n"])
def test_bad_targets_are_one_sentence_and_no_report(run, stored, text, tmp_path):
    if text is not None:
        (tmp_path / "mine.toml").write_text(text)
    one_sentence(run("--problem", "n=64", "--targets", "mine.toml"), "mine.toml: ", tmp_path)
