"""torch's tensors in the memory of a `gpu_of_host`: the GPU's paths with them, without a GPU."""

import host_driver
import numpy as np
import torch

STREAM = 5
RELAXED = host_driver.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED


class Tensors:
    """Makes tensors that pass for those of cuda:0.

    streams: handle of torch's current stream
    """

    def __init__(self, machine):
        self._machine = machine

    def of(self, values):
        """Return a copy of an array as a tensor in the GPU's memory."""
        out = self.empty(values.shape, values.dtype)
        out.numpy()[...] = values
        return out

    def empty(self, shape, dtype=np.float16):
        """Return a tensor of NaN, or of -1."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        host = self._machine.host
        # in a capture too, as torch does
        _, mode = host.cuThreadExchangeStreamCaptureMode(RELAXED)
        _, address = host.cuMemAlloc(max(size, 1))
        host.cuThreadExchangeStreamCaptureMode(mode)
        memory = host_driver.view(address, size, np.uint8)
        memory[:] = 0xFF
        return torch.from_numpy(memory.view(dtype).reshape(shape))

    def holds(self, tensor):
        """Tell whether a tensor is in the GPU's memory."""
        at = tensor.data_ptr()
        known = self._machine.host.memory.items()
        # it begins where it is aligned, inside of its array: what lies after the array is another's
        ends = ((start, memory.ctypes.data + memory.nbytes) for start, memory in known)
        # one without elements says of no other where it is
        return not at or any(start <= at < end for start, end in ends)


def install(monkeypatch, machine):
    """Let tensors of the machine's memory pass for tensors of cuda:0, and return their maker."""
    tensors = Tensors(machine)

    def new_empty(tensor, shape):
        return tensors.empty(tuple(shape), tensor.numpy().dtype)

    monkeypatch.setattr(torch.Tensor, "get_device", lambda t: 0 if tensors.holds(t) else -1)
    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda i: STREAM + i, raising=False)
    return tensors
