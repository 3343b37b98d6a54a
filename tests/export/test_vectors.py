"""Test vectors: there is one for every program, and the kernels' own source agrees with it."""

import json

import numpy as np
import pytest
from safetensors.numpy import load

from ferrum_numba import interpreter
from ferrum_numba.contract import Launch, Tolerance
from ferrum_numba.export.dispatch import layer_rows, repack_row
from ferrum_numba.export.formula import evaluate
from ferrum_numba.export.layer import Layer
from ferrum_numba.export.programs import Programs
from ferrum_numba.export.vectors import vector
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels import PACKED, RAW, TOOLS
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.linear.choice import shipped_decisions
from ferrum_numba.perf.problems import PROBLEM_SETS

GPU = KNOWN["h200"]
KERNELS = {kernel.name: kernel for kernel in (*RAW, *PACKED, *TOOLS)}
TYPES = {"F16": "float16", "I32": "int32", "U16": "uint16"}
MOST_BYTES = 3 << 20


def entries_of(folder):
    return json.loads((folder / "manifest.json").read_text())["entries"]


def by_interpreter(folder, entry, record):
    """Return what an entry computes, launched by what the manifest says and nothing else."""
    tensors = load((folder / record["file"]).read_bytes())
    want = tensors.pop("expected")
    kind = np.dtype(TYPES[record["out"]])
    M, out = record["M"], np.full(want.size * kind.itemsize, 0xFF, np.uint8)
    out = out.view(kind).reshape(want.shape)
    workspace = {n: np.zeros(evaluate(f, M), np.uint8) for n, f in record["workspace"].items()}
    scalars = {name: evaluate(formula, M) for name, formula in record["scalars"].items()}
    kernel = KERNELS[entry["kernel"]]
    program = kernel.build(kernel.config(**entry["config"]), entry["arch"])
    grid = tuple(evaluate(formula, M) for formula in record["grid"])
    buffers = {**tensors, **workspace, "out": out}
    interpreter.run(program, Launch(grid, scalars), buffers)
    return out, want, workspace


def test_the_kernels_agree(exported):
    for entry in entries_of(exported):
        for record in entry["vectors"]:
            got, want, _ = by_interpreter(exported, entry, record)
            tolerance = Tolerance(**record["tolerance"], reason="the manifest's")
            result = tolerance.compare(got, want)
            assert result.ok, (entry["symbol"], result.message)


def test_workspace_is_left_as_the_manifest_says(exported):
    entries = {entry["kernel"]: entry for entry in entries_of(exported)}
    entry = entries["w4a16_gptq"]
    (record,) = entry["vectors"]
    left = by_interpreter(exported, entry, record)[2]
    after = {p["name"]: p["after"] for p in entry["parameters"] if p.get("access") == "workspace"}
    assert after == {"partials": "any", "counters": "zero"}
    assert not left["counters"].any()
    # the vector does what the workspace is for
    assert left["partials"].any()


def test_every_decided_program_has_a_small_vector():
    programs = Programs(GPU)
    for problems in PROBLEM_SETS.values():
        for problem in problems:
            layer = Layer.of(problem, None, "fused")
            if (problem.N, problem.K) == (problems[0].N, problems[0].K):
                list(layer_rows(layer, [problem.M], shipped_decisions(GPU), programs))
    assert len(programs.by_symbol) > 10
    for one in programs:
        record, data = vector(one, programs)
        assert len(data) < MOST_BYTES
        assert record["symbol"] == one.symbol


@pytest.mark.parametrize(
    "problem",
    [
        W4A16Problem(4, 8192, 28672, act_order=True),
        W4A16Problem(600, 4096, 8192, 32, "gptq", True, True, "bf16"),
        W4A16Problem(64, 4096, 4096, -1),
        W4A16Problem(16, 24, 144, 48, "gptq", act_order=True),
        W4A16Problem(33, 136, 264, 8, dtype="bf16"),
    ],
    ids=str,
)
def test_other_kinds_have_vectors_too(problem):
    programs = Programs(GPU)
    layer = Layer.of(problem, None, "two_step")
    list(layer_rows(layer, [problem.M], shipped_decisions(GPU), programs))
    repack_row(layer, programs)
    for one in programs:
        record, data = vector(one, programs)
        pointers = {p.name for p in one.parameters if p.kind == "pointer"}
        read = pointers - {*record["workspace"], "out"}
        # NumPy's loader has no bfloat16
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        assert set(header) - {"__metadata__"} == read | {"expected"}


def test_no_small_problem_is_a_sentence(monkeypatch):
    programs = Programs(GPU)
    layer = Layer.of(W4A16Problem(1, 4096, 4096), None, "fused")
    list(layer_rows(layer, [1], [], programs))
    (one,) = programs
    monkeypatch.setattr("ferrum_numba.export.vectors.ROWS", ())
    with pytest.raises(Exception, match="none of the small problems suits it"):
        vector(one, programs)
