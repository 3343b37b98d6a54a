"""Test vectors: there is one for every program, and the kernels' own source agrees with it."""

import json

import numpy as np
import pytest
from small_export import TYPES, tensors_of

from ferrum_numba import interpreter
from ferrum_numba.contract import Launch, Tolerance
from ferrum_numba.export.dispatch import layer_rows, repack_row
from ferrum_numba.export.experts import Experts, experts_rows
from ferrum_numba.export.formula import evaluate
from ferrum_numba.export.layer import Layer
from ferrum_numba.export.operands import FOUND_ZERO
from ferrum_numba.export.programs import Programs
from ferrum_numba.export.vectors import has_vector, vector
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels import PACKED, RAW, TOOLS
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.linear.choice import shipped_decisions
from ferrum_numba.perf.problems import PROBLEM_SETS

GPU = KNOWN["h200"]
DECISIONS = shipped_decisions(GPU)
KERNELS = {kernel.name: kernel for kernel in (*RAW, *PACKED, *TOOLS)}
MOST_BYTES = 3 << 20


def entries_of(folder):
    return json.loads((folder / "manifest.json").read_text())["entries"]


def by_interpreter(kernel, config, record, data):
    """Return what a program computes, launched by what its vector says and nothing else."""
    tensors = tensors_of(data)
    want, kind = tensors.pop("expected"), TYPES[record["out"]]
    M, out = record["M"], np.full(want.size * kind.itemsize, 0xFF, np.uint8)
    out = out.view(kind).reshape(want.shape)
    workspace = {n: np.zeros(evaluate(f, M), np.uint8) for n, f in record["workspace"].items()}
    scalars = {name: evaluate(formula, M) for name, formula in record["scalars"].items()}
    grid = tuple(evaluate(formula, M) for formula in record["grid"])
    buffers = {**tensors, **workspace, "out": out}
    interpreter.run(kernel.build(config, GPU.arch), Launch(grid, scalars), buffers)
    result = Tolerance(**record["tolerance"], reason="the manifest's").compare(out, want)
    assert result.ok, (record["symbol"], result.message)
    return workspace


def of_entry(folder, entry):
    """Run an entry of an export, from its files, and return its workspace."""
    kernel = KERNELS[entry["kernel"]]
    (record,) = entry["vectors"]
    data = (folder / record["file"]).read_bytes()
    return by_interpreter(kernel, kernel.config(**entry["config"]), record, data)


def test_the_kernels_agree(exported):
    for entry in entries_of(exported):
        of_entry(exported, entry)


def programs_of(problems):
    """Return the programs that layers of these problems launch."""
    programs = Programs(GPU)
    for problem in problems:
        layer = Layer.of(problem, None, "fused")
        list(layer_rows(layer, [problem.M], shipped_decisions(GPU), programs))
    return programs


def check_all(programs):
    """Run every program on its vector."""
    for one in programs:
        record, data = vector(one, programs)
        left = by_interpreter(one.kernel, one.config, record, data)
        for name in FOUND_ZERO & left.keys():
            assert not left[name].any(), (one.symbol, name)


@pytest.mark.parametrize(
    ("kernel", "problem"),
    [
        ("decode", W4A16Problem(4, 8192, 8192)),
        ("decode_wgmma", W4A16Problem(16, 28672, 8192)),
        ("prefill", W4A16Problem(64, 4096, 4096, 64, "gptq", bias=True, dtype="bf16")),
    ],
)
def test_designs_on_packed_tiles_agree(kernel, problem):
    programs = programs_of([problem])
    assert [one.kernel.name for one in programs] == [kernel]
    check_all(programs)


@pytest.mark.slow
def test_every_program_of_the_peers_table_agrees():
    check_all(programs_of(PROBLEM_SETS["h200-peers"]))


def test_workspace_is_left_as_the_manifest_says(exported):
    entries = {entry["kernel"]: entry for entry in entries_of(exported)}
    entry = entries["w4a16_gptq"]
    left = of_entry(exported, entry)
    after = {p["name"]: p["after"] for p in entry["parameters"] if p.get("access") == "workspace"}
    assert after == {"partials": "any", "counters": "zero"}
    assert not left["counters"].any()
    # the vector does what the workspace is for
    assert left["partials"].any()


def test_every_decided_program_has_a_small_vector():
    sets = [one for one in PROBLEM_SETS.values() if isinstance(one[0], W4A16Problem)]
    firsts = [p for one in sets for p in one if (p.N, p.K) == (one[0].N, one[0].K)]
    programs = programs_of(firsts)
    assert len(programs.by_symbol) > 10
    for one in programs:
        record, data = vector(one, programs)
        assert len(data) < MOST_BYTES
        assert record["symbol"] == one.symbol


def test_every_program_of_a_layer_of_experts_has_a_small_vector():
    programs = Programs(GPU)
    for problem in (one[0] for one in PROBLEM_SETS.values()):
        if isinstance(problem, GroupedProblem):
            asked = (1, 16, 1024)
            list(experts_rows(Experts.of(problem, None, "fused"), asked, DECISIONS, programs))
    assert len(programs.by_symbol) > 10
    for one in programs:
        if has_vector(one):
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
        assert set(tensors_of(data)) == read | {"expected"}


def test_no_small_problem_is_a_sentence(monkeypatch):
    programs = Programs(GPU)
    layer = Layer.of(W4A16Problem(1, 4096, 4096), None, "fused")
    list(layer_rows(layer, [1], [], programs))
    (one,) = programs
    monkeypatch.setattr("ferrum_numba.export.vectors.ROWS", ())
    with pytest.raises(Exception, match="none of the small problems suits it"):
        vector(one, programs)
