"""What a layer loads to run: kernels and decisions, and nothing that tunes or measures."""

import json
import subprocess
import sys
from pathlib import Path

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
    "ferrum_numba.cli", "filelock", "optuna", "matplotlib", "rich", "torch",
}  # fmt: skip


def test_a_layer_that_runs_has_loaded_nothing_that_tunes_or_measures():
    command = [sys.executable, "-c", PROGRAM, str(SUPPORT)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    packages = {".".join(name.split(".")[:depth]) for name in found["modules"] for depth in (1, 2)}
    assert packages & UNWANTED == set()
    # it was a layer that ran, by what was decided
    assert "ferrum_numba.linear.dense" in found["modules"]
    read = {Path(name).name for name in found["opened"] if name.endswith(".json")}
    assert "h200.json" in read
    assert not read & {"w4a16_gemm.json", "ceilings.json"}
