"""Tensor maps that a kernel makes for itself, and the copies of boxes that they describe.

The driver makes a tensor map on the host, for one address and shape. Made on the device it needs
no host at all: one lane describes the matrix in 128 bytes of shared memory that were zero, the warp
publishes them to global memory, and who copies by the map acquires it first.

What the 128 bytes hold is the GPU's own secret; the twins keep a record of their own in them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ferrum_numba.errors import InterpreterError
from ferrum_numba.ptx.instruction import U32, U64, Array, Lanes, instruction

MAP_BYTES = 128
# columns of 16 bits that a row of a box has: 128 bytes, in which the swizzle repeats
BOX_COLUMNS = 64
MOST_BOX_ROWS = 256
_CHUNKS = 8
_RECORD = np.dtype(
    [
        ("sign", "S8"), ("address", "<u8"), ("row_bytes", "<u8"), ("columns", "<u4"),
        ("rows", "<u4"), ("box_rows", "<u4"), ("rest", "V92"),
    ]
)  # fmt: skip
_SIGN = b"twin map"


def _replace(field: str, value: str, kind: str = "b32") -> str:
    return f"tensormap.replace.tile.{field}.shared::cta.b1024.{kind} [<smem>], {value};\n"


# rank 1 means two dimensions, type 1 unsigned 16 bits, swizzle 3 that of 128 bytes
@instruction(
    "{\n.reg .b32 one, width;\n"
    + f"mov.b32 one, 1; mov.b32 width, {BOX_COLUMNS};\n"
    + _replace("global_address", "<gmem>", "b64")
    + _replace("rank", "one")
    + _replace("box_dim", "0, width")
    + _replace("box_dim", "1, <box_rows>")
    + _replace("global_dim", "0, <columns>")
    + _replace("global_dim", "1, <rows>")
    + _replace("global_stride", "0, <row_bytes>", "b64")
    + _replace("element_stride", "0, one")
    + _replace("element_stride", "1, one")
    + _replace("elemtype", "1")
    + _replace("interleave_layout", "0")
    + _replace("swizzle_mode", "3")
    + _replace("fill_mode", "0")
    + "}",
    effect="memory",
    arch="sm_90a",
)
def describe_matrix(
    lanes: Lanes, smem: U32, gmem: U64, columns: U32, rows: U32, row_bytes: U64, box_rows: U32
) -> None:
    """Describe a matrix of 16-bit elements, and boxes of it that copies by the map bring.

    A copy brings box_rows rows of 64 columns into the 128-byte swizzle that
    `smem_descriptor(128, 1024)` reads; what lies past the matrix becomes zero, and counts as
    brought.

    smem:      128-byte aligned, 128 bytes of zeros that become the map
    gmem:      16-byte aligned, the matrix
    columns:   and rows: its shape
    row_bytes: from one row to the next, a multiple of 16
    box_rows:  1 to 256

    Source: PTX ISA, "Data Movement Instructions: tensormap.replace".
    """
    if lanes.load_shared(smem, MAP_BYTES).any():
        raise InterpreterError("describes a matrix in bytes that are not zero")
    if (gmem % 16).any() or (row_bytes % 16).any():
        raise InterpreterError("describes a matrix whose rows do not begin at multiples of 16")
    if not ((box_rows >= 1) & (box_rows <= MOST_BOX_ROWS)).all():
        raise InterpreterError(
            f"describes boxes of {box_rows.tolist()} rows; 1 to {MOST_BOX_ROWS} are possible"
        )
    record = np.zeros(len(smem), _RECORD)
    record["sign"], record["box_rows"] = _SIGN, box_rows
    record["address"], record["row_bytes"] = gmem, row_bytes
    record["columns"], record["rows"] = columns, rows
    lanes.store_shared(smem, record.view(np.uint8).reshape(-1, MAP_BYTES))


@instruction(
    "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned "
    "[<gmem>], [<smem>], 128;",
    effect="memory",
    scope="warp",
    arch="sm_90a",
)
def publish_tensor_map(lanes: Lanes, gmem: U64, smem: U32) -> None:
    """Copy a tensor map from shared to global memory, both 128-byte aligned, for copies to use.

    Source: PTX ISA, "Data Movement Instructions: tensormap.cp_fenceproxy".
    """
    if (gmem % MAP_BYTES).any() or (smem % MAP_BYTES).any():
        raise InterpreterError("publishes a tensor map that is not 128-byte aligned")
    lanes.store_global(gmem[:1], lanes.load_shared(smem[:1], MAP_BYTES))
    lanes.block.watch.publish_map(lanes.thread, int(gmem[0]))


@instruction(
    "fence.proxy.tensormap::generic.acquire.gpu [<gmem>], 128;", effect="memory", arch="sm_90a"
)
def acquire_tensor_map(lanes: Lanes, gmem: U64) -> None:
    """Make what was published at an address visible to the copies by it that follow.

    Source: PTX ISA, "Parallel Synchronization and Communication Instructions: membar / fence".
    """
    lanes.block.watch.acquire_map(lanes.thread, gmem)


def copy_box(lanes: Lanes, smem: Array, map: Array, c0: Array, c1: Array, bar: Array) -> None:
    """Begin each lane's copy of the box whose first element is (column c0, row c1)."""
    lanes.block.watch.uses_map(lanes.thread, map)
    operands = (column.tolist() for column in (lanes.thread, smem, c0, c1, bar))
    for i, (thread, to, column, row, counts) in enumerate(zip(*operands, strict=True)):
        held = lanes.block.machine.memory.load(map[i : i + 1], MAP_BYTES)
        record = np.ascontiguousarray(held).view(_RECORD)
        if record["sign"][0, 0] != _SIGN:
            raise InterpreterError("copies by a tensor map that no `describe_matrix` made")
        if to % 1024:
            raise InterpreterError("copies a swizzled box to no multiple of 1024 bytes")
        box = _box(lanes, record[0, 0], column, row, (thread, counts))
        lanes.block.deliver(thread, to, box, counts)


def _box(
    lanes: Lanes, record: Any, column: int, row: int, by: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """Return the 16-byte chunks of a box, in the order of their places: [n, 16] uint8.

    by: the thread that copies, and the mbarrier that counts
    """
    box_rows = int(record["box_rows"])
    data = np.zeros((box_rows, 2 * BOX_COLUMNS), np.uint8)
    inside = max(0, min(box_rows, int(record["rows"]) - row))
    size_bytes = 2 * max(0, min(BOX_COLUMNS, int(record["columns"]) - column))
    if inside and size_bytes:
        places = np.arange(row, row + inside, dtype=np.uint64) * record["row_bytes"]
        start = record["address"] + np.uint64(2 * column)
        thread, bar = by
        data[:inside, :size_bytes] = lanes.block.load_bulk(thread, start + places, size_bytes, bar)
    chunks = data.reshape(box_rows, _CHUNKS, 16)
    swizzled = np.arange(_CHUNKS)[None, :] ^ np.arange(box_rows)[:, None] % _CHUNKS
    return np.take_along_axis(chunks, swizzled[:, :, None], axis=1).reshape(-1, 16)
