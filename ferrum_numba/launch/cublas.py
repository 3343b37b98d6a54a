"""cuBLAS, where the machine has it: the dense product that some launches go on with."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

from ferrum_numba.contract import Kernel, Matmul
from ferrum_numba.errors import LaunchError

MISSING = "needs cuBLAS, which is not here: torch, CuPy or `pip install nvidia-cublas` bring it"
# cublas_api.h and library_types.h
_NO_TRANSPOSE, _FP32_SUMS, _DEFAULT_ALGORITHM = 0, 68, -1
_DATA_TYPES = {"fp16": 2, "bf16": 14}
# sums of split K stay in fp32
_NO_REDUCED_PRECISION = 16


@cache
def library() -> Any | None:
    """Return cuBLAS, from wherever CUDA's libraries are on this machine, or None."""
    try:
        path = load_nvidia_dynamic_lib("cublas").abs_path
    except DynamicLibNotFoundError:
        return None
    return ctypes.CDLL(path)


def lacking(kernel: Kernel) -> str | None:
    """Return what a kernel needs that this machine does not have, or None."""
    return MISSING if kernel.needs_cublas and library() is None else None


class Cublas:
    """A handle of cuBLAS in the context that is current when it is made."""

    def __init__(self) -> None:
        """Open a handle.

        Raises:
            LaunchError: there is no cuBLAS, or it does not start.
        """
        found = library()
        if found is None:
            raise LaunchError(MISSING)
        self._library = found
        self._handle = ctypes.c_void_p()
        self._one, self._zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        # the handle holds the stream, so a call sets it and launches without another in between
        self._lock = threading.Lock()
        self._call("cublasCreate_v2", ctypes.byref(self._handle))
        self._call("cublasSetMathMode", self._handle, _NO_REDUCED_PRECISION)

    def __call__(self, stream: int, matmul: Matmul, addresses: Sequence[int]) -> None:
        """Launch a product on a stream; captured in a graph where the stream is.

        addresses: of `matmul.buffers`

        Raises:
            LaunchError: cuBLAS refused.
        """
        a, b, out, scratch = (ctypes.c_void_p(address) for address in addresses)
        M, N, K, kind = matmul.M, matmul.N, matmul.K, _DATA_TYPES[matmul.dtype]
        one, zero = ctypes.byref(self._one), ctypes.byref(self._zero)
        with self._lock:
            self._call("cublasSetStream_v2", self._handle, ctypes.c_void_p(stream))
            # a stream comes with a workspace of the library's own, which a capture would allocate
            size = ctypes.c_size_t(matmul.scratch_bytes)
            self._call("cublasSetWorkspace_v2", self._handle, scratch, size)
            # cuBLAS counts columns first: out^T = b^T a^T
            self._call(
                "cublasGemmEx", self._handle, _NO_TRANSPOSE, _NO_TRANSPOSE, N, M, K,
                one, b, kind, N, a, kind, K, zero, out, kind, N, _FP32_SUMS, _DEFAULT_ALGORITHM,
            )  # fmt: skip

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise LaunchError(f"{name} failed with status {status} of cuBLAS")


@cache
def of_device(index: int) -> Cublas:
    """Return the handle of a GPU, whose context is current."""
    return Cublas()
