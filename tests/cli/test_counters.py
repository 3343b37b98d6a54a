"""What ncu counts, read off its page; and what to profile, as a word of a command line."""

import base64
import os
import pickle
import stat

import pytest
from axpy import Axpy, Config, Problem
from result_rows import make_row

from ferrum_numba.cli import counters
from ferrum_numba.cli.profiled import told
from ferrum_numba.cli.session import Session
from ferrum_numba.errors import DeviceError
from ferrum_numba.kernels.ceilings import CEILINGS

NAMES = (
    "ID", "Kernel Name", "dram__bytes_read.sum", "dram__bytes_write.sum",
    "lts__t_sector_hit_rate.pct", "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",
    "smsp__average_warps_issue_stalled_wait_per_issue_active.ratio",
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",
    "smsp__average_warps_issue_stalled_gmma_per_issue_active.ratio",
)  # fmt: skip
UNITS = ("", "", "byte", "byte", "%", "%", "inst", "inst", "inst", "inst")
VALUES = ("0", "axpy", "1,048,576", "524,288", "61.5", "40.25", "3.5", "0.75", "0.9", "n/a")


def page(*lines):
    text = "\n".join(",".join(f'"{cell}"' for cell in line) for line in lines)
    return f"==PROF== Connected to process 7\n==PROF== Profiling\n{text}\n"


def test_counters_are_read_off_the_page():
    found = counters.parse(page(NAMES, UNITS, VALUES))
    assert found == {
        "dram_read_bytes": 1048576.0, "dram_write_bytes": 524288.0, "dram_bytes": 1572864.0,
        "l2_hit": pytest.approx(0.615), "issue": pytest.approx(0.4025),
        "stalls": {"long_scoreboard": 3.5, "barrier": 0.9, "wait": 0.75},
    }  # fmt: skip
    assert counters.parse(page(NAMES, UNITS)) == {}
    assert counters.parse("==ERROR== ERR_NVGPUCTRPERM\n") == {}


def fake_ncu(folder, text):
    path = folder / "ncu"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def session_of():
    class Args:
        kernels, kernel = None, []

    return Session(Args(), (Axpy(),), {})


def test_rows_get_what_ncu_counts(tmp_path, monkeypatch, capsys):
    fake_ncu(tmp_path, page(NAMES, UNITS, VALUES))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    about = {"problem": {"n": 64}, "config": {"num_threads": 64, "fault": ""}, "bytes": 786432}
    rows = [make_row("axpy", **about), make_row("axpy", ok=False, status="wrong", **about)]
    found = counters.counted(session_of(), rows)
    assert found[0].more["counters"]["dram_bytes"] == 1572864.0
    assert "counters" not in found[1].more
    counters.show_counters(found)
    out = capsys.readouterr().out
    assert "long_scoreboard 3.5" in out
    assert " 2 " in out


def test_a_row_that_ncu_may_not_count_stays_as_it_is(tmp_path, monkeypatch, capsys):
    fake_ncu(tmp_path, "==ERROR== ERR_NVGPUCTRPERM - no permission\n")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    row = make_row("axpy", problem={"n": 64}, config={"num_threads": 64})
    assert counters.counted(session_of(), [row]) == [row]
    assert "axpy n=64: ncu counted nothing: ==ERROR== ERR_NVGPUCTRPERM" in capsys.readouterr().err


def test_without_ncu_it_is_one_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DeviceError, match="there is no ncu on the path"):
        counters.find_ncu()


@pytest.mark.parametrize("kernel", [Axpy(), CEILINGS[-1], CEILINGS[8]], ids=lambda k: k.name)
def test_what_to_profile_is_a_word(kernel):
    word = told((kernel, Config(32), Problem(7)))
    again, config, problem = pickle.loads(base64.b64decode(word))
    assert (again.name, again.op, config, problem) == (
        kernel.name,
        kernel.op,
        Config(32),
        Problem(7),
    )
