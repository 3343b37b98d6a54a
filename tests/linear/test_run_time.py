"""What a layer loads to run: kernels and decisions, and nothing that tunes or measures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from layer_programs import COMPILER, ON_A_GPU, ON_THE_HOST, SUPPORT, packages

# a layer on a GPU of host memory, in a process that pytest and its plugins have not filled
PROGRAM = """
import json, sys
opened = set()
sys.addaudithook(lambda event, args: opened.add(str(args[0])) if event == "open" else None)
from ferrum_numba import MarlinLinear
import numpy as np, pytest
sys.path.insert(0, sys.argv[1])
import gpu_of_host
from quantised import assert_close, layer, reference, rows
from ferrum_numba.linear import choice, launch_plan
with pytest.MonkeyPatch.context() as patch:
    gpu_of_host.install(patch)
    patch.setattr(launch_plan, "shipped_decisions", choice.shipped_decisions)
    tensors = layer(128, 64, 64)
    x = rows(3, 128)
    assert_close(MarlinLinear.from_gptq(tensors)(x), reference(tensors, x))
print(json.dumps({"modules": sorted(sys.modules), "opened": sorted(opened)}))
"""
UNWANTED = {
    "ferrum_numba.tune", "ferrum_numba.measure", "ferrum_numba.perf", "ferrum_numba.report",
    "ferrum_numba.cli", "filelock", "optuna", "matplotlib", "rich", "torch",
}  # fmt: skip


def run(program, *arguments, **environment):
    """Run a program in a process of its own, and return what it printed."""
    command = [sys.executable, "-c", program, str(SUPPORT), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_layer_that_runs_has_loaded_nothing_that_tunes_or_measures():
    found = run(PROGRAM)
    assert packages(found["modules"]) & UNWANTED == set()
    # it was a layer that ran, by what was decided
    assert "ferrum_numba.linear.dense" in found["modules"]
    read = {Path(name).name for name in found["opened"] if name.endswith(".json")}
    assert "h200.json" in read
    assert not read & {"w4a16_gemm.json", "ceilings.json"}


def test_a_layer_on_the_host_needs_no_compiler():
    found = run(ON_THE_HOST)
    assert packages(found["modules"]) & (COMPILER | UNWANTED) == set()


@pytest.mark.parametrize(
    ("layer", "launched"),
    [
        ((4096, 4096, 1, {}), ["repack", "decode"]),
        ((4096, 4096, 256, {}), ["repack", "prefill"]),
        ((4096, 4096, 16, {"act_order": True}), ["repack", "gather_columns", "decode"]),
    ],
    ids=["decode", "prefill", "act-order"],
)
def test_a_layer_that_was_tuned_needs_no_compiler(layer, launched, tmp_path):
    found = run(
        ON_A_GPU, json.dumps(layer), FERRUM_NUMBA_PROGRAMS_DIR="",
        FERRUM_NUMBA_CACHE_DIR=str(tmp_path / "cache"),
    )  # fmt: skip
    assert found["launched"] == launched
    assert packages(found["modules"]) & (COMPILER | UNWANTED) == set()
    # nothing was compiled, and nothing stored
    assert not (tmp_path / "cache").exists()
    # 50 ms on a GPU machine, with the driver's own time; this machine may be half as fast
    assert found["first_s"] < 0.1
