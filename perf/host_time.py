"""What a call costs the host, on this machine's GPU, of a weight so small that the GPU never waits.

    python -m ferrum_numba.perf.host_time

prints µs a call: of the driver's launch alone, of a prepared launch, of a layer's `forward` and
call, and with torch of the operator and the module, each with its distance to the driver's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ferrum_numba.compile import build
from ferrum_numba.errors import FerrumError
from ferrum_numba.gptq.quantize import Recipe, quantize_weight
from ferrum_numba.gptq.tensors import GptqTensors
from ferrum_numba.kernels import PACKED
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.launch import Device, OperandSet
from ferrum_numba.launch.kernel import Prepared
from ferrum_numba.linear.choice import kernel_for, shipped_decisions
from ferrum_numba.linear.dense import MarlinLinear
from ferrum_numba.measure import host_time_us

K, N, GROUP_SIZE = 256, 128, 128
# what is launched by the driver alone comes first: the others are compared with it
DRIVER = "the driver's launch alone"
Call = Callable[[int], Any]


def small_layer() -> GptqTensors:
    """Return a layer of random weights."""
    weight = np.random.default_rng(0).standard_normal((N, K)).astype(np.float16)
    made: dict[str, Any] = dict(quantize_weight("small", weight, Recipe(GROUP_SIZE)))
    return GptqTensors.make("small", **made, group_size=GROUP_SIZE, sym=True)


def launches(device: Device, M: int) -> Iterator[tuple[str, Call]]:
    """Yield the launch of the kernel that a layer would run, by the driver and prepared."""
    problem = W4A16Problem(M, N, K, GROUP_SIZE)
    chosen = kernel_for(problem, PACKED, shipped_decisions(device.gpu), device.gpu)
    operands = OperandSet(device, chosen.kernel, problem)
    prepared = operands.bind(
        chosen.config, build(chosen.kernel, chosen.config, device.gpu.arch)
    ).prepared()
    assert isinstance(prepared, Prepared), "no kernel of these goes on with cuBLAS"
    # its arguments, as they were launched last
    again = prepared.again
    yield DRIVER, lambda stream: again()
    yield "a prepared launch", prepared


def of_torch(layer: GptqTensors, M: int) -> Iterator[tuple[str, Call]]:
    """Yield the calls on torch's tensors: of a layer, of the module and of its operator."""
    import torch

    from ferrum_numba import torch as modules
    from ferrum_numba.torch.operator import linear as operator

    linear = MarlinLinear.from_gptq(layer)
    module = modules.MarlinLinear.from_gptq(layer)
    x = torch.randn(M, K, device="cuda", dtype=torch.float16)
    out = x.new_empty((M, N))
    operands, layout = module.operands(), module.layout_text
    yield "forward(x, out, handle)", lambda stream: linear.forward(x, out, stream)
    yield "forward(x, out), on torch's stream", lambda stream: linear.forward(x, out)
    yield "forward(x, out, 0)", lambda stream: linear.forward(x, out, 0)
    yield "lin(x)", lambda stream: linear(x)
    yield "the torch operator", lambda stream: operator(x, *operands, layout)
    yield "the torch module", lambda stream: module(x)
    dense = torch.nn.Linear(K, N, bias=False, device="cuda", dtype=torch.float16)
    yield "torch's own fp16 linear", lambda stream: dense(x)


def table(device: Device, M: int, rounds: int) -> Iterator[str]:
    """Yield lines of µs a call, the least of some rounds: other work on the host only adds."""
    calls = list(launches(device, M))
    stream = device.new_stream()
    try:
        import torch
    except ImportError:
        yield "torch is not here: only launches are timed"
        measured = _times(calls, stream, rounds)
    else:
        calls += of_torch(small_layer(), M)
        # the layers must have been called with these rows before
        torch.cuda.synchronize()
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            measured = _times(calls, stream, rounds)
    for name, us in measured.items():
        yield f"{name:36} {us:6.2f} us   {us - measured[DRIVER]:+6.2f}"


def _times(calls: Sequence[tuple[str, Call]], stream: int, rounds: int) -> dict[str, float]:
    for _, call in calls:
        call(stream)
    taken: dict[str, list[float]] = {name: [] for name, _ in calls}
    # in turn, so that what slows the machine down slows all of them
    for _ in range(rounds):
        for name, call in calls:
            taken[name].append(host_time_us(call, stream))
    return {name: min(us) for name, us in taken.items()}


def main(words: Sequence[str] | None = None) -> None:
    """Time the calls and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--m", type=int, default=1, help="rows of x")
    parser.add_argument("--rounds", type=int, default=5, help="of 10,000 calls each")
    args = parser.parse_args(words)
    device = Device.open()
    python = sys.version.split()[0]
    print(f"{device.gpu.name}, Python {python}: the host's time of a call, M = {args.m}")
    for line in table(device, args.m, args.rounds):
        print(line)


if __name__ == "__main__":
    try:
        main()
    except FerrumError as error:
        print(f"host_time: {error}", file=sys.stderr)
        sys.exit(2)
