"""Any g_idx: one that says nothing, rows of a layer with all of its scales, groups of any size."""

import gptq_layers as build
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferrum_numba import GptqTensors, ProblemError
from ferrum_numba.gptq import groups


def sliced(layer, rows, **flags):
    """Return some rows of a layer with all of its scales, as tensor parallelism cuts them."""
    tensors = layer.gptq()
    words = slice(rows.start // 8, rows.stop // 8)
    parts = {"qweight": tensors["qweight"][words], "g_idx": layer.group[rows]}
    flags = {"group_size": layer.group_size} | flags
    return GptqTensors.make("down_proj", **tensors | parts, **flags)


@pytest.mark.parametrize("flags", [{}, {"desc_act": False}])
def test_a_g_idx_of_zeros_is_none(rng, flags):
    layer = build.make(rng, 128)
    tensors = layer.gptq() | {"g_idx": np.zeros(128, np.int32)}
    got = GptqTensors.make("x", **tensors, group_size=32, **flags)
    build.check(got, layer)
    assert not got.act_order


def test_a_g_idx_of_zeros_is_refused_where_an_order_is_needed(rng):
    tensors = build.make(rng, 128).gptq() | {"g_idx": np.zeros(128, np.int32)}
    words = "x: g_idx is 0 for all of K = 128; desc_act with groups of 32 rows needs the group of"
    with pytest.raises(ProblemError, match=words):
        GptqTensors.make("x", **tensors, group_size=32, desc_act=True)


@pytest.mark.parametrize("desc_act", [True, False])
@pytest.mark.parametrize("rows", [slice(0, 256), slice(256, 512)])
def test_rows_of_an_act_order_layer_keep_its_scales(rng, rows, desc_act):
    """K = 256 of 512, four groups of which each half has some rows: is_k_full = False."""
    layer = build.make(rng, 512, 64, 128, act_order=True)
    got = sliced(layer, rows, desc_act=desc_act)
    np.testing.assert_array_equal(build.weight_of(got), layer.weight[rows])
    np.testing.assert_array_equal(got.scales, layer.scales)
    assert (got.group_size, got.num_groups, got.act_order) == (64, 4, True)


def test_rows_of_an_ordered_layer_need_their_own_scales_only(rng):
    layer = build.make(rng, 512, 64, 128)
    for rows in (slice(0, 256), slice(256, 512), slice(384, 512)):
        got = sliced(layer, rows)
        np.testing.assert_array_equal(build.weight_of(got), layer.weight[rows])
        assert (got.group_size, got.act_order) == (128, False)
        assert got.num_groups == (rows.stop - rows.start) // 128


@pytest.mark.parametrize("rows", [slice(64, 320), slice(8, 16), slice(120, 136), slice(0, 8)])
@pytest.mark.parametrize("act_order", [False, True])
def test_rows_that_begin_inside_a_group(rng, rows, act_order):
    layer = build.make(rng, 512, 64, 128, act_order=act_order)
    got = sliced(layer, rows)
    np.testing.assert_array_equal(build.weight_of(got), layer.weight[rows])


@given(data=st.data())
def test_any_group_of_any_row(data):
    """As many scales as there are groups, whatever rows are in them."""
    K, G = 8 * data.draw(st.integers(1, 6)), data.draw(st.integers(1, 60))
    group_size = data.draw(st.integers(1, K))
    rng = np.random.default_rng(K * G)
    layer = build.make(rng, 8 * G, 8, 8)
    layer.group = np.array(
        data.draw(st.lists(st.integers(0, G - 1), min_size=K, max_size=K)), np.int32
    )
    layer.codes = layer.codes[:8].repeat(K // 8, axis=0)
    if layer.group.any():
        got = GptqTensors.make("x", **layer.gptq(), group_size=group_size)
        np.testing.assert_array_equal(build.weight_of(got), layer.weight)
        assert got.num_groups == -(-K // got.group_size)


def test_experts_cut_alike_are_alike(rng):
    """Which groups their rows are in differs; a stack needs one group size."""
    layers = [build.make(rng, 512, 8, 128, act_order=True) for _ in range(4)]
    layers[3].group = np.repeat(np.array([0, 1, 1, 3], np.int32), 128)
    got = [sliced(layer, slice(64, 264)) for layer in layers]
    assert {(each.group_size, each.num_groups) for each in got} == {(50, 4)}


def test_which_group_is_uneven():
    assert groups.uneven(np.array([1, 0, 0, 1, 2], np.int32), 3, 2) is None
    said = groups.uneven(np.array([1, 0, 1, 1, 2], np.int32), 3, 2)
    assert said == "group 0 has 1 rows, not 2"
