"""Arrays in a GPU's memory that have nothing of CuPy but its interface."""

import numpy as np

from ferrum_numba.launch import Buffer


class CudaArray:
    """Memory of the GPU with a shape, and nothing of CuPy but its interface."""

    def __init__(self, buffer, shape, dtype):
        self.buffer, self.shape, self.dtype = buffer, shape, np.dtype(dtype)

    @property
    def __cuda_array_interface__(self):
        described = {"data": (self.buffer.pointer, False), "shape": self.shape, "version": 3}
        return {**described, "typestr": self.dtype.str}

    @classmethod
    def of(cls, device, values):
        """Return a copy of an array in a GPU's memory."""
        return cls(Buffer.from_array(device, values), values.shape, values.dtype)

    def read(self):
        """Wait, and return a copy."""
        return self.buffer.read(self.shape, self.dtype)
