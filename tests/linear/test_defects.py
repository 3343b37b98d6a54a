"""Defects of ferrum-kernels 0.7.7 (and what it vendors) that no other file's tests name.

The others: 5, 6, 9, 11, 14, 15 in test_linear.py, 7 and 8 in test_experts.py, 12 in
test_gptq_tensors.py. Each test shows that here the same case is right.
"""

from dataclasses import replace

import gpu_of_host
import numpy as np
import pytest
from cuda_array import CudaArray
from quantised import assert_close, layer, reference, rows

from ferrum_numba import check
from ferrum_numba.compile import build
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels import LINEAR, PACKED
from ferrum_numba.kernels.marlin.kernel import Marlin
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.launch import Needs, Scratch
from ferrum_numba.linear.experts import ExpertStack
from ferrum_numba.linear.offset import marlin_gemm_with_offset_strided
from ferrum_numba.reference import gptq, marlin_layout

H200 = KNOWN["h200"]
K, N, E = 128, 64, 3
SENTINEL = -9999.0


@pytest.fixture
def gpu(monkeypatch):
    return gpu_of_host.install(monkeypatch)


def experts(num=E, **kind):
    return [layer(K, N, 64, seed=e, name=f"experts.{e}", **kind) for e in range(num)]


def test_defect_1_zero_points_of_experts_are_in_the_order_that_kernels_read(gpu):
    """There a stack's zero points stay in the checkpoint's order, which the kernel misreads."""
    tensors = experts(zeros="gptq")
    stack = ExpertStack.from_gptq(tensors)
    for e, each in enumerate(tensors):
        zeros = gptq.unpack_zero_points(each.qzeros)
        packed = stack.store.operands.get("zero_points", e)
        np.testing.assert_array_equal(packed, marlin_layout.pack_zero_points(zeros))
        # the checkpoint's own order is another
        assert (packed != gptq.pack_zero_points(zeros, "gptq_v2")).any()
        x = rows(3, K)
        assert_close(stack.expert(e)(x), reference(each, x))


def test_defect_2_each_expert_in_act_order_gathers_by_its_own_order(gpu):
    """There the rows of a stack are sorted, and the columns of x never gathered."""
    tensors = experts(act_order=True)
    stack = ExpertStack.from_gptq(tensors)
    for e, each in enumerate(tensors):
        x = rows(5, K)
        want = reference(each, x)
        assert_close(stack.expert(e)(x), want)
        ordered = reference(replace(each, g_idx=None), x)
        assert np.abs(ordered - want).max() > 0.05 * np.abs(want).max()


@pytest.mark.parametrize("M", [65, 100, 127, 200])
def test_defects_3_and_4_all_rows_are_computed_and_put_where_they_belong(gpu, M):
    """There an expert's rows beyond whole 64 are lost, and out's first row is x's."""
    tensors = experts()
    stack = ExpertStack.from_gptq(tensors)
    x = rows(M + 3, K)
    source = CudaArray.of(gpu.device, x)
    out = CudaArray.of(gpu.device, np.full((M + 7, N), SENTINEL, np.float16))
    marlin_gemm_with_offset_strided(0, source, 3, stack.store, out, 5, M, 2 * N, N)
    got = out.read()
    assert_close(got[5 : M + 5], reference(tensors[2], x[3:]))
    assert (got[:5] == SENTINEL).all()
    assert (got[M + 5 :] == SENTINEL).all()


@pytest.mark.parametrize("kernel", PACKED, ids=lambda kernel: kernel.name)
def test_defect_10_a_tile_of_later_rows_starts_at_the_weight_s_first_row(kernel):
    """There the weight's pointer goes back by another stride than it came when rows wrap."""
    problem = W4A16Problem(130, 192, 128, 64)
    small = replace(H200, num_sms=2)
    checked = check.on_interpreter(kernel, kernel.default(problem, small), problem, gpu=small)
    assert checked.ok, checked.reason


def test_defect_13_streams_share_no_scratch_and_no_launch_needs_the_whole_gpu(gpu):
    """There each stream's blocks spin until all of their grid is resident."""
    scratch = Scratch(gpu.device)
    needs = Needs({"partials": 64, "counters": 16})
    first, second = (scratch.addresses(stream, needs) for stream in (5, 6))
    first, second = (set(np.frombuffer(addresses, "<u8")) for addresses in (first, second))
    assert not first & second
    for kernel in LINEAR:
        problem = W4A16Problem(16, 4096, 4096)
        assert not kernel.launch(kernel.default(problem, H200), problem, H200).co_resident


def test_defect_16_copies_are_compiled_for_the_gpu_at_hand():
    """There a guard by architecture sees sm_80 on every GPU: sm_120 got a hint it cannot run."""
    problem = W4A16Problem(1, 4096, 4096)
    binary = build(Marlin(), Marlin().default(problem, KNOWN["rtx5090"]), "sm_120")
    assert ".target sm_120" in binary.ptx
    assert "cp.async.cg" in binary.ptx
    assert "L2::cache_hint" not in binary.ptx


def test_defect_17_a_stack_may_have_any_number_of_experts():
    """There 256 is the most."""
    tensors = experts(300)
    stack = ExpertStack.from_gptq(tensors, device="cpu")
    x = rows(2, K)
    assert_close(stack.expert(299)(x), reference(tensors[299], x))
