"""ferrum-kernels' functions for many experts of a stack at once, of rows that the host knows.

Each expert that has rows is a launch, as there without its streams; a layer whose routing only the
GPU knows is `MoeLayer`'s, in one launch for all of them. Arguments as in `offset`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.errors import CaptureError, ProblemError
from ferrum_numba.launch import capturing
from ferrum_numba.linear import arrays
from ferrum_numba.linear.offset import checked_rows, marlin_gemm_with_offset_strided, stream_of
from ferrum_numba.linear.stores import Store

# expert, first row of x, first row of out, how many
Dispatch = tuple[int, int, int, int]


def gemm_phase_batched(
    stream: Any, x: Any, weight: Store, dispatches: Iterable[Dispatch], out: Any, k: int
) -> None:
    """Compute some rows of out [..., N] of rows of x [..., k], each run of them times an expert.

    dispatches: (expert, first row of x, first row of out, rows) of each run; rows of out that
                none of them has are left alone

    Raises:
        ProblemError: an expert or rows that are not there, or another k; then nothing was run.
        LaunchError:  arrays elsewhere, not contiguous or overlapping.
    """
    of, runs = weight.weight, list(dispatches)
    if k != of.K:
        raise ProblemError(f"{of.name}: k must be the stack's K; got k = {k}, K = {of.K}")
    for expert, first_in, first_out, m in runs:
        if not 0 <= expert < weight.num_experts:
            raise ProblemError(
                f"{of.name}: expert must be 0..{weight.num_experts - 1}; got {expert}"
            )
        checked_rows(x, first_in, weight, out, first_out, m)
    for expert, first_in, first_out, m in runs:
        marlin_gemm_with_offset_strided(
            stream, x, first_in, weight, out, first_out, m, expert * of.N, of.N
        )


def marlin_gemm_moe(
    stream: Any,
    x: Any,
    weight: Store,
    out: Any,
    a_row_offsets: Any,
    tokens_per_expert: Any,
    active_expert_ids: Any,
    expert_count: int,
    prob_m: int,
    n_per_expert: int,
    num_experts_global: int,
) -> None:
    """Compute the rows of some experts, which begin at the same row in x and in out.

    Offsets and counts are read by the host: where they are on the GPU, it waits for them.

    Args:
        a_row_offsets:      [num_experts_global] integers, the first row of each expert
        tokens_per_expert:  [num_experts_global] integers, its rows
        active_expert_ids:  [expert_count] integers, the experts that are run; None: the first
                            `expert_count`
        prob_m:             the most rows that one of them has. There it must be 16, 32, 48 or 64,
                            and rows beyond it are never written; here it may be any number, and
                            more rows are refused
        n_per_expert, num_experts_global: the stack's N and number of experts

    Raises:
        ProblemError: sizes that are not the stack's, or rows that are not there.
        LaunchError:  arrays elsewhere, not contiguous or overlapping.
        CaptureError: the stream is being captured, and offsets, counts or ids are on the GPU.
    """
    of = weight.weight
    if (n_per_expert, num_experts_global) != (of.N, weight.num_experts):
        raise ProblemError(
            f"{of.name}: n_per_expert and num_experts_global must be the stack's, {of.N} and "
            f"{weight.num_experts}; got {n_per_expert} and {num_experts_global}"
        )
    given = {"a_row_offsets": a_row_offsets, "tokens_per_expert": tokens_per_expert}
    if active_expert_ids is not None:
        given["active_expert_ids"] = active_expert_ids
    _refuse_capture(weight, stream_of(weight, x, stream), given)
    sizes = {"active_expert_ids": expert_count}
    host = {
        name: _integers(of.name, name, array, sizes.get(name, num_experts_global))
        for name, array in given.items()
    }
    firsts, counts = host["a_row_offsets"], host["tokens_per_expert"]
    active = host.get("active_expert_ids", np.arange(expert_count))
    runs = []
    for expert in map(int, active):
        if not 0 <= expert < num_experts_global:
            raise ProblemError(
                f"{of.name}: active_expert_ids must be 0..{num_experts_global - 1}; got {expert}"
            )
        first, m = int(firsts[expert]), int(counts[expert])
        if m > prob_m:
            raise ProblemError(
                f"{of.name}: prob_m must be the most rows of an expert; got prob_m = {prob_m}, "
                f"expert {expert} has {m}"
            )
        runs.append((expert, first, first, m))
    gemm_phase_batched(stream, x, weight, runs, out, of.K)


def _refuse_capture(weight: Store, stream: int | None, given: dict[str, Any]) -> None:
    on_gpu = [name for name, array in given.items() if not isinstance(array, np.ndarray | list)]
    if stream is not None and on_gpu and capturing(stream):
        raise CaptureError(
            f"{weight.weight.name}: {', '.join(on_gpu)} cannot be read by the host while a graph "
            "is captured; give arrays of the host, or run a MoeLayer"
        )


def _integers(name: str, what: str, array: Any, size: int) -> Array:
    found = np.asarray(arrays.copy_to_host(array))
    if found.shape != (size,) or not np.issubdtype(found.dtype, np.integer):
        raise ProblemError(
            f"{name}: {what} must be {size} integers; got {found.dtype} {list(found.shape)}"
        )
    return found
