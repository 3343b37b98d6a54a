"""Who multiplies a layer of experts, each ready to be timed: this house's kernels, and cuBLAS.

All of them get the same routing, the same rows and the same weights, which PyTorch holds once for
all problems of a layer. humming is in routed_humming.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ferrum_numba.compile import Binary, blocks_per_sm
from ferrum_numba.contract import Config, Kernel, Problem, describe
from ferrum_numba.errors import MismatchError
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.launch import Device, OperandSet
from ferrum_numba.launch.operands import copies_to_exceed

Call = Callable[[int], Any]
# of ||got - want|| / ||want||; two roundings to fp16 cost 3e-4
MOST_ERROR = 2e-3
# the zero point of a symmetric weight
ZERO_POINT = 8


@dataclass(frozen=True)
class Rival:
    """Somebody's program on a problem.

    peer, kind: whose it is and what it multiplies, "4-bit" or "fp16"; empty for a kernel of ours
    calls:      one for every copy of the weights, called with a stream handle
    poison:     fills the result with NaN
    result:     the result after a call, [num_pairs, N] by pair, a torch tensor on the GPU
    resources:  fields of a row: what a program of ours takes of the machine
    want:       the right result, float32, where its operands are rounded otherwise than the others'
    most_error: what its relative error may be at most
    """

    name: str
    config: Mapping[str, Any]
    calls: Sequence[Call]
    poison: Callable[[], Any]
    result: Callable[[], Any]
    peer: str = ""
    kind: str = ""
    resources: Mapping[str, Any] = field(default_factory=dict)
    want: Any = None
    most_error: float = MOST_ERROR


class Chosen(NamedTuple):
    """A kernel of ours with the config it runs a problem with, compiled."""

    kernel: Kernel
    config: Config
    binary: Binary


class Layer:
    """A problem's routing and rows on the GPU, and its experts' weights as PyTorch has them.

    x:     [T, K], or [T * top_k, K] where per pair
    pairs: the pairs of every expert that is hit, by expert
    """

    def __init__(self, problem: GroupedProblem, inputs: Mapping[str, Any], stack: Stack) -> None:
        self.problem, self.stack = problem, stack
        self.ids = inputs["ids"]
        self.x = on_gpu(inputs["x"])
        expert_of = self.ids.reshape(-1)
        self.pairs = {
            int(expert): on_gpu(np.nonzero(expert_of == expert)[0])
            for expert in np.unique(expert_of)
            if 0 <= expert < problem.num_experts
        }

    def rows(self, expert: int) -> Any:
        """Return an expert's rows of x, [rows, K]."""
        pairs = self.pairs[expert]
        return self.x[pairs if self.problem.per_pair else pairs // self.problem.top_k]

    def want(self) -> Any:
        """Return the result in float32, [num_pairs, N]; NaN in the rows of dropped pairs."""
        import torch

        shape = (self.problem.num_pairs, self.problem.N)
        want = torch.full(shape, float("nan"), device=self.x.device)
        for expert, pairs in self.pairs.items():
            want[pairs] = self.rows(expert).float() @ self.stack.weight(expert)
        return want


class Stack:
    """The experts' weights on the GPU: symmetric, in ordered groups, fp16.

    codes:  [E, K, N] uint8
    scales: [E, G, N] float16
    """

    def __init__(self, problem: GroupedProblem, inputs: Mapping[str, Any]) -> None:
        self.group_rows = problem.expert.group_rows
        self.codes, self.scales = on_gpu(inputs["codes"]), on_gpu(inputs["scales"])
        self._dense: dict[str, list[Any]] = {"rows": [], "columns": []}

    def weight(self, expert: int) -> Any:
        """Return an expert's weight, [K, N] float32."""
        codes = self.codes[expert].float() - ZERO_POINT
        scales = self.scales[expert].float().repeat_interleave(self.group_rows, 0)
        return codes * scales[: len(codes)]

    def dense(self, layout: str, copies: int) -> Sequence[Any]:
        """Return copies of the stack in fp16, [E, K, N] each; of a K by "columns", or by "rows"."""
        import torch

        stacks = self._dense[layout]
        if not stacks:
            E, K, N = self.codes.shape
            shape = (E, K, N) if layout == "rows" else (E, N, K)
            empty = torch.empty(shape, device=self.codes.device, dtype=torch.float16)
            stacks.append(empty if layout == "rows" else empty.mT)
            for expert in range(len(self.codes)):
                stacks[0][expert] = self.weight(expert)
        while len(stacks) < copies:
            # keeps the order of the strides
            stacks.append(stacks[0].clone())
        return stacks[:copies]


def on_gpu(array: Any) -> Any:
    """Return a NumPy array as a torch tensor on the GPU."""
    import torch

    return torch.tensor(np.ascontiguousarray(array), device="cuda")


def on_stream(launch: Callable[[], Any]) -> Call:
    """Return a call of PyTorch's on the stream whose handle it is given."""
    import torch

    def call(stream: int) -> None:
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            launch()

    return call


def ours(device: Device, problem: Problem, chosen: Chosen, rotate_bytes: int) -> Rival:
    """Return a kernel of this house's with a config, in its own layout.

    Raises:
        LaunchError: it cannot be launched.
    """
    kernel, config, binary = chosen
    operands = OperandSet(device, kernel, problem, rotate_bytes=rotate_bytes)
    resources = {
        "registers": binary.registers,
        "spill_bytes": binary.spill_bytes,
        "smem_bytes": binary.smem_bytes,
        "blocks_per_sm": blocks_per_sm(binary, device.gpu),
        "source_hash": binary.fingerprint,
    }
    return Rival(
        kernel.name,
        describe(config),
        operands.bind(config, binary).calls(),
        operands.poison,
        lambda: on_gpu(operands.result()),
        resources=resources,
    )


def cublas(layer: Layer, rotate_bytes: int) -> list[Rival]:
    """Return PyTorch's product an expert that is hit, of dense weights in either layout.

    Its rows lie sorted by expert, for which no time is counted.
    """
    import torch

    problem = layer.problem
    order = torch.cat(list(layer.pairs.values()))
    x = torch.cat([layer.rows(expert) for expert in layer.pairs])
    out = torch.empty(len(order), problem.N, device=x.device, dtype=torch.float16)
    ends = np.cumsum([len(pairs) for pairs in layer.pairs.values()]).tolist()
    parts = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
    hit_bytes = len(layer.pairs) * 2 * problem.K * problem.N
    copies = copies_to_exceed(rotate_bytes, hit_bytes)

    def product(stack: Any) -> Call:
        weights = [stack[expert] for expert in layer.pairs]

        def launch() -> None:
            for part, weight in zip(parts, weights, strict=True):
                torch.mm(x[part], weight, out=out[part])

        return on_stream(launch)

    return [
        Rival(
            "cublas_an_expert", {"layout": layout},
            [product(stack) for stack in layer.stack.dense(layout, copies)],
            lambda: out.fill_(float("nan")), lambda: by_pair(layer, out, order),
            "cuBLAS an expert", "fp16",
        )
        for layout in ("rows", "columns")
    ]  # fmt: skip


def by_pair(layer: Layer, out: Any, order: Any) -> Any:
    """Return rows that lie in the order of these pairs, by pair; NaN where there is none."""
    import torch

    shape = (layer.problem.num_pairs, out.shape[1])
    result = torch.full(shape, float("nan"), device=out.device, dtype=out.dtype)
    result[order] = out
    return result


def checked(device: Device, rival: Rival, want: Any) -> float:
    """Return the relative error of a rival on its first and its last copy of the weights.

    Raises:
        MismatchError: it is above what is allowed, or a row was not written.
    """
    errors = []
    for call in (rival.calls[0], rival.calls[-1]):
        rival.poison()
        device.synchronize()
        call(0)
        device.synchronize()
        errors.append(relative_error(rival.result(), want if rival.want is None else rival.want))
    error = max(errors)
    if not error <= rival.most_error:
        raise MismatchError(
            f"{rival.name} is wrong: its relative error is {error:.2e}, at most "
            f"{rival.most_error:g} may be; config {dict(rival.config)}"
        )
    return error


def relative_error(got: Any, want: Any) -> float:
    """Return ||got - want|| / ||want|| over rows that somebody owns; inf where one is not finite.

    want: NaN in rows that nobody owns
    """
    difference = want_sum = 0.0
    # in pieces: a whole batch in float64 is as large as all the weights
    for some_got, some_want in zip(got.split(1024), want.split(1024), strict=True):
        owned = ~some_want[:, 0].isnan()
        right = some_want[owned].double()
        difference += float((some_got[owned].double() - right).square().sum())
        want_sum += float(right.square().sum())
    error = (difference / max(want_sum, 1e-300)) ** 0.5
    return error if math.isfinite(error) else math.inf
