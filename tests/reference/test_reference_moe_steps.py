"""The steps around the experts' GEMMs, by hand: route, align, gate, combine."""

import ml_dtypes
import numpy as np
import pytest

from ferrum_numba.reference.moe import (
    align_tokens,
    combine,
    local_experts,
    route_topk,
    silu_mul,
)

INF, NAN = np.inf, np.nan


def routed(row, *args, dtype=np.float32):
    """Return ids and weights of one token as lists."""
    ids, weights = route_topk(np.array([row], dtype), *args)
    assert (ids.dtype, weights.dtype) == (np.int32, np.float32)
    return ids[0].tolist(), weights[0].tolist()


LOG = [float(np.log(p)) for p in (0.1, 0.4, 0.2, 0.3)]


@pytest.mark.parametrize(
    ("scoring", "renormalise", "want"),
    [
        ("softmax", False, [0.4, 0.3]),
        ("softmax", True, [4 / 7, 3 / 7]),
        # sigmoid(log p) = p / (1 + p)
        ("sigmoid", False, [2 / 7, 3 / 13]),
        ("sigmoid", True, [26 / 47, 21 / 47]),
    ],
)
def test_weights_of_known_probabilities(scoring, renormalise, want):
    ids, weights = routed(LOG, 2, scoring, renormalise)
    assert ids == [1, 3]
    assert weights == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("value", [0, 2.5, -INF, INF, NAN])
def test_equal_logits_give_the_smaller_ids(scoring, value):
    ids, weights = routed([value] * 6, 4, scoring)
    assert ids == [0, 1, 2, 3]
    # sigmoid(-inf) is 0, and nothing to divide by
    none = scoring == "sigmoid" and not value > -INF
    assert weights == [0 if none else 0.25] * 4


def test_scores_that_are_rounded_alike_keep_the_order_of_their_logits():
    # both sigmoids are 1 in float32
    assert routed([40, 41, 40.5], 3, "sigmoid")[0] == [1, 2, 0]


def test_zeros_of_both_signs_are_equal_and_nan_comes_last():
    assert routed([-0.0, 0.0, NAN, -5, -INF], 5)[0] == [0, 1, 3, 2, 4]
    assert routed([NAN, 1.0], 2)[1] == [1, 0]


def test_an_infinite_logit_takes_all():
    assert routed([0, INF, 3, INF], 3) == ([1, 3, 2], [0.5, 0.5, 0])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_narrow_logits_are_taken_as_they_are(dtype):
    ids, weights = routed([0.5, 1.5, -1], 1, "sigmoid", False, dtype=dtype)
    assert ids == [1]
    assert weights == pytest.approx([1 / (1 + np.exp(-1.5))], rel=1e-6)


def test_experts_elsewhere_are_dropped():
    ids = np.array([[0, 3], [-1, 4], [2, 7]], np.int32)
    assert local_experts(ids, 4).tolist() == [[0, 3], [-1, -1], [2, -1]]
    # ids 2 and 3 are experts 1 and 0 here
    here = np.array([-1, -1, 1, 0, -1], np.int32)
    assert local_experts(ids, 2, here).tolist() == [[-1, 0], [-1, -1], [1, -1]]
    # a map that names an expert nobody has
    assert local_experts(ids, 1, here).tolist() == [[-1, 0], [-1, -1], [-1, -1]]


def test_a_list_by_hand():
    # expert 0: pair 1; expert 2: pairs 0, 2, 4 to 10; pair 3 is dropped
    ids = np.array([[2, 0], [2, -1], [2, 2], [2, 2], [2, 2], [2, 3]], np.int32)
    found = align_tokens(ids, 3, 8)
    # 12 pairs of 3 experts fill 12 + 21 rows at most
    assert found["expert_ids"].tolist() == [0, 2, 2, -1, -1]
    assert found["block_rows"].tolist() == [1, 8, 1, 0, 0]
    (first, second, third, *unused) = found["sorted_token_ids"].reshape(-1, 8).tolist()
    assert first == [1] + [12] * 7
    assert second == [0, 2, 4, 5, 6, 7, 8, 9]
    assert third == [10] + [12] * 7
    assert unused == [[12] * 8] * 2
    counts = [found[name].tolist() for name in found.dtype.names[:4]]
    assert counts == [[3], [24], [10], [0]]


def test_a_map_sorts_by_the_experts_here():
    ids = np.array([[5, 1], [1, 4]], np.int32)
    here = np.array([-1, 1, -1, -1, -1, 0], np.int32)
    found = align_tokens(ids, 2, 8, here)
    assert found["expert_ids"].tolist()[:3] == [0, 1, -1]
    assert found["block_rows"].tolist()[:3] == [1, 2, 0]
    assert found["sorted_token_ids"].tolist()[:16] == [0] + [4] * 7 + [1, 2] + [4] * 6


def test_gate_and_up_in_runs_and_side_by_side():
    gate, up = np.linspace(-4, 4, 32).reshape(2, 16), np.linspace(1, 3, 32).reshape(2, 16)
    gate, up = gate.astype(np.float16), up.astype(np.float16)
    want = (gate.astype(float) / (1 + np.exp(-gate.astype(float))) * up).astype(np.float16)
    halves = np.concatenate([gate, up], axis=1)
    runs = np.concatenate([gate[:, :8], up[:, :8], gate[:, 8:], up[:, 8:]], axis=1)
    np.testing.assert_array_equal(silu_mul(halves, interleaved=False), want)
    np.testing.assert_array_equal(silu_mul(runs), want)
    assert silu_mul(runs.astype(ml_dtypes.bfloat16)).dtype == ml_dtypes.bfloat16


def test_silu_of_known_gates():
    gate = np.array([0, np.log(3), -np.log(3), 100, -100, NAN, INF, 1], np.float32)
    x = np.concatenate([gate, np.full(8, 2, np.float32)])[None]
    silu = silu_mul(x)[0].astype(float)
    want = [0, 2 * 0.75 * np.log(3), -2 * 0.25 * np.log(3), 200, 0, NAN, INF, 2 / (1 + np.exp(-1))]
    np.testing.assert_allclose(silu, want, rtol=1e-6, atol=1e-30)


IDS = np.array([[1, 0], [-1, 1], [9, 2]], np.int32)
ROWS = np.array([[1], [10], [NAN], [7], [NAN], [NAN]], np.float16)
WEIGHTS = np.array([[0.5, 0.25], [8, 3], [1, 1]], np.float32)


def test_a_token_is_the_sum_of_the_rows_that_somebody_wrote():
    assert combine(ROWS, IDS, WEIGHTS, 2).tolist() == [[3], [21], [0]]
    assert combine(ROWS, IDS, None, 2).tolist() == [[11], [7], [0]]
    shared = np.array([[100], [200], [-0.5]], np.float16)
    assert combine(ROWS, IDS, WEIGHTS, 2, shared).tolist() == [[103], [221], [-0.5]]
    # id 1 alone is here
    here = np.array([-1, 0], np.int32)
    assert combine(ROWS, IDS, WEIGHTS, 1, None, here).tolist() == [[0.5], [21], [0]]


def test_a_sum_is_rounded_once_and_in_the_order_of_the_places():
    # 2048 + 0.75 + 0.75 rounds to 2050 at once, to 2048 step by step
    rows = np.array([[2048], [0.75], [0.75]], np.float16)
    ids = np.zeros((1, 3), np.int32)
    assert combine(rows, ids, np.ones((1, 3), np.float32), 1).tolist() == [[2050]]
    # float32 loses the 1 beside 2**24 unless the two large rows cancel first
    rows = np.array([[4096], [1], [-4096]], np.float16)
    weights = np.array([[4096, 1, 4096]], np.float32)
    assert combine(rows, ids, weights, 1).tolist() == [[0]]
    order = [0, 2, 1]
    assert combine(rows[order], ids, weights[:, order], 1).tolist() == [[1]]
