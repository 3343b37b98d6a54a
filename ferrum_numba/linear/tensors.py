"""torch's tensors, told quickly from all else: most calls bring them, and each costs the host time.

torch is not imported here: what is no tensor of a torch that somebody else imported is not one.
"""

from __future__ import annotations

import sys
from typing import Any

from ferrum_numba.launch import stream_handle

_TYPES = {"fp16": "float16", "bf16": "bfloat16"}
# bits of an address that are 0 where kernels read and write
MISALIGNED = 15


class Tensors:
    """The tensors that a layer takes as they are.

    kind: the type of a tensor, None while there is no torch
    """

    __slots__ = ("_current_stream", "_device", "_dtype", "_torch", "kind")

    def __init__(self, dtype: str, device: int) -> None:
        """Look for torch.

        dtype:  "fp16" or "bf16"
        device: number of the GPU; HOST for none of a GPU's
        """
        torch: Any = sys.modules.get("torch")
        self._torch, self.kind = torch, None
        # a tensor of the host is on -1
        self._device = device if device >= 0 else None
        # while it is being imported, torch lacks what comes last
        if hasattr(torch, "compiler"):
            self.kind = torch.Tensor
            self._dtype = getattr(torch, _TYPES[dtype])
            # the handle as it is; a torch without CUDA has none, nor tensors to ask for it
            self._current_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)

    def rows_of_both(self, x: Any, K: int, out: Any, N: int) -> int:
        """Return the rows of x [..., K] and out [..., N], 0 where one cannot be used as it is."""
        dtype, device = self._dtype, self._device
        if (
            x.dtype is dtype
            and out.dtype is dtype
            and x.get_device() == device == out.get_device()
            and x.is_contiguous()
            and out.is_contiguous()
        ):
            shape, out_shape = x.shape, out.shape
            if len(shape) == 2 == len(out_shape):
                M, columns = shape
                out_rows, out_columns = out_shape
                return int(M) if (columns, out_columns, out_rows) == (K, N, M) else 0
            M = self.rows(x, K)
            return M if self.rows(out, N) == M else 0
        return 0

    def rows(self, tensor: Any, columns: int) -> int:
        """Return the rows of a tensor on the GPU, of the type and contiguous; 0 of any other."""
        if (
            tensor.dtype is self._dtype
            and tensor.get_device() == self._device
            and tensor.is_contiguous()
        ):
            shape = tensor.shape
            if shape and shape[-1] == columns:
                rows: int = shape[0] if len(shape) == 2 else tensor.numel() // columns
                return rows
        return 0

    def stream(self, stream: Any) -> int:
        """Return the handle of a stream, of torch's current one for None."""
        if stream is None:
            handle: int = self._current_stream(self._device)
            return handle
        return stream_handle(stream)

    def compiling(self) -> bool:
        """Tell whether torch only traces the call, to compile it."""
        return bool(self._torch.compiler.is_compiling())
