"""What a layer loads to run: kernels and decisions, and nothing that tunes or measures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).resolve().parent.parent / "support"
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
    "ferrum_numba.cli", "filelock", "optuna", "matplotlib", "rich",
}  # fmt: skip


# of the compiler, and what needs it
COMPILER = {"numba", "llvmlite", "numba_cuda", "greenlet", "ferrum_numba.ptx", "ferrum_numba.tune"}
ON_THE_HOST = """
import json, sys
from ferrum_numba import MarlinLinear
sys.path.insert(0, sys.argv[1])
from quantised import assert_close, layer, reference, rows
tensors = layer(256, 128, 128)
assert_close(MarlinLinear.from_gptq(tensors, device="cpu")(rows(3, 256)),
             reference(tensors, rows(3, 256)))
print(json.dumps({"modules": sorted(sys.modules)}))
"""
# K, N, M and more of a layer, on a GPU that takes cubins and runs none
ON_A_GPU = """
import json, sys, time
from ferrum_numba import MarlinLinear
import pytest
sys.path.insert(0, sys.argv[1])
import shipped_driver
from quantised import layer, rows
K, N, M, kind = json.loads(sys.argv[2])
with pytest.MonkeyPatch.context() as patch:
    host = shipped_driver.install(patch)
    linear = MarlinLinear.from_gptq(layer(K, N, 128, **kind))
    x = rows(M, K)
    # processor time, because other tests run beside this one
    began = time.process_time()
    linear(x)
    first_s = time.process_time() - began
print(json.dumps({"modules": sorted(sys.modules), "launched": host.launched, "first_s": first_s}))
"""


def run(program, *arguments, **environment):
    """Run a program in a process of its own, and return what it printed."""
    command = [sys.executable, "-c", program, str(SUPPORT), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def packages(modules):
    return {".".join(name.split(".")[:depth]) for name in modules for depth in (1, 2)}


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
