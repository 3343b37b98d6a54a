"""Rows of a dispatch: exact for every M, without gaps, and what layers launch."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ferrum_numba.errors import ProblemError
from ferrum_numba.export.dispatch import layer_rows, repack_row, values_of
from ferrum_numba.export.experts import Experts, experts_rows
from ferrum_numba.export.formula import evaluate
from ferrum_numba.export.layer import Layer, choose_stages, launch_of_rows
from ferrum_numba.export.programs import Programs
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.kernels.w4a8 import W4A8Problem
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.linear.choice import READERS, shipped_decisions
from ferrum_numba.linear.launch_plan import LaunchPlans
from ferrum_numba.linear.stages import LayerTask
from ferrum_numba.perf.problems import PROBLEM_SETS

GPU = KNOWN["h200"]
DECISIONS = shipped_decisions(GPU)
LAYERS = (
    Layer.of(W4A16Problem(1, 4096, 4096), None, "fused"),
    Layer.of(W4A16Problem(1, 28672, 8192), None, "fused"),
    Layer.of(W4A16Problem(1, 4096, 14336, 128, "gptq", True, True, "bf16"), None, "two_step"),
    Layer.of(W4A16Problem(1, 72, 120, 24, "gptq"), None, "fused"),
    Layer.of(W4A16Problem(1, 4096, 4096, act_order=True), "raw", "fused"),
)
ASKED = (1, 16, 17, 300, 700)


def rows_of(layer, asked=ASKED, decisions=DECISIONS, gpu=GPU):
    programs = Programs(gpu)
    return list(layer_rows(layer, asked, decisions, programs)), programs


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_rows_cover_every_m_once(layer):
    rows, _ = rows_of(layer)
    covered = [M for row in rows for M in range(row["m_first"], row["m_last"] + 1)]
    assert covered == list(range(1, ASKED[-1] + 1))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_rows_say_what_the_kernels_launch(layer):
    rows, programs = rows_of(layer)
    asked = {M: choose_stages(layer, M, DECISIONS, GPU) for M in ASKED}
    for row in rows:
        for M in range(row["m_first"], row["m_last"] + 1):
            chosen = asked[min(m for m in ASKED if m >= M)]
            assert len(chosen.stages) == len(row["launches"])
            for stage, got in zip(chosen.stages, row["launches"], strict=True):
                want = values_of(launch_of_rows(stage, M, GPU))
                found = {("grid", axis): f for axis, f in zip("xyz", got["grid"], strict=True)}
                for part in ("scalars", "workspace"):
                    found |= {(part, name): f for name, f in got[part].items()}
                assert {name: evaluate(f, M) for name, f in found.items()} == want
                # its program is the config's, whatever the launch knows besides
                assert any(c == stage.config for c, _ in programs.by_symbol[got["symbol"]].stages)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("M", [1, 40, 600])
def test_a_layer_launches_the_same(layer, M, monkeypatch):
    """What `MarlinLinear` runs, kernel by kernel, config by config, buffer by buffer."""
    launched = []

    def launch(self, stage, names):
        launched.append((stage.kernel.name, stage.config, stage.problem, dict(stage.renamed)))

    monkeypatch.setattr(LaunchPlans, "launch", launch)
    device = SimpleNamespace(gpu=GPU, activated=nullcontext)
    problem = replace(layer.problem, M=M)
    task = LayerTask(problem, READERS[layer.store], (), layer.gathered, layer.two_step)
    plan = LaunchPlans(device, None).make(task)
    chosen = choose_stages(layer, M, DECISIONS, GPU)
    stages = [(s.kernel.name, s.config, s.problem, dict(s.renamed)) for s in chosen.stages]
    assert stages == launched
    scratch = {name: M * size for name, size in chosen.row_bytes.items()}
    scratch |= chosen.main.launch(GPU).workspace
    assert (plan.needs.sizes if plan.needs else {}) == scratch


def test_an_m_between_runs_what_the_next_larger_one_chose():
    layer = LAYERS[0]
    rows, _ = rows_of(layer, (1, 64))
    assert [(row["m_first"], row["m_last"]) for row in rows] == [(1, 1), (2, 64)]
    alone, _ = rows_of(layer, (64,))
    assert rows[1]["symbol"] == alone[0]["symbol"]
    assert rows[1]["chosen_for"] == [{"m": 64, "rule": "measured"}]


def test_m_that_choose_alike_share_a_row():
    rows, programs = rows_of(LAYERS[0], (1, 4, 8))
    (row,) = rows
    assert [chosen["m"] for chosen in row["chosen_for"]] == [1, 4, 8]
    assert len(programs.by_symbol) == 1


def test_helpers_stand_around():
    (row, *_), _ = rows_of(LAYERS[2], (4,))
    kernels = [launch["symbol"].split("_")[0] for launch in row["launches"]]
    assert kernels == ["gather", "decode", "add"]
    assert row["launches"][1]["buffers"]["x"] == "gathered"
    assert row["launches"][2]["buffers"] == {"x": "out", "bias": "bias", "out": "out"}
    assert row["scratch"] == {"gathered": ["*", 2 * 14336, "M"]}


def test_what_nobody_measured_says_so():
    rows, programs = rows_of(LAYERS[0], (16,), decisions=[], gpu=KNOWN["a100"])
    assert not any(row["tuned"] for row in rows)
    assert not any(one.tuned for one in programs)
    assert rows[0]["chosen_for"][0]["rule"] == "default of marlin"


def test_a_packed_weight_has_a_row_that_packs_it():
    row = repack_row(LAYERS[2], Programs(GPU))
    assert (row["K"], row["N"], row["act_order"]) == (14336, 4096, True)
    (launch,) = row["launches"]
    assert launch["symbol"] == "repack_nt256_act_order"
    assert launch["buffers"] == {"qweight": "qweight", "perm": "perm", "out": "packed"}
    assert repack_row(LAYERS[3], Programs(GPU)) is None


def test_a_padded_weight_says_how_it_is_stored():
    rows, _ = rows_of(Layer.of(W4A16Problem(1, 136, 200, 64), None, "fused"), (1,))
    assert rows[0]["stored"] == {"K": 256, "N": 192}
    assert rows[0]["launches"][0]["scalars"]["out_columns"] == 136


def test_a_store_that_cannot_hold_it_says_why():
    with pytest.raises(ProblemError, match=r"not marlin, because .*group_size .*24"):
        Layer.of(W4A16Problem(1, 72, 120, 24, "gptq"), "marlin", "fused")


@pytest.mark.parametrize(
    "name", [name for name, of in PROBLEM_SETS.items() if not isinstance(of[0], W4A8Problem)]
)
def test_every_set_has_rows(name):
    problem = PROBLEM_SETS[name][0]
    if isinstance(problem, GroupedProblem):
        block = Experts.of(problem, None, "fused")
        rows = list(experts_rows(block, (problem.tokens,), DECISIONS, Programs(GPU)))
        assert {row["tokens"] for row in rows} == {problem.tokens}
        return
    rows, _ = rows_of(Layer.of(problem, None, "fused"), (problem.M,))
    assert rows[-1]["m_last"] == problem.M
