"""A binary on a GPU, and its launches: everything a call does not change is built beforehand."""

from __future__ import annotations

import ctypes
import math
import struct
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from cuda.bindings import driver

from ferrum_numba.contract import Launch, Matmul, Parameter
from ferrum_numba.errors import LaunchError
from ferrum_numba.launch import cublas
from ferrum_numba.launch.device import Device, call, failure
from ferrum_numba.launch.interop import pointer, stream_handle

if TYPE_CHECKING:
    from ferrum_numba.compile import Binary

# a larger cluster runs where the GPU allows it, and must be asked for
PORTABLE_CLUSTER_BLOCKS = 8
# the smallest and largest value of a scalar parameter
_RANGES = {"uint32": (0, 2**32 - 1), "int32": (-(2**31), 2**31 - 1)}
_SUCCESS = driver.CUresult.CUDA_SUCCESS
# of the stream in CUlaunchConfig: behind seven 4-byte sizes, on a multiple of 8
_STREAM_OFFSET = 32
_Attribute = driver.CUfunction_attribute
_LaunchAttribute = driver.CUlaunchAttributeID


@cache
def _launcher() -> Callable[..., int]:
    """Return the driver's cuLaunchKernelEx, called with addresses as they are.

    What a launch costs the host is nearly all the driver's: see docs/hardware.md#host-launch.
    """
    function: Callable[..., int] = ctypes.CDLL("libcuda.so.1").cuLaunchKernelEx
    return function


def pack(
    parameters: Sequence[Parameter], scalars: Mapping[str, int], addresses: Mapping[str, int]
) -> npt.NDArray[np.uint64]:
    """Return the parameters' values: [n] uint64, little endian, a scalar in the low half.

    Raises:
        LaunchError: a value is missing or does not fit its parameter.
    """
    slots = np.zeros(len(parameters), np.uint64)
    for i, parameter in enumerate(parameters):
        given = addresses if parameter.kind == "pointer" else scalars
        if parameter.name not in given:
            raise LaunchError(f"no value for {parameter.kind} parameter {parameter.name}")
        value = int(given[parameter.name])
        low, high = _RANGES.get(parameter.kind, (0, 2**64 - 1))
        if not low <= value <= high:
            raise LaunchError(f"{parameter.name} = {value} does not fit {parameter.kind}")
        slots[i] = value & (2**64 - 1)
    return slots


def launch_config(binary: Binary, launch: Launch) -> Any:
    """Return the CUlaunchConfig of a launch; its grid counts blocks, not clusters."""
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = launch.grid
    config.blockDimX, config.blockDimY, config.blockDimZ = binary.num_threads, 1, 1
    config.sharedMemBytes = binary.smem_bytes
    attributes = _attributes(binary, launch)
    if attributes:
        config.attrs = attributes
        config.numAttrs = len(attributes)
    return config


def _attributes(binary: Binary, launch: Launch) -> list[Any]:
    attributes = []
    if math.prod(binary.cluster) > 1:
        cluster = _attribute(_LaunchAttribute.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
        size = cluster.value.clusterDim
        size.x, size.y, size.z = binary.cluster
        attributes.append(cluster)
    if launch.programmatic:
        early = _attribute(_LaunchAttribute.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION)
        early.value.programmaticStreamSerializationAllowed = 1
        attributes.append(early)
    elif launch.co_resident:
        # two such kernels in two streams could otherwise hold half of the GPU each, for ever;
        # a programmatic launch starts beside its predecessor, which all-at-once does not allow
        together = _attribute(_LaunchAttribute.CU_LAUNCH_ATTRIBUTE_COOPERATIVE)
        together.value.cooperative = 1
        attributes.append(together)
    return attributes


def _attribute(kind: Any) -> Any:
    attribute = driver.CUlaunchAttribute()
    attribute.id = kind
    return attribute


class Prepared:
    """One launch, ready to go: call it with a stream.

    It keeps the buffers it was prepared with alive, and writes the stream into its own launch
    config: one thread at a time.

    slots: [n] uint64, the values of the parameters, read by the driver with every call
    """

    __slots__ = ("_arguments", "_keep", "_launch", "_stream", "slots")

    def __init__(self, loaded: Loaded, launch: Launch, buffers: Mapping[str, Any]) -> None:
        addresses = {name: pointer(buffer) for name, buffer in buffers.items()}
        slots = pack(loaded.binary.parameters, launch.scalars, addresses)
        self.slots = slots
        pointers = slots.ctypes.data + 8 * np.arange(len(slots), dtype=np.uint64)
        config = launch_config(loaded.binary, launch)
        config_address = int(config.getPtr())
        self._launch = _launcher()
        self._arguments = (
            ctypes.c_void_p(config_address),
            ctypes.c_void_p(int(loaded.function)),
            ctypes.c_void_p(int(pointers.ctypes.data)),
            None,
        )
        self._stream = ctypes.c_void_p.from_address(config_address + _STREAM_OFFSET)
        self._keep = (loaded, launch, config, pointers, tuple(buffers.values()))

    def __call__(self, stream: Any) -> None:
        """Launch on a stream: an int handle (the fast way) or any library's stream object.

        Raises:
            LaunchError: the driver refused.
        """
        self._stream.value = stream if type(stream) is int else stream_handle(stream)
        status = self._launch(*self._arguments)
        if status:
            loaded, launch, *_ = self._keep
            result = driver.CUresult(status)
            raise failure(result, f"the launch of {loaded.describe(launch)}")


class Repeated:
    """One launch on other buffers with every call, by any thread.

    Call it with a stream's handle and the addresses of all pointer parameters, in their order.
    """

    __slots__ = ("_lock", "_prepared", "_slots", "_write")

    def __init__(self, loaded: Loaded, launch: Launch) -> None:
        """Prepare a launch.

        Raises:
            LaunchError: a pointer comes after another parameter.
        """
        names = [p.name for p in loaded.binary.parameters if p.kind == "pointer"]
        self._prepared = Prepared(loaded, launch, dict.fromkeys(names, 0))
        self._slots = self._prepared.slots.data
        # one write of neighbouring slots is the cheap way
        first = [p.name for p in loaded.binary.parameters[: len(names)]]
        if first != names:
            raise LaunchError(
                f"{loaded.binary.entry}: a launch on other buffers with every call needs pointers "
                f"before all other parameters; its first {len(names)} are {', '.join(first)}"
            )
        self._write = struct.Struct(f"={len(names)}Q").pack_into
        self._lock = threading.Lock()

    def __call__(self, stream: int, addresses: Sequence[int]) -> None:
        """Launch on a stream.

        Raises:
            LaunchError: the driver refused.
        """
        # the driver has read the arguments when the launch returns
        with self._lock:
            self._write(self._slots, 0, *addresses)
            self._prepared(stream)


class Followed:
    """A launch and cuBLAS's product after it, on other buffers with every call, by any thread.

    Call it with a stream's handle and the addresses of `Loaded.pointers`.
    """

    __slots__ = ("_count", "_cublas", "_first", "_matmul")

    def __init__(self, first: Repeated, count: int, matmul: Matmul, library: cublas.Cublas) -> None:
        self._first, self._count = first, count
        self._matmul, self._cublas = matmul, library

    def __call__(self, stream: int, addresses: Sequence[int]) -> None:
        """Launch both on a stream.

        Raises:
            LaunchError: the driver or cuBLAS refused.
        """
        self._first(stream, addresses[: self._count])
        self._cublas(stream, self._matmul, addresses[self._count :])


class Fixed:
    """A launch and cuBLAS's product after it, on buffers that it keeps alive."""

    __slots__ = ("_addresses", "_both", "_keep")

    def __init__(
        self, both: Repeated | Followed, names: Sequence[str], buffers: Mapping[str, Any]
    ) -> None:
        self._both = both
        self._addresses = tuple(pointer(buffers[name]) for name in names)
        self._keep = tuple(buffers.values())

    def __call__(self, stream: Any) -> None:
        """Launch both on a stream: an int handle or any library's stream object."""
        self._both(stream_handle(stream), self._addresses)


@dataclass(frozen=True)
class Loaded:
    """A binary in a GPU's context."""

    binary: Binary
    device: Device
    function: Any

    def pointers(self, launch: Launch) -> list[str]:
        """Return the names of the buffers of a launch: its pointers, then those of cuBLAS."""
        names = [p.name for p in self.binary.parameters if p.kind == "pointer"]
        return names if launch.then is None else [*names, *launch.then.buffers]

    def prepare(self, launch: Launch, pointers: Mapping[str, Any]) -> Prepared | Fixed:
        """Return a launch with its arguments packed.

        Args:
            pointers: whatever `interop.pointer` takes, by name

        Raises:
            LaunchError: it cannot run: the message has the numbers.
        """
        if launch.then is None:
            self._refuse(launch)
            return Prepared(self, launch, pointers)
        return Fixed(self.repeated(launch), self.pointers(launch), pointers)

    def repeated(self, launch: Launch) -> Repeated | Followed:
        """Return a launch that is given the addresses of `pointers` with every call.

        Raises:
            LaunchError: it cannot run: the message has the numbers.
        """
        self._refuse(launch)
        first = Repeated(self, launch)
        if launch.then is None:
            return first
        count = len(self.pointers(launch)) - len(launch.then.buffers)
        return Followed(first, count, launch.then, cublas.of_device(self.device.index))

    def _refuse(self, launch: Launch) -> None:
        if any(size < 1 for size in launch.grid):
            raise LaunchError(f"{self.describe(launch)}: a grid needs one block at least")
        if any(g % c for g, c in zip(launch.grid, self.binary.cluster, strict=True)):
            raise LaunchError(
                f"{self.describe(launch)}: the grid must be a multiple of the cluster "
                f"{self.binary.cluster}"
            )
        if launch.co_resident:
            self._refuse_more_than_fits(launch)

    def blocks_at_once(self, launch: Launch) -> int:
        """Return how many blocks of this launch the GPU holds at once, by the driver's count."""
        if math.prod(self.binary.cluster) > 1:
            config = launch_config(self.binary, launch)
            clusters = call(driver.cuOccupancyMaxActiveClusters, self.function, config)
            return int(clusters) * math.prod(self.binary.cluster)
        blocks_per_sm = call(
            driver.cuOccupancyMaxActiveBlocksPerMultiprocessor,
            self.function,
            self.binary.num_threads,
            self.binary.smem_bytes,
        )
        return int(blocks_per_sm) * self.device.gpu.num_sms

    def describe(self, launch: Launch) -> str:
        """Return the numbers of a launch, for a message."""
        return (
            f"{self.binary.entry} (grid {launch.grid}, {self.binary.num_threads} threads, "
            f"{self.binary.registers} registers, {self.binary.smem_bytes} bytes of shared memory)"
        )

    def _refuse_more_than_fits(self, launch: Launch) -> None:
        blocks, fit = math.prod(launch.grid), self.blocks_at_once(launch)
        if blocks > fit:
            raise LaunchError(
                f"{self.describe(launch)}: its {blocks} blocks wait for each other, but "
                f"{fit} fit at once on the {self.device.gpu.num_sms} SMs of {self.device.gpu.name}"
            )


def load(binary: Binary, device: Device) -> Loaded:
    """Load a binary and opt in to the shared memory and cluster size it asks for.

    Raises:
        LaunchError: the GPU cannot run it.
    """
    gpu, smem_bytes = device.gpu, binary.static_smem_bytes + binary.smem_bytes
    if smem_bytes > gpu.smem_per_block:
        raise LaunchError(
            f"{binary.entry} asks for {smem_bytes} bytes of shared memory a block; "
            f"{gpu.name} has {gpu.smem_per_block}"
        )
    status, library = driver.cuLibraryLoadData(binary.cubin, [], [], 0, [], [], 0)
    if status != _SUCCESS:
        raise failure(status, f"loading {binary.entry}, built for {binary.arch}, on {gpu.name}")
    kernel = call(driver.cuLibraryGetKernel, library, binary.entry.encode())
    # the function, not the kernel: it is loaded now and not by the first launch, maybe in a capture
    function = call(driver.cuKernelGetFunction, kernel)
    _opt_in(function, binary)
    loaded = Loaded(binary, device, function)
    weakref.finalize(loaded, driver.cuLibraryUnload, library).atexit = False
    return loaded


def _opt_in(function: Any, binary: Binary) -> None:
    # by default a block gets no more than 48 KB, static and dynamic together
    if binary.smem_bytes:
        most = _Attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        call(driver.cuFuncSetAttribute, function, most, binary.smem_bytes)
    if math.prod(binary.cluster) > PORTABLE_CLUSTER_BLOCKS:
        allowed = _Attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
        call(driver.cuFuncSetAttribute, function, allowed, 1)
