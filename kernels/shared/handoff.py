"""Sums handed from block to block through slots in global memory: the data say that they are there.

A slot is a block's place for its sums of one slice. It is zero before the first launch and whenever
nothing has arrived; who takes the sums leaves zeros for the next launch. No word that is handed
over is 0: 0 becomes -0, which adds the same. So each word says for itself that it has arrived, and
no counter, fence or order between words is needed.

The sums of a slot are dealt out in pieces of 16 bytes, some to each thread. The block that takes
them waits only for blocks that the GPU has started before it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ferrum_numba.ptx.instruction import BLOCKED, F32, U32, U64, Array, Instruction, Lanes
from ferrum_numba.ptx.text import braced

# bytes of a piece: four fp32
PIECE_BYTES = 16


@cache
def put_slot(pieces: int, stride_bytes: int) -> Instruction:
    """Make `(address, count, sums)`: hand pieces of four fp32 to the block that takes them.

    address: U64, of the thread's first piece; they lie stride_bytes apart
    count:   U32, how many of the pieces are handed over
    sums:    F32 x 4*pieces
    """
    lines = [".reg .pred on, zero;", ".reg .b32 a, b, c, d;"]
    for i in range(pieces):
        lines.append(f"setp.gt.u32 on, <count>, {i};")
        for j, word in enumerate("abcd"):
            lines += [
                f"mov.b32 {word}, <sums.{4 * i + j}>;",
                f"setp.eq.u32 zero, {word}, 0;",
                f"selp.b32 {word}, 0x80000000, {word}, zero;",
            ]
        place = f"[<address>+{i * stride_bytes}]"
        lines.append(f"@on st.relaxed.gpu.global.v4.b32 {place}, {{a, b, c, d}};")

    def twin(lanes: Lanes, address: Array, count: Array, sums: Array) -> None:
        words = np.ascontiguousarray(sums).view(np.uint32)
        words = np.where(words == 0, np.uint32(1 << 31), words)
        for i in range(pieces):
            on = np.flatnonzero(count > i)
            if on.size:
                data = np.ascontiguousarray(words[on, 4 * i : 4 * i + 4]).view(np.uint8)
                some = lanes.only(on).strong()
                some.store_global(address[on] + np.uint64(i * stride_bytes), data)

    return Instruction(
        f"put_slot_{pieces}x{stride_bytes}", braced(lines),
        {"address": U64, "count": U32, "sums": F32 * (4 * pieces)}, None, twin, effect="memory",
    )  # fmt: skip


@cache
def take_slots(
    pieces: int, stride_bytes: int, depth: int, slot_bytes: int, pause_ns: int
) -> Instruction:
    """Make `(address, count, slots, sums) -> sums`: plus those of min(slots, depth) slots.

    Waits until `put_slot` has filled the pieces, adds them in the order of the slots, and leaves
    zeros.

    pause_ns: between two looks at what has not arrived yet; 0 for none
    address:  U64, of the first slot's first piece; pieces lie stride_bytes apart, slots slot_bytes
    count:    U32, how many of the pieces are taken
    sums:     F32 x 4*pieces; shares its registers with the result
    """
    places = {
        (s, i): f"[<address>+{s * slot_bytes + i * stride_bytes}]"
        for s in range(depth)
        for i in range(pieces)
    }
    words = {(s, i): [f"v{s}_{i}_{j}" for j in range(4)] for s, i in places}
    lines = [f".reg .pred empty, {', '.join(f'p{s}_{i}' for s, i in places)};"]
    lines += [".reg .b32 none;", ".reg .f32 f;", "mov.b32 none, 0;"]
    for (s, i), names in words.items():
        lines.append(f".reg .b32 {', '.join(names)};")
        lines += [f"mov.b32 {name}, 1;" for name in names]
        lines.append(f"setp.gt.u32 empty, <count>, {i};")
        lines.append(f"setp.gt.and.u32 p{s}_{i}, <slots>, {s}, empty;")
    lines += _wait(places, words, pause_ns)
    for (s, i), names in words.items():
        for j, name in enumerate(names):
            d = f"<d.{4 * i + j}>"
            lines += [f"mov.b32 f, {name};", f"@p{s}_{i} add.f32 {d}, {d}, f;"]
        lines.append(f"@p{s}_{i} st.global.v4.b32 {places[s, i]}, {{none, none, none, none}};")

    def twin(lanes: Lanes, address: Array, count: Array, slots: Array, sums: Array) -> Any:
        if lanes.block.pause(lanes.thread):
            return BLOCKED
        taken = []
        for s, i in places:
            on = np.flatnonzero((slots > s) & (count > i))
            if on.size:
                at = address[on] + np.uint64(s * slot_bytes + i * stride_bytes)
                data = lanes.only(on).strong().load_global(at, PIECE_BYTES)
                if not data.view(np.uint32).all():
                    return BLOCKED
                taken.append((i, on, at, data))
        out = sums.copy()
        for i, on, at, data in taken:
            out[on, 4 * i : 4 * i + 4] += data.view(np.float32)
            lanes.only(on).store_global(at, np.zeros_like(data))
        return out

    return Instruction(
        f"take_slots_{pieces}x{stride_bytes}_{depth}x{slot_bytes}_{pause_ns}", braced(lines),
        {"address": U64, "count": U32, "slots": U32, "sums": F32 * (4 * pieces)},
        F32 * (4 * pieces), twin, effect="memory", tied="sums",
    )  # fmt: skip


def _wait(
    places: dict[tuple[int, int], str], words: dict[tuple[int, int], list[str]], pause_ns: int
) -> list[str]:
    """Return how all pieces are read at once, and again, after a while, those not there yet."""
    lines = [f".reg .pred {', '.join(f'm{s}_{i}' for s, i in places)};"]
    lines += [f"mov.pred m{s}_{i}, p{s}_{i};" for s, i in places]
    if pause_ns:
        lines += ["bra first;", "again:", f"nanosleep.u32 {pause_ns};", "first:"]
    else:
        lines.append("again:")
    for (s, i), names in words.items():
        vector = ", ".join(names)
        lines.append(f"@m{s}_{i} ld.relaxed.gpu.global.v4.b32 {{{vector}}}, {places[s, i]};")
    lines.append("setp.ne.u32 empty, none, 0;")
    for (s, i), names in words.items():
        lines.append(f"setp.eq.u32 m{s}_{i}, {names[0]}, 0;")
        lines += [f"setp.eq.or.u32 m{s}_{i}, {name}, 0, m{s}_{i};" for name in names[1:]]
        lines.append(f"or.pred empty, empty, m{s}_{i};")
    return [*lines, "@empty bra again;"]
