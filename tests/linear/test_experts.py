"""Stacks of experts: views, offsets, rows from and to anywhere, and what they are refused for.

Tests that name a defect hold against ferrum-kernels 0.7.7, whose functions these are.
"""

import gc
import re
from dataclasses import replace

import gpu_of_host
import numpy as np
import pytest
from cuda_array import CudaArray
from quantised import assert_close, layer, reference, rows

import ferrum_numba
from ferrum_numba.errors import LaunchError, ProblemError
from ferrum_numba.gptq.repack import marlin_weight
from ferrum_numba.launch import Graph
from ferrum_numba.linear.choice import readers
from ferrum_numba.linear.dense import MarlinLinear
from ferrum_numba.linear.experts import ExpertStack, MarlinStackedExpertLinear
from ferrum_numba.linear.offset import (
    marlin_gemm_with_offset,
    marlin_gemm_with_offset_strided,
    marlin_gemm_with_perm,
)

STORES = ("marlin", "raw")
DEVICES = ("cpu", "cuda")
K, N, E = 128, 64, 3
SENTINEL = -9999.0


@pytest.fixture
def gpu(monkeypatch):
    return gpu_of_host.install(monkeypatch)


def experts(K=K, N=N, group_size=64, E=E, **kind):
    return [layer(K, N, group_size, seed=e, name=f"experts.{e}.down_proj", **kind)
            for e in range(E)]  # fmt: skip


PLAIN = experts()
STACKS = {
    "symmetric": PLAIN,
    "asymmetric": experts(zeros="gptq", bias=True),
    "act-order": experts(act_order=True),
    "one group": experts(group_size=-1, zeros="gptq_v2"),
    "N = 72, K = 104": experts(104, 72, 64, zeros="gptq", act_order=True),
    "mixed": [
        layer(K, N, 64, seed=0, name="experts.0"),
        layer(K, N, 64, seed=1, name="experts.1", zeros="gptq_v2"),
        layer(K, N, 64, seed=2, name="experts.2", act_order=True),
        layer(K, N, 64, seed=3, name="experts.3", zeros="gptq"),
    ],
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("kind", STACKS)
def test_every_expert_is_its_own_layer(gpu, kind, store, device):
    """Defects 1 and 2: there zero points are in an order that the kernel does not read, and an
    expert in act-order has its rows permuted and not its activations."""
    stack = ExpertStack.from_gptq(STACKS[kind], device=device, store=store)
    assert (len(stack), stack.num_experts) == (len(STACKS[kind]),) * 2
    x = rows(2, stack.in_features)
    for e, tensors in enumerate(STACKS[kind]):
        expert = stack.expert(e)
        assert (expert.expert, expert.out_features) == (e, stack.out_features)
        assert_close(expert(x), reference(tensors, x))


@pytest.mark.parametrize("store", STORES)
def test_the_experts_slabs_are_their_own_stores_one_after_the_other(store):
    """There, repacking the experts side by side along N mixes them."""
    stack = ExpertStack.from_gptq(STACKS["asymmetric"], device="cpu", store=store)
    for e, tensors in enumerate(STACKS["asymmetric"]):
        alone = MarlinLinear.from_gptq(tensors, device="cpu", store=store).store
        assert set(stack.store.operands) == set(alone.operands)
        for name in alone.operands:
            np.testing.assert_array_equal(
                stack.store.operands.get(name, e), alone.operands.get(name, 0)
            )


def test_experts_packed_side_by_side_are_others():
    stack = ExpertStack.from_gptq(PLAIN, device="cpu")
    packed = [stack.store.operands.get("packed", e) for e in range(E)]
    joined = marlin_weight(np.concatenate([tensors.qweight for tensors in PLAIN], axis=1))
    assert (joined.reshape(-1) != np.concatenate(packed).reshape(-1)).mean() > 0.5


@pytest.mark.parametrize("store", STORES)
def test_the_host_s_stack_equals_its_experts(store):
    """Rows 22 and 37 of the features: E = 4, K = 256, N = 128, groups of 128, M = 2."""
    tensors = experts(256, 128, 128, E=4)
    stack = ExpertStack.from_gptq(tensors, device="cpu", store=store)
    x = rows(2, 256)
    for e in range(4):
        alone = MarlinLinear.from_gptq(tensors[e], device="cpu", store=store)(x)
        np.testing.assert_array_equal(stack.expert(e)(x), alone)
        assert np.abs(alone - reference(tensors[e], x)).max() < 1e-3


def test_one_buffer_an_operand_and_a_view_costs_nothing(gpu):
    stack = ExpertStack.from_gptq(STACKS["asymmetric"])
    memory = sum(m.nbytes - 256 for m in gpu.host.memory.values())
    assert memory == stack.store.operands.size_bytes
    assert len(gpu.host.memory) == len(list(stack.store.operands))
    allocated = list(gpu.host.allocated)
    views = [stack.expert(e) for e in range(E)]
    assert gpu.host.allocated == allocated
    del stack
    gc.collect()
    assert gpu.host.memory
    del views
    gc.collect()
    assert gpu.host.memory == {}


@pytest.mark.parametrize("index", ["0", None, 0.0, True, -1, E])
def test_what_is_no_number_of_an_expert_is_named(gpu, index):
    stack = ExpertStack.from_gptq(STACKS["asymmetric"])
    with pytest.raises(ProblemError, match=rf"expert must be 0\.\.{E - 1}; got {index!r}$"):
        stack.expert(index)
    assert stack.expert(np.int64(1)).expert == 1


def test_experts_are_taken_one_after_the_other(gpu):
    """No more than one of them is held beside the stack."""
    alive = []

    def stream():
        for tensors in PLAIN:
            assert len(gpu.host.memory) == (3 if alive else 0)
            alive.append(tensors.name)
            yield tensors

    stack = ExpertStack.from_gptq(stream(), E)
    assert alive == [tensors.name for tensors in PLAIN]
    # the words on their way to be packed had one buffer, which is gone
    assert gpu.host.allocated.count(PLAIN[0].qweight.nbytes) == 1
    assert len(gpu.host.memory) == len(list(stack.store.operands)) == 2
    del stack


def test_experts_without_a_length_are_counted():
    assert len(ExpertStack.from_gptq(iter(PLAIN), device="cpu")) == E


def differing(**change):
    return [PLAIN[0], replace(PLAIN[1], **change)]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([PLAIN[0], layer(K, 72, 64, name="other")],
         "other: all experts of a stack must have the same N; experts.0.down_proj has 64, "
         "this one 72"),
        ([PLAIN[0], layer(192, N, 64, name="other")],
         "other: all experts of a stack must have the same K; experts.0.down_proj has 128, "
         "this one 192"),
        ([PLAIN[0], layer(K, N, 32, name="other")],
         "other: all experts of a stack must have the same group_size; experts.0.down_proj has "
         "64, this one 32"),
        ([PLAIN[0], layer(K, N, 64, bias=True, name="other")],
         "other: all experts of a stack must have the same bias; experts.0.down_proj has False, "
         "this one True"),
        ([], "a stack needs one expert at least; got none"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("store", STORES)
def test_experts_must_be_alike_and_nothing_is_left(gpu, store, tensors, message):
    with pytest.raises(ProblemError, match=re.escape(message)):
        ExpertStack.from_gptq(tensors, store=store)
    assert gpu.host.memory == {}


def test_a_later_expert_that_cannot_be_packed_is_named(gpu):
    g_idx = np.repeat(np.arange(2, dtype=np.int32), 64)
    g_idx[0] = 1
    message = (
        "experts.1.down_proj: the packed layout needs groups of one size; by g_idx group 0 has 63"
    )
    with pytest.raises(ProblemError, match=message):
        ExpertStack.from_gptq(differing(g_idx=g_idx))
    assert gpu.host.memory == {}


@pytest.mark.parametrize(("num_experts", "got"), [(2, "got 3"), (4, "got 3")])
def test_another_number_of_experts_than_was_said(gpu, num_experts, got):
    message = f"a stack of {num_experts} experts was asked for; {got}"
    with pytest.raises(ProblemError, match=message):
        ExpertStack.from_gptq(iter(PLAIN), num_experts)
    assert gpu.host.memory == {}


def test_the_environment_gives_raw_stacks_that_work(monkeypatch):
    """There, FERRUM_TRITON_INT4=1 is an error for a stack, and a panic for one of its experts."""
    monkeypatch.setenv("FERRUM_TRITON_INT4", "1")
    stack = ExpertStack.from_gptq(PLAIN, device="cpu")
    assert stack.store.kind == "raw"
    x = rows(1, K)
    assert_close(stack.expert(2)(x), reference(PLAIN[2], x))


def test_a_stack_whose_columns_fill_no_tile(gpu):
    """Defect 8: there a stack's sizes are not checked; here they are padded."""
    tensors = experts(72, 40, 64)
    stack = ExpertStack.from_gptq(tensors, store="marlin")
    x = rows(17, 72)
    for e in range(E):
        assert_close(stack.expert(e)(x), reference(tensors[e], x))


# offsets


SIZES = "the stack has 3 experts of N = 64, K = 128"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-64, 64, 128), "expert_offset is out of range; got expert_offset = -64, expert_n = 64, "
                         f"k = 128; {SIZES}"),
        ((192, 64, 128), f"out of range; got expert_offset = 192, expert_n = 64, k = 128; {SIZES}"),
        ((1 << 62, 64, 128), "out of range; got expert_offset = 4611686018427387904"),
        ((32, 64, 128), "expert_offset must be a multiple of expert_n; got expert_offset = 32, "
                        f"expert_n = 64, k = 128; {SIZES}"),
        ((127, 64, 128), "must be a multiple of expert_n; got expert_offset = 127"),
        ((0, 32, 128), "expert_n must be the stack's N; got expert_offset = 0, expert_n = 32, "
                       f"k = 128; {SIZES}"),
        ((0, 0, 128), "expert_n must be the stack's N; got expert_offset = 0, expert_n = 0"),
        ((0, 192, 128), "expert_n must be the stack's N; got expert_offset = 0, expert_n = 192"),
        ((0, 64, 64), "k must be the stack's K; got expert_offset = 0, expert_n = 64, k = 64; "
                      f"{SIZES}"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("store", STORES)
def test_an_offset_that_names_no_expert_is_refused(store, arguments, message):
    """Defect 7: there a multiple of 64 inside an expert runs that expert, from its start."""
    stack = ExpertStack.from_gptq(PLAIN, device="cpu", store=store)
    with pytest.raises(ProblemError, match=f"experts.0.down_proj: .*{re.escape(message)}"):
        MarlinStackedExpertLinear(stack.store, *arguments)
    if arguments[2] == 128:
        with pytest.raises(ProblemError, match=re.escape(message.split(", k = ")[0])):
            marlin_gemm_with_offset(0, None, stack.store, None, 1, *arguments[:2])


@pytest.mark.parametrize("index", [-1, 3])
def test_an_expert_beyond_the_stack(index):
    stack = ExpertStack.from_gptq(PLAIN, device="cpu")
    with pytest.raises(ProblemError, match=f"expert must be 0..2; got {index}"):
        stack.expert(index)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("store", STORES)
def test_an_expert_by_its_offset_with_a_bias_of_its_own(gpu, store, device):
    bias = np.random.default_rng(5).standard_normal(N).astype(np.float32)
    x = rows(2, K)
    for kind in ("symmetric", "asymmetric"):
        stack = ExpertStack.from_gptq(STACKS[kind], device=device, store=store)
        expert = MarlinStackedExpertLinear(stack.store, 2 * N, N, K, bias)
        want = replace(STACKS[kind][2], bias=bias.astype(np.float16))
        assert_close(expert(x), reference(want, x))
        np.testing.assert_array_equal(expert.bias, bias.astype(np.float16))
        # the others keep what they have
        assert_close(stack.expert(2)(x), reference(STACKS[kind][2], x))


@pytest.mark.parametrize("bias", [np.zeros(63), np.zeros((1, N)), np.full(N, np.nan)])
def test_a_wrong_bias_is_refused_when_the_expert_is_made(bias):
    stack = ExpertStack.from_gptq(PLAIN, device="cpu")
    with pytest.raises(ProblemError, match=r"expert 1 of the stack of experts.0.\w+: bias must be"):
        MarlinStackedExpertLinear(stack.store, N, N, K, bias)


def test_a_dense_weight_is_a_stack_of_one():
    store = MarlinLinear.from_gptq(PLAIN[0], device="cpu").store
    x = rows(2, K)
    assert_close(MarlinStackedExpertLinear(store, 0, N, K)(x), reference(PLAIN[0], x))


# the functions


def arrays_on(gpu, device, *values):
    return values if device == "cpu" else tuple(gpu.array(v) for v in values)


def read(array):
    return array if isinstance(array, np.ndarray) else array.read()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("kind", ["asymmetric", "act-order"])
def test_rows_outside_are_not_touched(gpu, kind, store, device):
    stack = ExpertStack.from_gptq(STACKS[kind], device=device, store=store)
    inputs = rows(9, K)
    x, out = arrays_on(gpu, device, inputs, np.full((8, N), SENTINEL, np.float16))
    marlin_gemm_with_offset_strided(0, x, 5, stack.store, out, 2, 3, 2 * N, N)
    got = read(out)
    assert_close(got[2:5], reference(STACKS[kind][2], inputs[5:8]))
    assert (np.delete(got, range(2, 5), axis=0) == SENTINEL).all()
    marlin_gemm_with_offset(0, x, stack.store, out, 2, N, N)
    got = read(out)
    assert_close(got[:2], reference(STACKS[kind][1], inputs[:2]))
    assert (got[5:] == SENTINEL).all()


@pytest.mark.parametrize("kind", ["symmetric", "act-order", "one group"])
def test_more_than_16_rows_of_columns_that_256_does_not_divide(gpu, kind):
    """There such an expert is an error beyond 16 rows."""
    stack = ExpertStack.from_gptq(STACKS[kind])
    inputs = rows(33, K)
    x, out = gpu.array(inputs), gpu.empty((33, N))
    marlin_gemm_with_offset(0, x, stack.store, out, 33, N, N)
    assert_close(out.read(), reference(STACKS[kind][1], inputs))
    assert ("gather_columns" in gpu.launched) == (kind == "act-order")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("store", STORES)
def test_experts_in_bf16(gpu, store, device):
    stack = ExpertStack.from_gptq(STACKS["mixed"], device=device, store=store, dtype="bf16")
    x = rows(2, K, "bf16")
    for e in (1, 3):
        assert_close(stack.expert(e)(x), reference(STACKS["mixed"][e], x, "bf16"), "bf16")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("store", STORES)
def test_a_dense_weight_in_act_order(gpu, store, device):
    tensors = layer(K, N, 64, act_order=True, zeros="gptq")
    weight = MarlinLinear.from_gptq(tensors, device=device, store=store).store
    inputs = rows(3, K)
    x, out = arrays_on(gpu, device, inputs, np.full((3, N), SENTINEL, np.float16))
    marlin_gemm_with_perm(0, x, weight, out, 2)
    assert_close(read(out)[:2], reference(tensors, inputs[:2]))
    assert (read(out)[2] == SENTINEL).all()


def test_a_stack_is_no_dense_weight():
    stack = ExpertStack.from_gptq(PLAIN, device="cpu")
    with pytest.raises(ProblemError, match="expert_n must be the stack's N; got expert_offset = 0"):
        marlin_gemm_with_perm(0, rows(1, K), stack.store, np.zeros((1, N), np.float16), 1)


def test_no_rows_are_no_work(gpu):
    stack = ExpertStack.from_gptq(PLAIN)
    gpu.launched.clear()
    marlin_gemm_with_offset(0, gpu.empty((0, K)), stack.store, gpu.empty((0, N)), 0, 0, N)
    assert gpu.launched == []


@pytest.mark.parametrize("store", STORES)
def test_addresses_of_experts_and_rows(gpu, store, monkeypatch):
    """The pointers that launches get, to the byte, of a stack with everything."""
    tensors = experts(K, 72, 64, zeros="gptq", act_order=True, bias=True)
    stack = ExpertStack.from_gptq(tensors, store=store)
    seen = []
    monkeypatch.setattr(gpu, "_runner", lambda name, program: lambda **v: seen.append((name, v)))
    x, out = gpu.empty((4, K)), gpu.empty((4, 72))
    marlin_gemm_with_offset_strided(0, x, 1, stack.store, out, 3, 1, 2 * 72, 72)
    launches = dict(seen)
    gemm = launches[readers(store)[0].name]
    gather = launches.get("gather_columns", gemm)
    assert gather["x"] == x.buffer.pointer + 1 * K * 2
    assert gemm["out"] == out.buffer.pointer + 3 * 72 * 2
    # what was gathered is what is multiplied
    assert gemm["x"] == (gather["out"] if store == "marlin" else gather["x"])
    padded = 128 if store == "marlin" else 72
    slabs = {
        "packed": K * 128 // 2, "zero_points": K // 64 * 128 // 2, "perm": 4 * K,
        "qweight": K * 72 // 2, "qzeros": K // 64 * 72 // 2, "g_idx": 4 * K,
        "scales": K // 64 * padded * 2, "bias": padded * 2,
    }  # fmt: skip
    for name, start in stack.store.operands.addresses(0).items():
        assert {**gather, **gemm}[name] == start + 2 * slabs[name], name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_row_offset": -1}, "rows of x must be counted from 0; got 2 from -1 on"),
        ({"out_row_offset": -2}, "rows of out must be counted from 0; got 2 from -2 on"),
        ({"m": -1}, "rows of x must be counted from 0; got -1 from 0 on"),
        ({"in_row_offset": 3}, "x must have 2 rows of 128 from row 3 on; it has 4"),
        ({"out_row_offset": 4}, "out must have 2 rows of 64 from row 4 on; it has 5"),
    ],
)
@pytest.mark.parametrize("device", DEVICES)
def test_rows_that_are_not_there_are_refused(gpu, device, change, message):
    stack = ExpertStack.from_gptq(PLAIN, device=device)
    x, out = arrays_on(gpu, device, rows(4, K), np.zeros((5, N), np.float16))
    arguments = {
        "stream": 0, "x": x, "in_row_offset": 0, "weight": stack.store, "out": out,
        "out_row_offset": 0, "m": 2, "expert_offset": N, "expert_n": N,
    }  # fmt: skip
    with pytest.raises(ProblemError, match=re.escape(f"experts.0.down_proj: {message}")):
        marlin_gemm_with_offset_strided(**arguments | change)


def test_buffers_and_addresses_serve_as_rows(gpu):
    stack = ExpertStack.from_gptq(PLAIN)
    inputs = rows(3, K)
    x, out = gpu.array(inputs), gpu.empty((3, N))
    want = reference(PLAIN[1], inputs[1:])
    marlin_gemm_with_offset_strided(0, x.buffer, 1, stack.store, out.buffer, 0, 2, N, N)
    assert_close(out.read()[:2], want)
    out.buffer.fill(0)
    address = x.buffer.pointer
    marlin_gemm_with_offset_strided(0, address, 1, stack.store, out.buffer.pointer, 0, 2, N, N)
    assert_close(out.read()[:2], want)
    with pytest.raises(ProblemError, match="out must have 4 rows of 64 from row 0 on; it has 3"):
        marlin_gemm_with_offset(0, address, stack.store, out.buffer, 4, N, N)


def test_wrong_arrays_of_functions(gpu):
    stack = ExpertStack.from_gptq(PLAIN)
    x, out = gpu.empty((4, K)), gpu.empty((4, N))
    wide = CudaArray(x.buffer, (8, N), np.float16)
    name = "experts.0.down_proj"
    for arguments, message in (
        ((rows(4, K), out), f"{name}: x must be on cuda:0 like the weight; it is on the host"),
        ((x, gpu.empty((4, N), np.float32)), f"{name}: out must be fp16; got fp32"),
        ((x, wide), f"{name}: rows of out overlap those of x"),
        (("x", out), f"{name}: x: a layer needs a torch tensor, a CuPy, JAX or NumPy array, or "),
    ):
        with pytest.raises((ProblemError, LaunchError), match=re.escape(message)):
            marlin_gemm_with_offset(0, arguments[0], stack.store, arguments[1], 4, 0, N)
    # the rows themselves do not overlap
    marlin_gemm_with_offset_strided(0, x, 0, stack.store, wide, 6, 2, 0, N)


def test_addresses_are_of_no_use_on_the_host():
    stack = ExpertStack.from_gptq(PLAIN, device="cpu")
    with pytest.raises(LaunchError, match="x: a layer needs a torch tensor, a CuPy, JAX or"):
        marlin_gemm_with_offset(0, 4096, stack.store, np.zeros((1, N), np.float16), 1, 0, N)


def test_a_stack_in_one_graph(gpu):
    stack = ExpertStack.from_gptq(STACKS["asymmetric"])
    stack.prepare((2, 1))
    inputs = rows(2, K)
    x, outs = gpu.array(inputs), [gpu.empty((2, N)) for _ in range(E)]
    calls = [lambda stream, e=e: stack.expert(e).forward(x, outs[e], stream) for e in range(E)]
    loaded = gpu.host.calls.count("cuLibraryLoadData")
    graph = Graph.capture(gpu.device, calls)
    assert gpu.host.calls.count("cuLibraryLoadData") == loaded
    graph.launch(0)
    for e, out in enumerate(outs):
        assert_close(out.read(), reference(STACKS["asymmetric"][e], inputs))


def test_kernels_are_loaded_once_for_all_experts(gpu):
    stack = ExpertStack.from_gptq(PLAIN)
    before = gpu.host.calls.count("cuLibraryLoadData")
    for e in range(E):
        stack.expert(e)(rows(1, K))
    assert gpu.host.calls.count("cuLibraryLoadData") == before + 1


def test_repeated_calls_need_no_zeroing_between(gpu):
    """There, locks are zeroed before every call; here they are left as they were found."""
    tensors = layer(256, 64, 64)
    linear = MarlinLinear.from_gptq(tensors)
    x = rows(1, 256)
    first = linear(x)
    for _ in range(2):
        np.testing.assert_array_equal(linear(x), first)
    assert_close(first, reference(tensors, x))


@pytest.mark.parametrize(
    "name", ["ExpertStack", "MarlinStackedExpertLinear", "MarlinLinear", "marlin_gemm_with_offset"]
)
def test_public_names(name):
    assert getattr(ferrum_numba, name).__name__ == name
