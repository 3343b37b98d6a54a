"""MarlinLinear: against the reference on the host, by the interpreter where the GPU would run.

Tests that name a defect hold against ferrum-kernels 0.7.7, whose types these are.
"""

import re
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import gpu_of_host
import host_driver
import ml_dtypes
import numpy as np
import pytest
from cuda_array import CudaArray
from quantised import NAME, assert_close, layer, reference, rows
from test_stores import LAYERS

from ferrum_numba.errors import CaptureError, LaunchError, ProblemError
from ferrum_numba.kernels import GROUPED, LINEAR, PACKED
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.launch import Graph
from ferrum_numba.linear import choice, launch_plan
from ferrum_numba.linear.arrays import copy_to_host
from ferrum_numba.linear.dense import MarlinLinear
from ferrum_numba.linear.runtime import runtime
from ferrum_numba.results import Decision

STORES = ("marlin", "raw")
SMALL = layer(128, 64, 64, zeros="gptq", bias=True)
ORDERED = layer(128, 64, 64)
ACT_ORDER = layer(128, 64, 64, zeros="gptq", act_order=True, bias=True)


@pytest.fixture
def gpu(monkeypatch):
    return gpu_of_host.install(monkeypatch)


def make(tensors, **options):
    return MarlinLinear.from_gptq(tensors, **options)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("kind", LAYERS)
def test_the_host_runs_the_reference(kind, store):
    tensors = LAYERS[kind]
    x = rows(3, tensors.in_features)
    assert_close(make(tensors, device="cpu", store=store)(x), reference(tensors, x))


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(
    ("kind", "M"),
    [
        ("symmetric", 1), ("v1", 18), ("v2", 2), ("groups of 32", 2), ("groups of 128", 18),
        ("one group", 18), ("K is the group", 2), ("act-order", 18), ("N = 136, K = 200", 2),
        ("small", 9),
    ],
)  # fmt: skip
def test_the_gpu_runs_kernels(gpu, kind, store, M):
    tensors = LAYERS[kind]
    x = rows(M, tensors.in_features)
    assert_close(make(tensors, store=store)(x), reference(tensors, x))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("kind", ["symmetric", "act-order", "one group"])
def test_bf16(gpu, kind, store, device):
    x = rows(3, LAYERS[kind].in_features, "bf16")
    got = make(LAYERS[kind], device=device, store=store, dtype="bf16")(x)
    assert got.dtype == ml_dtypes.bfloat16
    assert_close(got, reference(LAYERS[kind], x, "bf16"), "bf16")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("store", STORES)
def test_a_bias_in_two_steps_is_rounded_twice(gpu, store, device):
    """y = fp16(fp32(fp16(x W)) + bias), ferrum-kernels' own two roundings."""
    x = rows(3, 128)
    product = make(replace(SMALL, bias=None), device=device, store=store)(x)
    want = (product.astype(np.float32) + SMALL.bias.astype(np.float32)).astype(np.float16)
    two_step = make(SMALL, device=device, store=store, bias_mode="two_step")
    np.testing.assert_array_equal(two_step(x), want)
    fused = make(SMALL, device=device, store=store)(x)
    assert (fused != want).any()
    np.testing.assert_array_equal(two_step.bias, SMALL.bias)


def test_a_bias_in_two_steps_where_there_is_none(gpu):
    make(ORDERED, bias_mode="two_step")(rows(1, 128))
    assert gpu.launched == ["repack", "marlin"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("store", STORES)
def test_what_a_layer_says_of_itself(gpu, store, device):
    linear = make(SMALL, device=device, store=store)
    assert (linear.in_features, linear.out_features, linear.name) == (128, 64, NAME)
    assert linear.store.kind == store
    np.testing.assert_array_equal(linear.bias, SMALL.bias)
    linear.bias[:] = 0
    np.testing.assert_array_equal(linear.bias, SMALL.bias)
    assert make(ORDERED, device=device, store=store).bias is None


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 1, 2), (0,), (3, 0)])
def test_any_leading_dimensions(gpu, shape, device):
    x = rows(int(np.prod(shape)), 128).reshape(*shape, 128)
    linear = make(SMALL, device=device)
    got = linear(x)
    assert (got.shape, got.dtype) == ((*shape, 64), np.float16)
    flat = linear(x.reshape(-1, 128))
    np.testing.assert_array_equal(got.reshape(-1, 64), flat)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_call_copies_what_is_not_contiguous(gpu, device):
    x = rows(4, 128)
    linear = make(SMALL, device=device)
    np.testing.assert_array_equal(linear(np.asfortranarray(x)), linear(x))
    np.testing.assert_array_equal(linear(rows(4, 256)[:, ::2]), linear(rows(4, 256)[:, ::2].copy()))


@pytest.mark.parametrize("M", [1, 33])
def test_act_order_gathers_first(gpu, M):
    linear = make(ACT_ORDER)
    x = rows(M, 128)
    gpu.launched.clear()
    assert_close(linear(x), reference(ACT_ORDER, x))
    assert gpu.launched == ["gather_columns", "marlin"]


def test_the_raw_kernel_looks_groups_up(gpu):
    """Defect 9: there the raw store ignores g_idx, and is wrong without a word."""
    linear = make(ACT_ORDER, store="raw")
    x = rows(17, 128)
    assert_close(linear(x), reference(ACT_ORDER, x))
    ignored = reference(replace(ACT_ORDER, g_idx=None), x)
    assert np.abs(linear(x) - ignored).max() > 0.1 * np.abs(ignored).max()
    assert gpu.launched == ["w4a16_gptq"] * 2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_one_group_of_all_rows(gpu, device):
    """Defect 5: there K == group_size gets scales in the other order."""
    tensors = layer(128, 64, 128, zeros="gptq")
    x = rows(2, 128)
    assert_close(make(tensors, device=device, store="marlin")(x), reference(tensors, x))


@pytest.mark.parametrize("group_size", [32, 64, -1])
def test_other_groups_than_128_run_at_once(gpu, group_size):
    """Defect 6: there 32 and 64 load and fail at the first forward; -1 does not load."""
    tensors = layer(128, 64, group_size)
    x = rows(2, 128)
    assert_close(make(tensors, store="marlin")(x), reference(tensors, x))


def test_a_group_that_does_not_divide_k(gpu):
    """Defect 11: there the check is K % 8; here the last group is smaller, and right."""
    tensors = layer(200, 64, 64, zeros="gptq")
    x = rows(2, 200)
    for store in STORES:
        assert_close(make(tensors, store=store)(x), reference(tensors, x))


def test_sums_beyond_fp16_in_one_group(gpu):
    """Defect 15: there a column's sum of codes is fp16 before its scale, and overflows at 65504."""
    tensors = layer(128, 64, -1)
    tensors = replace(tensors, qweight=np.full_like(tensors.qweight, -1))
    x = np.full((1, 128), 100, np.float16)
    # 128 rows of 100 * (15 - 8)
    assert 128 * 700 > 65504
    for store in STORES:
        assert_close(make(tensors, store=store)(x), reference(tensors, x))


# how a kernel is run on memory that is not torch's or CuPy's


def on_gpu(gpu, linear, M):
    x = rows(M, linear.in_features)
    return x, gpu.array(x), gpu.empty((M, linear.out_features))


@pytest.mark.parametrize("store", STORES)
def test_forward_allocates_nothing_and_waits_for_nothing(gpu, store):
    linear = make(ACT_ORDER, store=store, bias_mode="two_step")
    for M in (2, 17):
        x, source, out = on_gpu(gpu, linear, M)
        linear.forward(source, out, 5)
        gpu.host.calls.clear()
        linear.forward(source, out, 5)
        # neither cuMem* nor cu*Synchronize: a stream is asked what it is
        assert set(gpu.host.calls) <= {"cuStreamIsCapturing", "cuStreamGetId"}
        product = reference(ACT_ORDER, x, bias=False).astype(np.float16)
        assert_close(out.read(), product.astype(np.float32) + ACT_ORDER.bias)


def test_a_model_of_equal_layers_builds_and_loads_a_kernel_once(gpu):
    layers = [make(layer(128, 64, 64, seed=i)) for i in range(4)]
    gpu.built.clear()
    gpu.host.calls.clear()
    for M in (2, 3):
        for linear in layers:
            x, source, out = on_gpu(gpu, linear, M)
            linear.forward(source, out, 0)
    # another M is another launch of the same program
    assert [name for name, _ in gpu.built] == ["marlin"] * 2
    assert gpu.host.calls.count("cuLibraryLoadData") == 1
    assert_close(out.read(), reference(layer(128, 64, 64, seed=3), x))


def test_a_prepared_layer_can_be_captured(gpu):
    linear = make(ACT_ORDER)
    outs, sources, wants = [], [], []
    linear.prepare((2, 18))
    for M in (2, 18):
        x, source, out = on_gpu(gpu, linear, M)
        sources.append(source)
        outs.append(out)
        wants.append(reference(ACT_ORDER, x))
    calls = [
        lambda stream, s=s, o=o: linear.forward(s, o, stream)
        for s, o in zip(sources, outs, strict=True)
    ]
    gpu.host.calls.clear()
    allocated = list(gpu.host.allocated)
    graph = Graph.capture(gpu.device, calls)
    assert "cuLibraryLoadData" not in gpu.host.calls
    assert gpu.host.allocated == allocated
    assert all(np.isnan(out.read()).all() for out in outs)
    for _ in range(2):
        graph.launch(0)
        for out, want in zip(outs, wants, strict=True):
            assert_close(out.read(), want)


def test_a_capture_on_a_named_stream(gpu):
    linear = make(SMALL)
    linear.prepare(2, stream=SimpleNamespace(cuda_stream=9))
    _, source, out = on_gpu(gpu, linear, 2)
    for _ in range(2):
        Graph.capture(gpu.device, [lambda stream: linear.forward(source, out, stream)], 9)


def test_a_capture_of_what_is_not_prepared_says_what_to_call(gpu):
    linear = make(SMALL)
    _, source, out = on_gpu(gpu, linear, 2)
    calls = [lambda stream: linear.forward(source, out, stream)]
    words = "a kernel cannot be loaded while a graph is captured; call prepare([2]) of the layer "
    with pytest.raises(CaptureError, match=re.escape(f"{NAME}: {words}before each capture, or")):
        Graph.capture(gpu.device, calls)
    # seen before: its scratch is allocated for the capture
    linear.forward(source, out, 0)
    Graph.capture(gpu.device, calls)
    gpu.host.fail["cuMemAlloc"] = host_driver.driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    words = r"\d+ bytes of scratch cannot be allocated while a graph is captured: .*; call pr"
    with pytest.raises(CaptureError, match=f"{NAME}: {words}"):
        Graph.capture(gpu.device, calls)
    del gpu.host.fail["cuMemAlloc"]
    linear.prepare(2)
    Graph.capture(gpu.device, calls)


def test_a_layer_of_known_kind_needs_nothing_loaded_in_a_capture(gpu):
    make(layer(128, 64, 64, seed=1)).prepare(2)
    linear = make(layer(128, 64, 64, seed=2))
    _, source, out = on_gpu(gpu, linear, 2)
    Graph.capture(gpu.device, [lambda stream: linear.forward(source, out, stream)])


def test_prepare_takes_no_decidedand_none_at_all(gpu):
    linear = make(SMALL)
    gpu.built.clear()
    linear.prepare((0,))
    linear.prepare(())
    assert gpu.built == []
    linear.prepare(np.int64(3))
    assert [name for name, _ in gpu.built] == ["marlin"]
    make(SMALL, device="cpu").prepare(3)


def test_streams_do_not_share_scratch(gpu):
    linear = make(layer(256, 64, 64))
    _, source, out = on_gpu(gpu, linear, 2)
    seen = {}
    scratch = runtime(0).scratch
    for stream in (0, 5, 0):
        linear.forward(source, out, stream)
        (made,) = runtime(0).plans.of(linear.store).values()
        seen.setdefault(stream, scratch.addresses(stream, made.needs))
        assert seen[stream] == scratch.addresses(stream, made.needs)
    assert seen[0] != seen[5]


def test_another_device_s_context_stays_current(gpu):
    linear = make(SMALL)
    x, source, out = on_gpu(gpu, linear, 2)
    gpu.host.contexts = ["torch's"]
    linear.forward(source, out, 0)
    linear.prepare(3)
    assert gpu.host.contexts == ["torch's"]
    assert_close(out.read(), reference(SMALL, x))


def test_the_default_stream_is_that_of_the_library(gpu, monkeypatch):
    streams = []
    monkeypatch.setattr(
        "ferrum_numba.launch.direct.launcher",
        lambda: lambda config, *rest: streams.append(host_driver.stream_of(config)) or 0,
    )
    fake = SimpleNamespace(_C=SimpleNamespace(_cuda_getCurrentRawStream=lambda i: i + 70))
    monkeypatch.setitem(sys.modules, "torch", fake)
    linear = make(SMALL, store="raw")
    x, out = (Tensor(gpu.empty((2, n))) for n in (128, 64))
    linear.forward(x, out)
    linear.forward(x, out, SimpleNamespace(cuda_stream=5))
    linear.forward(gpu.empty((2, 128)), gpu.empty((2, 64)))
    assert streams == [70, 5, 0]


class Tensor:
    """What torch's tensors look like."""

    def __init__(self, array, contiguous=True, device=0, dtype="torch.float16"):
        self.array, self.shape, self.dtype = array, array.shape, dtype
        self.device, self.is_cuda, self._contiguous = device, device >= 0, contiguous

    def data_ptr(self):
        return self.array.buffer.pointer

    def get_device(self):
        return self.device

    def is_contiguous(self):
        return self._contiguous

    def stride(self):
        return (1, self.shape[0])


class Meta:
    """What torch's tensors of the meta device look like."""

    shape, dtype, is_meta = (2, 128), "torch.float16", True

    def data_ptr(self):
        return 0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_tensor_without_memory_is_named(gpu, device):
    linear = make(ORDERED, device=device)
    words = "a tensor [2, 128] of torch's meta device has no values; make it on a device"
    with pytest.raises(LaunchError, match=re.escape(f"{NAME}: x: {words}")):
        linear.forward(Meta(), np.zeros((2, 64), np.float16), 0)
    with pytest.raises(LaunchError, match=re.escape(words)):
        copy_to_host(Meta())


NO_ARRAY = "a layer needs a torch tensor, a CuPy, JAX or NumPy array, or another with DLPack"


def cases(gpu):
    """Return x, out and the error of each wrong call."""
    x, out = gpu.empty((4, 128)), gpu.empty((4, 64))
    bf16 = gpu.empty((4, 128), ml_dtypes.bfloat16)
    inside = CudaArray(x.buffer, (4, 64), np.float16)
    shifted = CudaArray(x.buffer.part(2, 1000), (3, 128), np.float16)
    return [
        (gpu.empty((4, 120)), out, "x must be [..., 128]; got [4, 120]"),
        (gpu.empty(()), out, "x must be [..., 128]; got []"),
        (x, gpu.empty((4, 72)), "out must be [4, 64] for x of [4, 128]; got [4, 72]"),
        (x, gpu.empty((3, 64)), "out must be [4, 64] for x of [4, 128]; got [3, 64]"),
        (x, gpu.empty((5, 64)), "out must be [4, 64] for x of [4, 128]; got [5, 64]"),
        (bf16, out, "x must be fp16; got bf16"),
        (gpu.empty((4, 128), np.float32), out, "x must be fp16; got fp32"),
        (x, gpu.empty((4, 64), np.float32), "out must be fp16; got fp32"),
        (Tensor(x, dtype="torch.float32"), out, "x must be fp16; got fp32"),
        (rows(4, 128), out, "x must be on cuda:0 like the weight; it is on the host"),
        (x, np.zeros((4, 64), np.float16), "out must be on cuda:0 like the weight; it is on the"),
        (Tensor(x, device=1), out, "x must be on cuda:0 like the weight; it is on cuda:1"),
        (Tensor(x, contiguous=False), out,
         "x: the tensor has shape (4, 128) and strides (1, 4) in elements; a kernel needs it"),
        (x, Tensor(out, contiguous=False), "out: the tensor has shape (4, 64) and strides (1, 4)"),
        (x, inside, f"out overlaps x: 512 bytes at {x.buffer.pointer:#x}, 1024 bytes at"),
        (shifted, gpu.empty((3, 64)), "x must begin at a multiple of 16 bytes; it begins at 0x"),
        ("x", out, f"x: {NO_ARRAY}; got str"),
        (7, out, f"x: {NO_ARRAY}; got int"),
    ]  # fmt: skip


@pytest.mark.parametrize("i", range(18))
def test_a_wrong_call_names_the_layer_and_the_numbers(gpu, i):
    linear = make(SMALL)
    x, out, message = cases(gpu)[i]
    gpu.launched.clear()
    with pytest.raises((ProblemError, LaunchError), match=re.escape(f"{NAME}: {message}")):
        linear.forward(x, out, 0)
    assert gpu.launched == []


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("x", "out", "message"),
    [
        (rows(2, 128), read_only(np.zeros((2, 64), np.float16)), "out is read-only"),
        (rows(2, 128, "bf16"), np.zeros((2, 64), np.float16), "x must be fp16; got bf16"),
        (rows(2, 256)[:, ::2], np.zeros((2, 64), np.float16),
         "x: the array has shape (2, 128) and strides (512, 4) in bytes; a kernel needs it"),
        (rows(2, 128), np.zeros((2, 72), np.float16), "out must be [2, 64] for x of [2, 128]"),
    ],
)  # fmt: skip
def test_a_wrong_call_on_the_host(x, out, message):
    with pytest.raises((ProblemError, LaunchError), match=re.escape(f"{NAME}: {message}")):
        make(SMALL, device="cpu").forward(x, out)


def test_memory_of_a_gpu_is_not_the_host_s(gpu):
    linear = make(SMALL, device="cpu")
    with pytest.raises(LaunchError, match="x must be on the host like the weight; it is on cuda:0"):
        linear.forward(Tensor(gpu.empty((2, 128))), np.zeros((2, 64), np.float16))


def test_a_call_is_checked_before_it_allocates(gpu):
    linear = make(SMALL)
    allocated = list(gpu.host.allocated)
    with pytest.raises(ProblemError, match=re.escape("x must be [..., 128]; got [2, 64]")):
        linear(rows(2, 64))
    with pytest.raises(LaunchError, match="cannot make an output of CudaArray; call forward"):
        linear(gpu.empty((2, 128)))
    assert gpu.host.allocated[len(allocated) :] == [512]


def test_an_error_in_forward_ends_nothing(gpu):
    """Defect 14: there every error in forward is a panic, which ends the program."""
    linear = make(layer(8, 8, -1))
    source, out = gpu.empty((2, 8)), gpu.empty((3, 8))
    with pytest.raises(ProblemError, match=f"{NAME}: out must be "):
        linear.forward(source, out, 0)
    x = rows(2, 8)
    assert_close(linear(x), reference(layer(8, 8, -1), x))


def test_an_unknown_bias_mode_is_refused_when_the_layer_is_made():
    message = f'{NAME}: bias_mode must be "fused" or "two_step"; got \'twice\''
    with pytest.raises(ProblemError, match=message):
        make(SMALL, device="cpu", bias_mode="twice")


class HostTensor:
    """What torch's tensors of the host look like: NumPy knows no bfloat16 of theirs."""

    def __init__(self, values, dtype):
        self.values, self.dtype, self.shape = values, dtype, values.shape

    def data_ptr(self):
        return self.values.ctypes.data

    def get_device(self):
        return -1

    def is_contiguous(self):
        return self.values.flags.c_contiguous

    def contiguous(self):
        return HostTensor(np.ascontiguousarray(self.values), self.dtype)

    def stride(self):
        return tuple(s // self.values.itemsize for s in self.values.strides)

    def detach(self):
        return self

    def view(self, dtype):
        return SimpleNamespace(numpy=lambda: self.values.view(dtype))

    def new_empty(self, shape):
        return HostTensor(np.empty(shape, self.values.dtype), self.dtype)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_tensors_of_the_host_as_torch_s_look(monkeypatch, dtype):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(int16=np.int16))
    name = {"fp16": "torch.float16", "bf16": "torch.bfloat16"}[dtype]
    linear = make(ACT_ORDER, device="cpu", dtype=dtype)
    x = rows(6, 128, dtype)
    y = linear(HostTensor(x.reshape(2, 3, 128), name))
    assert (type(y), y.shape, y.dtype) == (HostTensor, (2, 3, 64), name)
    assert_close(y.values.reshape(6, 64), reference(ACT_ORDER, x, dtype), dtype)
    turned = HostTensor(np.asfortranarray(x), name)
    np.testing.assert_array_equal(linear(turned).values, y.values.reshape(6, 64))
    with pytest.raises(LaunchError, match=r"x: the tensor has shape \(6, 128\) and strides \(1, 6"):
        linear.forward(turned, y)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("store", STORES)
def test_torch_tensors_of_the_host(store, dtype):
    torch = pytest.importorskip("torch")
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    linear = make(ACT_ORDER, device=torch.device("cpu"), store=store, dtype=dtype)
    x = torch.from_numpy(rows(6, 128).astype(np.float32)).to(kind).reshape(2, 3, 128)
    y = linear(x)
    assert (type(y), y.dtype, tuple(y.shape)) == (torch.Tensor, kind, (2, 3, 64))
    values = x.float().numpy().reshape(6, 128)
    assert_close(y.float().numpy().reshape(6, 64), reference(ACT_ORDER, values, dtype), dtype)
    out = torch.empty_like(y)
    linear.forward(x, out)
    assert torch.equal(out, y)
    assert torch.equal(linear(x.transpose(0, 1)), y.transpose(0, 1))
    with pytest.raises(ProblemError, match=f"x must be {dtype}; got fp32"):
        linear(x.float())


# what was measured decides


def decision(kernel, problem, config, us=1.0):
    return Decision("w4a16_gemm", asdict(problem), kernel.name, asdict(config), us, "final")


def test_the_measured_winner_runs_and_serves_other_kinds_of_its_sizes():
    kernel, gpu = PACKED[0], gpu_of_host.GPU
    plain = W4A16Problem(16, 128, 256, 64)
    space = [kernel.specialise(c, plain) for c in kernel.configs(gpu)]
    fits = [c for c in space if kernel.misfit(c, plain, gpu) is None]
    wanted = next(c for c in reversed(fits) if c != kernel.default(plain, gpu))
    decided = [decision(kernel, plain, wanted)]
    assert choice.kernel_for(plain, PACKED, decided, gpu).config == wanted
    other = replace(plain, M=15, zero_points="gptq", bias=True, dtype="bf16")
    found = choice.kernel_for(other, PACKED, decided, gpu)
    assert found.config == kernel.specialise(wanted, other)
    assert found.rule == "measured at M = 16"
    elsewhere = replace(other, group_size=32)
    assert choice.kernel_for(elsewhere, PACKED, decided, gpu).rule == "default of marlin"
    usual = replace(plain, group_size=128)
    decided = [decision(kernel, usual, kernel.specialise(wanted, usual))]
    found = choice.kernel_for(elsewhere, PACKED, decided, gpu)
    assert found.config == kernel.specialise(wanted, elsewhere)


def test_what_is_usual_of_experts_keeps_their_routing():
    problem = GroupedProblem(
        4, 8, 2, 64, 256, 64, "skewed", "gptq", bias=True, dtype="bf16", per_pair=True, gated=True
    )
    plain = GroupedProblem(4, 8, 2, 64, 256, 64, "skewed", per_pair=True)
    assert list(choice._plain(problem)) == [plain, replace(plain, group_size=128)]


def test_what_ships_for_the_h200_is_found():
    found = choice.shipped_decisions(gpu_of_host.GPU)
    assert {one.kernel for one in found} == {kernel.name for kernel in (*LINEAR, *GROUPED)}
    assert choice.shipped_decisions(replace(gpu_of_host.GPU, key="nobody's")) == []


def test_decisions_are_read_once_a_gpu_and_not_before_something_runs(gpu, monkeypatch):
    calls = []
    monkeypatch.setattr(launch_plan, "shipped_decisions", lambda gpu: calls.append(gpu) or [])
    layers = [make(ORDERED), make(ORDERED, store="raw")]
    assert calls == []
    for M in (1, 2):
        for linear in layers:
            linear.prepare(M)
    assert len(calls) == 1
