"""The measured rows: pages have what is recorded, a run yields a row of every step and problem."""

from dataclasses import replace

import pytest

from ferrum_numba import results
from ferrum_numba.compare import designs
from ferrum_numba.compare.designs import trials
from ferrum_numba.compile import build, sass
from ferrum_numba.errors import MismatchError, StoreError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.measure import Policy
from ferrum_numba.perf import tutorial
from ferrum_numba.perf.tutorial_table import (
    BEGIN,
    END,
    EXPERTS,
    GROUPED,
    NOT_YET,
    SIZES_M,
    STEPS,
    measured,
    pages,
    problems,
    recorded,
    shown,
    with_rows,
)
from ferrum_numba.results import ResultFile, Row
from ferrum_numba.tune.worker import Outcome

GPU = replace(KNOWN["h200"], uuid="GPU-1")
KERNELS = tutorial.ladder()
ENVIRONMENT = {
    "gpu": "NVIDIA H200", "driver": "580.1", "date": "2026-02-02T10:00", "uuid": "0123abcd-9999",
    "commit": "71559805c92b",
}  # fmt: skip
US = {name: 100.0 - 10 * i for i, name in enumerate(STEPS)}


class Fake:
    """Takes as long as it is told for each step; one is wrong."""

    def __init__(self, wrong=""):
        self.wrong = wrong

    def run(self, candidate, best_us):
        name = candidate.kernel.name
        status = "wrong" if name == self.wrong else "measured"
        return Outcome(status, "as told", us=(US.get(name, 5.0),), rel_error=0.0, max_error=0.0)

    def round(self, candidates, turn, samples):
        return [Outcome("measured", us=(US.get(c.kernel.name, 5.0),) * samples) for c in candidates]


def contest(measurer):
    def compared(old, new, given):
        return trials(measurer, old, new, given, GPU, Policy(), ENVIRONMENT["date"])

    return list(tutorial.contest(KERNELS, [], GPU, compared))


@pytest.fixture(scope="module", autouse=True)
def _one_program_for_all():
    """What is timed here is nobody's program: none need be compiled."""
    first = KERNELS[0]
    binary = build(first, first.config(), GPU.arch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(designs, "_compiled", lambda keys, arch: dict.fromkeys(keys, binary))
        patch.setattr(sass, "instruction_mix", lambda cubin: None)
        yield


@pytest.fixture(scope="module")
def rows(_one_program_for_all):
    return contest(Fake())


def test_pages_have_what_is_recorded():
    found = pages()
    assert len(found) == 11
    for page in found:
        text = page.read_text(encoding="utf-8")
        assert text == with_rows(text, recorded(), page.name), tutorial.COMMAND


def test_a_run_has_a_row_of_every_step_and_problem(rows):
    wanted = {(step, M) for step in STEPS for M in SIZES_M}
    assert {(row.kernel, row.problem["M"]) for row in rows if row.kernel != GROUPED} == wanted
    experts = [row.problem for row in rows if row.kernel == GROUPED]
    assert experts == list(EXPERTS)
    assert len(rows) == len(wanted) + len(EXPERTS)
    assert {row.stage for row in rows} == {"final"}


def test_a_run_can_be_kept_and_read(rows, tmp_path):
    path = tmp_path / "ladder.json"
    environment = results.environment(GPU, Policy(), ("",)) | ENVIRONMENT
    results.save(path, ResultFile(environment, rows))
    assert measured(results.load(path), "README.md") == measured(
        ResultFile(environment, rows), "README.md"
    )


def test_a_step_that_is_wrong_ends_the_run():
    with pytest.raises(MismatchError, match="wrong: as told"):
        contest(Fake(wrong="step2_vector"))


def test_a_page_shows_its_step_and_the_one_before(rows):
    file = ResultFile(ENVIRONMENT, rows)
    lines = measured(file, "05_pipeline.md").splitlines()
    assert lines[0] == "|  | M = 1 | M = 16 | M = 256 |"
    assert lines[2] == "| `step4_mma` | **70.0** | **70.0** | **70.0** |"
    assert lines[3].startswith("| `step5_pipeline` | **60.0** |")
    assert lines[4].startswith("| *at least, modelled* | ")
    assert "NVIDIA H200, driver 580.1, board `0123abcd`, 2026-02-02, commit `7155980`" in lines[-1]
    assert "**50.0** (tile_m 16, warps_n 4, " in measured(file, "06_space.md")


def test_which_rows_a_page_shows():
    assert shown("01_scalar.md") == ("step1_scalar",)
    assert shown("08_wgmma.md") == ("step7_share_k", "step8_wgmma")
    assert shown("09_experts.md") == (GROUPED,)
    assert shown("10_compare.md") == shown("README.md")
    assert shown("README.md")[: len(STEPS)] == STEPS


def test_what_was_not_measured_is_said(rows):
    assert measured(None, "02_vector.md") == NOT_YET
    some = [row for row in rows if row.kernel != "step2_vector" or row.problem["M"] != 16]
    lines = measured(ResultFile(ENVIRONMENT, some), "02_vector.md").splitlines()
    assert lines[3] == "| `step2_vector` | **90.0** | not measured yet | **90.0** |"
    # of what ships there is nothing, and only the baseline is missed
    whole = measured(ResultFile(ENVIRONMENT, rows), "README.md")
    assert "| `marlin` | not measured yet |" in whole
    assert "prefill" not in whole


def test_wrong_rows_are_no_times(rows):
    bad = [replace(row, ok=False) if row.kernel == "step1_scalar" else row for row in rows]
    assert "**100.0**" not in measured(ResultFile(ENVIRONMENT, bad), "01_scalar.md")
    other = Row("step1_scalar", "int4_gemm", {"M": 1, "N": 128, "K": 128}, {}, us=1.0, ok=True)
    assert "1.0" not in measured(ResultFile(ENVIRONMENT, [other]), "01_scalar.md").split("\n\n")[0]


def test_a_page_without_a_place_is_refused():
    with pytest.raises(StoreError, match=r"here.md: has no lines <!-- measured: begin"):
        with_rows("no marks", None, "here.md")
    assert with_rows(f"a\n{BEGIN}old\n{END}b", None, "x.md") == f"a\n{BEGIN}{NOT_YET}\n{END}b"


def test_what_ships_is_timed_on_the_same_sizes():
    def compared(old, new, given):
        found.append((old.kernel.name, new.kernel.name, given))
        return []

    found = []
    assert list(tutorial.shipped(GPU, compared)) == []
    assert [one[0] for one in found] == ["marlin"] * len(SIZES_M)
    assert [vars(given)["M"] for _, _, (given,) in found] == [one["M"] for one in problems()]
    assert {one[1] for one in found} <= {"decode", "decode_wgmma", "prefill"}
