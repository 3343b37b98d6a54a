"""The memory that the driver reads a launch from: values of parameters, and the launch config."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from cuda.bindings import driver

from ferrum_numba.contract import Launch, Parameter
from ferrum_numba.errors import LaunchError
from ferrum_numba.launch import direct
from ferrum_numba.launch.device import failure

if TYPE_CHECKING:
    from ferrum_numba.compile import Binary
    from ferrum_numba.launch.kernel import Loaded

# the smallest and largest value of a scalar parameter
_RANGES = {"uint32": (0, 2**32 - 1), "int32": (-(2**31), 2**31 - 1)}
# of the stream in CUlaunchConfig: behind seven 4-byte sizes, on a multiple of 8
_STREAM_OFFSET = 32
_LaunchAttribute = driver.CUlaunchAttributeID


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


class Arguments:
    """The memory that the driver reads a launch from, and the call that makes it do so.

    slots:  [n] uint64, values
    places: for each parameter, the number of its slot
    """

    __slots__ = ("_keep", "launcher", "passed", "stream")

    def __init__(
        self, loaded: Loaded, launch: Launch, slots: npt.NDArray[np.uint64], places: Sequence[int]
    ) -> None:
        pointers = slots.ctypes.data + 8 * np.array(places, dtype=np.uint64)
        config = launch_config(loaded.binary, launch)
        config_address = int(config.getPtr())
        self.launcher = direct.launcher()
        self.passed = (
            ctypes.c_void_p(config_address),
            ctypes.c_void_p(int(loaded.function)),
            ctypes.c_void_p(int(pointers.ctypes.data)),
            None,
        )
        self.stream = ctypes.c_void_p.from_address(config_address + _STREAM_OFFSET)
        self._keep = (slots, pointers, config)


def refused(status: int, loaded: Loaded, launch: Launch) -> LaunchError:
    """Return the error of a launch that the driver refused."""
    return failure(driver.CUresult(status), f"the launch of {loaded.describe(launch)}")
