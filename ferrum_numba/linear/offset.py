"""ferrum-kernels' GEMM functions on a store: rows from and to anywhere in larger buffers.

`stream` is a handle or a stream object, or None for that on which x's library works now. x and out
are arrays, Buffers or addresses; of addresses nothing is known and nothing checked. Bias: the
store's own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ferrum_numba.errors import LaunchError, ProblemError
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.launch import Buffer, stream_handle
from ferrum_numba.launch.interop import HOST
from ferrum_numba.linear import arrays
from ferrum_numba.linear.experts import expert_index
from ferrum_numba.linear.gemm import GpuGemm, HostGemm
from ferrum_numba.linear.layer import ELEMENT_BYTES
from ferrum_numba.linear.stores import Store


class Rows(NamedTuple):
    """Some rows of a buffer.

    what:     its name in an error
    array:    whole, as the caller gave it
    first:    the first row
    num_rows: how many
    columns:  elements of a row
    """

    what: str
    array: Any
    first: int
    num_rows: int
    columns: int


def marlin_gemm_with_perm(stream: Any, x: Any, weight: Store, out: Any, m: int) -> None:
    """Compute out [m, N] = x [m, K] times a dense weight, in act-order or not.

    Raises:
        ProblemError: a stack, or shapes and types that are not the weight's.
        LaunchError:  arrays elsewhere, not contiguous or overlapping.
    """
    marlin_gemm_with_offset(stream, x, weight, out, m, 0, weight.num_experts * weight.weight.N)


def marlin_gemm_with_offset(
    stream: Any, x: Any, weight: Store, out: Any, m: int, expert_offset: int, expert_n: int
) -> None:
    """Compute out [m, expert_n] = x [m, K] times the expert whose columns begin at an offset.

    Raises:
        ProblemError: no expert of the stack begins there, or shapes and types that are not its own.
        LaunchError:  arrays elsewhere, not contiguous or overlapping.
    """
    marlin_gemm_with_offset_strided(stream, x, 0, weight, out, 0, m, expert_offset, expert_n)


def marlin_gemm_with_offset_strided(
    stream: Any,
    x: Any,
    in_row_offset: int,
    weight: Store,
    out: Any,
    out_row_offset: int,
    m: int,
    expert_offset: int,
    expert_n: int,
) -> None:
    """Compute m rows of out from `out_row_offset` on, of m rows of x from `in_row_offset` on.

    Rows of x have K elements, those of out expert_n; other rows are left alone.

    Raises:
        ProblemError: no expert of the stack begins there, or shapes and types that are not its own.
        LaunchError:  arrays elsewhere, not contiguous or overlapping.
    """
    expert = expert_index(weight, expert_offset, expert_n)
    places = checked_rows(x, in_row_offset, weight, out, out_row_offset, m)
    if m == 0:
        return
    handle = stream_of(weight, x, stream)
    if handle is None:
        dtype = DTYPES[weight.weight.dtype]
        rows, results = (
            arrays.host_array(at, (m, columns), dtype)
            for at, columns in zip(places, (weight.weight.K, expert_n), strict=True)
        )
        HostGemm(weight, expert)(rows, results)
        return
    GpuGemm(weight, expert)(handle, *places, m)


def checked_rows(
    x: Any, in_row_offset: int, weight: Store, out: Any, out_row_offset: int, m: int
) -> tuple[int, int]:
    """Return the addresses of rows of x and out, after checking that all are there and apart.

    Raises:
        ProblemError: rows that are not there, or types that are not the weight's.
        LaunchError:  arrays elsewhere, not contiguous or overlapping.
    """
    source = Rows("x", x, in_row_offset, m, weight.weight.K)
    target = Rows("out", out, out_row_offset, m, weight.weight.N)
    places = _place(weight, source), _place(weight, target)
    if m:
        _refuse_overlap(weight, source, target, places)
    return places


def stream_of(weight: Store, x: Any, stream: Any) -> int | None:
    """Return the handle of a stream, by default that on which x's library works; None on a host."""
    if weight.runtime is None:
        return None
    if stream is None:
        return arrays.current_stream(x, weight.runtime.device.index)
    return stream_handle(stream)


def _place(store: Store, rows: Rows) -> int:
    """Return the address of the first row, after checking that all are there."""
    name, what = store.weight.name, rows.what
    if min(rows.first, rows.num_rows) < 0:
        raise ProblemError(
            f"{name}: rows of {what} must be counted from 0; "
            f"got {rows.num_rows} from {rows.first} on"
        )
    offset_bytes = rows.first * rows.columns * ELEMENT_BYTES
    on_gpu = store.runtime is not None
    if on_gpu and isinstance(rows.array, int):
        return rows.array + offset_bytes
    if on_gpu and isinstance(rows.array, Buffer):
        address, size_bytes = rows.array.pointer, rows.array.size_bytes
    else:
        address, size_bytes = _seen(store, rows)
    if (rows.first + rows.num_rows) * rows.columns * ELEMENT_BYTES > size_bytes:
        raise ProblemError(
            f"{name}: {what} must have {rows.num_rows} rows of {rows.columns} from row "
            f"{rows.first} on; it has {size_bytes // ELEMENT_BYTES // rows.columns}"
        )
    return address + offset_bytes


def _seen(store: Store, rows: Rows) -> tuple[int, int]:
    """Return the address and bytes of an array of the store's type on its device."""
    name = f"{store.weight.name}: {rows.what}"
    try:
        seen = arrays.see(rows.array)
    except LaunchError as error:
        raise LaunchError(f"{name}: {error}") from None
    device = HOST if store.runtime is None else store.runtime.device.index
    arrays.refuse(name, seen, store.weight.dtype, device)
    if rows.what == "out" and seen.read_only:
        raise LaunchError(f"{name} is read-only")
    return seen.address, ELEMENT_BYTES * int(np.prod(seen.shape, dtype=np.int64))


def _refuse_overlap(store: Store, x: Rows, out: Rows, places: tuple[int, int]) -> None:
    ends = [
        place + rows.num_rows * rows.columns * ELEMENT_BYTES
        for place, rows in zip(places, (x, out), strict=True)
    ]
    if places[0] < ends[1] and places[1] < ends[0]:
        raise LaunchError(f"{store.weight.name}: rows of out overlap those of x")
