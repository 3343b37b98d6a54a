"""A trace against ncu: five kernels' numbers, kept, and the script that compares both."""

import json
import os
import stat
from pathlib import Path

import pytest

import ferrum_numba
from ferrum_numba.errors import DeviceError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.perf import trace_against_ncu as against

# what ncu counted once, on an H200
MEASURED = Path(__file__).parents[2] / "perf/results/h200/host/trace_against_ncu.json"
LAUNCHES = {kernel.name: (kernel, config, problem) for kernel, config, problem in against.kernels()}
# sectors and wavefronts of each kind
KEPT = {
    "decode": {
        "ld.global": 8448,
        "st.global": 16,
        "cp.async": 512,
        "ld.shared": 136,
        "st.shared": 1024,
        "ldmatrix": 256,
        "cp.async to shared": 128,
    },
    "marlin": {
        "ld.global": 2048,
        "st.global": 2308,
        "red.global": 16,
        "cp.async": 4160,
        "ld.shared": 2816,
        "st.shared": 2128,
        "ldmatrix": 512,
        "cp.async to shared": 1040,
    },
    "w4a16_gptq": {
        "ld.global": 4096,
        "st.global": 4354,
        "red.global": 16,
        "cp.async": 3232,
        "ld.shared": 1728,
        "st.shared": 16,
        "cp.async to shared": 816,
    },
    "prefill": {
        "st.global": 1024,
        "cp.async.bulk": 3136,
        "ld.shared": 1344,
        "st.shared": 4,
        "stmatrix": 256,
    },
    "grouped_decode": {
        "ld.global": 4624,
        "st.global": 512,
        "cp.async": 2048,
        "ld.shared": 1024,
        "st.shared": 1152,
        "ldmatrix": 1024,
        "cp.async to shared": 1024,
    },
}


@pytest.fixture(scope="module")
def rows():
    return {row["kernel"]: row for row in against.traced(LAUNCHES.values(), KNOWN["h200"])}


@pytest.mark.parametrize("name", LAUNCHES)
def test_the_numbers_of_five_kernels(rows, name):
    found = {kind: of["units"] for kind, of in rows[name]["trace"].items()}
    assert found == KEPT[name]


def test_only_the_epilogue_of_prefill_has_bank_conflicts(rows):
    wasted = {
        (name, kind): of["units"] - of["least"]
        for name, row in rows.items()
        for kind, of in row["trace"].items()
        if of["units"] > of["least"]
    }
    # four loads of a word of the rows on their way out, 4-way, by 64 warps
    assert wasted == {("prefill", "ld.shared"): 768}


@pytest.mark.skipif(not MEASURED.exists(), reason=f"{MEASURED.name} was not measured yet")
@pytest.mark.parametrize("name", LAUNCHES)
def test_ncu_counts_the_same_within_2_per_cent(rows, name):
    (kept,) = [row for row in json.loads(MEASURED.read_text())["kernels"] if row["kernel"] == name]
    assert (kept["problem"], kept["config"]) == (rows[name]["problem"], rows[name]["config"])
    both = against.compared({**rows[name], "ncu": kept["ncu"]})
    assert {one["quantity"] for one in both} >= {"ld.global sectors", "st.shared wavefronts"}
    for one in both:
        assert one["apart"] <= against.WITHIN, one


def test_conflicts_are_held_against_the_wavefronts_they_add_to():
    wavefronts = {"count": 100, "lanes": 3200, "units": 104, "least": 100}
    metrics = {quantity.name: quantity.metric for quantity in against.QUANTITIES}
    row = {
        "kernel": "one", "trace": {"ld.shared": wavefronts},
        "ncu": {
            metrics["ld.shared wavefronts"]: 130.0, metrics["ld.shared conflicts"]: 2.0,
            metrics["st.global sectors"]: 8.0, metrics["ldmatrix conflicts"]: 0.0,
        },
    }  # fmt: skip
    found = {one["quantity"]: one for one in against.compared(row)}
    # what neither has is no row, and what only one has is one
    assert set(found) == {"ld.shared wavefronts", "ld.shared conflicts", "st.global sectors"}
    assert found["ld.shared wavefronts"]["apart"] == pytest.approx(26 / 130)
    assert found["ld.shared conflicts"]["apart"] == pytest.approx(2 / 104)
    assert found["st.global sectors"]["apart"] == 1


def fake_ncu(folder, monkeypatch, script):
    path = folder / "ncu"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_group_that_ncu_has_not_is_said_and_the_others_stay(tmp_path, monkeypatch, capsys):
    loads = against.QUANTITIES[0].metric
    page = f'"ID","{loads}"\n"","sector"\n"0","1,024"\n"1","16"'
    script = f"case \"$*\" in *{loads}*) cat <<'END'\n{page}\nEND\n;; *) echo no such metric;; esac"
    fake_ncu(tmp_path, monkeypatch, script)
    assert against.counted("kernels", 2) == [{loads: 1024.0}, {loads: 16.0}]
    assert "no such metric" in capsys.readouterr().err
    fake_ncu(tmp_path, monkeypatch, "echo ERR_NVGPUCTRPERM")
    with pytest.raises(DeviceError, match="ncu counts nothing of patterns"):
        against.counted("patterns", 2)


@pytest.mark.parametrize(
    ("problem", "units"),
    [
        # by hand: a line apart; eight-way; pairs that want the same; rows in one bank
        (against.PATTERN.problem("ld.global", 4, 128), 32),
        (against.PATTERN.problem("ld.shared", 4, 32), 8),
        (against.PATTERN.problem("ld.shared", 16, 16, 2), 2),
        (against.PATTERN.problem("st.shared", 16, 16, 2), 4),
        (against.PATTERN.problem("ldmatrix", 16, 128), 32),
        (against.PATTERN.problem("cp.async", 16, 128), 32),
        (against.PATTERN.problem("st.global", 8, 128, 1, 16), 16 + 4),
    ],
    ids=lambda value: str(getattr(value, "kind", value)),
)
def test_a_pattern_is_the_request_that_it_says(problem, units):
    assert problem in against.PATTERN.tests or problem.kind == "st.global"
    trace = ferrum_numba.trace(against.Patterns(), problem)
    assert trace.checked.ok, trace.checked.reason
    assert trace.total(problem.kind).units == units


@pytest.mark.gpu
@pytest.mark.parametrize("launches", [against.kernels, against.patterns])
def test_they_can_be_launched_for_ncu(launches):
    against.launch_all(launches())
