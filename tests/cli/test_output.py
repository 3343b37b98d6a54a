"""What is on the screen: tables of 80 columns, configs in short, the minutes that are left."""

import io
import sys
from dataclasses import asdict, replace

import pytest

from ferrum_numba.cli import names, output, progress, tables
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.decode.kernel import Decode
from ferrum_numba.kernels.w4a16 import W4A16Problem

WORDS = " ".join(f"field_{i}=value" for i in range(9))
ROW = {"problem": "M=4096 N=28672 K=8192", "program": f"grouped_wgmma {WORDS}", "us": 1234.5}


# a terminal that nobody told its size says 0
@pytest.mark.parametrize("columns", [None, "80", "60", "200", "0"])
def test_a_table_made_for_80_columns_fits_them_and_what_columns_says(columns, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    tables.print_table([ROW], ("problem", "program", "us"), "a title", folded=("program",))
    lines = capsys.readouterr().out.splitlines()
    width = int(columns or 0) or 80
    assert max(map(len, lines)) <= width
    whole = " ".join(" ".join(lines).split())
    for word in (*WORDS.split(), "1234"):
        assert word in whole
    # sizes and times are never cut in two
    assert any("M=4096 N=28672 K=8192" in line for line in lines)


@pytest.mark.parametrize("columns", [None, "80", "100", "200"])
def test_every_table_gives_way_between_words(columns, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    row = {
        "kernel": "decode_wgmma", "problem": "M=1 N=4096 K=4096", "config": WORDS,
        "registers": 128, "spill_bytes": 0, "blocks_per_sm": 2, "status": "ok", "reason": "",
    }  # fmt: skip
    tables.print_table([row], tuple(row))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= int(columns or 80)
    for word in ("decode_wgmma", "N=4096", *WORDS.split(), "128", "registers", "blocks", "status"):
        assert word in out
    # names are as they are where there is room, and what says nothing is not there
    assert ("blocks_per_sm" in out) == (columns in ("100", "200"))
    assert "reason" not in out


def test_a_word_is_never_cut(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    row = {f"column_{i}": f"word{i}" * 5 for i in range(6)}
    tables.print_table([row], tuple(row))
    out = capsys.readouterr().out
    assert all(word in out for word in row.values())


def test_a_table_without_rows_has_its_columns(capsys):
    tables.print_table([], ("kernel", "spill_bytes"))
    assert "spill_bytes" in capsys.readouterr().out


PROBLEM = W4A16Problem(16, 4096, 4096)


def test_a_config_is_what_differs_from_the_kernels_default_for_the_problem():
    usual = names.default_of(Decode(), asdict(PROBLEM), KNOWN["h200"])
    assert usual == asdict(Decode().default(PROBLEM, KNOWN["h200"]))
    other = {**usual, "cluster": 7, "warps_n": 3}
    assert names.unlike(other, usual) in ("cluster=7 warps_n=3", "warps_n=3 cluster=7")
    assert names.unlike(usual, usual) == "default"
    assert names.unlike({}, usual) == ""


@pytest.mark.parametrize("change", [{"M": 4097}, {"no_such_field": 1}])
def test_a_problem_that_a_kernel_no_longer_has_leaves_the_config_whole(change):
    stored = {**asdict(PROBLEM), **change}
    if "M" in change:
        stored = {**asdict(replace(PROBLEM, M=65)), "N": 7}
    usual = names.default_of(Decode(), stored, KNOWN["h200"])
    assert usual == {}
    assert names.unlike({"cluster": 1}, usual) == "cluster=1"


@pytest.fixture
def clock(monkeypatch):
    """Return a clock that goes on by what is added to it."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress._Said, "last", None)
    monkeypatch.setattr(progress._Said, "wait", progress.FIRST_S)
    return now


def test_what_is_left_follows_from_what_was_done_lately(clock):
    pace = progress.Pace()
    assert pace.left(0, 100) == ""
    clock[0] += 60
    assert pace.left(10, 100) == "9 min left"
    # what the store knew took no time, and says nothing of the rest
    clock[0] += 1
    assert pace.left(50, 100) == "1 min left"
    for done in range(51, 61):
        clock[0] += 60
        seen = pace.left(done, 100)
    assert seen == "40 min left"
    clock[0] += 60
    assert pace.left(99, 100) == "less than a minute left"


def test_another_phase_begins_anew(clock):
    pace = progress.Pace()
    pace.left(0, 10)
    clock[0] += 600
    assert pace.left(10, 10) == "less than a minute left"
    assert pace.left(1, 300) == ""
    clock[0] += 60
    assert pace.left(2, 300) == "298 min left"


def test_on_a_pipe_progress_is_said_soon_and_then_once_a_minute(clock, capsys):
    with progress.progress("w4a16_gemm") as report:
        for done in range(1, 61):
            clock[0] += 5
            report(done, 60, f"decode {done}")
    lines = capsys.readouterr().err.splitlines()
    # after 10, 20 and 40 seconds more, then a minute each
    assert [line.partition(",")[0] for line in lines] == [
        f"w4a16_gemm: {done} of 60" for done in (2, 6, 14, 26, 38, 50)
    ]
    assert lines[3] == "w4a16_gemm: 26 of 60, 3 min left, decode 26"


def test_what_is_over_within_ten_seconds_says_nothing_on_a_pipe(clock, capsys):
    with progress.progress("w4a16_gemm") as report:
        clock[0] += 9
        report(1, 2)
    assert capsys.readouterr().err == ""


def test_short_ones_after_each_other_say_their_lines_together(clock, capsys):
    for number in range(20):
        with progress.progress(f"ceiling_{number}") as report:
            for done in range(3):
                report(done, 3, "a kernel")
                clock[0] += 4
    lines = capsys.readouterr().err.splitlines()
    # four minutes pass: 10, 20 and 40 seconds, then two minutes
    assert [line.partition(":")[0] for line in lines] == [
        "ceiling_1", "ceiling_2", "ceiling_6", "ceiling_11", "ceiling_16",
    ]  # fmt: skip


def test_on_a_terminal_a_bar_says_what_is_left(clock, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress.progress("w4a16_gemm") as report:
        report(0, 10, "decode")
        clock[0] += 60
        report(1, 10, "decode")
    assert "9 min left" in sys.stderr.getvalue()


def test_a_name_out_of_a_file_gives_the_terminal_no_commands(capsys):
    output.say("a \x1b[2J é")
    tables.print_table([{"name": "b\x1b]0;c\x07"}], ("name",))
    out, err = capsys.readouterr()
    assert err == "a \\x1b[2J é\n"
    assert "b\\x1b]0;c\\x07" in out
    assert "\x1b" not in out
