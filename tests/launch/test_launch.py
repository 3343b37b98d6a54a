"""Streams and pointers of others, packed arguments, launch configs, buffers, graphs, operands."""

import ctypes
import gc
import re
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import host_driver
import numpy as np
import pytest
from cuda.bindings import driver

from ferrum_numba.contract import Kernel, Launch, Op, Parameter, Tolerance, Work, pointers, sizes
from ferrum_numba.errors import ContextError, DeviceError, LaunchError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.launch import (
    Buffer,
    Device,
    Graph,
    OperandSet,
    Order,
    load,
    page_locked,
    pointer,
    stream_handle,
)
from ferrum_numba.launch.arguments import launch_config, pack
from ferrum_numba.launch.kernel import Loaded, Prepared
from ferrum_numba.launch.operands import HostOperands, Uploads, copies_to_exceed

HANDLE = 0x7F12_3456_7890


@pytest.fixture
def host(monkeypatch):
    return host_driver.install(monkeypatch)


class CudaStream:
    def __cuda_stream__(self):
        return 0, HANDLE


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(HANDLE, id="int"),
        pytest.param(CudaStream(), id="protocol"),
        pytest.param(SimpleNamespace(cuda_stream=HANDLE), id="torch"),
        pytest.param(SimpleNamespace(ptr=HANDLE), id="cupy"),
        pytest.param(SimpleNamespace(handle=ctypes.c_void_p(HANDLE)), id="numba"),
        pytest.param(SimpleNamespace(handle=driver.CUstream(HANDLE)), id="bindings"),
    ],
)
def test_stream_handle_of_every_library(stream):
    assert stream_handle(stream) == HANDLE


def test_stream_handle_of_numbas_default_stream_is_0():
    assert stream_handle(SimpleNamespace(handle=ctypes.c_void_p(0))) == 0


def test_stream_handle_refuses_what_is_no_stream():
    with pytest.raises(LaunchError, match="a stream is an int handle or a stream object; got str"):
        stream_handle("default")


def interface(shape, strides):
    """Return what CuPy and numba arrays look like; strides in bytes."""
    described = {"data": (HANDLE, False), "shape": shape, "typestr": "<f4"}
    if strides is not None:
        described["strides"] = strides
    return SimpleNamespace(__cuda_array_interface__=described)


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(HANDLE, id="int"),
        pytest.param(
            SimpleNamespace(data_ptr=lambda: HANDLE, is_cuda=True, is_contiguous=lambda: True),
            id="torch",
        ),
        pytest.param(interface((4, 6), None), id="cupy"),
        pytest.param(interface((4, 6), (24, 4)), id="with strides"),
        pytest.param(interface((4, 1, 6), (24, 999, 4)), id="a dimension of 1"),
        pytest.param(interface((4, 0), (4, 16)), id="empty"),
        pytest.param(interface((), ()), id="scalar"),
        pytest.param(SimpleNamespace(handle=HANDLE), id="cuda.core"),
        pytest.param(Buffer(None, HANDLE, 16), id="ours"),
    ],
)
def test_pointer_of_every_library(array):
    assert pointer(array) == HANDLE


def test_pointer_refuses_memory_of_the_host():
    tensor = SimpleNamespace(data_ptr=lambda: HANDLE, is_cuda=False, device="cpu")
    with pytest.raises(LaunchError, match="the tensor is on cpu; a kernel needs it on the GPU"):
        pointer(tensor)
    with pytest.raises(LaunchError, match="a kernel needs memory of the GPU; got ndarray"):
        pointer(np.zeros(3))


NOT_CONTIGUOUS = "; a kernel needs it contiguous, row-major: pass a copy, as .contiguous"


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        pytest.param((6, 4), (4, 24), id="transposed"),
        pytest.param((4, 6), (48, 4), id="columns of a wider one"),
        pytest.param((4, 6), (24, 8), id="every other column"),
        pytest.param((4, 6), (-24, 4), id="reversed"),
        pytest.param((4, 6), (0, 4), id="broadcast"),
    ],
)
def test_pointer_refuses_an_array_that_is_not_row_major(shape, strides):
    words = f"the array has shape {shape} and strides {strides} in bytes{NOT_CONTIGUOUS}"
    with pytest.raises(LaunchError, match=re.escape(words)):
        pointer(interface(shape, strides))


def test_pointer_refuses_a_transposed_tensor():
    tensor = SimpleNamespace(
        data_ptr=lambda: HANDLE, is_cuda=True, is_contiguous=lambda: False, shape=(6, 4),
        stride=lambda: (1, 6),
    )  # fmt: skip
    words = f"the tensor has shape (6, 4) and strides (1, 6) in elements{NOT_CONTIGUOUS}"
    with pytest.raises(LaunchError, match=re.escape(words)):
        pointer(tensor)


PARAMETERS = (
    Parameter("a", "pointer"), Parameter("n", "uint32"), Parameter("d", "int32"),
    Parameter("b", "pointer"), Parameter("top", "uint32"),
)  # fmt: skip
SCALARS = {"n": 7, "d": -2, "top": 2**32 - 1}
ADDRESSES = {"a": 2**64 - 8, "b": HANDLE}


def test_pack_puts_every_value_in_its_own_slot():
    slots = pack(PARAMETERS, SCALARS, ADDRESSES)
    assert slots.tobytes() == b"".join(
        value.to_bytes(8, "little")
        for value in (2**64 - 8, 7, (1 << 64) - 2, HANDLE, 0x0000_0000_FFFF_FFFF)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 2**32}, "n = 4294967296 does not fit uint32"),
        ({"n": -1}, "n = -1 does not fit uint32"),
        ({"d": 2**31}, "d = 2147483648 does not fit int32"),
    ],
)
def test_pack_refuses_what_does_not_fit(change, message):
    with pytest.raises(LaunchError, match=message):
        pack(PARAMETERS, SCALARS | change, ADDRESSES)


def test_pack_names_the_missing_parameter():
    with pytest.raises(LaunchError, match="no value for uint32 parameter n"):
        pack(PARAMETERS, {}, ADDRESSES)
    with pytest.raises(LaunchError, match="no value for pointer parameter b"):
        pack(PARAMETERS, SCALARS, {"a": 0})


def test_the_driver_reads_the_packed_values_and_the_stream(monkeypatch):
    seen = []

    def launch(config, function, addresses, extra):
        seen.append((host_driver.stream_of(config), function.value, extra))
        seen.append(host_driver.decode(PARAMETERS, addresses.value))
        return 0

    monkeypatch.setattr("ferrum_numba.launch.direct.launcher", lambda: launch)
    loaded = Loaded(host_driver.binary("kernel", PARAMETERS), None, 11)
    prepared = Prepared(loaded, Launch((1, 1, 1), SCALARS), ADDRESSES)
    prepared(5)
    prepared(CudaStream())
    assert seen == [
        (5, 11, None), SCALARS | ADDRESSES,
        (HANDLE, 11, None), SCALARS | ADDRESSES,
    ]  # fmt: skip


def test_a_repeated_launch_takes_other_buffers_with_every_call(host):
    seen = []
    parameters = host_driver.parameters(["x", "out"], ["n"])
    host.kernels = {"note": (parameters, lambda **values: seen.append(values))}
    loaded = load(host_driver.binary("note", parameters), host.device())
    repeated = loaded.repeated(Launch((1, 1, 1), {"n": 7}))
    repeated(0, HANDLE, 16, b"")
    repeated(5, 32, 2**64 - 8, b"")
    assert seen == [
        {"x": HANDLE, "out": 16, "n": 7}, {"x": 32, "out": 2**64 - 8, "n": 7},
    ]  # fmt: skip
    with pytest.raises(LaunchError, match="a grid needs one block at least"):
        loaded.repeated(Launch((0, 1, 1), {"n": 7}))


def test_a_repeated_launch_takes_addresses_in_the_caller_s_order_and_names(host):
    seen = []
    host.kernels = {"kernel": (PARAMETERS, lambda **values: seen.append(values))}
    loaded = load(host_driver.binary("kernel", PARAMETERS), host.device())
    launch = Launch((1, 1, 1), SCALARS)
    order = Order(("b", "unused", "other"), {"a": "other"})
    loaded.repeated(launch, order)(0, 16, 99, Order.packed([HANDLE]))
    assert seen.pop() == SCALARS | {"a": HANDLE, "b": 16}
    order = Order(("b", "unused"), {"a": "b"})
    loaded.repeated(launch, order)(0, 16, 99, b"")
    assert seen.pop() == SCALARS | {"a": 16, "b": 16}
    with pytest.raises(LaunchError, match="no value for pointer parameter a"):
        loaded.repeated(launch, Order(("b", "unused")))


def test_threads_share_a_repeated_launch(host):
    """What one thread wrote is what its own launch reads."""
    seen, parameters = [], host_driver.parameters(["x", "out"])
    host.kernels = {"note": (parameters, lambda x, out: seen.append((x, out)))}
    repeated = load(host_driver.binary("note", parameters), host.device()).repeated(
        Launch((1, 1, 1), {})
    )
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: repeated(0, i, i, b""), range(2000)))
    assert sorted(seen) == [(i, i) for i in range(2000)]


def attributes_of(config):
    ids = driver.CUlaunchAttributeID
    names = {
        ids.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION: lambda v: (
            v.clusterDim.x, v.clusterDim.y, v.clusterDim.z
        ),
        ids.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION: lambda v: (
            v.programmaticStreamSerializationAllowed
        ),
        ids.CU_LAUNCH_ATTRIBUTE_COOPERATIVE: lambda v: v.cooperative,
    }  # fmt: skip
    assert config.numAttrs == len(config.attrs)
    return [(a.id.name.removeprefix("CU_LAUNCH_ATTRIBUTE_"), names[a.id](a.value))
            for a in config.attrs]  # fmt: skip


@pytest.mark.parametrize(
    ("binary_changes", "launch_changes", "attributes"),
    [
        ({}, {}, []),
        ({"cluster": (2, 1, 1)}, {}, [("CLUSTER_DIMENSION", (2, 1, 1))]),
        ({}, {"programmatic": True}, [("PROGRAMMATIC_STREAM_SERIALIZATION", 1)]),
        ({}, {"co_resident": True}, [("COOPERATIVE", 1)]),
        (
            {"cluster": (1, 4, 1)},
            {"programmatic": True, "co_resident": True},
            [("CLUSTER_DIMENSION", (1, 4, 1)), ("PROGRAMMATIC_STREAM_SERIALIZATION", 1)],
        ),
    ],
)
def test_launch_config(binary_changes, launch_changes, attributes):
    binary = host_driver.binary("kernel", (), smem_bytes=70_000, num_threads=96, **binary_changes)
    config = launch_config(binary, Launch((8, 4, 2), {}, **launch_changes))
    assert (config.gridDimX, config.gridDimY, config.gridDimZ) == (8, 4, 2)
    assert (config.blockDimX, config.blockDimY, config.blockDimZ) == (96, 1, 1)
    assert config.sharedMemBytes == 70_000
    assert attributes_of(config) == attributes


@pytest.mark.parametrize(
    ("cluster", "launch", "message"),
    [
        ((1, 1, 1), Launch((0, 1, 1), {}), r"grid \(0, 1, 1\).*a grid needs one block at least"),
        ((4, 1, 1), Launch((6, 1, 1), {}), r"a multiple of the cluster \(4, 1, 1\)"),
        (
            (1, 1, 1),
            Launch((300, 1, 1), {}, co_resident=True),
            "its 300 blocks wait for each other, but 264 fit at once on the 132 SMs of NVIDIA H200",
        ),
        # the driver counts clusters: 2 of 4 blocks
        ((4, 1, 1), Launch((12, 1, 1), {}, co_resident=True), "its 12 blocks .* but 8 fit at once"),
    ],
)
def test_prepare_refuses_what_cannot_run(host, cluster, launch, message):
    loaded = load(host_driver.binary("kernel", (), cluster=cluster), host.device())
    with pytest.raises(LaunchError, match=message):
        loaded.prepare(launch, {})


def test_prepare_takes_a_co_resident_grid_that_fits(host):
    loaded = load(host_driver.binary("kernel", ()), host.device())
    loaded.prepare(Launch((264, 1, 1), {}, co_resident=True), {})


def test_load_opts_in_to_shared_memory_and_large_clusters(host):
    load(host_driver.binary("small", ()), host.device())
    assert host.log == []
    load(host_driver.binary("k", (), smem_bytes=200_000, cluster=(16, 1, 1)), host.device())
    assert host.log == [
        ("CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES", 200_000),
        ("CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED", 1),
    ]


def test_load_refuses_more_shared_memory_than_the_gpu_has(host):
    binary = host_driver.binary("kernel", (), smem_bytes=232_000, static_smem_bytes=1024)
    with pytest.raises(LaunchError, match=r"233024 bytes of shared memory a block; .* has 232448"):
        load(binary, host.device())


def test_a_failed_load_names_the_binary_and_the_gpu(host):
    host.fail["cuLibraryLoadData"] = driver.CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU
    message = "loading kernel, built for sm_90a, on NVIDIA H200 failed with CUDA_ERROR_NO_BINARY"
    with pytest.raises(LaunchError, match=message):
        load(host_driver.binary("kernel", ()), host.device())


def test_a_program_for_a_newer_driver_names_both(host, monkeypatch):
    host.fail["cuLibraryLoadData"] = driver.CUresult.CUDA_ERROR_UNSUPPORTED_PTX_VERSION
    monkeypatch.setattr("ferrum_numba.launch.kernel.driver_cuda", lambda: (12, 4))
    monkeypatch.setattr("ferrum_numba.launch.kernel.toolkit", lambda: "13.5")
    said = (
        r"on NVIDIA H200, with a driver of CUDA 12\.4 and a compiler of CUDA 13\.5, failed with C"
    )
    with pytest.raises(LaunchError, match=said):
        load(host_driver.binary("kernel", ()), host.device())


def test_memory_that_is_not_there_is_said(host):
    host.fail["cuMemAlloc"] = driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(LaunchError, match=r"^NVIDIA H200 has no 5,000 bytes left of its 1"):
        Buffer.empty(host.device(), 5000)


def test_a_refused_launch_names_the_error_and_the_numbers(host, monkeypatch):
    refused = driver.CUresult.CUDA_ERROR_INVALID_VALUE.value
    monkeypatch.setattr("ferrum_numba.launch.direct.launcher", lambda: lambda *args: refused)
    loaded = load(host_driver.binary("kernel", ()), host.device())
    prepared = loaded.prepare(Launch((3, 1, 1), {}), {})
    numbers = r"kernel \(grid \(3, 1, 1\), 128 threads, 32 registers, 0 bytes of shared memory\)"
    with pytest.raises(LaunchError, match=f"{numbers} failed with CUDA_ERROR_INVALID_VALUE"):
        prepared(0)


def test_an_error_that_poisons_the_context_has_its_own_type(host):
    host.fail["cuCtxSynchronize"] = driver.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    message = "cuCtxSynchronize failed with CUDA_ERROR_ILLEGAL_ADDRESS"
    with pytest.raises(ContextError, match=message):
        host.device().synchronize()
    host.fail["cuCtxSynchronize"] = driver.CUresult.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(LaunchError) as caught:
        host.device().synchronize()
    assert type(caught.value) is LaunchError


def test_a_buffer_keeps_an_array(host, rng):
    array = rng.standard_normal((5, 7)).astype(np.float16)
    buffer = Buffer.from_array(host.device(), array.T, guard_bytes=512)
    np.testing.assert_array_equal(buffer.read((7, 5), np.float16), array.T)
    assert buffer.damage() is None
    buffer.fill(0xFF)
    assert np.isnan(buffer.read((5, 7), np.float16)).all()


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        (-1, "1 bytes written before the start, the first at -1"),
        (10, "1 bytes written past the end, the first at +0"),
        (521, "1 bytes written past the end, the first at +511"),
    ],
)
def test_guard_zones_tell_where_they_were_written(host, offset, message):
    buffer = Buffer.empty(host.device(), 10, guard_bytes=512)
    ctypes.memset(buffer.pointer + offset, 1, 1)
    assert buffer.damage() == message


def test_a_buffer_is_freed_now_or_with_its_last_reference(host):
    buffers = [Buffer.empty(host.device(), 64) for _ in range(2)]
    buffers[0].free()
    buffers[0].free()
    assert list(host.memory) == [buffers[1].pointer]
    del buffers
    gc.collect()
    assert host.memory == {}
    assert host.contexts == [None]


def test_a_device_is_current_for_a_while(host):
    device = Device(1, KNOWN["h200"], 77)
    assert not device.is_current()
    with device.activated():
        assert device.is_current()
    assert host.contexts == [None]


def test_a_buffer_refuses_more_than_it_holds(host):
    buffer = Buffer.empty(host.device(), 10)
    with pytest.raises(LaunchError, match="12 bytes do not fit a buffer of 10"):
        buffer.write(np.zeros(3, np.float32))
    with pytest.raises(LaunchError, match="12 bytes asked of a buffer of 10"):
        buffer.read((3,), np.float32)


def test_memory_is_freed_with_the_last_part(host):
    part = Buffer.empty(host.device(), 64).part(16, 8)
    gc.collect()
    assert len(host.memory) == 1
    ctypes.memset(part.pointer, 7, 8)
    assert part.read((8,), np.uint8).tolist() == [7] * 8
    del part
    gc.collect()
    assert host.memory == {}


def test_a_graph_replays_its_calls_in_order(host):
    seen = []
    host.kernels = {"note": (host_driver.parameters([], ["i"]), lambda i: seen.append(i))}
    loaded = load(host_driver.binary("note", host.kernels["note"][0]), host.device())
    calls = [loaded.prepare(Launch((1, 1, 1), {"i": i}), {}) for i in (3, 1, 2)]
    graph = Graph.capture(host.device(), calls)
    assert seen == []
    graph.launch(0)
    graph.launch(CudaStream())
    assert seen == [3, 1, 2] * 2


def test_a_failed_capture_ends_and_frees_its_stream(host):
    def fail(stream):
        raise LaunchError("no")

    with pytest.raises(LaunchError, match="no"):
        Graph.capture(host.device(), [fail])
    assert host.capturing == {}
    assert host.log == ["destroy stream 1001"]


def test_a_capture_on_a_stream_of_the_caller_s(host):
    streams = []
    Graph.capture(host.device(), [streams.append], CudaStream())
    assert streams == [HANDLE]
    # it is the caller's to destroy
    assert host.log == []


def test_an_invalidated_capture_is_an_error(host):
    host.fail["cuStreamEndCapture"] = driver.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    with pytest.raises(LaunchError, match="the capture of a graph failed with CUDA_ERROR_STREAM"):
        Graph.capture(host.device(), [])


@pytest.mark.parametrize(
    ("total_bytes", "copy_bytes", "copies"),
    [(0, 10, 1), (10, 0, 1), (5, 10, 2), (10, 10, 2), (20, 10, 3), (29, 10, 3), (30, 10, 4)],
)
def test_copies_exceed_the_total(total_bytes, copy_bytes, copies):
    assert copies_to_exceed(total_bytes, copy_bytes) == copies
    if total_bytes and copy_bytes:
        assert copies * copy_bytes > total_bytes


class Add(Kernel):
    """out = x + w + what the workspace holds, by the host driver."""

    name = "add"
    config = None
    summary = ""
    op = Op(
        name="add",
        formula="out[i] = x[i] + w[i]",
        problem=int,
        make_inputs=lambda n, rng: {k: rng.standard_normal(n).astype(np.float32) for k in "xw"},
        reference=lambda n, inputs: inputs["x"] + inputs["w"],
        output=lambda n: ((n,), np.dtype(np.float32)),
        work=lambda n: Work(n, 12 * n),
        tolerance=lambda n: Tolerance(0, 0, "the same arithmetic"),
        tests=(),
        activations=frozenset({"x", "absent"}),
    )
    parameters = (*pointers("x", "w", "out", "scratch"), *sizes("n"))

    def configs(self, gpu):
        return [None]

    def refuses(self, problem):
        return None

    def build(self, config, arch):
        raise NotImplementedError

    def prepare(self, problem, inputs):
        return dict(inputs)

    def launch(self, config, problem, gpu):
        return Launch((1, 1, 1), {"n": problem}, {"scratch": 4})

    @staticmethod
    def run(x, w, out, scratch, n):
        x, w, out = (host_driver.view(address, n, np.float32) for address in (x, w, out))
        out[:] = x + w + host_driver.view(scratch, 1, np.float32)


def test_every_copy_of_the_weights_gives_the_result(host):
    host.kernels = {"add": (Add.parameters, Add.run)}
    operands = OperandSet(host.device(), Add(), 100, rotate_bytes=1300, guard_bytes=256)
    assert operands.copies == 4
    bound = operands.bind(None, host_driver.binary("add", Add.parameters))
    views = [operands.buffers(i) for i in range(5)]
    assert len({v["w"].pointer for v in views}) == 4
    assert len({v["x"].pointer for v in views}) == 1
    for prepared in bound.calls():
        operands.poison()
        assert np.isnan(operands.result()).all()
        prepared(0)
        np.testing.assert_array_equal(operands.result(), operands.want)
    assert bound.damage() is None


def test_what_is_copied_ends_at_an_aligned_address(host):
    operands = OperandSet(host.device(), Add(), 75, rotate_bytes=600)
    for i in range(operands.copies):
        w = operands.buffers(i)["w"]
        row = Buffer(host.device(), w.pointer, 512).read((512,), np.uint8)
        np.testing.assert_array_equal(row[:300].view(np.float32), operands.inputs["w"])
        assert (row[300:] == 0xFF).all()


def test_operands_made_before_are_the_same_and_are_uploaded_once(host):
    made, uploads = HostOperands.make(Add(), 100), Uploads()
    fresh = OperandSet(host.device(), Add(), 100)
    sets = [OperandSet(host.device(), Add(), 100, host=made, uploads=uploads) for _ in range(2)]
    for one in sets:
        np.testing.assert_array_equal(one.want, fresh.want)
        for name, buffer in one.buffers().items():
            if name != "out":
                want = fresh.buffers()[name].read((100,), np.float32)
                np.testing.assert_array_equal(buffer.read((100,), np.float32), want)
    first, second = (one.buffers() for one in sets)
    assert first["w"].pointer == second["w"].pointer
    assert first["out"].pointer != second["out"].pointer
    # more copies are another upload
    more = OperandSet(host.device(), Add(), 100, host=made, uploads=uploads, rotate_bytes=900)
    assert more.buffers()["w"].pointer != first["w"].pointer


def test_uploads_stay_for_the_next_problem_and_go_with_the_one_after(host):
    uploads = Uploads()
    kept, dropped = ("a", 1, 0), ("b", 1, 0)
    for key in (kept, dropped):
        uploads.get(key)
        uploads.put(key, Buffer.empty(host.device(), 4))
    uploads.next_problem()
    assert uploads.get(kept) is not None
    uploads.next_problem()
    assert uploads.get(kept) is not None
    assert uploads.get(dropped) is None
    uploads.clear()
    assert uploads.get(kept) is None


def test_a_result_is_copied_into_memory_that_is_there(host):
    operands = OperandSet(host.device(), Add(), 4)
    memory = np.zeros(64, np.uint8)
    operands.poison()
    got = operands.result(memory)
    assert got.shape == (4,)
    assert np.shares_memory(got, memory)
    assert (memory[:16] == 0xFF).all()
    assert not memory[16:].any()


def test_page_locked_memory_is_given_back_and_refused_is_ordinary(host):
    memory = page_locked(100)
    assert host.page_locked == [memory.ctypes.data]
    del memory
    assert host.page_locked == []
    host.fail["cuMemHostRegister"] = driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    assert page_locked(100).tobytes() == bytes(100)


def test_damage_names_the_buffer(host):
    operands = OperandSet(host.device(), Add(), 3, guard_bytes=256)
    bound = operands.bind(None, host_driver.binary("add", Add.parameters))
    ctypes.memset(operands.out.pointer + 12, 0, 2)
    assert bound.damage() == "out: 2 bytes written past the end, the first at +0"
    ctypes.memset(bound.workspace["scratch"].pointer + 4, 0, 1)
    assert bound.damage() == "scratch: 1 bytes written past the end, the first at +0"


def test_a_call_keeps_its_buffers_alive(host):
    host.kernels = {"add": (Add.parameters, Add.run)}
    operands = OperandSet(host.device(), Add(), 8)
    calls = operands.bind(None, host_driver.binary("add", Add.parameters)).calls()
    want, out = operands.want, operands.out
    del operands
    gc.collect()
    calls[0](0)
    np.testing.assert_array_equal(out.read((8,), np.float32), want)


def test_opening_without_a_gpu_calls_no_driver(host, monkeypatch):
    def none(index):
        raise DeviceError("no GPU to run on")

    monkeypatch.setattr("ferrum_numba.launch.device.live", none)
    # the host driver has no cuInit: a call of it would be another error
    with pytest.raises(DeviceError, match="no GPU to run on"):
        Device.open()
