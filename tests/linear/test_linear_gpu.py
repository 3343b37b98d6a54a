"""Layers and experts on a real GPU: every row of ferrum-kernels' acceptance tests, and its graphs.

Two norms: mean |got - want| / mean |want| below 1e-3, which is Marlin's own test, and the largest
difference, which a mean of thousands of columns hides. That may be 2e-3 of the largest result in
fp16: the rounding of weights and of the result, at most 2^-11 each, with the tail of the weights'
sum on top; bf16 has three bits less, so 8 times as much of both.
"""

import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from cuda.bindings import driver
from cuda_array import CudaArray
from quantised import layer, reference, rows, some_columns, words

from ferrum_numba.gptq.tensors import GptqTensors
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.kernels.tools.repack import RepackProblem
from ferrum_numba.launch import Buffer, Graph, Order
from ferrum_numba.linear.dense import MarlinLinear
from ferrum_numba.linear.experts import ExpertStack
from ferrum_numba.linear.offset import marlin_gemm_with_offset, marlin_gemm_with_offset_strided
from ferrum_numba.linear.runtime import runtime
from ferrum_numba.linear.stages import REPACK, default
from ferrum_numba.linear.stores import MarlinStore
from ferrum_numba.measure import host_time_us

pytestmark = pytest.mark.gpu
# what other libraries warn of, at import or at first use, is theirs
foreign = pytest.mark.filterwarnings("ignore")
STORES = ("marlin", "raw")
SENTINEL = -9999.0
# (K, N) of a Llama-3-8B's layers, and of an expert's of Qwen3-30B-A3B
LLAMA = {"qkv": (4096, 6144), "o": (4096, 4096), "gate_up": (4096, 28672), "down": (14336, 4096)}
QWEN = {"gate_up": (2048, 1536), "down": (768, 2048)}
NUM_EXPERTS = 128


def assert_both_norms(got, want, dtype="fp16"):
    coarser = 1 if dtype == "fp16" else 8
    got, want = got.astype(np.float64), want.astype(np.float64)
    assert np.isfinite(got).all()
    differ = np.abs(got - want)
    assert differ.mean() / np.abs(want).mean() < 1e-3 * coarser
    assert differ.max() / np.abs(want).max() < 2e-3 * coarser


def on(device, tensors, M, dtype="fp16"):
    """Return x for M rows, and it and an output of NaN on the GPU."""
    x = rows(M, tensors.in_features, dtype)
    out = np.full((M, tensors.out_features), np.nan, DTYPES[dtype])
    return x, CudaArray.of(device, x), CudaArray.of(device, out)


def big(K, N, group_size=128, *, seed=0, **kind):
    """Return a symmetric layer of random words; the rest costs little beside them."""
    rng = np.random.default_rng(seed)
    G = -(-K // group_size)
    scales = rng.uniform(0.005, 0.015, (G, N)).astype(np.float16)
    qweight = np.frombuffer(rng.bytes(K * N // 2), np.int32).reshape(K // 8, N)
    return GptqTensors.make(f"{K}x{N}", qweight, scales, group_size=group_size, sym=True, **kind)


def sample(N, count=16, seed=4):
    """Return a few columns, the first and the last among them."""
    inner = np.random.default_rng(seed).choice(N - 2, count - 2, replace=False) + 1
    return np.sort(np.concatenate([[0, N - 1], inner]))


def check(tensors, device, M, store=None, dtype="fp16"):
    """Compare a layer's call with the reference."""
    linear = MarlinLinear.from_gptq(tensors, store=store, dtype=dtype)
    x, source, out = on(device, tensors, M, dtype)
    linear.forward(source, out, 0)
    columns = sample(tensors.out_features) if tensors.out_features > 4096 else slice(None)
    want = reference(some_columns(tensors, columns), x, dtype)
    assert_both_norms(out.read()[:, columns], want, dtype)


MARLIN_ROWS = (1, 2, 3, 4, 8, 12, 16, 24, 32, 48, 64, 118, 128, 152, 768, 1024)


# one test a number of rows: each compiles a kernel or two
@pytest.mark.parametrize("M", MARLIN_ROWS)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("store", STORES)
def test_row_14_all_numbers_of_rows(device, store, dtype, M):
    check(layer(1024, 512, 128), device, M, store, dtype)


@pytest.mark.parametrize("K", [64, 128, 192, 768, 832, 896])
def test_row_15_few_stages_and_odd_ones(device, K):
    for group_size in (64, -1):
        check(layer(K, 512, group_size), device, 16)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(("K", "N"), [(512, 256), (1024, 256), (1024, 32768)])
def test_row_16_groups(device, K, N, store):
    check(layer(K, N, 128), device, 16, store)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("K", "N"), [(5376, 4096), (5376, 2048), (4096, 5376), (5376, 21504), (21504, 5376)]
)
@pytest.mark.parametrize("M", [2, 33])
def test_row_18_real_shapes_in_act_order(device, K, N, M):
    g_idx = np.random.default_rng(7).permutation(np.arange(K, dtype=np.int32) // 128)
    check(replace(big(K, N), g_idx=g_idx), device, M)


@pytest.mark.slow
@pytest.mark.parametrize("N", [128, 151936])
def test_row_20_columns_that_256_does_not_divide(device, N):
    tensors = big(2048, N)
    linear = MarlinLinear.from_gptq(tensors)
    x, source, out = on(device, tensors, 33)
    linear.forward(source, out, 0)
    whole = out.read()
    columns = sample(N)
    assert_both_norms(whole[:, columns], reference(some_columns(tensors, columns), x))
    # rows in chunks of at most 16, as ferrum-kernels would call it
    for first in range(0, 33, 16):
        part = x[first : first + 16]
        assert_both_norms(whole[first : first + 16], linear(part))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("store", STORES)
def test_row_21_a_bias_in_two_steps_bit_for_bit(device, store, dtype):
    tensors = layer(1024, 576, 128, bias=True)
    for M in (1, 18):
        x = rows(M, 1024, dtype)
        product = MarlinLinear.from_gptq(replace(tensors, bias=None), store=store, dtype=dtype)(x)
        bias = tensors.bias.astype(DTYPES[dtype]).astype(np.float32)
        want = (product.astype(np.float32) + bias).astype(DTYPES[dtype])
        got = MarlinLinear.from_gptq(tensors, store=store, dtype=dtype, bias_mode="two_step")(x)
        np.testing.assert_array_equal(got.view(np.uint16), want.view(np.uint16))
        check(tensors, device, M, store, dtype)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("act_order", [False, True])
def test_rows_22_to_26_experts_by_their_offset(device, store, act_order):
    tensors = [layer(256, 128, 128, zeros="gptq", act_order=act_order, seed=e) for e in range(4)]
    stack = ExpertStack.from_gptq(tensors, store=store)
    inputs = rows(9, 256)
    x = CudaArray.of(device, inputs)
    for e, each in enumerate(tensors):
        alone = MarlinLinear.from_gptq(each, store=store)(inputs[:2])
        # again and again: nothing is zeroed between calls
        for _ in range(3):
            out = CudaArray.of(device, np.full((8, 128), SENTINEL, np.float16))
            marlin_gemm_with_offset(0, x, stack.store, out, 2, e * 128, 128)
            np.testing.assert_array_equal(out.read()[:2], alone)
            assert (out.read()[2:] == SENTINEL).all()
        marlin_gemm_with_offset_strided(0, x, 5, stack.store, out, 3, 4, e * 128, 128)
        assert_both_norms(out.read()[3:7], reference(each, inputs[5:]))
        assert (out.read()[[2, 7]] == SENTINEL).all()


def test_row_35_the_raw_layout(device):
    for (M, K, N, group_size), bound in (
        ((32, 256, 64, 64), 5e-2), ((10, 2048, 2560, 128), 1.0),
    ):  # fmt: skip
        tensors = layer(K, N, group_size, zeros="gptq")
        x = rows(M, K)
        got = MarlinLinear.from_gptq(tensors, store="raw")(x)
        assert np.abs(got - reference(tensors, x)).max() < bound
        check(tensors, device, M, "raw")


@pytest.mark.parametrize("store", STORES)
def test_row_36_experts_of_a_batch(device, store):
    counts, tensors = (16, 8, 12, 4), [layer(256, 64, 64, zeros="gptq", seed=e) for e in range(4)]
    stack = ExpertStack.from_gptq(tensors, store=store)
    inputs = rows(sum(counts), 256)
    x = CudaArray.of(device, inputs)
    out = CudaArray.of(device, np.full((sum(counts), 64), np.nan, np.float16))
    first = 0
    for e, count in enumerate(counts):
        marlin_gemm_with_offset_strided(0, x, first, stack.store, out, first, count, e * 64, 64)
        first += count
    got, first = out.read(), 0
    for count, each in zip(counts, tensors, strict=True):
        part = slice(first, first + count)
        assert_both_norms(got[part], reference(each, inputs[part]))
        first += count


KINDS = {
    "v1": {"zeros": "gptq"}, "v2": {"zeros": "gptq_v2"}, "act-order": {"act_order": True},
    "all": {"zeros": "gptq", "act_order": True, "bias": True},
}  # fmt: skip


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(("kind", "dtype"), [*((kind, "fp16") for kind in KINDS), ("all", "bf16")])
@pytest.mark.parametrize(
    ("K", "N", "group_size"), [(512, 256, 32), (1000, 136, 64), (512, 576, 128), (256, 64, -1)]
)
def test_every_kind_of_weight(device, K, N, group_size, kind, store, dtype):
    tensors = layer(K, N, group_size, **KINDS[kind])
    for M in (1, 70):
        check(tensors, device, M, store, dtype)


@pytest.mark.parametrize("act_order", [False, True])
def test_the_gpu_packs_as_the_host_does(device, act_order):
    tensors = layer(1096, 584, 128, act_order=act_order, zeros="gptq", bias=True)
    got, want = (MarlinStore.from_gptq(tensors, device=d) for d in ("cuda", "cpu"))
    for name in want.operands:
        np.testing.assert_array_equal(got.operands.get(name, 0), want.operands.get(name, 0))


class Counting:
    """The driver, with a count of the bytes that are allocated and not freed."""

    def __init__(self):
        self.sizes = {}

    def __getattr__(self, name):
        return getattr(driver, name)

    def cuMemAlloc(self, size_bytes):
        status, address = driver.cuMemAlloc(size_bytes)
        self.sizes[int(address)] = size_bytes
        return status, address

    def cuMemFree(self, address):
        del self.sizes[address]
        return driver.cuMemFree(address)


@pytest.mark.parametrize("store", STORES)
def test_a_layer_costs_its_operands(device, store, monkeypatch):
    counting = Counting()
    monkeypatch.setattr("ferrum_numba.launch.buffer.driver", counting)
    tensors = layer(4096, 1024, 128, zeros="gptq", act_order=True, bias=True)
    linear = MarlinLinear.from_gptq(tensors, store=store)
    K, N, G = 4096, 1024, 32
    want = K * N // 2 + 2 * G * N + G * N // 2 + 2 * N + 4 * K
    assert sum(counting.sizes.values()) == want == linear.store.operands.size_bytes
    del linear
    assert counting.sizes == {}


@pytest.mark.timing
def test_a_forward_allocates_nothing_and_costs_the_host_little(device, monkeypatch, capsys):
    tensors = layer(1024, 512, 128, bias=True)
    linear = MarlinLinear.from_gptq(tensors)
    _, source, out = on(device, tensors, 1)
    stream = device.new_stream()
    linear.forward(source, out, stream)
    counting = Counting()
    monkeypatch.setattr("ferrum_numba.launch.buffer.driver", counting)
    us = host_time_us(lambda handle: linear.forward(source, out, handle), stream)
    assert counting.sizes == {}
    with capsys.disabled():
        print(f"\nforward takes {us:.1f} us of the host's time")
    # three times what is asked of it: other work on the host
    assert us < 30


def test_four_streams_give_the_same_bits(device):
    tensors = big(4096, 4096)
    linear = MarlinLinear.from_gptq(tensors)
    x = rows(8, 4096)
    source = CudaArray.of(device, x)
    streams = [device.new_stream() for _ in range(4)]
    outs = [CudaArray.of(device, np.full((8, 4096), np.nan, np.float16)) for _ in streams]
    for _ in range(20):
        for stream, out in zip(streams, outs, strict=True):
            linear.forward(source, out, stream)
    first = outs[0].read()
    for out in outs[1:]:
        np.testing.assert_array_equal(out.read(), first)
    columns = sample(4096)
    assert_both_norms(first[:, columns], reference(some_columns(tensors, columns), x))


# a whole model's layers in one graph


def experts_of(K, N):
    """Return a stack's experts, of the same random words turned by a row each."""
    words_of_all = words(np.random.default_rng(9), (K // 8, N))
    scales = np.random.default_rng(8).uniform(0.005, 0.015, (K // 128, N)).astype(np.float16)
    for e in range(NUM_EXPERTS):
        yield GptqTensors.make(
            f"experts.{e}", np.roll(words_of_all, e, axis=0), scales, group_size=128, sym=True
        )


@pytest.fixture(scope="module")
def model(device):
    """Return (layer, tensors) of Llama's four layers and of every expert of both stacks."""
    pairs = []
    for name, (K, N) in LLAMA.items():
        tensors = big(K, N, seed=len(name))
        pairs.append((MarlinLinear.from_gptq(tensors), tensors))
    for K, N in QWEN.values():
        stack = ExpertStack.from_gptq(experts_of(K, N), NUM_EXPERTS)
        pairs += [(stack.expert(e), each) for e, each in enumerate(experts_of(K, N))]
    return pairs


class Run:
    """All layers of a model on their own inputs and outputs."""

    def __init__(self, device, model, M):
        self.model, self.M = model, M
        self.x = [rows(M, linear.in_features) for linear, _ in model]
        self.sources = [CudaArray.of(device, x) for x in self.x]
        shapes = [(M, linear.out_features) for linear, _ in model]
        self.outs = [CudaArray.of(device, np.full(s, np.nan, np.float16)) for s in shapes]

    def calls(self):
        return [
            partial(linear.forward, source, out)
            for (linear, _), source, out in zip(self.model, self.sources, self.outs, strict=True)
        ]

    def results(self):
        return [out.read() for out in self.outs]

    def poison(self):
        for out in self.outs:
            out.buffer.fill(0xFF)

    def check(self):
        # of the experts, a few: their reference takes longer than all else
        for i in [0, 1, 2, 3, *range(4, len(self.model), 37)]:
            _, tensors = self.model[i]
            columns = sample(tensors.out_features)
            want = reference(some_columns(tensors, columns), self.x[i])
            assert_both_norms(self.outs[i].read()[:, columns], want)


@pytest.mark.slow
@pytest.mark.parametrize("M", [1, 16, 65])
def test_a_model_in_one_graph(device, model, M):
    run = Run(device, model, M)
    for call in run.calls():
        call(0)
    eager = run.results()
    run.check()
    run.poison()
    for linear, _ in model:
        linear.prepare(M)
    graph = Graph.capture(device, run.calls())
    assert np.isnan(run.outs[0].read()).all()
    for _ in range(2):
        graph.launch(0)
        for got, want in zip(run.results(), eager, strict=True):
            np.testing.assert_array_equal(got, want)
        run.poison()


@foreign
@pytest.mark.slow
def test_a_model_in_one_graph_of_torch_s(device, model):
    torch = pytest.importorskip("torch")
    run = Run(device, model, 8)
    xs = [torch.from_numpy(x).cuda() for x in run.x]
    outs = [x.new_empty((8, linear.out_features)) for x, (linear, _) in zip(xs, model, strict=True)]
    eager = [linear(x) for x, (linear, _) in zip(xs, model, strict=True)]
    for linear, _ in model:
        linear.prepare(8)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for x, out, (linear, _) in zip(xs, outs, model, strict=True):
            linear.forward(x, out)
    graph.replay()
    torch.cuda.synchronize()
    for got, want in zip(outs, eager, strict=True):
        assert torch.equal(got, want)


@pytest.mark.slow
def test_a_stack_of_128_experts_is_packed_within_a_second(device, capsys):
    plans, seconds = runtime(0).plans, 0.0
    for act_order in (False, True):
        for K, N in QWEN.values():
            problem = RepackProblem(NUM_EXPERTS, K, N, act_order)
            launch = plans.launch(default(REPACK, problem, device.gpu), ("qweight", "perm", "out"))
            size_bytes = NUM_EXPERTS * K * N // 2
            source, target = (Buffer.empty(device, size_bytes) for _ in range(2))
            source.fill(0x5A)
            perm = np.tile(np.arange(K, dtype=np.int32)[::-1], (NUM_EXPERTS, 1))
            order = Buffer.from_array(device, perm)
            began = time.perf_counter()
            launch(0, source.pointer, order.pointer, Order.packed([target.pointer]))
            device.synchronize()
            seconds += time.perf_counter() - began
    began = time.perf_counter()
    for K, N in QWEN.values():
        ExpertStack.from_gptq(list(experts_of(K, N)))
    loaded = time.perf_counter() - began
    with capsys.disabled():
        print(f"\ntwo stacks, twice: packed in {seconds:.4f} s; made and loaded in {loaded:.2f} s")
    assert seconds < 1


# other libraries' arrays


@foreign
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_torch_tensors(device, dtype):
    torch = pytest.importorskip("torch")
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    tensors = layer(512, 576, 128, zeros="gptq", act_order=True, bias=True)
    linear = MarlinLinear.from_gptq(tensors, device=torch.device("cuda:0"), dtype=dtype)
    x = torch.from_numpy(rows(34, 512).astype(np.float32)).to(kind).reshape(2, 17, 512)
    y = linear(x.cuda())
    assert (y.dtype, tuple(y.shape), y.is_cuda) == (kind, (2, 17, 576), True)
    got = y.float().cpu().numpy().reshape(34, 576)
    assert_both_norms(got, reference(tensors, x.float().numpy().reshape(34, 512), dtype), dtype)
    stream, out = torch.cuda.Stream(), torch.empty_like(y)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        linear.forward(x.to("cuda"), out)
    stream.synchronize()
    assert torch.equal(out, y)
    assert torch.equal(linear(x.cuda().transpose(0, 1)), y.transpose(0, 1))
    assert linear(x.cuda()[:0]).shape == (0, 17, 576)


@foreign
def test_cupy_arrays(device):
    cupy = pytest.importorskip("cupy")
    tensors = layer(512, 576, 128, zeros="gptq", bias=True)
    linear = MarlinLinear.from_gptq(tensors)
    x = rows(6, 512)
    y = linear(cupy.asarray(x).reshape(2, 3, 512))
    assert (type(y), y.shape) == (cupy.ndarray, (2, 3, 576))
    assert_both_norms(cupy.asnumpy(y).reshape(6, 576), reference(tensors, x))
    stream, out = cupy.cuda.Stream(non_blocking=True), cupy.empty((6, 576), np.float16)
    source = cupy.asarray(x)
    device.synchronize()
    with stream:
        linear.forward(source, out)
    stream.synchronize()
    np.testing.assert_array_equal(cupy.asnumpy(out), cupy.asnumpy(y).reshape(6, 576))
    np.testing.assert_array_equal(
        cupy.asnumpy(linear(cupy.asfortranarray(source))), cupy.asnumpy(out)
    )


def test_numpy_arrays(device):
    tensors = layer(512, 576, 128, zeros="gptq", bias=True)
    x = rows(6, 512)
    y = MarlinLinear.from_gptq(tensors)(x.reshape(2, 3, 512))
    assert_both_norms(y.reshape(6, 576), reference(tensors, x))


@pytest.mark.parametrize("store", STORES)
def test_70_000_rows_are_those_of_two_calls(device, store):
    """More than a kernel counts."""
    M, tensors = 70_000, big(256, 128)
    linear = MarlinLinear.from_gptq(tensors, store=store)
    x, source, out = on(device, tensors, M)
    linear.forward(source, out, 0)
    got = out.read()
    assert_both_norms(got[::1000], reference(tensors, x[::1000]))
    first = 35_072  # the larger of two pieces, in rows of 128
    for rows_of in (slice(0, first), slice(first, M)):
        _, piece, want = on(device, tensors, rows_of.stop - rows_of.start)
        piece = CudaArray.of(device, x[rows_of])
        linear.forward(piece, want, 0)
        np.testing.assert_array_equal(got[rows_of], want.read())


@pytest.mark.parametrize("M", [1, 17, 300])
@pytest.mark.parametrize("rows_of", [slice(0, 2048), slice(2048, 4096), slice(72, 1096)])
@pytest.mark.parametrize("act_order", [True, False])
def test_rows_of_a_layer_with_all_of_its_scales(device, act_order, rows_of, M):
    """As tensor parallelism cuts them; groups of any size, which the raw store runs."""
    whole = layer(4096, 256, 128, zeros="gptq", act_order=act_order)
    tensors = GptqTensors.make(
        "cut", whole.qweight[rows_of.start // 8 : rows_of.stop // 8], whole.scales, whole.qzeros,
        whole.row_groups[rows_of], group_size=128,
    )  # fmt: skip
    linear = MarlinLinear.from_gptq(tensors)
    assert (linear.store.kind == "marlin") == (not act_order and rows_of.start % 128 == 0)
    x = np.zeros((M, 4096), np.float16)
    x[:, rows_of] = rows(M, rows_of.stop - rows_of.start)
    source = CudaArray.of(device, np.ascontiguousarray(x[:, rows_of]))
    out = CudaArray.of(device, np.full((M, 256), np.nan, np.float16))
    linear.forward(source, out, 0)
    assert_both_norms(out.read(), reference(whole, x))
