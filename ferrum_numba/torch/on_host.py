"""The operators on the host: the reference, on the memory of the tensors."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch

from ferrum_numba.errors import LaunchError, ProblemError
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.linear.arrays import host_array
from ferrum_numba.linear.gemm import HostGemm
from ferrum_numba.linear.select import STORES
from ferrum_numba.linear.slabs import Slabs
from ferrum_numba.torch.layout import NAMES, Layout, parsed


def linear(x: torch.Tensor, *arguments: Any, expert: int = 0) -> torch.Tensor:
    """Return x [..., K] times a weight, one of a stack; arguments as the operator has them."""
    *operands, text = arguments
    layout = parsed(text)
    if not x.shape or x.shape[-1] != layout.K:
        raise wrong_columns(x.shape, layout.K)
    held = store(layout, x.dtype, operands)
    x = x.contiguous()
    out = x.new_empty((*x.shape[:-1], layout.N))
    M = x.numel() // layout.K
    if M:
        HostGemm(held, expert)(array(x).reshape(M, layout.K), array(out).reshape(M, layout.N))
    return out


def experts(x: torch.Tensor, counts: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """Return rows of x [S, K], sorted by expert, times their experts; counts: [E] rows of each."""
    layout = parsed(arguments[-1])
    out = x.new_empty((len(x), layout.N))
    for expert, rows in segments(counts, len(x), layout.num_experts):
        out[rows] = linear(x[rows], *arguments, expert=expert)
    return out


def wrong_columns(shape: Any, K: int) -> ProblemError:
    """Return the error of an x of another shape."""
    return ProblemError(f"x must be [..., {K}]; got {list(shape)}")


def check_counts(counts: torch.Tensor, num_experts: int) -> None:
    """Raise ProblemError unless there is a count for each expert."""
    if tuple(counts.shape) != (num_experts,):
        raise ProblemError(
            f"counts must be [{num_experts}], one of each expert; got {list(counts.shape)}"
        )


def segments(counts: torch.Tensor, num_rows: int, num_experts: int) -> Iterator[tuple[int, slice]]:
    """Yield experts that have rows, and which.

    Raises:
        ProblemError: the counts are not those of the rows.
    """
    check_counts(counts, num_experts)
    numbers = counts.tolist()
    if sum(numbers) != num_rows or min(numbers, default=0) < 0:
        raise ProblemError(
            f"counts must be the rows of each expert, {num_rows} in all; got {sum(numbers)}"
        )
    ends = accumulate(numbers, initial=0)
    for expert, (first, end) in enumerate(pairwise(ends)):
        if first < end:
            yield expert, slice(first, end)


def store(layout: Layout, dtype: torch.dtype, operands: list[torch.Tensor | None]) -> Any:
    """Return a store of the host whose operands are the tensors' memory."""
    weight, kind = layout.weight(dtype), STORES[layout.store]
    known = layout.buffers(dtype)
    slabs = Slabs(None, layout.num_experts)
    for name, tensor in zip(kind.names, operands, strict=True):
        check(f"{weight.name}: {name}", tensor, known.get(name), layout.num_experts)
        if tensor is not None:
            if tensor.get_device() >= 0:
                raise LaunchError(
                    f"{weight.name}: {name} must be on the host like x; it is on {tensor.device}"
                )
            slabs.lend(name, array(tensor).reshape(layout.num_experts, *known[name][0]))
    return kind(weight, slabs, None)


def check(
    name: str,
    tensor: torch.Tensor | None,
    known: tuple[tuple[int, ...], torch.dtype] | None,
    num_experts: int,
) -> None:
    """Raise unless an operand is of its layout.

    Raises:
        ProblemError: another size or type, or one that the layout does not have.
        LaunchError:  not contiguous.
    """
    if tensor is None or known is None:
        if tensor is not None or known is not None:
            raise ProblemError(f"{name} must {'not ' if known is None else ''}be given")
        return
    shape, dtype = known
    size = num_experts * int(np.prod(shape, dtype=np.int64))
    if tensor.dtype is not dtype or tensor.numel() != size:
        raise ProblemError(
            f"{name} must be {size} elements of {dtype}; got {tensor.numel()} of {tensor.dtype}"
        )
    if not tensor.is_contiguous():
        raise LaunchError(f"{name} must be contiguous; its strides are {tensor.stride()}")


def array(tensor: torch.Tensor) -> Any:
    """Return a tensor's memory as a NumPy array, which knows no bfloat16 of torch's."""
    dtype = DTYPES[NAMES[tensor.dtype]] if tensor.dtype in NAMES else np.dtype(np.int32)
    return host_array(tensor.data_ptr(), tuple(tensor.shape), dtype)
