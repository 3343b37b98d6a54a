"""The weighted sum; that the Op's test problems equal the reference is in test_kernels.py."""

from dataclasses import replace

import numpy as np
import pytest
from moe_runs import H200, assert_close, interpreted, on_device

from ferrum_numba import check
from ferrum_numba.compile import build
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.kernels.moe.combine import Combine, CombineConfig, CombineProblem

KERNEL = Combine()

each_type = pytest.mark.parametrize("dtype", DTYPES)


def combined(rows, ids, num_experts, dtype="fp16", **others):
    """Return the interpreter's sums of [pairs, 8] rows; others: weights, shared, map."""
    inputs = {"rows": np.asarray(rows).astype(DTYPES[dtype]), "ids": np.asarray(ids, np.int32)}
    inputs |= others
    tokens, top_k = inputs["ids"].shape
    problem = CombineProblem(
        tokens, num_experts, top_k, inputs["rows"].shape[1], weighted="topk_weights" in others,
        shared="shared" in others, num_ids=len(others.get("expert_map", ())), dtype=dtype,
    )  # fmt: skip
    got = interpreted(KERNEL, problem, inputs)
    assert_close(KERNEL, problem, inputs, got)
    return got


def eight(*values):
    """Return rows of 8 equal numbers."""
    return np.repeat(np.float32(values)[:, None], 8, axis=1)


@each_type
def test_rows_that_nobody_wrote_are_left_out(dtype):
    nan = np.nan
    rows, ids = eight(1, 10, nan, 7, nan, nan), [[1, 0], [-1, 1], [9, 2]]
    # a weight of nobody's row may be anything, too
    weights = np.float32([[0.5, 0.25], [nan, 3], [nan, np.inf]])
    got = combined(rows, ids, 2, dtype, topk_weights=weights)
    assert got[:, 0].astype(float).tolist() == [3, 21, 0]
    assert combined(rows, ids, 2, dtype)[:, 7].astype(float).tolist() == [11, 7, 0]
    shared = eight(100, 200, -0.5).astype(DTYPES[dtype])
    got = combined(rows, ids, 2, dtype, shared=shared)
    assert got[:, 0].astype(float).tolist() == [111, 207, -0.5]
    here = np.int32([-1, 0, 5])
    assert combined(rows, ids, 1, dtype, expert_map=here)[:, 0].astype(float).tolist() == [1, 7, 0]


@each_type
def test_every_column_is_summed_by_itself(dtype):
    rows = np.arange(4 * 24).reshape(4, 24) % 32
    got = combined(rows, [[0, 1], [1, 0]], 2, dtype).astype(float)
    np.testing.assert_array_equal(got, rows[::2] + rows[1::2])


def test_sums_are_in_the_order_of_the_places_and_rounded_once():
    ids, ones = [[2, 0, 1]], np.ones((1, 3), np.float32)
    assert combined(eight(2048, 0.75, 0.75), ids, 3, topk_weights=ones)[0, 0] == 2050
    # float32 loses the 1 beside 2**24, unless the two large rows cancel first
    large = np.float32([[4096, 1, 4096]])
    assert combined(eight(4096, 1, -4096), ids, 3, topk_weights=large)[0, 0] == 0
    other = np.float32([[4096, 4096, 1]])
    assert combined(eight(4096, -4096, 1), ids, 3, topk_weights=other)[0, 0] == 1


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 5, 6, 7, 8, 16])
def test_every_number_of_places(top_k, rng):
    problem = CombineProblem(3, 60, top_k, 16, dropped=True)
    inputs = KERNEL.op.make_inputs(problem, rng)
    assert_close(KERNEL, problem, inputs, interpreted(KERNEL, problem, inputs))


def test_a_token_does_not_depend_on_the_others(rng):
    problem = CombineProblem(5, 60, 4, 72, shared=True, dropped=True)
    inputs = KERNEL.op.make_inputs(problem, rng)
    alone = {name: array[3:4] for name, array in inputs.items()} | {"rows": inputs["rows"][12:16]}
    got = interpreted(KERNEL, replace(problem, tokens=1), alone)
    assert got[0].tobytes() == interpreted(KERNEL, problem, inputs)[3].tobytes()


def test_a_routing_is_read_before_it_waits_and_rows_after_it():
    config = KERNEL.default(CombineProblem(4, 128, 8, 2048), H200)
    ptx = build(KERNEL, config, "sm_90a").ptx
    wait = ptx.index("griddepcontrol.wait")
    assert ptx.index("ld.global.u32") < ptx.index("ld.global.f32") < wait
    assert wait < ptx.index("griddepcontrol.launch_dependents") < ptx.index("ld.global.v4.u32")
    # eight rows, each if somebody wrote it, and that of shared
    assert ptx.count("ld.global.v4.u32") == 9
    assert ptx.count("st.global.v4.u32") == 1


def test_blocks_share_the_columns_evenly():
    def num_threads(tokens, columns):
        return KERNEL.default(CombineProblem(tokens, 8, 2, columns), H200).num_threads

    assert [num_threads(1, columns) for columns in (2048, 2880, 64)] == [64, 64, 32]
    assert [num_threads(4096, columns) for columns in (2048, 2880, 7168)] == [128, 128, 128]


def test_a_config_is_for_one_top_k_and_type():
    problem = CombineProblem(1, 8, 2, 64, dtype="bf16")
    assert KERNEL.misfit(CombineConfig(dtype="bf16"), problem, H200) == (
        "compiled for top_k = 8; the problem needs 2"
    )
    assert KERNEL.default(problem, H200) == CombineConfig(32, True, 2, "bf16")


def test_work_is_the_rows_that_are_read_and_the_routing():
    plain = CombineProblem(4, 16, 2, 64)
    row_bytes, pairs = 2 * 64, 8
    assert KERNEL.op.work(plain).bytes == (8 + 4) * row_bytes + 8 * pairs
    shared = replace(plain, shared=True, weighted=False)
    assert KERNEL.op.work(shared).bytes == (8 + 4 + 4) * row_bytes + 4 * pairs
    # a quarter of the experts are here
    mapped = replace(plain, num_ids=64)
    assert KERNEL.op.work(mapped).bytes == (2 + 4) * row_bytes + 8 * pairs + 4 * 64


def test_bad_sizes_are_refused():
    with pytest.raises(ProblemError, match="columns must be a multiple of 8 up to 1048576; got 60"):
        CombineProblem(1, 8, 2, 60)
    with pytest.raises(ProblemError, match="got top_k = 9, of 8 ids"):
        CombineProblem(1, 8, 9, 64)
    with pytest.raises(ProblemError, match='dtype must be "fp16" or "bf16"; got "fp32"'):
        CombineProblem(1, 8, 2, 64, dtype="fp32")
    with pytest.raises(ConfigError, match="got num_threads = 0"):
        CombineConfig(0)


@pytest.mark.gpu
@each_type
def test_a_hundred_runs_on_gpu(dtype, device):
    for problem in (
        CombineProblem(1, 128, 8, 2048, dtype=dtype),
        CombineProblem(256, 8, 2, 4096, shared=True, dropped=True, dtype=dtype),
        CombineProblem(300, 32, 8, 7168, num_ids=256, dtype=dtype),
        CombineProblem(8200, 60, 8, 72, weighted=False, dropped=True, dtype=dtype),
    ):
        config = KERNEL.default(problem, device.gpu)
        checked = check.on_gpu(KERNEL, config, problem, device, repeats=100)
        assert checked.ok, checked.reason


@pytest.mark.gpu
def test_a_token_does_not_depend_on_the_others_on_gpu(device, rng):
    problem = CombineProblem(300, 60, 8, 2048, dropped=True)
    inputs = KERNEL.op.make_inputs(problem, rng)
    whole = on_device(KERNEL, problem, inputs, device)
    for token in (0, 131, 299):
        alone = {name: array[token : token + 1] for name, array in inputs.items()}
        alone["rows"] = inputs["rows"][8 * token : 8 * token + 8]
        got = on_device(KERNEL, replace(problem, tokens=1), alone, device)
        assert got[0].tobytes() == whole[token].tobytes()
