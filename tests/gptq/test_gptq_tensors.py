"""A layer's tensors: what is loaded means what was written, and what cannot be is said in words."""

import copy
import pickle
from dataclasses import replace

import gptq_layers as build
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ferrum_numba import GptqTensors, ProblemError
from ferrum_numba.gptq.awq import from_awq, to_awq
from ferrum_numba.gptq.fused import concatenate
from ferrum_numba.gptq.legacy_marlin import from_marlin, to_marlin
from ferrum_numba.reference import marlin_layout

FORMATS = ("gptq", "gptq_v2")
WORDS = st.integers(-(2**31), 2**31 - 1)


def load(layer, checkpoint_format="gptq", *, g_idx=True, name="down_proj", **flags):
    """Return a layer's GPTQ tensors as `make` returns them."""
    flags = {"group_size": layer.group_size, "checkpoint_format": checkpoint_format} | flags
    return GptqTensors.make(name, **layer.gptq(checkpoint_format, g_idx), **flags)


@pytest.mark.parametrize("checkpoint_format", FORMATS)
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_a_layer_means_what_was_written(rng, checkpoint_format, act_order, dtype):
    layer = build.make(rng, act_order=act_order, bias=True, dtype=dtype)
    got = load(layer, checkpoint_format)
    build.check(got, layer)
    assert (got.in_features, got.out_features, got.num_groups) == (64, 64, 2)
    assert (got.symmetric, got.act_order) == (False, act_order)


@pytest.mark.parametrize(
    ("K", "group_size"), [(64, -1), (64, 64), (64, 128), (8, 8), (72, 32), (200, 128)]
)
def test_groups_of_every_size(rng, K, group_size):
    layer = build.make(rng, K, 8, group_size)
    got = load(layer, group_size=group_size)
    build.check(got, layer)
    assert got.group_size == (K if group_size == -1 else min(group_size, K))
    assert got.g_idx is None


@pytest.mark.parametrize("checkpoint_format", FORMATS)
def test_every_code_with_every_zero_point(checkpoint_format):
    codes = np.tile(np.arange(16, dtype=np.uint8)[:, None], (1, 16))
    zeros = np.arange(16, dtype=np.uint8)[None]
    layer = build.Layer(codes, np.ones((1, 16), np.float16), zeros, np.zeros(16, np.int32), 16)
    got = build.weight_of(load(layer, checkpoint_format))
    np.testing.assert_array_equal(got, np.arange(16)[:, None] - np.arange(16)[None])


def test_defect_12_v1_zero_points_of_0_borrow_across_nibbles(rng):
    """Upstream adds 1 to each nibble, which is wrong beside a zero point of 0, and rejects 15."""
    layer = build.make(rng, N=8)
    layer.zeros[:] = [[0, 8, 0, 0, 15, 1, 0, 9], [0, 0, 0, 0, 0, 0, 0, 0]]
    stored = layer.gptq()["qzeros"].view(np.uint32)
    nibbles = stored[..., None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15
    assert not np.array_equal(np.minimum(nibbles + 1, 15).reshape(2, 8), layer.zeros)
    build.check(load(layer), layer)


def test_defect_12_the_checkpoint_format_is_honoured(rng):
    """Upstream never reads it: v2 without sym is off by one."""
    layer = build.make(rng)
    assert not np.array_equal(build.weight_of(load(layer, "gptq_v2")), build.weight_of(
        GptqTensors.make("x", **layer.gptq("gptq_v2"), group_size=32)))  # fmt: skip


@pytest.mark.parametrize("checkpoint_format", FORMATS)
@pytest.mark.parametrize("sym", [False, True])
def test_zero_points_of_8_are_symmetric_in_both_formats(rng, checkpoint_format, sym):
    layer = build.make(rng, sym=True)
    got = load(layer, checkpoint_format, sym=sym)
    build.check(got, layer)
    assert got.qzeros is None


def test_one_zero_point_that_is_not_8_is_kept(rng):
    layer = build.make(rng, sym=True)
    layer.zeros[1, 63] = 9
    build.check(load(layer), layer)
    assert load(layer).qzeros is not None


def test_sym_says_more_than_what_is_stored(rng):
    layer = build.make(rng)
    got = load(layer, sym=True)
    layer.zeros[:] = 8
    build.check(got, layer)


def test_sym_needs_no_qzeros(rng):
    layer = build.make(rng, sym=True)
    tensors = layer.gptq()
    del tensors["qzeros"]
    build.check(GptqTensors.make("x", **tensors, group_size=32, sym=True), layer)


def test_a_g_idx_counts_whatever_desc_act_says(rng):
    layer = build.make(rng, act_order=True)
    build.check(load(layer, desc_act=False), layer)
    ordered = build.make(rng)
    assert load(ordered, desc_act=True).g_idx is None


def test_desc_act_in_one_group_is_none(rng):
    layer = build.make(rng, group_size=-1)
    got = load(layer, group_size=-1, desc_act=True, g_idx=False)
    build.check(got, layer)
    assert not got.act_order


def test_defect_5_one_group_has_one_name(rng):
    """Upstream permutes K == group_size as one group and runs it as many."""
    layer = build.make(rng, 128, 64, 128)
    assert [load(layer, group_size=size).group_size for size in (128, -1, 256)] == [128] * 3


@pytest.mark.parametrize("group_size", [32, 64, -1])
def test_defect_6_small_groups_and_one_group_load(rng, group_size):
    """Upstream loads 32 and 64 and fails at the first GEMM; -1 it cannot load."""
    layer = build.make(rng, 128, 128, group_size)
    build.check(load(layer, group_size=group_size), layer)


@pytest.mark.parametrize(("K", "N"), [(8, 8), (7392, 8), (16, 576), (136, 264)])
def test_defects_8_and_9_shapes_need_not_be_multiples_of_128(rng, K, N):
    """Upstream wants 128 for a dense layer, and for experts checks nothing."""
    layer = build.make(rng, K, N, 8)
    build.check(load(layer), layer)


def test_defect_9_act_order_is_never_dropped(rng):
    """Upstream's raw layout ignores g_idx; here it is part of the layer, or refused."""
    layer = build.make(rng, act_order=True)
    np.testing.assert_array_equal(load(layer).g_idx, layer.group)
    with pytest.raises(ProblemError, match="AWQ holds rows in order; this layer has a g_idx"):
        to_awq(load(layer))


def test_nothing_is_copied(rng):
    tensors = build.make(rng, act_order=True, bias=True).gptq()
    for array in tensors.values():
        array.flags.writeable = False
    got = GptqTensors.make("x", **tensors, group_size=32)
    assert all(getattr(got, name) is array for name, array in tensors.items())


I32, F16 = np.int32, np.float16


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qweight": np.zeros((8, 64), F16)},
         "down_proj: qweight must be [K/8, N] of int32; got [8, 64] float16"),
        ({"qweight": np.zeros(8, I32)}, "qweight must be [K/8, N] of int32; got [8] int32"),
        ({"qweight": np.zeros((0, 64), I32)}, "must be [K/8, N] of int32; got [0, 64] int32"),
        ({"qweight": np.zeros((8, 60), I32)},
         "down_proj: qweight must have a multiple of 8 columns; got [8, 60]"),
        ({"scales": np.zeros((2, 64), np.float64)},
         "down_proj: scales must be float16 or bfloat16 or float32; got float64"),
        ({"scales": np.zeros((2, 32), F16)}, "scales must be [2, 64]; got [2, 32]"),
        ({"scales": np.zeros(64, F16)}, "scales must be [2, 64]; got [64]"),
        ({"scales": np.zeros((4, 64), F16)},
         "down_proj: scales must have 2 rows, one for each 32 of K = 64; got 4"),
        ({"qzeros": None},
         "qzeros are missing; a weight that is not symmetric needs [2, 8] int32"),
        ({"qzeros": np.zeros((2, 64), I32)}, "down_proj: qzeros must be [2, 8]; got [2, 64]"),
        ({"qzeros": np.zeros((2, 8), np.uint8)}, "qzeros must be int32; got uint8"),
        ({"g_idx": np.zeros(63, I32)}, "down_proj: g_idx must be [64]; got [63]"),
        ({"g_idx": np.zeros(64, np.int64)}, "down_proj: g_idx must be int32; got int64"),
        ({"g_idx": np.full(64, 2, I32)}, "down_proj: g_idx must be 0..1; got 2..2"),
        ({"g_idx": np.full(64, -1, I32)}, "down_proj: g_idx must be 0..1; got -1..-1"),
        ({"g_idx": None, "desc_act": True},
         "g_idx is missing; desc_act with 2 groups needs [64] int32"),
        ({"bias": np.zeros(32, F16)}, "down_proj: bias must be [64]; got [32]"),
        ({"bias": np.zeros(64, I32)},
         "down_proj: bias must be float16 or bfloat16 or float32; got int32"),
        ({"group_size": 0}, "down_proj: group_size must be -1 or at least 1; got 0"),
        ({"group_size": 48}, None),
        ({"group_size": 16}, "scales must have 4 rows, one for each 16 of K = 64; got 2"),
        ({"group_size": -1}, "scales must have 1 rows, one for each 64 of K = 64; got 2"),
        ({"checkpoint_format": "marlin"},
         'down_proj: checkpoint format must be "gptq" or "gptq_v2"; got "marlin"'),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(rng, changes, words):
    tensors = build.make(rng, bias=True).gptq(g_idx=False) | {"group_size": 32} | changes
    if words is None:
        # 64 rows in groups of 48: two groups, the second of 16
        assert GptqTensors.make("down_proj", **tensors).num_groups == 2
        return
    with pytest.raises(ProblemError) as error:
        GptqTensors.make("down_proj", **tensors)
    assert words in str(error.value)
    assert str(error.value).startswith("down_proj: ")


def test_the_last_group_of_an_act_order_may_be_smaller(rng):
    layer = build.make(rng, 72, 8, 32, act_order=True)
    build.check(load(layer), layer)


@pytest.mark.parametrize("checkpoint_format", FORMATS)
@pytest.mark.parametrize("kinds", [(True, True), (False, False), (True, False), (False, True)])
def test_a_fused_layer_is_its_parts_side_by_side(rng, checkpoint_format, kinds):
    layers = [build.make(rng, N=n, sym=s, bias=True) for n, s in zip((24, 40), kinds, strict=True)]
    parts = [load(layer, checkpoint_format) for layer in layers]
    got = concatenate(parts, "qkv_proj")
    build.check(got, build.beside(*layers))
    assert (got.name, got.symmetric) == ("qkv_proj", all(kinds))
    assert got.checkpoint_format == checkpoint_format


def test_the_weight_of_a_fused_layer_is_copied_when_it_is_asked_for(rng):
    layers = [build.make(rng, N=8, bias=True) for _ in range(3)]
    parts = [load(layer) for layer in layers]
    got = concatenate([concatenate(parts[:2], "a"), parts[2]], "b")
    assert [id(part) for part in got.weight_parts] == [id(part.qweight) for part in parts]
    assert (got.in_features, got.out_features) == (64, 24)
    whole = replace(got, name="c")
    for one in (got, whole, copy.copy(got), pickle.loads(pickle.dumps(got))):
        build.check(one, build.beside(*layers))
    assert whole.weight_parts == (whole.qweight,)
    with pytest.raises(AttributeError, match="Fused has no weight"):
        _ = got.weight


def test_parts_of_two_formats_fuse(rng):
    layers = [build.make(rng, N=8), build.make(rng, N=8), build.make(rng, N=8, sym=True)]
    parts = [load(layers[0], "gptq"), load(layers[1], "gptq_v2"), load(layers[2], "gptq")]
    build.check(concatenate(parts, "x"), build.beside(*layers))


def test_parts_in_act_order_share_a_g_idx(rng):
    first, second = build.make(rng, act_order=True), build.make(rng, N=8)
    second.group = first.group
    build.check(concatenate([load(first), load(second)], "x"), build.beside(first, second))


@pytest.mark.parametrize("lacking", [(1,), (0,), (0, 2)])
def test_parts_without_a_bias_have_zeros(rng, lacking):
    """q, k and v of which only k has none, and any others."""
    layers = [build.make(rng, N=8, bias=True) for _ in range(3)]
    parts = [load(layer, name=str(i)) for i, layer in enumerate(layers)]
    for i in lacking:
        parts[i] = replace(parts[i], bias=None)
        layers[i].bias[:] = 0
    got = concatenate(parts, "qkv_proj")
    build.check(got, build.beside(*layers))
    assert got.bias.dtype == np.float16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"K": 128}, "fused: its parts must have one K; a has 64, b has 128"),
        ({"group_size": 64}, "fused: its parts must have one group size; a has 32, b has 64"),
        ({"dtype": "bf16"}, "must have one type of scales; a has float16, b has bfloat16"),
        ({"act_order": False},
         "all of its parts must have a g_idx, or none; a has one, b has none"),
        ({"act_order": True}, "fused: its parts must have the same g_idx; a and b differ"),
    ],
    ids=str,
)  # fmt: skip
def test_parts_that_do_not_fit_are_named(rng, change, words):
    first = build.make(rng, act_order="act_order" in change)
    parts = [load(first, name="a"), load(build.make(rng, **change), name="b")]
    with pytest.raises(ProblemError) as error:
        concatenate(parts, "fused")
    assert words in str(error.value)


@pytest.mark.parametrize("group_size", [32, -1])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_awq_means_what_was_written(rng, group_size, dtype):
    layer = build.make(rng, 72, 40, group_size, bias=True, dtype=dtype)
    got = from_awq("x", **layer.awq(), group_size=group_size)
    build.check(got, layer)
    assert got.checkpoint_format == "gptq_v2"
    np.testing.assert_array_equal(got.qzeros, layer.gptq("gptq_v2")["qzeros"])
    back = to_awq(got)
    for name, array in layer.awq().items():
        np.testing.assert_array_equal(back[name], array)


def test_awq_without_zero_points_is_symmetric(rng):
    layer = build.make(rng, sym=True)
    tensors = layer.awq()
    assert from_awq("x", **tensors, group_size=32).symmetric
    back = to_awq(load(layer))
    np.testing.assert_array_equal(back["qzeros"], tensors.pop("qzeros"))
    build.check(from_awq("x", **tensors, group_size=32), layer)


@given(words=arrays(np.int32, (8, 2), elements=WORDS))
def test_any_word_survives_awq(words):
    scales = np.ones((1, 16), np.float16)
    layer = from_awq("x", words, scales, words[:1], group_size=-1)
    for k in range(8):
        for n in range(16):
            nibble = build.AWQ_ORDER.index(n % 8)
            code = int(words[k, n // 8]) >> 4 * nibble & 15
            assert int(layer.qweight[0, n]) >> 4 * k & 15 == code
    np.testing.assert_array_equal(to_awq(layer)["qweight"], words)
    np.testing.assert_array_equal(to_awq(layer)["qzeros"], words[:1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qweight": np.zeros((9, 8), I32)},
         "x: qweight must have a multiple of 8 rows; got [9, 8]"),
        ({"qweight": np.zeros((64, 8), F16)},
         "x: qweight must be [K, N/8] of int32; got [64, 8] float16"),
        ({"qzeros": np.zeros((2, 8), F16)},
         "x: qzeros must be [G, N/8] of int32; got [2, 8] float16"),
        ({"qzeros": np.zeros((2, 4), I32)}, "x: qzeros must be [2, 8]; got [2, 4]"),
        ({"scales": np.zeros((2, 8), F16)}, "x: scales must be [2, 64]; got [2, 8]"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_awq_tensors_that_do_not_fit_are_named(rng, changes, words):
    with pytest.raises(ProblemError) as error:
        from_awq("x", **build.make(rng).awq() | changes, group_size=32)
    assert words in str(error.value)


# more than a block of 16 rows of tiles, and not a whole number of them
@pytest.mark.parametrize(("K", "group_size"), [(16, -1), (64, 32), (288, 32), (64, -1)])
def test_legacy_marlin_both_ways_to_the_bit(rng, K, group_size):
    layer = build.make(rng, K, 128, group_size, sym=True, bias=True)
    stored = layer.marlin()
    np.testing.assert_array_equal(stored["B"], marlin_layout.pack_weight(layer.codes))
    got = from_marlin("x", stored["B"], stored["s"], stored["bias"], group_size=group_size)
    build.check(got, layer)
    back = to_marlin(load(layer, group_size=group_size))
    assert back.keys() == stored.keys()
    for name, array in stored.items():
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ({"sym": False}, "x: a Marlin checkpoint holds zero points of 8; this layer has others"),
        ({"act_order": True}, "a Marlin checkpoint holds rows in order; this layer has a g_idx"),
        ({"N": 72}, "needs K in multiples of 16 and N of 64; got K = 64, N = 72"),
        ({"K": 72, "group_size": 8}, "of 16 and N of 64; got K = 72, N = 64"),
        ({"K": 80}, "needs groups that divide K; got group size 32, K = 80"),
    ],
    ids=str,
)
def test_what_marlin_cannot_hold_is_refused(rng, kind, words):
    layer = build.make(rng, **{"sym": True} | kind)
    with pytest.raises(ProblemError) as error:
        to_marlin(load(layer, name="x"))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"B": np.zeros((4, 192), I32)}, "x: B must have a multiple of 128 columns; got [4, 192]"),
        ({"B": np.zeros((4, 128), F16)}, "x: B must be [K/16, 2*N] of int32; got [4, 128] float16"),
        ({"s": np.zeros((2, 128), F16)}, "x: s must be [G, 64] float16; got [2, 128] float16"),
        ({"s": np.zeros((2, 64), I32)}, "x: s must be [G, 64] float16; got [2, 64] int32"),
        ({"s": np.zeros((3, 64), F16)}, "x: scales must have 2 rows, one for each 32 of K = 64"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_marlin_tensors_that_do_not_fit_are_named(rng, changes, words):
    with pytest.raises(ProblemError) as error:
        from_marlin("x", **build.make(rng, sym=True).marlin() | changes, group_size=32)
    assert words in str(error.value)


@given(
    zeros=arrays(np.uint8, (1, 8), elements=st.integers(0, 15)),
    checkpoint_format=st.sampled_from(FORMATS),
)
def test_any_zero_points_survive(zeros, checkpoint_format):
    layer = build.Layer(
        np.zeros((8, 8), np.uint8), np.ones((1, 8), ml_dtypes.bfloat16), zeros,
        np.zeros(8, np.int32), 8,
    )  # fmt: skip
    build.check(load(layer, checkpoint_format), layer)
