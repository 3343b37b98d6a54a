"""What a whole layer of experts takes on this machine's GPU, from router logits to the sum.

    python -m ferrum_numba.perf.moe_layer --layer qwen3 --tokens 1,16,256

prints µs a call, cold, in a graph: calls take turns with other logits, and with other weights where
one layer's fit into L2. Below each, what is launched.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from ferrum_numba.errors import FerrumError
from ferrum_numba.gptq.tensors import GptqTensors
from ferrum_numba.kernels.grouped import GroupedProblem, expected_hits, expert_bytes
from ferrum_numba.launch import Buffer, Device
from ferrum_numba.linear.choice import shipped_decisions
from ferrum_numba.linear.moe import MoeLayer
from ferrum_numba.measure import Policy, measure

GROUP_SIZE = 128
MOST_COPIES = 16
POLICY = Policy()
Call = Callable[[int], Any]


class Shape(NamedTuple):
    """Experts, those of a token, columns of x, and of gate."""

    num_experts: int
    top_k: int
    H: int
    inner: int

    def problem(self, tokens: int) -> GroupedProblem:
        """Return the first GEMM of some tokens."""
        return GroupedProblem(tokens, self.num_experts, self.top_k, 2 * self.inner, self.H)

    def bytes_read(self, tokens: int) -> float:
        """Return the bytes of the experts that a uniform routing hits, as is to be expected."""
        first = self.problem(tokens)
        second = GroupedProblem(tokens, self.num_experts, self.top_k, self.H, self.inner)
        return expected_hits(first) * (expert_bytes(first) + expert_bytes(second))


SHAPES = {
    "qwen3": Shape(128, 8, 2048, 768),
    "mixtral": Shape(8, 2, 4096, 14336),
    "deepseek-v3": Shape(256, 8, 7168, 2048),
}


def experts(shape: Shape, K: int, N: int, seed: int) -> Iterator[GptqTensors]:
    """Yield experts of random codes."""
    rng = np.random.default_rng(seed)
    scales = rng.uniform(0.005, 0.015, (K // GROUP_SIZE, N)).astype(np.float16)
    for e in range(shape.num_experts):
        words = np.frombuffer(rng.bytes(K * N // 2), np.int32).reshape(K // 8, N)
        yield GptqTensors.make(f"experts.{e}", words, scales, group_size=GROUP_SIZE, sym=True)


def make(shape: Shape, seed: int) -> MoeLayer:
    """Return a layer of random weights on the GPU."""
    return MoeLayer.from_gptq(
        experts(shape, shape.H, 2 * shape.inner, 2 * seed),
        experts(shape, shape.inner, shape.H, 2 * seed + 1),
        top_k=shape.top_k, num_experts=shape.num_experts,
    )  # fmt: skip


class Inputs(NamedTuple):
    """Memory of the GPU as a layer takes it."""

    buffer: Buffer
    shape: tuple[int, ...]
    typestr: str

    @classmethod
    def of(cls, device: Device, values: Any) -> Inputs:
        """Return a copy of an array."""
        return cls(Buffer.from_array(device, values), values.shape, values.dtype.str)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "data": (self.buffer.pointer, False), "shape": self.shape, "typestr": self.typestr,
            "version": 3, "stream": None,
        }  # fmt: skip


def calls(device: Device, layers: Sequence[MoeLayer], shape: Shape, tokens: int) -> list[Call]:
    """Return calls that read other experts, together more than L2 holds several times."""
    wanted = POLICY.rotate_bytes(device.gpu)
    copies = min(MOST_COPIES, max(2, ceil(wanted / shape.bytes_read(tokens))))
    rng = np.random.default_rng(0)
    x = Inputs.of(device, rng.standard_normal((tokens, shape.H)).astype(np.float16) / 8)
    out = Inputs.of(device, np.zeros((tokens, shape.H), np.float16))
    logits = [
        Inputs.of(device, rng.standard_normal((tokens, shape.num_experts)).astype(np.float16))
        for _ in range(copies)
    ]

    def call(i: int) -> Call:
        return lambda stream: layers[i % len(layers)].forward(x, logits[i], out, stream)

    return [call(i) for i in range(copies)]


def lines(device: Device, name: str, tokens: Sequence[int]) -> Iterator[str]:
    """Yield the time of a layer for each number of tokens, and what is launched."""
    shape = SHAPES[name]
    of_all = shape.num_experts * shape.bytes_read(1) / shape.top_k
    num_layers = max(1, ceil(POLICY.rotate_bytes(device.gpu) / of_all))
    layers = [make(shape, seed) for seed in range(num_layers)]
    decisions = shipped_decisions(device.gpu)
    for T in tokens:
        for layer in layers:
            layer.prepare(T)
        taken = measure(device, calls(device, layers, shape, T), "cold", POLICY)
        yield f"{name:12} {T:6} tokens {np.median(taken.us):9.2f} us"
        for stage in layers[0].spec.task(T, "fp16").stages(decisions, device.gpu):
            rule = f"  ({stage.choice.rule})" if stage.choice else ""
            yield f"    {stage.kernel.name:16} {stage.config}{rule}"


def main(words: Sequence[str] | None = None) -> None:
    """Time the layers and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layer", action="append", choices=SHAPES)
    parser.add_argument("--tokens", type=_numbers, default=[1, 16, 256], metavar="T,T,…")
    args = parser.parse_args(words)
    device = Device.open()
    for name in args.layer or ["qwen3"]:
        for line in lines(device, name, args.tokens):
            print(line, flush=True)


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    try:
        main()
    except FerrumError as error:
        print(f"moe_layer: {error}", file=sys.stderr)
        sys.exit(2)
