"""The Op of the int4 GEMM: problems, inputs, work and tolerance."""

from dataclasses import replace

import numpy as np
import pytest

from ferrum_numba.errors import ProblemError
from ferrum_numba.kernels import w4a16
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.kernels.w4a16 import OP, W4A16Problem

FULL = W4A16Problem(3, 64, 256, 32, "gptq", act_order=True, bias=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"M": 0}, r"at least 1; got M = 0, N = 64, K = 256"),
        ({"N": 4}, r"got N = 4, the nearest is 8"),
        ({"M": 65537}, r"M must be at most 65536; got M = 65537"),
        ({"K": 1 << 21}, r"K must be at most 1048576; got K = 2097152"),
        ({"N": 60}, r"N must be a multiple of 8, .* got N = 60, the nearest are 56 and 64"),
        ({"K": 252}, r"K must be a multiple of 8, .* got K = 252, the nearest are 248 and 256"),
        ({"group_size": 264}, r"group_size must be -1 or 1 to K = 256; got 264"),
        ({"group_size": 0}, r"group_size must be -1 or 1 to K = 256; got 0"),
        ({"dtype": "fp32"}, r'dtype must be "fp16" or "bf16"; got "fp32"'),
        ({"zero_points": "awq"}, r'"none", "gptq" or "gptq_v2"; got "awq"'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_problem_is_refused_in_its_own_numbers(fields, message):
    with pytest.raises(ProblemError, match=message):
        replace(FULL, **fields)


def test_one_group_spans_all_rows():
    assert W4A16Problem(1, 64, 256, -1).num_groups == 1
    assert W4A16Problem(1, 64, 256, 256).num_groups == 1
    assert W4A16Problem(1, 64, 256, 32).num_groups == 8


@pytest.mark.parametrize("problem", OP.tests, ids=str)
def test_inputs_have_the_shapes_of_the_op(problem, rng):
    inputs = OP.make_inputs(problem, rng)
    M, N, K, G = problem.M, problem.N, problem.K, problem.num_groups
    half = DTYPES[problem.dtype].type
    want = {"x": (half, (M, K)), "codes": (np.uint8, (K, N)), "scales": (half, (G, N))}
    if problem.zero_points != "none":
        want["zero_points"] = (np.uint8, (G, N))
    if problem.act_order:
        want["g_idx"] = (np.int32, (K,))
    if problem.bias:
        want["bias"] = (half, (N,))
    assert {name: (a.dtype.type, a.shape) for name, a in inputs.items()} == want
    result = OP.reference(problem, inputs)
    assert result.shape == OP.output(problem)[0]
    assert np.isfinite(result).all()


def test_inputs_use_every_code_zero_point_and_group(rng):
    inputs = OP.make_inputs(FULL, rng)
    assert set(np.unique(inputs["codes"])) == set(range(16))
    assert set(np.unique(inputs["zero_points"])) == set(range(16))
    groups, rows = np.unique(inputs["g_idx"], return_counts=True)
    assert groups.tolist() == list(range(8))
    assert set(rows) == {32}
    assert (np.diff(inputs["g_idx"]) < 0).any()


def test_a_sweep_over_rows_shares_one_weight():
    few = OP.make_inputs(FULL, np.random.default_rng(1))
    many = OP.make_inputs(replace(FULL, M=17), np.random.default_rng(1))
    assert few["codes"] is many["codes"]
    assert many["x"].shape == (17, 256)
    other = OP.make_inputs(FULL, np.random.default_rng(2))
    assert (few["codes"] != other["codes"]).any()
    with pytest.raises(ValueError, match="read-only"):
        few["scales"][0] = 0


def test_work_counts_every_operand_once(rng):
    plain = W4A16Problem(3, 64, 256, 32)
    for problem in (plain, FULL, replace(plain, act_order=True), replace(plain, bias=True)):
        inputs = OP.make_inputs(problem, rng)
        # codes and zero points travel two to a byte
        want = sum(a.nbytes // (2 if a.dtype == np.uint8 else 1) for a in inputs.values())
        shape, dtype = OP.output(problem)
        assert OP.work(problem).bytes == want + np.prod(shape) * dtype.itemsize
        assert OP.work(problem).flops == 2 * 3 * 64 * 256


def test_the_reference_of_the_op_uses_every_input(rng):
    inputs = OP.make_inputs(FULL, rng)
    want = OP.reference(FULL, inputs)
    for name in ("zero_points", "g_idx", "bias"):
        rest = {key: array for key, array in inputs.items() if key != name}
        assert not OP.tolerance(FULL).compare(OP.reference(FULL, rest), want).ok


@pytest.mark.parametrize("problem", OP.tests, ids=str)
def test_the_tolerance_passes_two_roundings_and_no_more(problem, rng):
    inputs = OP.make_inputs(problem, rng)
    want = OP.reference(problem, inputs)
    bounds = OP.tolerance(problem)
    assert bounds.compare(rounded_like_a_kernel(problem, inputs), want).ok
    # scales of a group off by 1 % (8 % in bf16), or one of 64 rows of a group left out, is too much
    scales = inputs["scales"].astype(np.float32)
    scales[0] *= 1.01 if problem.dtype == "fp16" else 1.08
    assert not bounds.compare(OP.reference(problem, {**inputs, "scales": scales}), want).ok
    x = inputs["x"].copy()
    x[:, problem.K // 2] = 0
    assert not bounds.compare(OP.reference(problem, {**inputs, "x": x}), want).ok


def rounded_like_a_kernel(problem, inputs):
    """Round every weight to the type of x, sum in fp32, round the result to that type."""
    half = DTYPES[problem.dtype]
    group = inputs.get("g_idx", np.arange(problem.K) // problem.group_rows)
    zeros = inputs["zero_points"][group] if "zero_points" in inputs else 8
    weight = inputs["codes"].astype(np.float32) - zeros
    weight = (weight * inputs["scales"][group].astype(np.float32)).astype(half)
    product = inputs["x"].astype(np.float32) @ weight.astype(np.float32)
    bias = inputs.get("bias", np.zeros(problem.N)).astype(np.float32)
    return (product + bias).astype(half)


def test_problems_lie_on_tile_edges_and_cover_every_kind():
    tests = OP.tests
    assert {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65} <= {p.M for p in tests}
    assert {-1, 32, 64, 128} <= {p.group_size for p in tests}
    assert {p.zero_points for p in tests} == set(w4a16.ZERO_POINTS)
    assert any(p.act_order and p.zero_points == "gptq" and p.bias for p in tests)
    assert any(p.group_size == p.K for p in tests)
    assert any(p.N % 64 and p.K % 16 for p in tests)
    assert {p.dtype for p in tests} == set(DTYPES)
    assert any(p.K % p.group_rows for p in tests)
    # small enough for the interpreter
    assert max(p.M * p.N * p.K for p in tests) <= 2_000_000
