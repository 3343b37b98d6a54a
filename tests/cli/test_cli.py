"""The command line: exit statuses, errors of one sentence, JSON that parses, nothing lost."""

import json
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace

import pytest
from axpy import Axpy, Problem
from toy_kernel import Problem as ToyProblem
from toy_kernel import Toy

from ferrum_numba import check, cli, gpu, tune
from ferrum_numba.cli import names
from ferrum_numba.cli.app import warnings_said
from ferrum_numba.cli.doctor import newer
from ferrum_numba.compile.sass import nvdisasm
from ferrum_numba.errors import ZeroOverflowWarning
from ferrum_numba.perf.problems import PROBLEM_SETS
from ferrum_numba.tune.search import SearchTask, search
from ferrum_numba.tune.worker import Outcome

SETS = {"small": (Problem(64), Problem(100)), "rows": (ToyProblem(1), ToyProblem(16))}
PLAN_KEYS = {
    "kernel", "config", "arch", "registers", "spill_bytes", "smem_bytes", "blocks_per_sm",
    "bound_us", "status", "reason",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "_driver_gpus", lambda: "there is none")


@pytest.fixture
def run(capsys):
    """Run a command on the toy kernels; return (status, stdout, stderr)."""

    def run(*argv):
        status = cli.main((Axpy(), Toy()), SETS, argv)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["plan", "axpi"], "no kernel is named axpi; did you mean axpy?"),
        (["plan", "--gpu", "h20x"], "no GPU is known as 'h20x': give one of a10, a100"),
        (["plan", "--problem", "smal"], "no problem set is named smal; did you mean small?"),
        (["plan", "--problem", "q=1"], "no Op has the sizes q: axpy has n; toy has M, N"),
        (["plan", "--problem", "m=1,N=8"], "no Op has the size m; did you mean M?"),
        (["plan", "--problem", "NN=8,MM=1"], "no Op has the size NN, MM; did you mean N, M?"),
        (["plan", "--problem", "m=1,speed=8"], "no Op has the sizes m, speed: axpy has n; toy has"),
        (["check", "axpy", "--configs", "al"], "'al' is no field with a value; did you mean all?"),
        (["report", "--store", "nosuch"], "--store nosuch: no such folder of results is here"),
        (["why-miss", "--store", "nosuch"], "--store nosuch: no such folder of results is here"),
        (["plan", "--problem", "n=many"], "n must be a whole number; got many"),
        (["plan", "--problem", "N=8"], "a Problem needs M too; got N"),
        (["plan", "--problem", "M=4,"], "'' is no name=value, such as M=16"),
        (["plan", "--problem", "M=1,N=8,M=2"], "M is given twice in M=1,N=8,M=2"),
        (["plan", "--problem", "n=2000000"], "axpy: n must be less than 2^20"),
        (["plan", "--problem", "small", "--m", "4"], "--m has no meaning for Problem(n=64)"),
        (["plan", "axpy", "--problem", "rows"], "Problem(M=1, N=8) is no problem of axpy"),
        (["check", "axpy", "--configs", "num_thread=8"], "Config has no field num_thread; did you"),
        (["check", "axpy", "--configs", "num_threads=2048"], "too many threads"),
        (["check", "--on", "gpu"], "no GPU to run on: there is none"),
        (["tune", "--problem", "small"], "no GPU to run on: there is none"),
        (["bench", "--problem", "small"], "no GPU to run on: there is none"),
        (["list", "--kernels", "no_such.kernels"], "--kernels no_such.kernels: no module is named"),
        (["list", "--kernels", "json"], "--kernels json: it has no KERNELS, a tuple of kernels"),
        (["bench", "--ceilings"], "no ceiling kernels were handed to the command line"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("no_gpu")
def test_a_mistake_is_one_sentence_and_status_2(run, argv, words):
    status, out, err = run(*argv)
    assert (status, out) == (2, "")
    assert err.startswith("ferrum-numba: ")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "argv", [[], ["chek"], ["plan", "--m", "0"], ["tune", "--limit", "none"], ["compare"]]
)
def test_a_wrong_usage_exits_with_2(argv):
    with pytest.raises(SystemExit) as stop:
        cli.main((), {}, argv)
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["plan", "--problem", ""], "argument --problem: must not be empty"),
        (["list", "--kernels", " "], "argument --kernels: must not be empty"),
        (["report", "--out", ""], "argument --out: must not be empty"),
        (["plan", "--arch", "foo"], "must be one of sm_80, sm_86, sm_87, sm_89, sm_90, sm_90a"),
        (["plan", "--arch", "sm_30"], "'sm_30' is not supported; the nearest that is, is sm_80"),
        (
            ["check", "--arch", "sm_91a"],
            "'sm_91a' is not supported; the nearest that is, is sm_90a",
        ),
        (["tune", "--timeout", "-3"], "--timeout: must be a positive number of seconds; got '-3'"),
        (["bench", "--timeout", "0"], "--timeout: must be a positive number of seconds; got '0'"),
        (["report", "--timeout", "nan"], "must be a positive number of seconds; got 'nan'"),
        (["tune", "--timeout", "soon"], "must be a positive number of seconds; got 'soon'"),
        (["plan", "--limit", "0"], "--limit: must be a whole number of at least 1; got '0'"),
        (["plan", "--limit", "-1"], "--limit: must be a whole number of at least 1; got '-1'"),
        (["plan", "--m", "0"], "--m: must be a whole number of at least 1; got '0'"),
        (["plan", "--m", "1,x"], "--m: must be a whole number of at least 1; got 'x'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_value_is_refused_before_anything_runs(argv, words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main((Axpy(), Toy()), SETS, argv)
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert err.startswith("ferrum-numba ")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("KERNELS = (", "SyntaxError: '(' was never closed (broken_syntax.py, line 1)"),
        (
            "x = 1\nraise ValueError('of\\nmine')",
            "ValueError: of mine at {folder}/broken_value.py:2",
        ),
        ("import no_such_room", "ModuleNotFoundError: No module named 'no_such_room' at {folder}/"),
        ("import json.no_such", "ModuleNotFoundError: No module named 'json.no_such' at {folder}/"),
        ("raise SystemExit(0)", "SystemExit: 0 at {folder}/broken_exit.py:1"),
        ("KERNELS = ()", "its KERNELS is empty; it needs a kernel or more"),
        ("KERNELS = 3", "it has no KERNELS, a tuple of kernels"),
        ("KERNELS = (int,)", "KERNELS holds <class 'int'>; it needs instances of Kernel"),
    ],
    ids=["syntax", "value", "import", "submodule", "exit", "empty", "number", "class"],
)
def test_a_module_that_cannot_be_had_is_named(run, source, words, request, tmp_path, monkeypatch):
    # what is imported stays for the whole process: each case has a name of its own
    module = f"broken_{request.node.callspec.id}"
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / f"{module}.py").write_text(source)
    status, out, err = run("list", "--kernels", module)
    assert (status, out) == (2, "")
    assert err.startswith(f"ferrum-numba: --kernels {module}: ")
    assert words.format(folder=tmp_path) in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/no_such"])
@pytest.mark.usefixtures("no_gpu")
def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    run, out, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(tune, "plan", None)
    status, text, err = run("report", "axpy", "--problem", "small", "--out", out)
    assert (status, text) == (2, "")
    assert err.startswith(f"ferrum-numba: {out} cannot be written: ")
    assert err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("no_gpu")
def test_a_mistaken_report_leaves_no_folder(run, tmp_path):
    assert run("report", "axpy", "--problem", "q=1", "--out", "r")[0] == 2
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["bench", "--out", "file/rows.json"], "file cannot be written: "),
        (["bench", "--out", "."], ". cannot be written: it is a folder"),
        (["bench", "--store", "file"], "file cannot be read: Not a directory"),
        (["tune", "--store", "file"], "file/h200 cannot be written: "),
        (["tune", "--store", "/proc/no_such"], "/proc/no_such/h200 cannot be written: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_place_that_cannot_be_used_is_refused_before_the_work(run, board, argv, words, tmp_path):
    (tmp_path / "file").write_text("mine")
    status, out, err = run(*argv, "axpy", "--problem", "n=64")
    assert (status, out, board.asked) == (2, "", [])
    assert err.startswith(f"ferrum-numba: {words}")
    assert err.count("\n") == 1


def test_a_tool_is_worked_on_only_where_it_is_named(capsys):
    def kernels_of(*argv):
        assert cli.main((Toy(),), SETS, [*argv, "--json"], tools=(Axpy(),)) == 0
        return {row["kernel"] for row in json.loads(capsys.readouterr().out)}

    assert kernels_of("list") == {"toy"}
    assert kernels_of("list", "axpy") == {"axpy"}
    # the set "small" comes first, but is a tool's
    assert kernels_of("plan", "--limit", "1") == {"toy"}
    assert kernels_of("plan", "axpy", "--limit", "1") == {"axpy"}
    assert cli.main((Toy(),), SETS, ["list"], tools=(Axpy(),)) == 0
    assert "by name only: axpy" in capsys.readouterr().out
    assert cli.main((Toy(),), SETS, ["list", "axpi"], tools=(Axpy(),)) == 2
    assert "did you mean axpy?" in capsys.readouterr().err


def test_doctor_says_what_can_be_done(run):
    status, out, _ = run("doctor", "--json")
    facts = json.loads(out)
    assert status == 0
    assert facts["can_compile"]
    assert facts["can_run"] == gpu.driver_present()
    assert facts["versions"]["numba-cuda"].startswith("0.30")


def test_doctor_says_what_its_status_means(capsys):
    with pytest.raises(SystemExit):
        cli.main((), {}, ("doctor", "--help"))
    assert "1: numba is installed and compiles nothing." in " ".join(capsys.readouterr()[0].split())


def test_doctor_names_the_command_for_what_is_missing(run, no_gpu):
    status, out, _ = run("doctor")
    assert status == 0
    assert "missing: no GPU to run on: there is none; install NVIDIA driver 580 or newer" in out
    assert "kernels can be compiled here" in out
    assert "kernels cannot be run here" in out


@pytest.mark.parametrize(
    ("compiler", "driver", "want"),
    [("13.5.37", "13.0", True), ("13.0.88", "13.0", False), ("12.9", "13.0", False),
     (None, "13.0", False), ("13.5", None, False), ("13.10", "13.9", True)],
)  # fmt: skip
def test_a_compiler_newer_than_the_driver(compiler, driver, want):
    assert newer(compiler, driver) is want


def test_list_counts_configs_and_refusals(run):
    status, out, _ = run("list", "axpy", "--gpu", "a100", "--json")
    (row,) = json.loads(out)
    assert status == 0
    assert (row["kernel"], row["configs"], row["runs"]) == ("axpy", 2, "4 of 4")
    assert row["refuses"] == []


def test_list_has_a_refusal_as_words_and_its_problem_as_numbers(run, monkeypatch):
    monkeypatch.setattr(Axpy, "refuses", lambda self, p: "n of 63 is odd" if p.n == 63 else None)
    (row,) = json.loads(run("list", "axpy", "--gpu", "a100", "--json")[1])
    assert (row["runs"], row["refuses"]) == (
        "3 of 4", [{"problem": {"n": 63}, "reason": "n of 63 is odd"}]
    )  # fmt: skip
    assert "1 of them not by axpy: n of 63 is odd" in run("list", "axpy", "--gpu", "a100")[1]


def test_list_is_readable(run):
    status, out, _ = run("list", "--gpu", "h200")
    assert status == 0
    assert "axpy: out[i] = 3 x[i] + w[i]" in out
    assert "problem sets: small, rows" in out


def test_check_passes(run):
    status, out, _ = run("check", "axpy", "--on", "interpreter", "--json", "--limit", "2")
    rows = json.loads(out)
    assert status == 0
    assert [(row["problem"], row["how"], row["ok"]) for row in rows] == [
        ({"n": 1}, "interpreter", True),
        ({"n": 63}, "interpreter", True),
    ]


def test_check_fails_with_status_1_and_says_why(run):
    argv = ("check", "axpy", "--on", "interpreter", "--problem", "n=64", "--configs", "fault=scale")
    status, out, _ = run(*argv)
    assert status == 1
    assert "0 of 1 checks passed" in out
    assert "axpy n=64 with fault=scale: relative error" in out


def test_an_interrupted_check_keeps_its_rows(run, monkeypatch):
    real, calls = check.on_interpreter, []

    def second_is_interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(check, "on_interpreter", second_is_interrupted)
    status, out, err = run("check", "axpy", "--on", "interpreter", "--json")
    assert status == 130
    assert len(json.loads(out)) == 1
    assert "stopped; 1 row kept" in err


def test_plan_has_a_row_for_each_candidate(run):
    argv = ("plan", "axpy", "--gpu", "h200", "--problem", "small", "--json")
    status, out, _ = run(*argv)
    rows = json.loads(out)
    assert status == 0
    assert len(rows) == 4
    assert all(row.keys() >= PLAN_KEYS and row["arch"] == "sm_90a" for row in rows)


def test_the_rows_of_a_layer_of_experts_are_its_tokens():
    problems = PROBLEM_SETS["mixtral"][:2]
    found = names.with_rows(problems, (2, 8))
    assert found == [replace(problems[0], tokens=tokens) for tokens in (2, 8)]


def test_kernels_without_a_problem_set_have_their_tests(capsys):
    assert cli.main((Axpy(),), {}, ["plan", "--limit", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["problem"]["n"] for row in rows] == [1, 63, 64, 1000]


def test_plan_compiles_for_another_architecture(run):
    argv = ("plan", "axpy", "--problem", "n=64", "--arch", "sm_80", "--limit", "1", "--json")
    status, out, _ = run(*argv, "--no-cache")
    assert status == 0
    assert [row["arch"] for row in json.loads(out)] == ["sm_80"]


@dataclass
class Measured:
    """A measurer without a GPU: what it was asked, and one answer."""

    outcome: Outcome
    asked: list

    def run(self, candidate, best_us):
        self.asked.append((candidate.config.num_threads, candidate.regime))
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    def round(self, candidates, turn, samples):
        return None


@pytest.fixture
def board(monkeypatch):
    """Return a measurer that stands for a GPU of this machine."""
    measurer = Measured(Outcome("measured", us=(50.0,) * 9, rel_error=1e-7), [])

    def fake(kernels, problems, facts, *, policy, store_path, progress, **rest):
        rest.pop("timeout_s")
        plan = rest.pop("plan", None)
        task = SearchTask(kernels, problems, facts, policy, store_path, **rest)
        return search(task, measurer, progress, binaries=plan and plan.binaries)

    monkeypatch.setattr(gpu, "live", lambda: gpu.KNOWN["h200"])
    monkeypatch.setattr(tune, "tune", fake)
    return measurer


def test_tune_stores_what_it_measured(run, board, tmp_path):
    status, out, err = run("tune", "axpy", "--problem", "n=64", "--json", "--store", "here")
    (found,) = json.loads(out)
    assert status == 0
    assert [row["status"] for row in found["rows"]] == ["measured"] * 2
    assert found["environment"]["gpu"] == "NVIDIA H200"
    assert (tmp_path / "here/h200/axpy.json").is_file()
    assert "2 rows are in here/h200/axpy.json" in err


def test_tune_shows_the_winner(run, board):
    status, out, _ = run("tune", "axpy", "--problem", "n=64")
    assert status == 0
    assert "n=64" in out
    assert "1 tied" in out


def test_repeated_finals_say_how_often_winners_change(run, board):
    seen = []

    def round_(candidates, turn, samples):
        seen.append(turn)
        # the first of two finals is another's
        us = {64: 50.0, 128: 48.0 if seen.count(0) == 1 else 51.0}
        return [Outcome("measured", us=(us[c.config.num_threads],) * samples) for c in candidates]

    board.round = round_
    status, _, err = run("tune", "axpy", "--problem", "n=64", "--repeat", "2")
    assert status == 0
    assert len(board.asked) == 2
    assert "2 finals of 1 problems: of 1 pairs of winners differ 1 (100.0%) by more than 1%" in err
    assert seen.count(0) == 2


def test_a_wrong_candidate_is_status_1_and_a_line(run, board):
    board.outcome = Outcome("wrong", "relative error 1.0")
    status, out, _ = run("tune", "axpy", "--problem", "n=64", "--limit", "1")
    assert status == 1
    assert "wrong: axpy n=64, num_threads=64 fault=: relative error 1.0" in out


def test_an_interrupted_tune_says_what_it_kept(run, board):
    assert run("tune", "axpy", "--problem", "n=64")[0] == 0
    board.outcome = KeyboardInterrupt()
    status, _, err = run("tune", "axpy", "--problem", "small")
    assert status == 130
    assert "stopped; 2 rows kept" in err


def test_bench_times_the_tuned_config_afresh(run, board):
    times = {64: 90.0, 128: 50.0}
    board.run = lambda candidate, best_us: Outcome(
        "measured", us=(times[candidate.config.num_threads],) * 9
    )
    assert run("tune", "axpy", "--problem", "n=64")[0] == 0
    del board.run
    argv = ("bench", "axpy", "--problem", "n=64", "--regime", "warm", "--regime", "eager")
    status, out, _ = run(*argv, "--json")
    found = json.loads(out)
    assert status == 0
    assert board.asked == [(128, "warm"), (128, "eager")]
    assert [row["regime"] for row in found["rows"]] == ["warm", "eager"]
    assert found["environment"]["gpu"] == "NVIDIA H200"


def test_bench_takes_the_default_where_nothing_was_tuned(run, board, tmp_path):
    status, out, _ = run("bench", "axpy", "--problem", "n=64", "--out", "rows.json")
    assert status == 0
    assert board.asked == [(64, "cold")]
    assert json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert "NVIDIA H200" in out


@pytest.mark.usefixtures("no_gpu")
def test_report_without_a_gpu_plans_and_checks(run, tmp_path):
    status, out, err = run("report", "axpy", "--problem", "small", "--limit", "1", "--out", "r")
    assert status == 0
    assert "r/report.html" in out.split()
    assert (tmp_path / "r/report.md").is_file()
    assert "planning for NVIDIA H200" in err


def test_a_reader_that_has_enough_is_no_error():
    command = [sys.executable, "-m", "ferrum_numba", "list", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 0


def test_a_warning_is_one_line(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with warnings_said():
            warnings.warn("3 zero points are stored as 15", ZeroOverflowWarning, stacklevel=1)
    assert capsys.readouterr().err == "ferrum-numba: warning: 3 zero points are stored as 15\n"


@pytest.mark.parametrize(
    ("typed", "meant"), [("lst", "list"), ("chek", "check"), ("why_miss", "why-miss")]
)
def test_a_command_that_is_none_says_what_was_meant(typed, meant, capsys):
    with pytest.raises(SystemExit):
        cli.main((), {}, [typed])
    err = capsys.readouterr().err
    assert f"ferrum-numba: no command is named {typed}; did you mean {meant}? (see" in err
    assert err.count("\n") == 1


def test_a_kernel_named_twice_is_planned_once(run):
    argv = ("plan", "axpy", "axpy", "--problem", "n=64", "--limit", "1", "--json")
    assert len(json.loads(run(*argv)[1])) == 1


def test_a_plan_of_nothing_says_why(run, monkeypatch):
    monkeypatch.setattr(Toy, "configs", lambda self, gpu: ())
    argv = ("--gpu", "a10", "--problem", "n=64", "--limit", "1")
    status, out, err = run("plan", "toy", "--gpu", "a10", "--problem", "M=1")
    assert (status, out) == (2, "")
    assert err == "ferrum-numba: nothing to plan: toy has no config for NVIDIA A10\n"
    # beside another that has some, it is said below the table
    status, out, _ = run("plan", *argv)
    assert status == 0
    assert "toy has no config for NVIDIA A10" in out


def test_a_plan_shows_all_it_knows(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    argv = ("plan", "axpy", "--gpu", "h200", "--problem", "n=64")
    status, out, _ = run(*argv)
    assert status == 0
    words = " ".join(out.split())
    assert "axpy on n=64: at least " in words
    assert "registers spill_bytes stack_bytes fp64 smem_bytes blocks_per_sm" in words
    rows = json.loads(run(*argv, "--json")[1])
    assert [(row["stack_bytes"], row["fp64"]) for row in rows] == [(0, 0), (0, 0)]
    if nvdisasm():
        assert "axpy: instructions in the code" in words
        code = out.partition("instructions in the code")[2]
        counts = ["num_threads=128", str(sum(rows[1]["sass"].values()))]
        assert counts in [line.split()[:2] for line in code.splitlines()]
        assert rows[0]["sass"]["LDG"] > 0
