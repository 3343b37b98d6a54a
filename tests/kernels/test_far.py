"""At the largest sizes: no address is computed in fewer bits than it needs."""

import pytest

from ferrum_numba.perf import far_cases


@pytest.mark.parametrize(
    "far", far_cases.CASES, ids=lambda far: f"{far.kernel}-{far.writes}-{far.problem.K}"
)
def test_the_last_blocks_stay_at_the_far_end(far):
    assert far_cases.run(far) == ""


def test_every_gemm_is_there_with_a_far_weight_result_and_x():
    named = {
        name: [far.problem for far in far_cases.CASES if far.kernel == name]
        for name in far_cases.NAMED
    }
    assert all(len(problems) >= 3 for problems in named.values())
    for problems in named.values():
        sizes = [far_cases.bytes_of(problem) for problem in problems]
        assert all(max(operand.values()) > 1 << 32 for operand in sizes)
