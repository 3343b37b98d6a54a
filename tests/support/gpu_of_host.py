"""A GPU of host memory whose kernels are run by the interpreter: layers, whole, without a GPU.

Nothing is compiled: a kernel's program is run from its source, on the memory at the addresses that
its launch packed. For small problems.
"""

from dataclasses import replace

import host_driver
import numpy as np
from cuda_array import CudaArray

from ferrum_numba import interpreter
from ferrum_numba.contract import Launch
from ferrum_numba.gpu import KNOWN
from ferrum_numba.launch import Device
from ferrum_numba.linear import runtime

# few SMs: a small problem's tiles are then shared out among blocks as a large one's are
GPU = replace(KNOWN["h200"], num_sms=3)


class Machine:
    """The GPU: its driver, what was built for it, and what its kernels were.

    built:    (name of the kernel, config) of every program that was asked for
    launched: names of the kernels, in the order in which they ran
    """

    device = Device(0, GPU, None)

    def __init__(self, host):
        self.host = host
        self.built = []
        self.launched = []
        self._binaries = {}

    def build(self, kernel, config, arch):
        """Stand in for the compiler: return a binary that the interpreter runs."""
        self.built.append((kernel.name, config))
        if (kernel.name, config) not in self._binaries:
            program = kernel.build(config, arch)
            entry = f"{kernel.name}_{len(self._binaries)}"
            self.host.kernels[entry] = (program.parameters, self._runner(kernel.name, program))
            self._binaries[kernel.name, config] = host_driver.binary(
                entry, program.parameters, num_threads=program.num_threads, fingerprint=entry
            )
        return self._binaries[kernel.name, config]

    def _runner(self, name, program):
        def run(**values):
            self.launched.append(name)
            pointers = [p.name for p in program.parameters if p.kind == "pointer"]
            buffers = {p: self.memory(values[p]) for p in pointers}
            scalars = {n: v for n, v in values.items() if n not in buffers}
            # an output may hold what another launch wrote
            interpreter.run(program, Launch(self.host.grid, scalars), buffers, unwritten=())

        return run

    def memory(self, address):
        """Return the memory from an address to the end of its allocation; nothing at 0."""
        for start, memory in self.host.memory.items():
            # the driver gives out that much less than there is, to align it
            end = start + memory.nbytes - 256
            if start <= address < end:
                return host_driver.view(address, end - address, np.uint8)
        assert address == 0, f"{address:#x} is no memory of the GPU"
        return np.zeros(0, np.uint8)

    def array(self, values):
        """Return a copy of an array in the GPU's memory."""
        return CudaArray.of(self.device, values)

    def empty(self, shape, dtype=np.float16):
        """Return an array of NaN in the GPU's memory."""
        return self.array(np.full(shape, np.nan, dtype))


def install(monkeypatch):
    """Put a GPU of host memory in the place of cuda:0, and return it."""
    host = host_driver.install(monkeypatch)
    machine = Machine(host)
    monkeypatch.setattr("ferrum_numba.linear.launch_plan.build", machine.build)
    # defaults run, whatever was measured
    monkeypatch.setattr("ferrum_numba.linear.launch_plan.shipped_decisions", lambda gpu: [])
    monkeypatch.setattr(runtime, "_runtimes", {})
    monkeypatch.setattr(runtime.Device, "open", lambda index, current: Device(index, GPU, None))
    return machine
