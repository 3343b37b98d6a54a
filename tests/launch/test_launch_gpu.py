"""Launches on a real GPU: every attribute, graphs, the host's cost, and times that make sense."""

import numpy as np
import pytest
from numba import cuda, uint32, uint64

from ferrum_numba.compile import build_program
from ferrum_numba.contract import Launch, Program, pointers, sizes
from ferrum_numba.errors import LaunchError
from ferrum_numba.launch import Buffer, Graph, load, pointer
from ferrum_numba.measure import Policy, host_time_us, measure
from ferrum_numba.ptx.memory import (
    ld_acquire_gpu,
    ld_global_u32,
    ld_global_v4,
    ld_shared_u32,
    red_add_release_gpu,
    st_global_u32,
    st_global_v4,
    st_shared_u32,
)
from ferrum_numba.ptx.special import cluster_ctarank, smem_base
from ferrum_numba.ptx.sync import (
    cluster_arrive,
    cluster_wait,
    griddepcontrol_launch_dependents,
    griddepcontrol_wait,
    ld_shared_cluster_u32,
    mapa,
)

NUM_THREADS = 128


def add(x, out, step):
    i = uint32(uint32(cuda.blockIdx.x) * uint32(NUM_THREADS) + uint32(cuda.threadIdx.x))
    at = uint64(uint64(i) * uint64(4))
    st_global_u32(out + at, uint32(ld_global_u32(x + at) + step))


def add_after_the_predecessor(x, out, step):
    griddepcontrol_launch_dependents()
    griddepcontrol_wait()
    i = uint32(uint32(cuda.blockIdx.x) * uint32(NUM_THREADS) + uint32(cuda.threadIdx.x))
    at = uint64(uint64(i) * uint64(4))
    st_global_u32(out + at, uint32(ld_global_u32(x + at) + step))


def through_shared_memory(out, distance):
    tid = uint32(cuda.threadIdx.x)
    address = uint32(smem_base() + distance + uint32(tid * uint32(4)))
    st_shared_u32(address, uint32(tid ^ uint32(5)))
    cuda.syncthreads()
    other = uint32(smem_base() + distance + uint32(uint32(tid ^ uint32(1)) * uint32(4)))
    st_global_u32(out + uint64(uint64(tid) * uint64(4)), ld_shared_u32(other))


def read_the_neighbour(out):
    rank = cluster_ctarank()
    if cuda.threadIdx.x == 0:
        st_shared_u32(smem_base(), uint32(uint32(cuda.blockIdx.x) + uint32(100)))
    cluster_arrive()
    cluster_wait()
    if cuda.threadIdx.x == 0:
        neighbour = mapa(smem_base(), uint32(rank ^ uint32(1)))
        at = uint64(uint64(cuda.blockIdx.x) * uint64(4))
        st_global_u32(out + at, ld_shared_cluster_u32(neighbour))
    # nobody's shared memory goes before its neighbour has read it
    cluster_arrive()
    cluster_wait()


def wait_for_all(count, out, blocks):
    if cuda.threadIdx.x == 0:
        red_add_release_gpu(count, uint32(1))
        while ld_acquire_gpu(count) < blocks:
            pass
        st_global_u32(out + uint64(uint64(cuda.blockIdx.x) * uint64(4)), ld_acquire_gpu(count))


def copy(x, out, stride, rounds):
    i = uint64(uint32(uint32(cuda.blockIdx.x) * uint32(NUM_THREADS) + uint32(cuda.threadIdx.x)))
    at = uint64(i * uint64(16))
    left = rounds
    while left > uint32(0):
        st_global_v4(out + at, ld_global_v4(x + at))
        at = uint64(at + uint64(stride))
        left = uint32(left - uint32(1))


ADD = pointers("x", "out") + sizes("step")


def loaded(device, function, parameters, **changes):
    program = Program(function, parameters, NUM_THREADS, **changes)
    return load(build_program(program, device.gpu.arch), device)


def hopper(device):
    """Return whether clusters and programmatic launches exist: from sm_90 on."""
    return int(device.gpu.arch.removeprefix("sm_").rstrip("af")) >= 90


def zeros(device, count):
    return Buffer.from_array(device, np.zeros(count, np.uint32))


@pytest.mark.gpu
def test_a_launch_runs_on_the_stream_it_is_given(device, rng):
    values = rng.integers(0, 2**32, 4 * NUM_THREADS, dtype=np.uint32)
    x, out = Buffer.from_array(device, values), zeros(device, values.size)
    prepared = loaded(device, add, ADD).prepare(
        Launch((4, 1, 1), {"step": 7}), {"x": x, "out": out}
    )
    for stream in (device.new_stream(), 0):
        out.fill(0)
        prepared(stream)
        np.testing.assert_array_equal(out.read(values.shape, np.uint32), values + np.uint32(7))


@pytest.mark.gpu
@pytest.mark.parametrize("smem_bytes", [16 * 1024, 200 * 1024])
def test_shared_memory_beyond_48_kb(device, smem_bytes):
    if smem_bytes > device.gpu.smem_per_block:
        pytest.skip(f"{device.gpu.name} has {device.gpu.smem_per_block} bytes a block")
    kernel = loaded(
        device, through_shared_memory, pointers("out") + sizes("distance"), smem_bytes=smem_bytes
    )
    out = zeros(device, NUM_THREADS)
    distance = smem_bytes - 4 * NUM_THREADS
    kernel.prepare(Launch((1, 1, 1), {"distance": distance}), {"out": out})(0)
    want = np.arange(NUM_THREADS, dtype=np.uint32) ^ 1 ^ 5
    np.testing.assert_array_equal(out.read((NUM_THREADS,), np.uint32), want)


@pytest.mark.gpu
def test_the_driver_s_refusal_names_error_and_numbers(device):
    prepared = loaded(device, add, ADD).prepare(
        Launch((1, 70_000, 1), {"step": 0}), {"x": 0, "out": 0}
    )
    with pytest.raises(LaunchError, match=r"add \(grid \(1, 70000, 1\).*CUDA_ERROR_INVALID_VALUE"):
        prepared(0)


@pytest.mark.gpu
@pytest.mark.parametrize("programmatic", [False, True])
def test_a_graph_replays_a_chain_of_launches(device, programmatic):
    if programmatic and not hopper(device):
        pytest.skip("programmatic launches begin with sm_90")
    function = add_after_the_predecessor if programmatic else add
    kernel = loaded(device, function, ADD)
    buffers = [zeros(device, 64 * NUM_THREADS) for _ in range(2)]
    calls = [
        kernel.prepare(
            Launch((64, 1, 1), {"step": 1}, programmatic=programmatic),
            {"x": buffers[i % 2], "out": buffers[(i + 1) % 2]},
        )
        for i in range(50)
    ]
    graph = Graph.capture(device, calls)
    stream = device.new_stream()
    for _ in range(3):
        graph.launch(stream)
    # every launch read what the one before it wrote
    assert set(buffers[0].read((64 * NUM_THREADS,), np.uint32)) == {150}


@pytest.mark.gpu
def test_blocks_of_a_cluster_read_each_other_s_shared_memory(device):
    if not hopper(device):
        pytest.skip("clusters begin with sm_90")
    kernel = loaded(device, read_the_neighbour, pointers("out"), smem_bytes=1024, cluster=(2, 1, 1))
    out = zeros(device, 8)
    kernel.prepare(Launch((8, 1, 1), {}), {"out": out})(0)
    np.testing.assert_array_equal(out.read((8,), np.uint32), (np.arange(8) ^ 1) + 100)


@pytest.mark.gpu
@pytest.mark.parametrize("programmatic", [False, True])
def test_blocks_that_wait_for_each_other_all_run(device, programmatic):
    if programmatic and not hopper(device):
        pytest.skip("programmatic launches begin with sm_90")
    kernel = loaded(device, wait_for_all, pointers("count", "out") + sizes("blocks"))
    blocks = device.gpu.num_sms
    launch = Launch((blocks, 1, 1), {"blocks": blocks}, co_resident=True, programmatic=programmatic)
    count, out = zeros(device, 1), zeros(device, blocks)
    prepared = kernel.prepare(launch, {"count": count, "out": out})
    graph = Graph.capture(device, [prepared])
    prepared(0)
    assert (out.read((blocks,), np.uint32) == blocks).all()
    count.fill(0)
    graph.launch(0)
    assert (out.read((blocks,), np.uint32) == blocks).all()


@pytest.mark.gpu
def test_more_blocks_than_fit_are_refused_before_they_hang(device):
    kernel = loaded(device, wait_for_all, pointers("count", "out") + sizes("blocks"))
    fit = kernel.blocks_at_once(Launch((1, 1, 1), {}))
    launch = Launch((fit + 1, 1, 1), {"blocks": fit + 1}, co_resident=True)
    with pytest.raises(LaunchError, match=f"its {fit + 1} blocks wait .* but {fit} fit at once"):
        kernel.prepare(launch, {"count": 0, "out": 0})


@pytest.mark.timing
@pytest.mark.gpu
def test_a_prepared_launch_costs_the_host_little(device, record_property, capsys):
    kernel = loaded(device, add, ADD)
    buffers = {"x": zeros(device, NUM_THREADS), "out": zeros(device, NUM_THREADS)}
    prepared = kernel.prepare(Launch((1, 1, 1), {"step": 1}), buffers)
    us = host_time_us(prepared, device.new_stream())
    record_property("host_time_us", us)
    with capsys.disabled():
        print(f"\na prepared launch takes {us:.2f} us of the host's time")
    # twice what is asked of it: other work on the host
    assert us < 6


@pytest.mark.gpu
@pytest.mark.parametrize("regime", ["cold", "warm", "eager"])
def test_a_copy_runs_at_a_bandwidth_that_can_be(device, regime, capsys):
    blocks, rounds = 2048, 64
    stride = blocks * NUM_THREADS * 16
    size_bytes = stride * rounds
    kernel = loaded(device, copy, pointers("x", "out") + sizes("stride", "rounds"))
    launch = Launch((blocks, 1, 1), {"stride": stride, "rounds": rounds})
    pairs = [{"x": Buffer.empty(device, size_bytes), "out": Buffer.empty(device, size_bytes)}
             for _ in range(2)]  # fmt: skip
    pattern = np.arange(size_bytes // 4, dtype=np.uint32)
    for pair in pairs:
        pair["x"].write(pattern)
    samples = measure(device, [kernel.prepare(launch, pair) for pair in pairs], regime, Policy())
    np.testing.assert_array_equal(pairs[0]["out"].read(pattern.shape, np.uint32), pattern)
    tbps = 2 * size_bytes / float(np.median(samples.us)) / 1e6
    with capsys.disabled():
        print(f"\n{regime}: copy of {size_bytes / 1e6:.0f} MB at {tbps:.2f} TB/s, {samples}")
    assert 0.2 * device.gpu.dram_gbps < 1e3 * tbps < device.gpu.dram_gbps


@pytest.mark.timing
@pytest.mark.gpu
def test_what_the_attributes_cost_in_a_graph(device, capsys):
    """A report, and a bound on it: no attribute may cost more than a launch from the host."""
    kernel = loaded(device, add, ADD)
    early = loaded(device, add_after_the_predecessor, ADD) if hopper(device) else kernel
    buffers = {"x": zeros(device, NUM_THREADS), "out": zeros(device, NUM_THREADS)}
    launches = {
        "plain": (kernel, Launch((1, 1, 1), {"step": 1})),
        "cooperative": (kernel, Launch((1, 1, 1), {"step": 1}, co_resident=True)),
        "programmatic": (early, Launch((1, 1, 1), {"step": 1}, programmatic=early is not kernel)),
    }
    us = {}
    for name, (each, launch) in launches.items():
        samples = measure(device, [each.prepare(launch, buffers)], "warm", Policy())
        us[name] = float(np.median(samples.us))
    with capsys.disabled():
        print("\na node in a graph: " + ", ".join(f"{n} {t:.2f} us" for n, t in us.items()))
    assert max(us.values()) < us["plain"] + 6


@pytest.mark.timing
@pytest.mark.gpu
def test_twice_the_work_takes_twice_the_replay(device, capsys):
    """What a replay adds to the calls in it must not show in a time per call."""
    kernel = loaded(device, add, ADD)
    buffers = {"x": zeros(device, NUM_THREADS), "out": zeros(device, NUM_THREADS)}
    prepared = kernel.prepare(Launch((1, 1, 1), {"step": 1}), buffers)
    us = [
        float(np.median(measure(device, [prepared], "warm", Policy(min_graph_us=work)).us))
        for work in (400.0, 1600.0)
    ]
    with capsys.disabled():
        print(f"\na call in graphs of 400 and 1600 us: {us[0]:.3f} and {us[1]:.3f} us")
    assert us[0] == pytest.approx(us[1], rel=0.05)


VALUES = np.arange(NUM_THREADS, dtype=np.int32)
# what other libraries warn of, at import or at first use, is theirs
foreign = pytest.mark.filterwarnings("ignore")


def add_7(device, x, out, stream):
    kernel = loaded(device, add, ADD)
    kernel.prepare(Launch((1, 1, 1), {"step": 7}), {"x": x, "out": out})(stream)


@foreign
@pytest.mark.gpu
def test_a_torch_tensor_on_a_torch_stream(device):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(VALUES).to("cuda")
    out = torch.empty_like(x)
    stream = torch.cuda.Stream()
    device.synchronize()
    add_7(device, x, out, stream)
    stream.synchronize()
    np.testing.assert_array_equal(out.cpu().numpy(), VALUES + 7)


@foreign
@pytest.mark.gpu
def test_a_transposed_torch_tensor_is_refused(device):
    torch = pytest.importorskip("torch")
    tensor = torch.empty((8, 16), dtype=torch.int32, device="cuda").t()
    with pytest.raises(LaunchError, match=r"shape \(16, 8\) and strides \(1, 16\) in elements"):
        add_7(device, tensor, tensor, 0)


@foreign
@pytest.mark.gpu
def test_a_cupy_array_on_a_cupy_stream(device):
    cupy = pytest.importorskip("cupy")
    x, out = cupy.asarray(VALUES), cupy.empty(VALUES.shape, VALUES.dtype)
    stream = cupy.cuda.Stream(non_blocking=True)
    device.synchronize()
    add_7(device, x, out, stream)
    stream.synchronize()
    np.testing.assert_array_equal(cupy.asnumpy(out), VALUES + 7)
    with pytest.raises(LaunchError, match=r"shape \(16, 8\) and strides \(4, 64\) in bytes"):
        pointer(x.reshape(8, 16).T)


@foreign
@pytest.mark.gpu
def test_a_numba_array_on_a_numba_stream(device):
    x, out = cuda.to_device(VALUES), cuda.device_array(VALUES.shape, VALUES.dtype)
    stream = cuda.stream()
    device.synchronize()
    add_7(device, x, out, stream)
    stream.synchronize()
    np.testing.assert_array_equal(out.copy_to_host(), VALUES + 7)
    in_columns = cuda.device_array((8, 16), VALUES.dtype, order="F")
    with pytest.raises(LaunchError, match=r"shape \(8, 16\) and strides \(4, 32\) in bytes"):
        pointer(in_columns)


@foreign
@pytest.mark.gpu
def test_a_cuda_core_buffer_on_a_cuda_core_stream(device):
    core = pytest.importorskip("cuda.core").Device(device.index)
    core.set_current()
    stream = core.create_stream()
    x, out = (core.allocate(VALUES.nbytes, stream=stream) for _ in range(2))
    # copies by our own views of the same memory; each waits for the device
    Buffer(device, pointer(x), VALUES.nbytes).write(VALUES)
    add_7(device, x, out, stream)
    found = Buffer(device, pointer(out), VALUES.nbytes).read(VALUES.shape, VALUES.dtype)
    np.testing.assert_array_equal(found, VALUES + 7)
