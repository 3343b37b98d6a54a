"""A CUDA driver of host memory and simulated time, so that the host side is tested with no GPU.

A "kernel" is a Python function registered by its entry name; it gets the scalar arguments that a
launch packed, decoded as the driver would, and works on host memory at the given addresses.
"""

import ctypes
import struct

import numpy as np
from cuda.bindings import driver

from ferrum_numba.compile import Binary
from ferrum_numba.contract import Parameter
from ferrum_numba.gpu import KNOWN
from ferrum_numba.launch import Device

SUCCESS = driver.CUresult.CUDA_SUCCESS
FORMATS = {"pointer": "<Q", "uint32": "<I", "int32": "<i"}
MODULES = ("device", "buffer", "interop", "kernel", "graph", "scratch")


def view(address, count, dtype):
    """Return the host memory at an address as an array."""
    size_bytes = count * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * size_bytes).from_address(address), dtype)


def binary(entry, parameters, **changes):
    """Return a Binary with nothing in it but what a launch needs."""
    facts = {
        "cubin": entry.encode(), "ptx": "", "entry": entry, "arch": "sm_90a", "registers": 32,
        "spill_bytes": 0, "stack_bytes": 0, "static_smem_bytes": 0, "smem_bytes": 0,
        "num_threads": 128, "cluster": (1, 1, 1), "parameters": tuple(parameters),
        "fingerprint": "", "build_s": 0.0,
    }  # fmt: skip
    return Binary(**{**facts, **changes})


def parameters(pointers, scalars=()):
    """Return pointer parameters, then uint32 ones."""
    return [
        *(Parameter(p, "pointer") for p in pointers),
        *(Parameter(s, "uint32") for s in scalars),
    ]


class HostDriver:
    """The functions of `cuda.bindings.driver` that the launch and measure rooms call.

    kernels:     entry name -> (parameters, function)
    launch_us:   simulated device time of a launch; a graph's launches cost as much
    fail:        function name -> CUresult it returns from now on

    calls:       every function of the driver that was called, by name
    memory:      address -> what was allocated and not freed
    allocated:   bytes of every allocation, in order
    page_locked: addresses of host memory that the GPU copies to
    """

    def __init__(self, kernels=(), launch_us=5.0):
        self.kernels = dict(kernels)
        self.launch_us = launch_us
        self.fail = {}
        self.log = []
        self.calls = []
        self.memory = {}
        self.allocated = []
        self.page_locked = []
        self.contexts = [None]
        self.now_us = 0.0
        self.events = {}
        self.graphs = {}
        # (stream whose event, stream that waits for it)
        self.waits = []
        self.capturing = {}
        self.capture_ids = {}
        # of the calling thread
        self.capture_mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
        self.functions = {}
        self.next_handle = 1000
        self.active_blocks = 2
        # of the launch that is running
        self.grid = (1, 1, 1)
        # handle -> id, of a handle that an earlier stream had before
        self.stream_ids = {}

    def __getattribute__(self, name):
        # a failure is asked for by the function's name, so every call passes here
        state = object.__getattribute__(self, "__dict__")
        fail = state.get("fail", {})
        if name.startswith("cu") and "calls" in state:
            state["calls"].append(name)
        if name in fail:
            return _named(name, lambda *args: (fail[name], None))
        return object.__getattribute__(self, name)

    def __getattr__(self, name):
        found = getattr(driver, name)
        if not isinstance(found, type):
            raise AttributeError(f"{name} would touch the driver")
        return found

    def device(self):
        return Device(0, KNOWN["h200"], None)

    def _handle(self):
        self.next_handle += 1
        return self.next_handle

    def cuCtxSynchronize(self):
        self.log.append("synchronize")
        return (SUCCESS,)

    def cuCtxGetCurrent(self):
        return SUCCESS, self.contexts[-1]

    def cuCtxPushCurrent(self, context):
        self.contexts.append(context)
        return (SUCCESS,)

    def cuCtxPopCurrent(self):
        return SUCCESS, self.contexts.pop()

    def cuStreamGetId(self, stream):
        # as the driver does: it also ends the capture
        if stream in self.capturing:
            return driver.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, None
        return SUCCESS, self.stream_ids.get(stream, stream)

    def cuStreamGetCaptureInfo(self, stream):
        status = driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE
        return SUCCESS, status, self.capture_ids[stream], None, [], [], 0

    def cuStreamIsCapturing(self, stream):
        states = driver.CUstreamCaptureStatus
        active = states.CU_STREAM_CAPTURE_STATUS_ACTIVE
        return SUCCESS, active if stream in self.capturing else (
            states.CU_STREAM_CAPTURE_STATUS_NONE
        )

    def cuStreamCreate(self, flags):
        assert flags == 1
        return SUCCESS, self._handle()

    def cuStreamDestroy(self, stream):
        self.log.append(f"destroy stream {stream}")
        return (SUCCESS,)

    def cuStreamSynchronize(self, stream):
        return (SUCCESS,)

    def cuMemAlloc(self, size_bytes):
        assert size_bytes > 0
        relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        if self.capturing and self.capture_mode != relaxed:
            return driver.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, None
        self.allocated.append(size_bytes)
        memory = np.full(size_bytes + 256, 0x5A, np.uint8)
        address = -(-memory.ctypes.data // 256) * 256
        self.memory[address] = memory
        return SUCCESS, address

    def cuMemFree(self, address):
        del self.memory[address]
        return (SUCCESS,)

    def cuMemsetD8Async(self, address, byte, count, stream):
        assert stream not in self.capturing
        return self.cuMemsetD8(address, byte, count)

    def cuThreadExchangeStreamCaptureMode(self, mode):
        self.capture_mode, before = mode, self.capture_mode
        return SUCCESS, before

    def cuMemsetD8(self, address, byte, count):
        assert count > 0
        ctypes.memset(address, byte, count)
        return (SUCCESS,)

    def cuMemHostRegister(self, address, size_bytes, flags):
        self.page_locked.append(address)
        return (SUCCESS,)

    def cuMemHostUnregister(self, address):
        self.page_locked.remove(address)
        return (SUCCESS,)

    def cuMemcpyHtoD(self, to, source, count):
        ctypes.memmove(to, source, count)
        return (SUCCESS,)

    def cuMemcpyDtoH(self, to, source, count):
        ctypes.memmove(to, source, count)
        return (SUCCESS,)

    def cuMemcpyDtoD(self, to, source, count):
        ctypes.memmove(to, source, count)
        return (SUCCESS,)

    def cuLibraryLoadData(self, code, *options):
        assert options == ([], [], 0, [], [], 0)
        return SUCCESS, code.decode()

    def cuLibraryUnload(self, library):
        return (SUCCESS,)

    def cuLibraryGetKernel(self, library, name):
        assert name.decode() == library
        return SUCCESS, library

    def cuKernelGetFunction(self, kernel):
        handle = self._handle()
        self.functions[handle] = kernel
        return SUCCESS, handle

    def cuFuncSetAttribute(self, function, attribute, value):
        self.log.append((attribute.name, value))
        return (SUCCESS,)

    def cuOccupancyMaxActiveBlocksPerMultiprocessor(self, function, num_threads, smem_bytes):
        return SUCCESS, self.active_blocks

    def cuOccupancyMaxActiveClusters(self, function, config):
        assert config.numAttrs >= 1
        return SUCCESS, self.active_blocks

    def launch(self, config, function, pointers, extra):
        assert extra is None
        if self.contexts[-1] is not None:
            # of another GPU
            return driver.CUresult.CUDA_ERROR_INVALID_HANDLE.value
        parameters, run = self.kernels[self.functions[function.value]]
        stream, values = stream_of(config), decode(parameters, pointers.value)
        grid = grid_of(config)
        if stream in self.capturing:
            self.capturing[stream].append(lambda: self._run(run, values, grid))
        else:
            self._run(run, values, grid)
        return 0

    def _run(self, run, values, grid):
        self.now_us += self.launch_us
        self.grid = grid
        run(**values)

    def cuStreamBeginCapture(self, stream, mode):
        self.capturing[stream] = []
        self.capture_ids[stream] = self._handle()
        return (SUCCESS,)

    def cuStreamEndCapture(self, stream):
        return SUCCESS, self.capturing.pop(stream)

    def cuGraphInstantiate(self, nodes, flags):
        assert flags == 0
        handle = self._handle()
        self.graphs[handle] = nodes
        return SUCCESS, handle

    def cuGraphDestroy(self, graph):
        return (SUCCESS,)

    def cuGraphExecDestroy(self, executable):
        del self.graphs[executable]
        return (SUCCESS,)

    def cuGraphLaunch(self, executable, stream):
        self.log.append(f"graph of {len(self.graphs[executable])}")
        for node in self.graphs[executable]:
            node()
        return (SUCCESS,)

    def cuEventCreate(self, flags):
        # with a time, or for others to wait for
        assert flags in (0, 2)
        handle = self._handle()
        self.events[handle] = None
        return SUCCESS, handle

    def cuEventRecord(self, event, stream):
        self.events[event] = self.now_us
        self.recorded = stream
        return (SUCCESS,)

    def cuStreamWaitEvent(self, stream, event, flags):
        assert (event in self.events, flags) == (True, 0)
        self.waits.append((self.recorded, stream))
        return (SUCCESS,)

    def cuEventSynchronize(self, event):
        return (SUCCESS,)

    def cuEventElapsedTime(self, start, end):
        return SUCCESS, (self.events[end] - self.events[start]) / 1e3

    def cuEventDestroy(self, event):
        del self.events[event]
        return (SUCCESS,)


def _named(name, function):
    function.__name__ = name
    return function


def decode(parameters, pointers):
    """Return the values behind an array of argument addresses, each read at its own width."""
    values = {}
    for i, parameter in enumerate(parameters):
        at = ctypes.c_uint64.from_address(pointers + 8 * i).value
        layout = FORMATS[parameter.kind]
        values[parameter.name] = struct.unpack(
            layout, ctypes.string_at(at, struct.calcsize(layout))
        )[0]
    return values


def stream_of(config):
    """Return the stream in the CUlaunchConfig at an address."""
    return int(driver.CUlaunchConfig(config.value).hStream)


def grid_of(config):
    """Return the grid in the CUlaunchConfig at an address."""
    found = driver.CUlaunchConfig(config.value)
    return found.gridDimX, found.gridDimY, found.gridDimZ


def install(monkeypatch, **options):
    """Put a HostDriver in the driver's place, for the launch room, and return it."""
    host = HostDriver(**options)
    for module in MODULES:
        monkeypatch.setattr(f"ferrum_numba.launch.{module}.driver", host)
    # called past cuda.bindings, for speed
    monkeypatch.setattr("ferrum_numba.launch.direct.functions", lambda: Library(host))
    monkeypatch.setattr("ferrum_numba.launch.direct.launcher", lambda: host.launch)
    return host


class Library:
    """The driver's library as ctypes calls it: answers are written to where they are wanted."""

    def __init__(self, host):
        self._host = host

    def __getattr__(self, name):
        def call(argument, answer):
            status, found = getattr(self._host, name)(argument.value or 0)
            if status == SUCCESS:
                answer._obj.value = int(found)
            return int(status)

        return call
