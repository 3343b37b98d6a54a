"""A problem on the device, in one kernel's layout, and a config's program bound to it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ferrum_numba.contract import Config, Kernel, Launch, Problem
from ferrum_numba.division import round_up
from ferrum_numba.launch.buffer import POISON, Buffer
from ferrum_numba.launch.device import Device
from ferrum_numba.launch.kernel import Loaded, Prepared, load
from ferrum_numba.launch.repeated import Fixed, InTurn

if TYPE_CHECKING:
    from ferrum_numba.compile import Binary

Array = npt.NDArray[Any]
# of a copy in rotation; as much as cuMemAlloc gives
ALIGNMENT_BYTES = 256


def copies_to_exceed(total_bytes: int, copy_bytes: int) -> int:
    """Return how many copies of the weights hold more than a total: at least 2 where it is > 0."""
    if total_bytes == 0 or copy_bytes == 0:
        return 1
    return max(2, total_bytes // copy_bytes + 1)


@dataclass(frozen=True)
class HostOperands:
    """A problem's inputs in a kernel's layout, in host memory, and the reference's result.

    arrays:  by parameter name
    want:    the reference's result
    digests: of the arrays' contents, by name; empty where nobody took them
    """

    arrays: Mapping[str, Array]
    want: Array
    digests: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, kernel: Kernel, problem: Problem, seed: int = 0) -> HostOperands:
        """Make them, with their digests; of one seed they are always the same."""
        inputs = kernel.op.make_inputs(problem, np.random.default_rng(seed))
        arrays = {
            name: np.ascontiguousarray(array)
            for name, array in kernel.prepare(problem, inputs).items()
        }
        digests = {name: digest(array) for name, array in arrays.items()}
        return cls(arrays, kernel.op.reference(problem, inputs), digests)


def digest(array: Array) -> str:
    """Return a text that two arrays share where they hold the same bytes."""
    # processors have instructions for this one
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()


class Uploads:
    """Arrays in device memory by their contents: who has the same uses one, problem after problem.

    What a whole problem did not ask for is given back when the next but one begins.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, int, int], Buffer] = {}
        self._asked: set[tuple[str, int, int]] = set()

    def get(self, key: tuple[str, int, int]) -> Buffer | None:
        """Return what is there of a digest, with so many copies between guards of so many bytes."""
        self._asked.add(key)
        return self._buffers.get(key)

    def put(self, key: tuple[str, int, int], buffer: Buffer) -> None:
        """Keep a buffer for others."""
        self._buffers[key] = buffer

    def next_problem(self) -> None:
        """Give back what the problem that ends did not ask for."""
        self._buffers = {key: self._buffers[key] for key in self._asked if key in self._buffers}
        self._asked = set()

    def clear(self) -> None:
        """Give back all: a kernel may have written where it must not."""
        self._buffers.clear()


class OperandSet:
    """A problem's inputs in a kernel's layout, and its output, in device memory.

    What `prepare` gives depends on the problem, not on the config, so one set serves every config
    of the kernel. Operands named in the Op's `activations` exist once; the others are weights, of
    which there are `copies`.

    rotate_bytes: what the copies of the weights must exceed together; 0 for one copy
    guard_bytes:  size of the poisoned zones around each buffer
    host:         the operands, where they were made before
    uploads:      what is in device memory already
    """

    def __init__(
        self,
        device: Device,
        kernel: Kernel,
        problem: Problem,
        *,
        seed: int = 0,
        rotate_bytes: int = 0,
        guard_bytes: int = 0,
        host: HostOperands | None = None,
        uploads: Uploads | None = None,
    ) -> None:
        self.device, self.kernel, self.problem = device, kernel, problem
        self.guard_bytes = guard_bytes
        self._host, self._uploads = host, uploads
        if host is None:
            self.inputs = kernel.op.make_inputs(problem, np.random.default_rng(seed))
            arrays: Mapping[str, Array] = kernel.prepare(problem, self.inputs)
        else:
            arrays = host.arrays
        self.activations = kernel.op.activations.intersection(arrays)
        weight_bytes = sum(a.nbytes for n, a in arrays.items() if n not in self.activations)
        if kernel.op.weight_bytes_read is not None:
            weight_bytes = min(weight_bytes, kernel.op.weight_bytes_read(problem))
        self.copies = copies_to_exceed(rotate_bytes, weight_bytes)
        self._sizes = {name: array.nbytes for name, array in arrays.items()}
        self._buffers = {name: self._upload(name, array) for name, array in arrays.items()}
        shape, dtype = kernel.op.output(problem)
        self.out = Buffer.empty(device, math.prod(shape) * dtype.itemsize, guard_bytes)

    @cached_property
    def want(self) -> Array:
        """The reference's result, computed when it is first asked for."""
        if self._host is not None:
            return self._host.want
        return self.kernel.op.reference(self.problem, self.inputs)

    def buffers(self, copy_index: int = 0) -> dict[str, Buffer]:
        """Return the operands of one copy of the weights, and `out`, by parameter name."""
        parts = {"out": self.out}
        for name, buffer in self._buffers.items():
            copies = 1 if name in self.activations else self.copies
            stride_bytes = buffer.size_bytes // copies
            offset_bytes = copy_index % copies * stride_bytes
            parts[name] = buffer.part(offset_bytes, self._sizes[name])
        return parts

    def poison(self) -> None:
        """Fill the output with NaN."""
        self.out.fill(POISON)

    def result(self, into: Array | None = None) -> Array:
        """Wait, and return the output; in an array of bytes that is given and large enough."""
        shape, dtype = self.kernel.op.output(self.problem)
        if into is None:
            return self.out.read(shape, dtype)
        size_bytes = math.prod(shape) * dtype.itemsize
        return self.out.read_into(into[:size_bytes].view(dtype).reshape(shape))

    def damage(self) -> str | None:
        """Return what was written outside the operands and the output, or None."""
        for name, buffer in {**self._buffers, "out": self.out}.items():
            found = buffer.damage()
            if found:
                return f"{name}: {found}"
        return None

    def bind(self, config: Config, binary: Binary, loaded: Loaded | None = None) -> Bound:
        """Return a config's program, loaded now or before, with a zeroed workspace of its own."""
        launch = self.kernel.launch(config, self.problem, self.device.gpu)
        workspace = {}
        for name, size_bytes in launch.workspace.items():
            workspace[name] = Buffer.empty(self.device, size_bytes, self.guard_bytes)
            workspace[name].fill(0)
        return Bound(self, loaded or load(binary, self.device), launch, workspace)

    def _upload(self, name: str, array: Array) -> Buffer:
        copies = 1 if name in self.activations else self.copies
        known = self._host.digests.get(name) if self._host else None
        if known is None or self._uploads is None:
            return self._copied(array, copies)
        key = (known, copies, self.guard_bytes)
        buffer = self._uploads.get(key) or self._copied(array, copies)
        self._uploads.put(key, buffer)
        return buffer

    def _copied(self, array: Array, copies: int) -> Buffer:
        stride = round_up(array.nbytes, ALIGNMENT_BYTES)
        whole = Buffer.empty(self.device, copies * stride, self.guard_bytes)
        first = whole.part(0, stride)
        first.write(array)
        # poison to the next aligned address
        whole.part(array.nbytes, stride - array.nbytes).fill(POISON)
        # by the GPU: of a stack of experts there are many copies, and few of its bytes are read
        for i in range(1, copies):
            whole.part(i * stride, stride).copy_from(first)
        return whole


@dataclass(frozen=True)
class Bound:
    """One config's program and the operands it runs on."""

    operands: OperandSet
    loaded: Loaded
    launch: Launch
    workspace: dict[str, Buffer]

    def prepared(self, copy_index: int = 0) -> Prepared | Fixed | InTurn:
        """Return the launch on one copy of the weights."""
        buffers = {**self.operands.buffers(copy_index), **self.workspace}
        return self.loaded.prepare(self.launch, buffers)

    def calls(self) -> list[Prepared | Fixed | InTurn]:
        """Return one launch for every copy of the weights: a rotation."""
        return [self.prepared(i) for i in range(self.operands.copies)]

    def damage(self) -> str | None:
        """Return what was written outside the workspace, the operands and the output, or None."""
        for name, buffer in self.workspace.items():
            found = buffer.damage()
            if found:
                return f"{name}: {found}"
        return self.operands.damage()
