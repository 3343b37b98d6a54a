"""What the layers of a checkpoint need of a GPU before they run: their programs; no GPU needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

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
# (rows, decisions, gpu) -> what is launched
Needs = Callable[[Sequence[int], Sequence[Decision], Gpu], Iterable[tuple[Kernel, Config]]]
# what a layer and its weight have alike
KNOWN = ("K", "N", "group_size", "bias", "act_order", "uneven")


def kinds(layers: Iterable[LayerInfo], dtype: str) -> list[Weight]:
    """Return what a checkpoint's layers and the projections fused of them are, each kind once.

    Layers that cannot be loaded are left out.

    dtype: "fp16" or "bf16", of x and out
    """
    stored = weights(layers, dtype)
    found = [*stored.values(), *_fused(stored)]
    return list({replace(weight, name=""): weight for weight in reversed(found)}.values())[::-1]


def weights(layers: Iterable[LayerInfo], dtype: str) -> dict[str, Weight]:
    """Return what a checkpoint's layers are, by name; those that cannot be loaded are left out."""
    return {layer.name: _weight(layer, dtype) for layer in layers if layer.error is None}


def _weight(layer: LayerInfo, dtype: str) -> Weight:
    known = {name: getattr(layer, name) for name in KNOWN}
    return Weight(layer.name, dtype=dtype, bias_mode="fused", symmetric=bool(layer.sym), **known)


def programs(
    weights: Sequence[Weight],
    rows: Sequence[int],
    gpu: Gpu,
    progress: Progress,
    others: Sequence[Needs] = (),
) -> list[Job]:
    """Return the programs that layers run with these numbers of rows, each config once.

    others: what else runs with so many rows

    Raises:
        ProblemError: a weight that no store can hold, or more rows than any kernel takes.
    """
    decisions = choice.shipped_decisions(gpu)
    found: dict[tuple[Kernel, Config], None] = {}
    asked: list[Needs] = [*(partial(_programs, weight) for weight in weights), *others]
    for done, needed in enumerate(asked):
        progress(done, len(asked))
        found |= dict.fromkeys(needed(rows, decisions, gpu))
    progress(len(asked), len(asked))
    return [Job(kernel, config, gpu.arch) for kernel, config in found]


def task(weight: Weight, M: int) -> LayerTask:
    """Return what a layer in the usual store asks for M rows."""
    kind = usual_store(weight)
    gathered = kind is MarlinStore and weight.act_order
    return LayerTask(weight.problem(M), choice.readers(kind.kind), gathered=gathered)


def _programs(
    weight: Weight, rows: Sequence[int], decisions: Sequence[Decision], gpu: Gpu
) -> Iterator[tuple[Kernel, Config]]:
    if usual_store(weight) is MarlinStore:
        pack = packing(weight.problem(1), gpu)
        yield pack.kernel, pack.config
    for M in rows:
        stages = task(weight, M).stages(decisions, gpu)
        yield from ((stage.kernel, stage.config) for stage in stages)


def _fused(stored: dict[str, Weight]) -> Iterator[Weight]:
    """Yield the projections that can be put together of stored ones."""
    for name in stored:
        prefix, dot, last = name.rpartition(".")
        for whole, parts in FUSED.items():
            others = [stored.get(f"{prefix}{dot}{part}") for part in parts]
            together = side_by_side(f"{prefix}{dot}{whole}", others)
            if last == parts[0] and together is not None:
                yield together


def side_by_side(name: str, parts: Sequence[Weight | None]) -> Weight | None:
    """Return the weight of all parts' columns, as `gptq.fused.concatenate` has it, or None."""
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return None
    first = found[0]
    for part in found:
        like = replace(first, name=part.name, N=part.N, symmetric=part.symmetric, bias=part.bias)
        if part != like:
            return None
    return replace(
        first, name=name, N=sum(part.N for part in found),
        symmetric=all(part.symmetric for part in found),
        bias=any(part.bias for part in found),
    )  # fmt: skip
