"""The operands of one weight or of a stack of them: a buffer for each, an equal slab an expert."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ferrum_numba.contract import Array
from ferrum_numba.launch import Buffer, Device


@dataclass(frozen=True)
class Whole:
    """Memory of a GPU as other libraries take it, by `__cuda_array_interface__`."""

    memory: Buffer
    shape: tuple[int, ...]
    typestr: str

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "data": (self.memory.pointer, False), "shape": self.shape, "typestr": self.typestr,
            "version": 3,
        }  # fmt: skip


class Slabs:
    """Operands by name in memory of a GPU or, without one, of the host; each [num, *shape].

    device: the GPU, whose context is current while slabs are made and filled
    num:    slabs of each operand
    """

    def __init__(self, device: Device | None, num: int) -> None:
        self.num = num
        self._device = device
        self._shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        self._memory: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._memory

    def __iter__(self) -> Iterator[str]:
        return iter(self._memory)

    def add(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        """Allocate an operand."""
        self._shapes[name] = shape, np.dtype(dtype)
        if self._device is None:
            self._memory[name] = np.empty((self.num, *shape), dtype)
        else:
            self._memory[name] = Buffer.empty(self._device, self.num * self.slab_bytes(name))

    def put(self, name: str, index: int, array: Array, *, owned: bool = False) -> None:
        """Copy an array into a slab, allocating the operand with the first.

        owned: nobody else has the array, so that on the host it may become the only slab itself
        """
        if owned and self.num == 1 and self._device is None:
            self._shapes[name] = array.shape, array.dtype
            self._memory[name] = array[None]
            return
        if name not in self:
            self.add(name, array.shape, array.dtype)
        assert self._shapes[name] == (array.shape, array.dtype), "slabs are alike"
        if self._device is None:
            self._memory[name][index] = array
        else:
            self._part(name, index).write(array)

    def lend(self, name: str, array: Array) -> None:
        """Take the host's memory of an operand of all slabs, [num, *shape], as it is."""
        self._shapes[name] = array.shape[1:], array.dtype
        self._memory[name] = array

    def whole(self, name: str) -> Any:
        """Return an operand of all slabs without a copy: an array, or what shares a GPU's memory.

        What shares it has a type of the same size that every library knows.
        """
        if self._device is None:
            return self._memory[name]
        shape, dtype = self._shapes[name]
        return Whole(self._memory[name], (self.num, *shape), f"<i{dtype.itemsize}")

    def get(self, name: str, index: int) -> Array:
        """Return a slab as an array: a view of the host's memory, or a copy of the GPU's."""
        if self._device is None:
            slab: Array = self._memory[name][index]
            return slab
        with self._device.activated():
            return self._part(name, index).read(*self._shapes[name])

    def addresses(self, index: int) -> dict[str, int]:
        """Return the device addresses of a slab of every operand."""
        return {
            name: memory.pointer + index * self.slab_bytes(name)
            for name, memory in self._memory.items()
        }

    def slab_bytes(self, name: str) -> int:
        """Return the bytes of one slab of an operand."""
        shape, dtype = self._shapes[name]
        return math.prod(shape) * dtype.itemsize

    @property
    def size_bytes(self) -> int:
        """Bytes of all operands."""
        return self.num * sum(self.slab_bytes(name) for name in self)

    def _part(self, name: str, index: int) -> Buffer:
        size_bytes = self.slab_bytes(name)
        buffer: Buffer = self._memory[name].part(index * size_bytes, size_bytes)
        return buffer

    def free(self) -> None:
        """Give the memory back now."""
        for memory in self._memory.values():
            if isinstance(memory, Buffer):
                memory.free()
        self._memory.clear()


@contextmanager
def filling(device: Device | None, num: int) -> Iterator[Slabs]:
    """Yield empty slabs to fill; after an error nothing of them is left."""
    slabs = Slabs(device, num)
    try:
        if device is None:
            yield slabs
        else:
            with device.activated():
                yield slabs
    except BaseException:
        slabs.free()
        raise


def put_all(
    slabs: Slabs,
    index: int,
    operands: Mapping[str, Array],
    absent: Mapping[str, Callable[[], Array]],
) -> None:
    """Put one expert's operands.

    An operand that only some experts have is made explicit for the others.

    absent: what an expert has in effect of an operand that it lacks
    """
    for name, array in operands.items():
        if name not in slabs:
            for earlier in range(index):
                slabs.put(name, earlier, absent[name]())
        slabs.put(name, index, array)
    for name, make in absent.items():
        if name in slabs and name not in operands:
            slabs.put(name, index, make())
