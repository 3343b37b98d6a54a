"""Small kernels with one fault each: how they are run, and what must be said of them.

`make(sound)` returns a kernel, with the fault where sound is False. Its two lines are marked
`# first` and `# second`.
"""

import inspect
import re

import numpy as np
import pytest
from numba import cuda
from numba.cuda import uint32, uint64

from ferrum_numba.contract import Launch, Program, pointers, sizes
from ferrum_numba.errors import RaceError
from ferrum_numba.interpreter import run


def execute(
    kernel, *, num_threads=64, grid=1, smem_bytes=4096, cluster=1, co_resident=False,
    programmatic=False, constant=None, unwritten=(), **arrays,
):  # fmt: skip
    """Run a kernel whose parameters are the arrays, then `n`; return the array `out`."""
    arrays.setdefault("out", np.zeros(grid * num_threads * 4, np.uint32))
    program = Program(
        kernel, (*pointers(*arrays), *sizes("n")), num_threads, 1, smem_bytes, (cluster, 1, 1)
    )
    launch = Launch(
        (grid, 1, 1), {"n": num_threads}, co_resident=co_resident, programmatic=programmatic
    )
    run(program, launch, arrays, unwritten=unwritten, constant=constant)
    return arrays["out"]


def lines_of(kernel, mark):
    """Return file:line of each line of a kernel's source with a mark."""
    lines, first = inspect.getsourcelines(kernel)
    file = inspect.getsourcefile(kernel)
    return [f"{file}:{first + i}" for i, line in enumerate(lines) if mark in line]


def assert_found(make, kind, missing, *, marks=("# first", "# second"), **how):
    """Assert that the fault is found, with the marked lines, its kind and what is missing.

    And that the same kernel without it passes.
    """
    execute(make(True), **how)
    faulty = make(False)
    with pytest.raises(RaceError) as caught:
        execute(faulty, **how)
    message = str(caught.value)
    assert kind in message
    assert re.search(missing, message.partition("missing:")[2]), message
    for mark in marks:
        marked = lines_of(faulty, mark)
        assert not marked or any(re.search(re.escape(m) + r"\b", message) for m in marked), message
    return message


@cuda.jit(device=True)
def word(base, index):
    """Return the address of a word of shared memory."""
    return uint32(base + uint32(index) * uint32(4))


@cuda.jit(device=True)
def at(base, index):
    """Return the address of a word of global memory."""
    return base + uint64(index) * uint64(4)
