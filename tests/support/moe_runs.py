"""A kernel around the experts' GEMMs on inputs of a test's own, by the interpreter or on a GPU."""

import math

import numpy as np

from ferrum_numba import interpreter
from ferrum_numba.compile import build
from ferrum_numba.gpu import KNOWN

H200 = KNOWN["h200"]
# what no result looks like: neither NaN nor -1, as the harness's poison is
UNTOUCHED = 0xA5


def interpreted(kernel, problem, inputs, config=None):
    """Return what the kernel makes of these inputs."""
    config = config or kernel.default(problem, H200)
    shape, dtype = kernel.op.output(problem)
    out = np.full(math.prod(shape) * dtype.itemsize, UNTOUCHED, np.uint8)
    operands = kernel.prepare(problem, inputs)
    buffers = {name: np.ascontiguousarray(array) for name, array in operands.items()}
    launch = kernel.launch(config, problem, H200)
    interpreter.run(kernel.build(config, "sm_90a"), launch, {**buffers, "out": out})
    return np.frombuffer(out.tobytes(), dtype).reshape(shape)


def on_device(kernel, problem, inputs, device, config=None):
    """Return what the kernel makes of these inputs on a GPU."""
    from ferrum_numba.launch import Buffer, load

    config = config or kernel.default(problem, device.gpu)
    shape, dtype = kernel.op.output(problem)
    operands = kernel.prepare(problem, inputs)
    buffers = {name: Buffer.from_array(device, array) for name, array in operands.items()}
    buffers["out"] = Buffer.empty(device, math.prod(shape) * dtype.itemsize)
    buffers["out"].fill(UNTOUCHED)
    loaded = load(build(kernel, config, device.gpu.arch), device)
    loaded.prepare(kernel.launch(config, problem, device.gpu), buffers)(0)
    return buffers["out"].read(shape, dtype)


def assert_close(kernel, problem, inputs, got):
    """Assert that a result is the reference's, within the Op's tolerance."""
    compared = kernel.op.tolerance(problem).compare(got, kernel.op.reference(problem, inputs))
    assert compared.ok, compared.message
