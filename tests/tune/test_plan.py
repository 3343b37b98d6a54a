"""Planning: the whole space compiled for a GPU that is not there, with a verdict a candidate."""

import importlib
from dataclasses import asdict

import pytest
from toy_kernel import Problem, Toy, make_binary

from ferrum_numba import tune
from ferrum_numba.errors import BuildError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.ceilings.memory import DramRead, Read, RowConfig

GPU = KNOWN["h200"]
FIELDS = {
    "kernel", "config", "arch", "registers", "spill_bytes", "smem_bytes", "blocks_per_sm",
    "bound_us", "status", "reason",
}  # fmt: skip


@pytest.fixture
def built(monkeypatch):
    """Stand in for the compiler, and remember what was to be compiled."""
    binaries, asked = {}, []

    def build(pairs, arch, progress):
        asked.extend((arch, config.speed) for _, config in pairs)
        return {(k.name, c): binaries.get(c.speed, make_binary()) for k, c in pairs}

    # the package exports the function under the module's name
    module = importlib.import_module("ferrum_numba.tune.plan")
    monkeypatch.setattr(module, "build_space", build)
    binaries["asked"] = asked
    return binaries


def test_every_candidate_gets_a_verdict(built):
    built[2] = make_binary(spill_bytes=64)
    built[3] = BuildError("ptxas said no")
    built[4] = make_binary(smem_bytes=10**6)
    rows = tune.plan([Toy()], [Problem(2)], GPU)
    assert [row.status for row in rows] == ["ok", "spills", "build failed", "does not fit"]
    assert [row.reason for row in rows[:3]] == [
        "", "64 bytes a thread go to memory and back", "ptxas said no"
    ]  # fmt: skip
    assert "needs 1000000 bytes of shared memory" in rows[3].reason
    assert set(asdict(rows[0])) >= FIELDS
    assert (rows[0].registers, rows[0].blocks_per_sm, rows[0].arch) == (32, 8, "sm_90a")
    assert rows[2].registers is None
    assert all(row.modelled and row.bound_us == pytest.approx(0.002) for row in rows)


def test_what_cannot_run_is_not_compiled(built):
    rows = tune.plan([Toy()], [Problem(1)], GPU, "sm_80")
    assert built["asked"] == [("sm_80", 1), ("sm_80", 2), ("sm_80", 3)]
    assert rows[3].status == "does not fit"
    assert rows[3].reason == "too fast for one row"
    assert rows[3].registers is None


def test_a_config_is_compiled_for_one_problem_and_barred_from_another(built):
    rows = tune.plan([Toy()], [Problem(2), Problem(1)], GPU)
    assert [row.status for row in rows].count("ok") == 7
    assert rows[-1].registers is None


def test_a_limit_thins_the_plan(built):
    assert len(tune.plan([Toy()], [Problem(2)], GPU, limit=2)) == 2
    assert [speed for _, speed in built["asked"]] == [1, 2]


def test_a_refused_problem_keeps_its_reason(built):
    rows = tune.plan([Toy()], [Problem(2, N=9)], GPU)
    assert {(row.status, row.reason) for row in rows} == {("does not fit", "toy needs N = 8")}
    assert built["asked"] == []


class Small(Read):
    def configs(self, gpu):
        return (RowConfig(), RowConfig(num_threads=128))


def test_a_real_kernel_is_planned_without_a_gpu():
    seen = []
    rows = tune.plan(
        [Small()], [DramRead(1 << 20)], GPU, "sm_80", progress=lambda *step: seen.append(step)
    )
    assert [row.status for row in rows] == ["ok", "ok"]
    assert all(0 < row.registers < 128 and row.blocks_per_sm > 1 for row in rows)
    assert rows[0].bound_us == pytest.approx(2**20 / 4800 / 1e3)
    assert seen[-1] == (2, 2, "compile")
