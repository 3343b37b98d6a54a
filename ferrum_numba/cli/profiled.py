"""One launch of one kernel between the marks that a profiler looks for; run by `counters`.

    python -m ferrum_numba.cli.profiled …

What is told in `…` is a kernel, its config and a problem, as `told` writes them.
"""

from __future__ import annotations

import base64
import pickle
import sys

from ferrum_numba.contract import Config, Kernel, Problem


def told(asked: tuple[Kernel, Config, Problem]) -> str:
    """Return what is to be profiled as a word of a command line."""
    return base64.b64encode(pickle.dumps(asked)).decode()


def profile(word: str) -> None:
    """Make a problem's operands, launch once unseen, then once between the marks."""
    from ferrum_numba.compile import build
    from ferrum_numba.launch import Device, OperandSet
    from ferrum_numba.launch.profiler import profiled

    kernel, config, problem = pickle.loads(base64.b64decode(word))
    device = Device.open()
    operands = OperandSet(device, kernel, problem)
    call = operands.bind(config, build(kernel, config, device.gpu.arch)).prepared()
    # a first launch may load code
    call(0)
    device.synchronize()
    with profiled():
        call(0)
        device.synchronize()


if __name__ == "__main__":
    profile(sys.argv[1])
