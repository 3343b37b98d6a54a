"""The Op of a layer of experts: what a routing reads."""

import numpy as np
import pytest

from ferrum_numba.kernels import grouped
from ferrum_numba.kernels.grouped import OP, GroupedProblem


@pytest.mark.parametrize("num_experts", [1, 2, 5, 60])
def test_experts_elsewhere_are_not_read(num_experts):
    """A token may choose more experts than are here."""
    problem = GroupedProblem(40, num_experts, 4, 64, 64, 64)
    ids = OP.make_inputs(problem, np.random.default_rng(0))["ids"]
    here = np.unique(ids[ids < num_experts])
    assert grouped.experts_hit(problem) == len(here) <= num_experts
    assert grouped.weight_bytes_read(problem) == len(here) * grouped.expert_bytes(problem)
