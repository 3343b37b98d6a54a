"""What a person calls in a notebook."""

import pytest

from ferrum_numba import notebook
from ferrum_numba.errors import FerrumError, ProblemError, StoreError
from ferrum_numba.kernels import TOOLS
from ferrum_numba.kernels.decode.kernel import Decode
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.results import ResultFile

SMALL = W4A16Problem(1, 64, 128)
DECODE = Decode()


def test_a_check_of_one_problem_says_what_differs_from_the_default():
    config = DECODE.default(SMALL, notebook.find("h200"))
    other = next(c for c in DECODE.fitting(SMALL, notebook.find("h200")) if c != config)
    found = [*notebook.check(DECODE, SMALL), *notebook.check(DECODE, [SMALL], other)]
    assert [row.ok for row in found] == [True, True]
    assert "<td>default</td>" in notebook.check(DECODE, SMALL)._repr_html_()
    text = str(notebook.check(DECODE, SMALL, other))
    assert "default" not in text
    # of a problem what is at its default is not said
    assert "M=1 N=64 K=128 group_size=128  " not in text
    assert text.endswith("1 of 1 check passed")


def test_without_problems_it_is_the_tests_and_corners():
    kernel = TOOLS[-1]
    found = notebook.check(kernel, limit=2)
    assert [row.kernel for row in found] == [kernel.name] * 2
    assert all(row.ok for row in found)


def test_what_a_kernel_refuses_is_said():
    with pytest.raises(ProblemError, match="nothing to check: decode can run none"):
        notebook.check(DECODE, W4A16Problem(1, 64, 128, group_size=48))


def test_a_gpu_is_named_as_on_the_command_line():
    found = notebook.trace(DECODE, SMALL, gpu="h200")
    assert found.checked.ok
    assert "decode on M=1 N=64 K=128" in repr(found)
    with pytest.raises(FerrumError, match="h900"):
        notebook.explain(DECODE, SMALL, gpu="h900")


def test_a_plan_is_a_list_of_rows_that_is_shown():
    found = notebook.plan(DECODE, SMALL, limit=1)
    assert [row.status for row in found if row.registers] == ["ok"]
    assert "<caption>decode on M=1 N=64 K=128: at least" in found._repr_html_()


def test_recorded_results_are_drawn_and_reported():
    recorded = notebook.recorded("w4a16_gemm")
    marlin = notebook.of_kernels(recorded, "marlin")
    assert {row.kernel for row in marlin.rows} == {"marlin"}
    svg = notebook.roofline(marlin)
    assert svg._repr_html_().startswith("<svg")
    assert repr(svg) == f"<a picture: {len(svg)} characters of SVG>"
    assert repr(notebook.report(marlin)).startswith("# ferrum-numba report: NVIDIA H200")
    with pytest.raises(StoreError, match="no results of gemm on h200"):
        notebook.recorded("gemm")
    with pytest.raises(StoreError, match="nothing to draw"):
        notebook.roofline(ResultFile(recorded.environment))
