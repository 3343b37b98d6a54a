"""ferrum-kernels' functions around its GEMMs, on arrays of one device: a bias, and experts' sums.

`stream` is a handle or a stream object, or None for that on which the first array's library works
now. An array that does not say on which GPU it is counts as one of cuda:0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from ferrum_numba.contract import Kernel, Problem
from ferrum_numba.errors import CaptureError, LaunchError, ProblemError
from ferrum_numba.gpu import Gpu
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.kernels.moe.combine import CombineProblem
from ferrum_numba.kernels.tools.add_bias import AddBiasProblem
from ferrum_numba.launch import Order, stream_handle
from ferrum_numba.launch.interop import HOST
from ferrum_numba.linear import arrays, runtime
from ferrum_numba.linear.arrays import Seen
from ferrum_numba.linear.layer import rows_of
from ferrum_numba.linear.moe_arguments import ROUTED_TYPES
from ferrum_numba.linear.moe_stages import COMBINE
from ferrum_numba.linear.stages import ADD_BIAS, Stage, default
from ferrum_numba.reference import add_bias as references
from ferrum_numba.reference import moe
from ferrum_numba.results.decisions import Decision

# more than any id; those below 0 are larger, without a sign
ANY_ID = 1 << 31


@dataclass(frozen=True)
class StepTask:
    """One kernel that is no GEMM, as a plan."""

    kernel: Kernel
    problem: Problem
    operands: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...] = ()
    scalars: tuple[tuple[str, int], ...] = ()

    def stages(self, decisions: Sequence[Decision], gpu: Gpu) -> Iterator[Stage]:
        """Yield the one stage."""
        stage = default(self.kernel, self.problem, gpu, dict(self.renamed))
        if self.kernel is COMBINE:
            # programmatic, it would read ids and weights that the launch before it still writes
            config: Any = stage.config
            stage = replace(stage, config=replace(config, programmatic=False))
        yield replace(stage, scalars=dict(self.scalars))


def add_bias(stream: Any, x: Any, bias: Any) -> None:
    """Add a bias to every row, in place: x[r, c] = round(fp32(x[r, c]) + fp32(bias[c])).

    Args:
        x:    [..., N] fp16 or bf16, contiguous; N a multiple of 8
        bias: [N], of the type and on the device of x

    Raises:
        ProblemError: shapes or types that do not fit.
        LaunchError:  arrays elsewhere, not contiguous, or read-only.
        CaptureError: the stream is being captured, and no such bias was added before.
    """
    seen, added = _see("add_bias: x", x), _see("add_bias: bias", bias)
    dtype, device = _kind("add_bias: x", seen)
    if added.shape != seen.shape[-1:]:
        raise ProblemError(
            f"add_bias: bias must be {list(seen.shape[-1:])} for x of {list(seen.shape)}; got "
            f"{list(added.shape)}"
        )
    arrays.refuse("add_bias: bias", added, dtype, device)
    _refuse_read_only("add_bias: x", seen)
    M, N = rows_of(seen), seen.shape[-1]
    if M == 0:
        return
    if device == HOST:
        rows = arrays.host_array(seen.address, (M, N), DTYPES[dtype])
        rows[:] = references.add_bias(rows, arrays.host_array(added.address, (N,), DTYPES[dtype]))
        return
    task = StepTask(ADD_BIAS, AddBiasProblem(M, N, dtype), ("bias",))
    _launch("add_bias", task, x, stream, device, (seen.address, seen.address, added.address))


def moe_combine(stream: Any, rows: Any, topk_ids: Any, topk_weights: Any, out: Any) -> None:
    """Sum every token's rows: out[t] = sum over i of topk_weights[t, i] * rows[t * top_k + i].

    In fp32, in the order of the places, rounded once. Rows lie by pair, as grouped GEMMs write
    them; a pair whose id is below 0 is skipped.

    Args:
        rows:         [T * top_k, H] fp16 or bf16, contiguous; H a multiple of 8
        topk_ids:     [T, top_k] int32; from 0 on they may be anything
        topk_weights: [T, top_k] fp32
        out:          [T, H], of the type and on the device of rows

    Raises:
        ProblemError: shapes or types that do not fit.
        LaunchError:  arrays elsewhere, not contiguous, read-only or overlapping.
        CaptureError: the stream is being captured, and no such sum was computed before.
    """
    names = ("rows", "topk_ids", "topk_weights", "out")
    found = [
        _see(f"moe_combine: {name}", array)
        for name, array in zip(names, (rows, topk_ids, topk_weights, out), strict=True)
    ]
    dtype, device = _kind("moe_combine: rows", found[0])
    T, top_k = found[1].shape if len(found[1].shape) == 2 else (0, 0)
    H = found[0].shape[-1]
    for name, seen, shape, kind in zip(
        names, found, ((T * top_k, H), (T, top_k), (T, top_k), (T, H)),
        (dtype, "int32", "fp32", dtype), strict=True,
    ):  # fmt: skip
        if seen.shape != shape:
            raise ProblemError(
                f"moe_combine: {name} must be {list(shape)} for topk_ids of "
                f"{list(found[1].shape)} and rows of {list(found[0].shape)}; got {list(seen.shape)}"
            )
        arrays.refuse(f"moe_combine: {name}", seen, kind, device, 4 if kind[-2:] == "32" else 16)
    _refuse_read_only("moe_combine: out", found[3])
    for name, seen in zip(names[:-1], found[:-1], strict=True):
        _refuse_overlap(name, seen, found[3])
    if T == 0:
        return
    if device == HOST:
        types = DTYPES[dtype], np.dtype(np.int32), np.dtype(np.float32), DTYPES[dtype]
        of_pairs, ids, weights, sums = (
            arrays.host_array(seen.address, seen.shape, kind)
            for seen, kind in zip(found, types, strict=True)
        )
        # any id is a pair's, but one below 0
        sums[:] = moe.combine(of_pairs, np.minimum(ids, 0), weights, 1)
        return
    # what is absent is never read, and named all the same
    renamed = {"rows": "x", "shared": "x", "expert_map": "x"}
    task = StepTask(
        COMBINE, CombineProblem(T, top_k, top_k, H, dtype=dtype), ("ids", "topk_weights"),
        tuple(renamed.items()), (("num_experts", ANY_ID),),
    )  # fmt: skip
    at_rows, at_ids, at_weights, at_out = (seen.address for seen in found)
    _launch("moe_combine", task, rows, stream, device, (at_rows, at_out, at_ids, at_weights))


def _launch(
    name: str, task: StepTask, array: Any, stream: Any, device: int, addresses: tuple[int, ...]
) -> None:
    """Launch a task on the addresses of x, out and its operands."""
    on = runtime.runtime(device)
    assert on is not None, "a number is a GPU"
    handle = arrays.current_stream(array, device) if stream is None else stream_handle(stream)
    plan = on.plans.get(task, handle)
    if plan is None:
        raise CaptureError(
            f"{name}: a kernel cannot be loaded while a graph is captured; call it with such "
            "arrays before"
        )
    x, out, *operands = addresses
    plan(handle, x, out, Order.packed(operands))


def _see(name: str, array: Any) -> Seen:
    try:
        return arrays.see(array)
    except LaunchError as error:
        raise LaunchError(f"{name}: {error}") from None


def _kind(name: str, array: Seen) -> tuple[str, int]:
    """Return the type of an array of rows, and the number of its GPU or HOST."""
    if array.dtype not in DTYPES or not array.shape:
        raise ProblemError(
            f"{name} must be rows of fp16 or bf16; got {list(array.shape)} of {array.dtype}"
        )
    device = 0 if array.device is None else array.device
    arrays.refuse(name, array, array.dtype, device)
    return array.dtype, device


def _refuse_read_only(name: str, array: Seen) -> None:
    if array.read_only:
        raise LaunchError(f"{name} is read-only")


def _refuse_overlap(name: str, read: Seen, out: Seen) -> None:
    ends = [a.address + prod(a.shape) * ROUTED_TYPES[a.dtype].itemsize for a in (read, out)]
    if read.address < ends[1] and out.address < ends[0]:
        raise LaunchError(f"moe_combine: out overlaps {name}")
