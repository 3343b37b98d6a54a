"""The operands of the packed layout: padding, order of rows, and that nothing else changes."""

import numpy as np
import pytest

from ferrum_numba.kernels import PACKED
from ferrum_numba.kernels.shared import packed
from ferrum_numba.kernels.w4a16 import OP, W4A16Problem
from ferrum_numba.reference import marlin_layout


@pytest.mark.parametrize(
    ("K", "N", "group_size", "shape"),
    [
        (4096, 14336, 128, (4096, 14336)),
        (7392, 576, 128, (7424, 576)),
        (7392, 151936, 32, (7424, 151936)),
        (192, 136, 192, (192, 192)),
        (200, 8, -1, (256, 64)),
        (192, 64, 128, (256, 64)),
        (96, 64, 32, (128, 64)),
    ],
)
def test_a_shape_is_padded_to_whole_tiles_and_groups(K, N, group_size, shape):
    assert packed.padded_shape(K, N, group_size) == shape


def test_a_shape_that_divides_is_marlin_s_bit_for_bit(rng):
    problem = W4A16Problem(1, 128, 256, 64, "gptq", bias=True)
    inputs = OP.make_inputs(problem, rng)
    got = packed.pack_operands(problem, inputs)
    want = {
        "packed": marlin_layout.pack_weight(inputs["codes"]),
        "scales": marlin_layout.permute_scales(inputs["scales"], grouped=True),
        "zero_points": marlin_layout.pack_zero_points(inputs["zero_points"]),
        "bias": marlin_layout.permute_scales(inputs["bias"][None], grouped=False)[0],
    }
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_padding_is_a_weight_of_zero(dtype, rng):
    problem = W4A16Problem(1, 72, 200, 64, "gptq_v2", bias=True, dtype=dtype)
    inputs = OP.make_inputs(problem, rng)
    got = packed.pack_operands(problem, inputs)
    codes = marlin_layout.unpack_weight(got["packed"])
    assert codes.shape == (256, 128)
    np.testing.assert_array_equal(codes[:200, :72], inputs["codes"])
    scales = marlin_layout.unpermute_scales(got["scales"], grouped=True)
    np.testing.assert_array_equal(scales[:, :72], inputs["scales"])
    assert not scales[:, 72:].any()
    assert (codes[200:] == 8).all()
    zeros = marlin_layout.unpack_zero_points(got["zero_points"])
    np.testing.assert_array_equal(zeros[:, :72], inputs["zero_points"])
    bias = marlin_layout.unpermute_scales(got["bias"][None], grouped=False)[0]
    np.testing.assert_array_equal(bias[:72], inputs["bias"])
    assert not bias[72:].any()


def test_rows_in_act_order_are_sorted_by_group_and_stable(rng):
    problem = W4A16Problem(1, 64, 128, 32, act_order=True)
    inputs = OP.make_inputs(problem, rng)
    got = packed.pack_operands(problem, inputs)
    perm = got["perm"]
    groups = inputs["g_idx"][perm]
    np.testing.assert_array_equal(groups, problem.ordered_groups)
    assert all((np.diff(perm[groups == group]) > 0).all() for group in range(4))
    np.testing.assert_array_equal(marlin_layout.unpack_weight(got["packed"]), inputs["codes"][perm])


@pytest.mark.parametrize("kernel", PACKED, ids=lambda kernel: kernel.name)
def test_every_kernel_takes_the_same_operands(kernel, rng):
    """One packed weight serves them all, so a layer need not know which will run."""
    problem = W4A16Problem(3, 192, 192, 128, "gptq", bias=True)
    inputs = OP.make_inputs(problem, rng)
    operands = kernel.prepare(problem, inputs)
    np.testing.assert_array_equal(operands.pop("x"), inputs["x"])
    want = packed.pack_operands(problem, inputs)
    assert operands.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(operands[name], array)
