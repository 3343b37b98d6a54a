"""Random problems: the same from a seed, all that kernels can do, and small where they fail."""

from collections import Counter
from dataclasses import replace

import pytest

from ferrum_numba import gpu
from ferrum_numba.errors import FerrumError
from ferrum_numba.kernels import PACKED
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.perf import random_problems
from ferrum_numba.perf.random_cases import DESIGNS, SMALL, Case, draw, shrink, smaller
from ferrum_numba.perf.random_problems import Draw, judged, on_interpreter, report

H200 = gpu.find("h200")
NAMES = tuple(kernel.name for kernel in DESIGNS)
LARGE_ONES = Draw(7, NAMES, 2, True, H200)
MARLIN = PACKED[0]


def test_a_case_follows_from_the_seed_and_its_number():
    assert [LARGE_ONES.case(i) for i in range(20)] == [LARGE_ONES.case(i) for i in range(20)]
    other = replace(LARGE_ONES, seed=8)
    assert [LARGE_ONES.case(i) for i in range(20)] != [other.case(i) for i in range(20)]


def test_cases_are_spread_over_all_that_the_kernels_can_do():
    cases = [LARGE_ONES.case(i) for i in range(600)]
    assert min(Counter(case.kernel.name for case in cases)[name] for name in NAMES) > 30
    for case in cases:
        assert case.kernel.refuses(case.problem) is None
        assert case.kernel.misfit(case.config, case.problem, H200) is None
    for kind in (W4A16Problem, GroupedProblem):
        problems = [case.problem for case in cases if isinstance(case.problem, kind)]
        for field, values in {
            "dtype": {"fp16", "bf16"}, "zero_points": {"none", "gptq", "gptq_v2"},
            "bias": {False, True},
        }.items():  # fmt: skip
            assert {getattr(problem, field) for problem in problems} >= values, field
        assert {problem.group_size for problem in problems} >= {-1, 32, 64, 128}
    # what only the checkpoint's own layout can do
    assert any(case.problem.act_order for case in cases)
    assert any(case.problem.group_size % 32 for case in cases if case.problem.group_size > 0)


def test_a_kernel_that_refuses_all_is_said():
    class Refuses(type(MARLIN)):
        def refuses(self, problem):
            return "no"

    with pytest.raises(FerrumError, match="marlin refuses 1000 random problems"):
        draw(0, 0, H200, [Refuses()], SMALL, 1)


@pytest.mark.parametrize("number", range(12))
def test_random_cases_pass_the_interpreter(number):
    designs = tuple(kernel.name for kernel in DESIGNS if not kernel.needs_cublas)
    which = Draw(2026, designs, 4, False, H200)
    case = which.case(number)
    assert on_interpreter(which, case) == "", case


def large():
    problem = W4A16Problem(300, 1024, 2048, 64, "gptq", bias=True, dtype="bf16")
    return Case(MARLIN, MARLIN.default(problem, H200), problem)


def test_a_failing_case_is_made_as_small_as_it_still_fails():
    def fails(case):
        return case.problem.M > 17 and case.problem.K > 256 and case.problem.bias

    found = shrink(large(), H200, fails).problem
    assert (found.M, found.K, found.bias) == (18, 264, True)
    assert (found.N, found.group_size, found.zero_points, found.dtype) == (8, -1, "none", "fp16")


def test_what_is_smaller_is_a_problem_too():
    problems = list(smaller(large().problem))
    assert len(problems) > 8
    assert all(isinstance(problem, W4A16Problem) for problem in problems)
    assert list(smaller(W4A16Problem(1, 8, 8, -1))) == []


def test_failures_are_printed_as_they_stand_in_a_test(capsys):
    which = Draw(7, ("marlin",), 2, True, H200)
    asked = []

    def judge(which, case):
        asked.append(case)
        return "relative error 1" if case.problem.M > 2 else ""

    failures, counts = judged(which, judge, range(10))
    assert counts == {"marlin": 10}
    assert [f.number for f in failures] == [i for i in range(10) if which.case(i).problem.M > 2]
    report(which, judge, failures[:1])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"case {failures[0].number}: marlin: W4A16Problem(M=")
    assert lines[1] == "    relative error 1"
    assert "made smaller: marlin: W4A16Problem(M=3, N=8, K=8" in lines[2]


def test_the_program_checks_and_counts(capsys):
    words = ["w4a16_gptq", "--on", "interpreter", "--count", "2", "--processes", "1"]
    assert random_problems.main(words) == 0
    assert "2 cases of seed 0 in " in capsys.readouterr().out
    with pytest.raises(FerrumError, match="no design marlni; there are w4a16_gptq, marlin"):
        random_problems.main(["marlni", *words[1:]])
