"""Which store holds a layer: the one asked for, else packed where that is possible, else raw."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

from ferrum_numba.errors import ProblemError
from ferrum_numba.gptq.tensors import GptqTensors
from ferrum_numba.linear import choice
from ferrum_numba.linear.stores import MarlinStore, RawGptqStore, Store
from ferrum_numba.linear.weight import Weight

STORES: dict[str, type[Store]] = {store.kind: store for store in (MarlinStore, RawGptqStore)}
# "1": the checkpoint's own layout for every layer that does not say otherwise
ENVIRONMENT_VARIABLE = "FERRUM_TRITON_INT4"


def make_store(
    experts: Iterable[GptqTensors],
    num_experts: int,
    *,
    store: str | None,
    device: Any,
    dtype: str,
    bias_mode: str = "fused",
) -> Store:
    """Return a layer or a stack of experts in the store that suits it.

    store: "marlin", "raw", or None for FERRUM_TRITON_INT4=1 to say raw, and packed otherwise where
           the first expert can be packed

    Raises:
        ProblemError: the store asked for, or without one any, cannot hold it; says why.
    """
    first, stream = _first(experts)
    kind = _kind(first, Weight.of(first, dtype, bias_mode), store)
    return kind.from_experts(stream, num_experts, device=device, dtype=dtype, bias_mode=bias_mode)


def usual_store(weight: Weight) -> type[Store]:
    """Return the store that a weight gets where nobody asks for one, as far as its kind tells.

    Raises:
        ProblemError: no store can hold it.
    """
    # packed rows are in the order of their groups
    packed = replace(weight, act_order=False).problem(1)
    can_be = weight.unpackable is None and choice.refusal(MarlinStore.kind, packed) is None
    if can_be and not _says_raw():
        return MarlinStore
    reason = choice.refusal(RawGptqStore.kind, weight.problem(1))
    if reason is not None:
        raise ProblemError(f"{weight.name}: no store can hold it: {reason}")
    return RawGptqStore


def _first(experts: Iterable[GptqTensors]) -> tuple[GptqTensors, Iterator[GptqTensors]]:
    stream = iter(experts)
    for first in stream:
        return first, chain([first], stream)
    raise ProblemError("a stack needs one expert at least; got none")


def _kind(layer: GptqTensors, weight: Weight, store: str | None) -> type[Store]:
    if store is not None and store not in STORES:
        raise ProblemError(f'{layer.name}: store must be "marlin" or "raw"; got {store!r}')
    if store is None and _says_raw():
        store = RawGptqStore.kind
    tried = STORES if store is None else {store: STORES[store]}
    refusals = {name: kind.refusal(layer, weight) for name, kind in tried.items()}
    for name, refusal in refusals.items():
        if refusal is None:
            return tried[name]
    words = "; ".join(f"not {name}, because {refusal}" for name, refusal in refusals.items())
    raise ProblemError(f"{layer.name}: no store can hold it: {words}")


def _says_raw() -> bool:
    return os.environ.get(ENVIRONMENT_VARIABLE) == "1"
