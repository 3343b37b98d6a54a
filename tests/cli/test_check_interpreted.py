"""`check` without a GPU: traces, what it says before and when it is stopped, what kernels print."""

import json
import re
import signal

import pytest
from axpy import OP, Axpy, Problem
from numba import cuda, uint32, uint64
from wasteful import KERNELS, place

from ferrum_numba import cli, gpu
from ferrum_numba.cli import interpreted
from ferrum_numba.contract import Program
from ferrum_numba.interpreter import warp
from ferrum_numba.kernels.decode.kernel import Decode
from ferrum_numba.kernels.decode_wgmma.kernel import DecodeWgmma
from ferrum_numba.ptx.memory import ld_global_f32, st_global_f32


class Printing(Axpy):
    """A kernel whose author looks at a value."""

    name = "printing"

    def build(self, config, arch):
        def printing(x, w, out, count, n):
            i = uint32(uint32(cuda.blockIdx.x) * uint32(64) + uint32(cuda.threadIdx.x))
            at = uint64(i) << 2
            if i == 0:
                print("x begins with", ld_global_f32(x))
            if i < n:
                three = ld_global_f32(x + at)
                three = three + three + three
                st_global_f32(out + at, three + ld_global_f32(w + at))

        return Program(printing, super().build(config, arch).parameters, 64)


CHECKED = (*KERNELS, Axpy(), Printing(), Decode(), DecodeWgmma())


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "_driver_gpus", lambda: "there is none")


@pytest.fixture
def run(capfd):
    """Run a command; return (status, stdout, stderr) as files of the system's have them."""

    def run(*argv):
        status = cli.main(CHECKED, {"small": [Problem(64)]}, argv)
        out, err = capfd.readouterr()
        return status, out, err

    return run


def test_a_trace_fits_80_columns_and_names_what_is_wasted(run):
    status, out, _ = run("check", "wasteful", "--trace", "--configs", "waste=conflict")
    assert status == 0
    table, _, below = out.partition("\n\n" + place("reads x"))
    assert "with bank conflicts, 8-way" in below
    assert max(map(len, table.splitlines())) <= 80
    assert out.startswith("wasteful n=1024: 32 warps of 1 block\n")
    number = place("reads x").rpartition(":")[2]
    assert re.search(rf"^ +{number} st_shared_f32\(to, .* 128 +256/32 ", table, re.M)
    assert re.search(r"^total ", table, re.M)


def test_a_trace_is_as_wide_as_columns_says(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "130")
    _, out, _ = run("check", "wasteful", "--trace")
    assert "st_shared_f32(to, ld_global_f32(x + (uint64(e) << 2)))  # reads x" in out


def test_a_trace_of_decode_has_its_loads(run):
    status, out, _ = run("check", "decode", "--trace", "--json")
    (trace,) = json.loads(out)
    assert status == 0
    assert trace["kernel"] == "decode"
    assert trace["checked"]["ok"]
    loads = [line for line in trace["lines"] if "load(tile" in line["text"]]
    assert len(loads) == 2
    for line in loads:
        assert line["filename"].endswith("decode/stream.py")
        assert line["requests"]["ld.global"]["units"] == line["requests"]["ld.global"]["least"]


def test_a_trace_of_a_wrong_result_fails(run):
    status, out, _ = run("check", "axpy", "--trace", "--configs", "fault=scale")
    assert status == 1
    assert "the result is wrong, and what was counted may be too: relative error" in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ("--trace", "--on", "gpu"),
            "--trace counts what the interpreter does in one order; leave",
        ),
        (("--trace", "--orders", "2"), "in one order; leave --orders"),
        (("decode_wgmma", "--arch", "sm_80"), "decode_wgmma has no config for NVIDIA A100-SXM4"),
        (("decode_wgmma", "--arch", "sm_90"), "wgmma needs sm_90a; a GPU of sm_90 is sm_90"),
    ],
)
def test_what_cannot_be_is_said(run, argv, words):
    status, out, err = run("check", *argv)
    assert (status, out) == (2, "")
    assert words in err


def test_an_architecture_gets_configs_of_its_own_gpu(run):
    _, out, _ = run("check", "decode", "--arch", "sm_80", "--limit", "1", "--json")
    (row,) = json.loads(out)
    assert row["ok"]
    # an A100 has no clusters and no programmatic launches
    assert (row["config"]["cluster"], row["config"]["early"]) == (1, False)


def test_a_kernel_named_twice_is_checked_once(run):
    _, out, _ = run("check", "axpy", "axpy", "--problem", "small", "--json")
    assert len(json.loads(out)) == 1


def test_what_a_kernel_prints_is_not_in_the_json(run):
    status, out, err = run("check", "printing", "--problem", "n=64", "--json")
    assert status == 0
    assert [row["ok"] for row in json.loads(out)] == [True]
    assert "x begins with" in err
    # where people read it, it stays where print puts it
    _, out, _ = run("check", "printing", "--problem", "n=64")
    assert "x begins with" in out


def test_ctrl_c_says_at_which_line_and_how_many_were_to_come(run, monkeypatch):
    real, calls = warp.call_twin, []

    def interrupted(group, lanes):
        calls.append(group)
        if len(calls) == 40:
            signal.raise_signal(signal.SIGINT)
        return real(group, lanes)

    monkeypatch.setattr(warp, "call_twin", interrupted)
    status, out, err = run("check", "axpy", "--json")
    assert status == 130
    rows = len(json.loads(out))
    assert 0 < rows < len(OP.tests)
    said = rf"stopped at .*axpy\.py:\d+; {rows} rows? kept, {4 - rows} checks? to come\n"
    assert re.fullmatch(f"ferrum-numba: {said}", err)


def test_what_is_long_is_said_before_it_begins(run, monkeypatch):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(interpreted, "on_interpreter", lambda *args: stopped)
    from ferrum_numba.cli import check

    monkeypatch.setattr(check, "on_interpreter", lambda *args: stopped)
    status, _, err = run("check", "decode", "--problem", "M=2048,N=28672,K=4096")
    assert status == 130
    assert re.match(r"1 check on the interpreter will take roughly \d+ hours; Ctrl-C keeps", err)
    _, _, err = run("check", "decode", "--problem", "M=1,N=256,K=256")
    assert "roughly" not in err
