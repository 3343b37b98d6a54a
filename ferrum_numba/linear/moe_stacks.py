"""The stacks of a layer of experts, put on a device as its kernels read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any

import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.errors import ProblemError
from ferrum_numba.gptq.fused import concatenate, interleaved
from ferrum_numba.gptq.tensors import GptqTensors
from ferrum_numba.linear.select import make_store
from ferrum_numba.linear.stores import MarlinStore, Store

# gate and up side by side in one layer, or a layer each
GateUp = GptqTensors | Sequence[GptqTensors]


def make_stacks(
    gate_up: Iterable[GateUp],
    down: Iterable[GptqTensors],
    num_experts: int | None,
    *,
    device: Any,
    dtype: str,
    bias_mode: str,
) -> tuple[Store, Store]:
    """Put both stacks on a device, packed, one expert after the other; gate and up in runs of 8.

    Raises:
        ProblemError: experts that are not alike, or of another number than there should be; or no
            kernel on the packed layout can run them. Nothing is left on the device then.
        DeviceError: no such device.
    """
    if num_experts is None:
        gate_up = gate_up if isinstance(gate_up, Sized) else list(gate_up)
        num_experts = len(gate_up)
    held: dict[str, Any] = {"device": device, "dtype": dtype, "bias_mode": bias_mode}
    first = make_store(_in_runs(gate_up), num_experts, store=MarlinStore.kind, **held)
    try:
        return first, make_store(down, num_experts, store=MarlinStore.kind, **held)
    except BaseException:
        first.operands.free()
        raise


def _in_runs(gate_up: Iterable[GateUp]) -> Iterator[GptqTensors]:
    for found in gate_up:
        if isinstance(found, GptqTensors):
            yield interleaved(found)
            continue
        if len(found) != 2 or not all(isinstance(part, GptqTensors) for part in found):
            got = ", ".join(type(part).__name__ for part in found[:3])
            raise ProblemError(
                "gate_up must be, of each expert, one layer or a pair of gate and up; got "
                f"{len(found)} of {got}"
            )
        gate, up = found
        prefix, dot, _ = gate.name.rpartition(".")
        yield interleaved(concatenate([gate, up], f"{prefix}{dot}gate_up_proj"))


def checked_map(name: str, expert_map: Any, num_experts: int) -> Array | None:
    """Return which expert here each id means, as kernels read it: [E_global] int32, -1 elsewhere.

    Raises:
        ProblemError: it is no such map of these experts.
    """
    if expert_map is None:
        return None
    found = np.asarray(expert_map)
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise ProblemError(
            f"{name}: expert_map must be integers, [E_global]; got {found.dtype} "
            f"{list(found.shape)}"
        )
    wrong = np.flatnonzero((found < -1) | (found >= num_experts))
    if wrong.size:
        raise ProblemError(
            f"{name}: expert_map must say -1, or 0 to {num_experts - 1}; it says "
            f"{found[wrong[0]]} of id {wrong[0]}"
        )
    absent = np.setdiff1d(np.arange(num_experts), found)
    if absent.size:
        raise ProblemError(f"{name}: expert_map has no id for expert {absent[0]}, which is here")
    return found.astype(np.int32)
