"""What all linear layers share: checked arrays in, launches or the reference, arrays of a kind out.

A layer is for inference: torch's gradients do not pass through it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.errors import LaunchError, ProblemError
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.launch import Buffer, exported, stream_handle
from ferrum_numba.launch.interop import HOST
from ferrum_numba.linear import arrays
from ferrum_numba.linear.arrays import Seen
from ferrum_numba.linear.gemm import GpuGemm, HostGemm
from ferrum_numba.linear.numbered import number
from ferrum_numba.linear.stores import Store
from ferrum_numba.linear.tensors import MISALIGNED, Tensors

ELEMENT_BYTES = 2


class Linear:
    """out = x times a weight, plus its bias; on the GPU or the host that holds the weight.

    name:   of the layer; every error has it
    store:  holds the weight
    expert: which one of a stack
    bias:   [N] of the layer's type, in place of the store's own
    dense:  very many rows may run with the whole weight dequantised
    x_dtype: "fp8" or "int8", which many rows of x are rounded to
    """

    def __init__(
        self,
        name: str,
        store: Store,
        expert: int = 0,
        bias: Array | None = None,
        *,
        dense: bool = False,
        x_dtype: str | None = None,
    ) -> None:
        self.name = name
        self.number = number(self)
        self.store = store
        self._expert, self._bias = expert, bias
        weight, on = store.weight, store.runtime
        self._K, self._N, self._dtype = weight.K, weight.N, weight.dtype
        self._device = HOST if on is None else on.device.index
        self._x_bytes, self._out_bytes = self._K * ELEMENT_BYTES, self._N * ELEMENT_BYTES
        self._tensors = Tensors(self._dtype, self._device)
        # one of the two, where the weight is
        self._reference = HostGemm(store, expert, bias, x_dtype)
        self._gemm: Any = None
        if on is not None:
            self._gemm = GpuGemm(store, expert, bias, dense=dense, x_dtype=x_dtype)

    @property
    def in_features(self) -> int:
        """Rows of the weight, K."""
        return self._K

    @property
    def out_features(self) -> int:
        """Columns of the weight, N."""
        return self._N

    @property
    def bias(self) -> Array | None:
        """A copy of the bias, [N] in the order of the columns; None where there is none."""
        return self.store.bias(self._expert) if self._bias is None else self._bias.copy()

    @property
    def gemm(self) -> GpuGemm:
        """Launches of its weight; of a layer on a GPU."""
        assert self._gemm is not None, "the layer is on a GPU"
        found: GpuGemm = self._gemm
        return found

    def forward(self, x: Any, out: Any, stream: Any = None) -> None:
        """Compute out = x times the weight, plus bias; on a GPU, when the stream gets there.

        On a GPU nothing is allocated and nobody waits, once rows and stream were seen before or
        `prepare` was called for them; then it can be captured in a graph.

        Args:
            x:      [..., K] contiguous, of the layer's type, on its device
            out:    [..., N] likewise, with as many rows
            stream: handle or stream object; by default that on which x's library works now

        Raises:
            ProblemError: shapes or types that are not the layer's.
            LaunchError:  arrays elsewhere, not contiguous or overlapping.
            CaptureError: the stream is being captured, and something is not prepared.
        """
        tensors = self._tensors
        if type(x) is tensors.kind and type(out) is tensors.kind:
            M = tensors.rows_of_both(x, self._K, out, self._N)
            # what is amiss is found again, and said, below
            if M:
                at_x, at_out = x.data_ptr(), out.data_ptr()
                apart = at_x >= at_out + M * self._out_bytes or at_out >= at_x + M * self._x_bytes
                if apart and not (at_x | at_out) & MISALIGNED:
                    if type(stream) is not int:
                        stream = tensors.stream(stream)
                    plan = self._gemm.plans.get(M)
                    if plan is None:
                        self._gemm(stream, at_x, at_out, M)
                    else:
                        plan(stream, at_x, at_out, self._gemm.operands)
                    return
        self._forward(x, out, stream)

    def _forward(self, x: Any, out: Any, stream: Any) -> None:
        """Compute as `forward` does, of whatever kind the arrays are."""
        handle = self._handle(x, stream)
        seen_x, seen_out = self._see("x", x, handle), self._see("out", out, handle)
        M = self._rows(seen_x, seen_out)
        if M == 0:
            return
        if self._gemm is None:
            dtype = DTYPES[self._dtype]
            rows = arrays.host_array(seen_x.address, (M, self._K), dtype)
            self._reference(rows, arrays.host_array(seen_out.address, (M, self._N), dtype))
            return
        self._gemm(handle, seen_x.address, seen_out.address, M)

    def __call__(self, x: Any) -> Any:
        """Return x times the weight, plus bias, as an array of the kind of x.

        x: [..., K] of the layer's type, on its device; a NumPy array is copied to a GPU and back

        Raises:
            ProblemError: a shape or type that is not the layer's.
            LaunchError:  an array elsewhere.
        """
        tensors = self._tensors
        if type(x) is tensors.kind:
            if tensors.compiling():
                from ferrum_numba.linear import traced

                return traced.call(self, x)
            M, at_x = tensors.rows(x, self._K), x.data_ptr()
            if M and not at_x & MISALIGNED:
                shape = (M, self._N) if x.dim() == 2 else (*x.shape[:-1], self._N)
                out = x.new_empty(shape)
                self._gemm(tensors.stream(None), at_x, out.data_ptr(), M)
                return out
        return self._call(x)

    def _call(self, x: Any) -> Any:
        """Return what a call does, of whatever kind x is."""
        if self._tensors.kind is None:
            self._tensors = Tensors(self._dtype, self._device)
        x = arrays.contiguous(x)
        on_gpu = self._device != HOST
        seen = self._see("x", x, self._handle(x, None))
        through_the_gpu = isinstance(x, np.ndarray) and on_gpu
        if through_the_gpu:
            # as its copy will be
            seen = seen._replace(device=self._device, address=0)
        # before anything is allocated for it
        self._refuse_x(seen)
        shape = (*seen.shape[:-1], self._N)
        if through_the_gpu:
            return self._through_the_gpu(x, shape)
        out = arrays.empty_like(x, shape)
        if out is None:
            return self._handed_over(x, seen, shape)
        self._forward(x, out, None)
        return out

    def _handed_over(self, x: Any, seen: Seen, shape: tuple[int, ...]) -> Any:
        """Return the result as an array that another library makes of it when it is there."""
        runtime, M = self.store.runtime, rows_of(seen)
        namespace = arrays.namespace(x)
        if runtime is None:
            there = np.empty(shape, DTYPES[self._dtype])
            self._forward(x, there, None)
            return namespace.asarray(there)
        with runtime.device.activated():
            out = Buffer.empty(runtime.device, M * self._out_bytes)
            if M:
                self._gemm(arrays.current_stream(x, self._device), seen.address, out.pointer, M)
            # such a library asks for memory, not for a stream
            runtime.device.synchronize()
        return namespace.from_dlpack(exported(out, shape, DTYPES[self._dtype]))

    def prepare(self, rows: int | Iterable[int], stream: Any = None) -> None:
        """Build and load what some numbers of rows need, and reserve its scratch, for captures.

        stream: that will be captured, once or often; by default the next new one that is
        """
        if self._gemm is not None:
            handle = None if stream is None else stream_handle(stream)
            self._gemm.prepare(rows if isinstance(rows, Iterable) else [rows], handle)

    def _through_the_gpu(self, x: Array, shape: tuple[int, ...]) -> Array:
        M = x.size // self._K
        if M == 0:
            return np.empty(shape, x.dtype)
        assert self.store.runtime is not None
        device = self.store.runtime.device
        with device.activated():
            source = Buffer.from_array(device, x)
            target = Buffer.empty(device, M * self._N * ELEMENT_BYTES)
            self._gemm(0, source.pointer, target.pointer, M)
            return target.read(shape, x.dtype)

    def _handle(self, x: Any, stream: Any) -> int | None:
        """Return the handle of a stream; by default that on which x's library works now."""
        if self._device == HOST:
            return None
        return arrays.current_stream(x, self._device) if stream is None else stream_handle(stream)

    def _see(self, what: str, array: Any, stream: int | None) -> Seen:
        try:
            return arrays.see(array, stream)
        except LaunchError as error:
            raise LaunchError(f"{self.name}: {what}: {error}") from None

    def _rows(self, x: Seen, out: Seen) -> int:
        """Return the rows of x, after checking both."""
        self._refuse_x(x)
        shape = out.shape
        M = rows_of(x)
        if not shape or shape[-1] != self._N or rows_of(out) != M:
            raise ProblemError(
                f"{self.name}: out must be [{M}, {self._N}] for x of {list(x.shape)}; "
                f"got {list(shape)}"
            )
        arrays.refuse(f"{self.name}: out", out, self._dtype, self._device)
        if out.read_only:
            raise LaunchError(f"{self.name}: out is read-only")
        x_bytes, out_bytes = M * self._K * ELEMENT_BYTES, M * self._N * ELEMENT_BYTES
        if x.address < out.address + out_bytes and out.address < x.address + x_bytes and M:
            raise LaunchError(
                f"{self.name}: out overlaps x: {out_bytes} bytes at {out.address:#x}, "
                f"{x_bytes} bytes at {x.address:#x}"
            )
        return M

    def _refuse_x(self, x: Seen) -> None:
        if not x.shape or x.shape[-1] != self._K:
            raise ProblemError(f"{self.name}: x must be [..., {self._K}]; got {list(x.shape)}")
        arrays.refuse(f"{self.name}: x", x, self._dtype, self._device)


def rows_of(array: Seen) -> int:
    """Return the rows of an array: all of its elements but those of the last size."""
    rows = 1
    for size in array.shape[:-1]:
        rows *= size
    return rows
