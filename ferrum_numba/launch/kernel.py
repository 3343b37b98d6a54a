"""A binary on a GPU, and its launches: everything a call does not change is built beforehand."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cuda.bindings import driver

from ferrum_numba.compile.versions import toolkit
from ferrum_numba.contract import Launch
from ferrum_numba.errors import LaunchError
from ferrum_numba.gpu import driver_cuda
from ferrum_numba.launch import cublas
from ferrum_numba.launch.arguments import Arguments, launch_config, pack, refused
from ferrum_numba.launch.device import Device, call, failure
from ferrum_numba.launch.interop import pointer, stream_handle
from ferrum_numba.launch.repeated import Fixed, Followed, InTurn, Order, Repeated

if TYPE_CHECKING:
    from ferrum_numba.compile import Binary

# a larger cluster runs where the GPU allows it, and must be asked for
PORTABLE_CLUSTER_BLOCKS = 8
_SUCCESS = driver.CUresult.CUDA_SUCCESS
# what a driver says of a program that a compiler of a newer CUDA made
_OTHER_CUDA = ("CUDA_ERROR_INVALID_IMAGE", "CUDA_ERROR_NO_BINARY_FOR_GPU",
               "CUDA_ERROR_UNSUPPORTED_PTX_VERSION")  # fmt: skip
_Attribute = driver.CUfunction_attribute


class Prepared:
    """One launch, ready to go: call it with a stream.

    It keeps the buffers it was prepared with alive, and writes the stream into its own launch
    config: one thread at a time.
    """

    __slots__ = ("_keep", "_launcher", "_passed", "_stream")

    def __init__(self, loaded: Loaded, launch: Launch, buffers: Mapping[str, Any]) -> None:
        addresses = {name: pointer(buffer) for name, buffer in buffers.items()}
        slots = pack(loaded.binary.parameters, launch.scalars, addresses)
        arguments = Arguments(loaded, launch, slots, range(len(slots)))
        self._launcher, self._passed = arguments.launcher, arguments.passed
        self._stream = arguments.stream
        self._keep = (loaded, launch, arguments, tuple(buffers.values()))

    def __call__(self, stream: Any) -> None:
        """Launch on a stream: an int handle (the fast way) or any library's stream object.

        Raises:
            LaunchError: the driver refused.
        """
        self._stream.value = stream if type(stream) is int else stream_handle(stream)
        status = self._launcher(*self._passed)
        if status:
            loaded, launch, *_ = self._keep
            raise refused(status, loaded, launch)

    @property
    def again(self) -> Callable[[], int]:
        """The driver's launch as it was made last, which returns its status: to be timed alone."""
        return partial(self._launcher, *self._passed)


@dataclass(frozen=True)
class Loaded:
    """A binary in a GPU's context."""

    binary: Binary
    device: Device
    function: Any

    def pointers(self, launch: Launch) -> list[str]:
        """Return the names of the buffers of a launch: its pointers, then those of cuBLAS."""
        names = [p.name for p in self.binary.parameters if p.kind == "pointer"]
        others = () if launch.then is None else launch.then.buffers
        return list(dict.fromkeys([*names, *others]))

    def prepare(self, launch: Launch, pointers: Mapping[str, Any]) -> Prepared | Fixed | InTurn:
        """Return a launch with its arguments packed.

        Args:
            pointers: whatever `interop.pointer` takes, by name

        Raises:
            LaunchError: it cannot run: the message has the numbers.
        """
        if launch.repeats:
            return InTurn(self.prepare(one, pointers) for one in launch.one_by_one())
        if launch.then is None:
            self._refuse(launch)
            return Prepared(self, launch, pointers)
        return Fixed(self._repeated(launch), self.pointers(launch), pointers)

    def repeated(self, launch: Launch, order: Order | None = None) -> Repeated | Followed | InTurn:
        """Return a launch that is given the addresses of its buffers with every call.

        order: of the addresses; by default that of `pointers`

        Raises:
            LaunchError: it cannot run: the message has the numbers.
        """
        if launch.repeats:
            return InTurn(self._repeated(one, order) for one in launch.one_by_one())
        return self._repeated(launch, order)

    def _repeated(self, launch: Launch, order: Order | None = None) -> Repeated | Followed:
        self._refuse(launch)
        order = order or Order(self.pointers(launch))
        first = Repeated(self, launch, order)
        if launch.then is None:
            return first
        return Followed(first, launch.then, order, cublas.of_device(self.device.index))

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
        doing = f"loading {binary.entry}, built for {binary.arch}, on {gpu.name}"
        raise failure(status, f"{doing}{_of_two_cudas(status)}")
    kernel = call(driver.cuLibraryGetKernel, library, binary.entry.encode())
    # the function, not the kernel: it is loaded now and not by the first launch, maybe in a capture
    function = call(driver.cuKernelGetFunction, kernel)
    _opt_in(function, binary)
    loaded = Loaded(binary, device, function)
    weakref.finalize(loaded, driver.cuLibraryUnload, library).atexit = False
    return loaded


def _of_two_cudas(status: Any) -> str:
    """Return of which CUDA driver and compiler are, where that may be why it was refused."""
    newest, made_by = driver_cuda(), toolkit()
    if status.name not in _OTHER_CUDA or newest is None or made_by is None:
        return ""
    return f", with a driver of CUDA {newest[0]}.{newest[1]} and a compiler of CUDA {made_by},"


def _opt_in(function: Any, binary: Binary) -> None:
    # by default a block gets no more than 48 KB, static and dynamic together
    if binary.smem_bytes:
        most = _Attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        call(driver.cuFuncSetAttribute, function, most, binary.smem_bytes)
    if math.prod(binary.cluster) > PORTABLE_CLUSTER_BLOCKS:
        allowed = _Attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
        call(driver.cuFuncSetAttribute, function, allowed, 1)
