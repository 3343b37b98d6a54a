"""Marlin: how it deals out the tiles, and sums that several blocks share."""

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from ferrum_numba import check
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.marlin.kernel import Config, Marlin
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.reference.marlin import stripes
from ferrum_numba.tune.space import feasible

H200 = KNOWN["h200"]
MARLIN = Marlin()


def test_one_group_is_one_scale_a_column():
    problem = W4A16Problem(1, 128, 256, 256)
    assert MARLIN.refuses(problem) is None
    assert MARLIN.default(problem, H200).group_size == -1


@pytest.mark.parametrize("gpu", KNOWN.values(), ids=KNOWN)
def test_every_shape_it_accepts_has_a_tile_on_every_gpu(gpu):
    for m, n, k in product((1, 17, 64, 65), (64, 128, 192, 320), (64, 128, 192, 448)):
        for group_size in (32, 64, -1):
            problem = W4A16Problem(m, n, k, group_size)
            assert MARLIN.refuses(problem) is None
            assert MARLIN.misfit(MARLIN.default(problem, gpu), problem, gpu) is None


@pytest.mark.parametrize("num_sms", [1, 2, 5, 7, 132])
@pytest.mark.parametrize("shape", [(1, 128, 1024), (17, 512, 256), (100, 384, 640)], ids=str)
def test_stripes_are_those_of_the_reference(num_sms, shape):
    problem = W4A16Problem(*shape)
    config = Config(tile_n=128, tile_k=128)
    launch = MARLIN.launch(config, problem, replace(H200, num_sms=num_sms))
    k_tiles, m_tiles = problem.K // 128, -(-problem.M // 16)
    slices = problem.N // 128 * m_tiles
    dealt = stripes(min(num_sms, slices * k_tiles), k_tiles, slices)
    length = launch.scalars["stripe_steps"]
    assert launch.grid[0] == max(share.block for share in dealt) + 1
    for share in dealt:
        first = share.n_tile * k_tiles + share.k_first
        assert first // length == share.block
        assert (first + share.k_count - 1) // length == share.block


@pytest.mark.parametrize("num_sms", [1, 2, 5, 8])
def test_the_result_does_not_depend_on_the_number_of_sms(num_sms):
    """A slice cut among more blocks is the same sum but for fp32 rounding."""
    problem = W4A16Problem(5, 128, 1024, bias=True)
    gpu = replace(H200, num_sms=num_sms)
    result = check.on_interpreter(MARLIN, Config(num_stages=3), problem, gpu=gpu)
    assert result.ok, result.reason


def test_workspace_holds_two_slices_a_block():
    launch = MARLIN.launch(Config(blocks_per_sm=2), W4A16Problem(16, 8192, 8192), H200)
    assert launch.grid[0] <= 264
    assert launch.workspace["partials"] == 2 * launch.grid[0] * 16 * 128 * 4
    assert launch.workspace["counters"] == 4 * 8192 // 128


def test_prepared_scales_and_bias_are_in_fragment_order():
    problem = W4A16Problem(1, 64, 128, -1, bias=True)
    inputs = MARLIN.op.make_inputs(problem, np.random.default_rng(0))
    operands = MARLIN.prepare(problem, inputs)
    # lane 1 of the epilogue reads the scales of columns 2, 3, 10, 11, 18, 19, 26, 27 in one load
    np.testing.assert_array_equal(
        operands["scales"][0, 8:16], inputs["scales"][0, [2, 3, 10, 11, 18, 19, 26, 27]]
    )
    np.testing.assert_array_equal(operands["bias"][8:10], inputs["bias"][2:4])


def test_the_smallest_tile_equals_the_reference():
    problem = W4A16Problem(33, 64, 192, 64, bias=True)
    for config in (Config(16, 64, 64, 4, 4, 1, 64), Config(48, 64, 64, 3, 4, 1, 64)):
        result = check.on_interpreter(MARLIN, config, problem, gpu=replace(H200, num_sms=2))
        assert result.ok, result.reason


def test_a_tile_wider_than_the_problem_is_a_misfit_in_numbers():
    reasons = [reason for _, reason in feasible(MARLIN, W4A16Problem(1, 64, 192, 64), H200)[1]]
    assert any(re.search("N must be a multiple of tile_n = 128", reason) for reason in reasons)
    assert not any("Error" in reason for reason in reasons)
