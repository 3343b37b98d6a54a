"""The top-k experts; that the Op's test problems equal the reference is in test_kernels.py."""

from dataclasses import replace

import numpy as np
import pytest
from moe_runs import H200, assert_close, interpreted, on_device

from ferrum_numba import check
from ferrum_numba.compile import build
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.moe.route_topk import LOGITS, RouteConfig, RouteProblem, RouteTopk

KERNEL = RouteTopk()
KINDS = [
    {"scoring": scoring, "renormalise": renormalise}
    for scoring in ("softmax", "sigmoid")
    for renormalise in (True, False)
]

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str([*kind.values()]))


def routed(logits, top_k, **kind):
    """Return the interpreter's result for [T, E] logits, which is the reference's."""
    logits = np.atleast_2d(np.asarray(logits))
    dtype = next(name for name, dtype in LOGITS.items() if dtype == logits.dtype)
    problem = RouteProblem(*logits.shape, top_k, **kind, dtype=dtype)
    got = interpreted(KERNEL, problem, {"logits": logits})
    assert_close(KERNEL, problem, {"logits": logits}, got)
    return got


@pytest.mark.parametrize("num_experts", [3, 8, 60, 127, 128, 256, 512])
def test_every_number_of_experts_and_of_places(num_experts, rng):
    for top_k in {1, 2, 3, 4, 5, 6, 7, 8, 16} - set(range(num_experts + 1, 17)):
        # few values, so that many are equal
        logits = rng.integers(-4, 5, (1, num_experts)).astype(np.float16)
        ids = routed(logits, top_k)["topk_ids"]
        assert len(set(ids[0].tolist())) == top_k


@each_kind
@pytest.mark.parametrize("value", [0, -2.5, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("num_experts", [5, 100])
def test_equal_logits_give_the_smaller_ids(kind, value, num_experts):
    got = routed(np.full((2, num_experts), value, np.float32), 4, **kind)
    assert got["topk_ids"].tolist() == [[0, 1, 2, 3]] * 2
    assert len(set(got["topk_weights"].ravel().tolist())) == 1


@each_kind
def test_what_is_no_number_comes_last_and_zeros_have_no_sign(kind):
    logits = np.float32([np.nan, -0.0, -5, 0.0, -np.inf, -np.nan, -3e38])
    assert routed(logits, 7, **kind)["topk_ids"].tolist() == [[1, 3, 2, 6, 0, 4, 5]]


def test_scores_that_round_alike_keep_the_order_of_their_logits():
    # sigmoids of all of them are 1, softmaxes of all but the largest 0
    for logits, scoring in (([40, 41, 40.5], "sigmoid"), ([0, 300, 1], "softmax")):
        got = routed(np.float32(logits), 3, scoring=scoring)
        assert got["topk_ids"].tolist() == [[1, 2, 0]]


def test_logits_next_to_each_other_are_told_apart():
    one = np.float32(1)
    logits = np.array([one, np.nextafter(one, 2, dtype="f4"), np.nextafter(one, 0, dtype="f4")])
    assert routed(logits, 3)["topk_ids"].tolist() == [[1, 0, 2]]
    assert routed(-logits, 3)["topk_ids"].tolist() == [[2, 0, 1]]


@each_kind
def test_weights_far_below_the_largest(kind):
    logits = np.float32([[60, 20, 0, -20, -60, -80]])
    got = routed(logits, 6, **kind)["topk_weights"][0].astype(np.float64)
    want = KERNEL.op.reference(RouteProblem(1, 6, 6, **kind, dtype="fp32"), {"logits": logits})
    # each by itself, as a norm would not see it
    np.testing.assert_allclose(got, want["topk_weights"][0], rtol=2e-5)


def test_a_token_does_not_depend_on_the_others(rng):
    logits = rng.standard_normal((9, 60)).astype(np.float32)
    problem = RouteProblem(9, 60, 4, renormalise=False, dtype="fp32")
    all_at_once = interpreted(KERNEL, problem, {"logits": logits}, config_of(problem, 4))
    alone = interpreted(KERNEL, replace(problem, tokens=1), {"logits": logits[6:7]})
    for name in ("topk_ids", "topk_weights"):
        assert all_at_once[name][6].tobytes() == alone[name][0].tobytes()


def config_of(problem, num_warps):
    return KERNEL.specialise(RouteConfig(num_warps), problem)


def test_it_waits_before_it_reads_and_only_then_lets_the_next_begin():
    problem = RouteProblem(1, 128, 8)
    ptx = build(KERNEL, KERNEL.default(problem, H200), "sm_90a").ptx
    order = ("griddepcontrol.wait", "griddepcontrol.launch_dependents", "ld.global", "st.global")
    places = [ptx.index(opcode) for opcode in order]
    assert places == sorted(places)
    assert KERNEL.launch(KERNEL.default(problem, H200), problem, H200).programmatic
    older = KERNEL.default(problem, KNOWN["a100"])
    assert "griddepcontrol" not in build(KERNEL, older, "sm_80").ptx


def test_a_config_is_for_a_number_of_experts_and_a_type():
    problem = RouteProblem(1, 60, 4, dtype="bf16")
    assert KERNEL.default(problem, H200) == RouteConfig(1, True, 2, "bf16")
    assert KERNEL.default(replace(problem, tokens=500), H200).num_warps == 4
    assert KERNEL.misfit(RouteConfig(), problem, H200) == (
        "compiled for logits_per_lane = 4; the problem needs 2"
    )
    early = replace(KERNEL.default(problem, H200))
    assert "needs sm_90 or later" in KERNEL.misfit(early, problem, KNOWN["a100"])
    assert not any(config.programmatic for config in KERNEL.configs(KNOWN["a100"]))


def test_work_is_the_logits_and_the_places():
    assert KERNEL.op.work(RouteProblem(3, 60, 4, dtype="fp32")).bytes == 3 * (60 * 4 + 4 * 8)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((0, 8, 2), "tokens must be 1 to 65536; got 0"),
        ((1, 1025, 2), "num_experts must be 1 to 1024; got 1025"),
        ((1, 8, 9), "no more than the experts; got top_k = 9, num_experts = 8"),
        ((1, 32, 17), "top_k must be 1 to 16, .*; got top_k = 17"),
        ((1, 8, 2, "tanh"), 'scoring must be "softmax" or "sigmoid"; got "tanh"'),
        ((1, 8, 2, "softmax", True, "fp8"), 'dtype must be "fp16", "bf16" or "fp32"; got "fp8"'),
    ],
)
def test_what_is_no_routing_is_refused(sizes, words):
    with pytest.raises(ProblemError, match=words):
        RouteProblem(*sizes)
    with pytest.raises(ConfigError, match="num_warps must be 1 to 32; got num_warps = 0"):
        RouteConfig(0)


# the third has more than 65536 pairs
SIZES = ((16, 128, 8), (4099, 60, 4), (8200, 256, 8), (300, 1024, 16))


@pytest.mark.gpu
@each_kind
@pytest.mark.parametrize("dtype", LOGITS)
def test_a_hundred_runs_on_gpu(dtype, kind, device):
    for sizes in SIZES:
        problem = RouteProblem(*sizes, **kind, dtype=dtype)
        config = KERNEL.default(problem, device.gpu)
        checked = check.on_gpu(KERNEL, config, problem, device, repeats=100)
        assert checked.ok, checked.reason


@pytest.mark.gpu
@each_kind
def test_strange_logits_on_gpu(kind, device, rng):
    values = np.float32([np.nan, np.inf, -np.inf, 0, -0.0, 1, -1, 1e-40, -1e-40, 3e38, -3e38])
    problem = RouteProblem(500, 130, 16, **kind, dtype="fp32")
    # with few of a kind the largest are finite in some rows
    logits = rng.choice(values[rng.permutation(11)[:4]], (500, 130))
    logits[250:] = np.where(logits[250:] == np.inf, 2, logits[250:])
    got = on_device(KERNEL, problem, {"logits": logits}, device)
    assert_close(KERNEL, problem, {"logits": logits}, got)
