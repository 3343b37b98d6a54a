"""What the layers of a checkpoint need of a GPU before they run: their programs; no GPU needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from ferrum_numba.compile import Job
from ferrum_numba.contract import Config, Kernel
from ferrum_numba.gptq.checkpoint import FUSED, LayerInfo
from ferrum_numba.gpu import Gpu
from ferrum_numba.linear import choice
from ferrum_numba.linear.select import usual_store
from ferrum_numba.linear.stages import LayerTask, packing
from ferrum_numba.linear.stores import MarlinStore
from ferrum_numba.linear.weight import Weight
from ferrum_numba.results.decisions import Decision

# (done, of how many)
Progress = Callable[[int, int], None]
# what a layer and its weight have alike
KNOWN = ("K", "N", "group_size", "bias", "act_order", "uneven")


def kinds(layers: Iterable[LayerInfo], dtype: str) -> list[Weight]:
    """Return what a checkpoint's layers and the projections fused of them are, each kind once.

    Layers that cannot be loaded are left out.

    dtype: "fp16" or "bf16", of x and out
    """
    stored = {layer.name: _weight(layer, dtype) for layer in layers if layer.error is None}
    found = [*stored.values(), *_fused(stored)]
    return list({replace(weight, name=""): weight for weight in reversed(found)}.values())[::-1]


def _weight(layer: LayerInfo, dtype: str) -> Weight:
    known = {name: getattr(layer, name) for name in KNOWN}
    return Weight(layer.name, dtype=dtype, bias_mode="fused", symmetric=bool(layer.sym), **known)


def programs(
    weights: Sequence[Weight], rows: Sequence[int], gpu: Gpu, progress: Progress
) -> list[Job]:
    """Return the programs that layers run with these numbers of rows, each config once.

    Raises:
        ProblemError: a weight that no store can hold, or more rows than any kernel takes.
    """
    decisions = choice.shipped_decisions(gpu)
    found: dict[tuple[Kernel, Config], None] = {}
    for done, weight in enumerate(weights):
        progress(done, len(weights))
        found |= dict.fromkeys(_programs(weight, rows, decisions, gpu))
    progress(len(weights), len(weights))
    return [Job(kernel, config, gpu.arch) for kernel, config in found]


def _programs(
    weight: Weight, rows: Sequence[int], decisions: Sequence[Decision], gpu: Gpu
) -> Iterator[tuple[Kernel, Config]]:
    kind = usual_store(weight)
    packed = kind is MarlinStore
    if packed:
        pack = packing(weight.problem(1), gpu)
        yield pack.kernel, pack.config
    kernels = choice.readers(kind.kind)
    for M in rows:
        task = LayerTask(weight.problem(M), kernels, gathered=packed and weight.act_order)
        yield from ((stage.kernel, stage.config) for stage in task.stages(decisions, gpu))


def _fused(stored: dict[str, Weight]) -> Iterator[Weight]:
    """Yield the projections that can be put together of stored ones."""
    for name, first in stored.items():
        prefix, dot, last = name.rpartition(".")
        for whole, parts in FUSED.items():
            others = [stored.get(f"{prefix}{dot}{part}") for part in parts]
            if last != parts[0] or not all(_fits(first, other) for other in others):
                continue
            weights = [other for other in others if other is not None]
            yield replace(
                first, name=f"{prefix}{dot}{whole}", N=sum(weight.N for weight in weights),
                symmetric=all(weight.symmetric for weight in weights),
                bias=any(weight.bias for weight in weights),
            )  # fmt: skip


def _fits(first: Weight, other: Weight | None) -> bool:
    """Tell whether columns of both may stand in one weight, as `gptq.tensors.concatenate` says."""
    return other is not None and other == replace(
        first, name=other.name, N=other.N, symmetric=other.symmetric, bias=other.bias
    )
