"""Operands of more than 4 GiB, E = 1024 and more than 65,536 pairs, run for real.

Without a GPU the same is asked of the addresses alone: test_far.py.
"""

import numpy as np
import pytest
from cuda_array import CudaArray
from quantised import assert_close, layer, reference, rows, some_columns

from ferrum_numba import check
from ferrum_numba.gptq.tensors import GptqTensors
from ferrum_numba.kernels import GROUPED, MOE
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.kernels.moe.align_tokens import AlignProblem
from ferrum_numba.kernels.moe.combine import CombineProblem
from ferrum_numba.kernels.moe.route_topk import RouteProblem
from ferrum_numba.kernels.moe.silu_mul import SiluProblem
from ferrum_numba.linear.dense import MarlinLinear

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
FOUR_GIB = 1 << 32
# of a result, or a weight: the ends and what a wrapped offset would hit
COLUMNS = 16


def spread(size, count=COLUMNS):
    return np.unique(np.linspace(0, size - 1, count).astype(np.int64))


def large(K, N):
    """Return a layer of random words, made quickly."""
    rng = np.random.default_rng(0)
    qweight = np.frombuffer(rng.bytes(K * N // 2), np.int32).reshape(K // 8, N)
    scales = rng.uniform(0.005, 0.015, (K // 128, N)).astype(np.float16)
    return GptqTensors.make("large", qweight, scales, group_size=128, sym=True)


@pytest.mark.parametrize("store", ["marlin", "raw"])
def test_a_weight_of_more_than_4_gib(device, store):
    """N x K is beyond 2^31 too; rows for each design that is chosen by them."""
    tensors = large(131_072, 73_728)
    assert tensors.qweight.nbytes > FOUR_GIB
    linear = MarlinLinear.from_gptq(tensors, store=store)
    columns = spread(tensors.out_features)
    few = some_columns(tensors, columns)
    for M in (1, 16, 200):
        x = rows(M, tensors.in_features)
        out = CudaArray.of(device, np.full((M, tensors.out_features), np.nan, np.float16))
        linear.forward(CudaArray.of(device, x), out, 0)
        assert_close(out.read()[:, columns], reference(few, x))


@pytest.mark.parametrize("store", ["marlin", "raw"])
@pytest.mark.parametrize(("K", "N"), [(36_864, 256), (128, 36_864)], ids=["x", "out"])
def test_rows_of_more_than_4_gib(device, store, K, N):
    M = 65_536
    assert 2 * M * max(K, N) > FOUR_GIB
    tensors, seen = layer(K, N, 128), spread(M)
    linear = MarlinLinear.from_gptq(tensors, store=store)
    x = np.tile(rows(251, K), (-(-M // 251), 1))[:M]
    out = CudaArray.of(device, np.full((M, N), np.nan, np.float16))
    linear.forward(CudaArray.of(device, x), out, 0)
    columns = spread(N)
    got = out.read()[seen][:, columns]
    assert_close(got, reference(some_columns(tensors, columns), x[seen]))


# E = 1024, and tokens x top_k beyond 65,536
TOKENS, EXPERTS, TOP_K = 9_000, 1024, 8
MANY = [
    *((kernel, GroupedProblem(TOKENS, EXPERTS, TOP_K, 128, 128)) for kernel in GROUPED),
    *zip(
        MOE,
        (
            RouteProblem(TOKENS, EXPERTS, TOP_K),
            AlignProblem(TOKENS, EXPERTS, TOP_K),
            SiluProblem(TOKENS * TOP_K, 128),
            CombineProblem(TOKENS, EXPERTS, TOP_K, 128),
        ),
        strict=True,
    ),
]


@pytest.mark.parametrize(("kernel", "problem"), MANY, ids=lambda value: getattr(value, "name", ""))
def test_many_experts_and_pairs(device, kernel, problem):
    assert kernel.refuses(problem) is None
    found = check.on_gpu(kernel, kernel.default(problem, device.gpu), problem, device)
    assert found.ok, found.reason


@pytest.mark.parametrize("kernel", GROUPED, ids=lambda kernel: kernel.name)
def test_experts_of_more_than_4_gib_together(device, kernel):
    problem = GroupedProblem(3, 160, 2, 8192, 8192)
    assert problem.num_experts * problem.K * problem.N // 2 > FOUR_GIB
    found = check.on_gpu(kernel, kernel.default(problem, device.gpu), problem, device)
    assert found.ok, found.reason
