"""Mutants that `check` cannot kill because nothing is wrong with them, each with its reason."""

from __future__ import annotations

from typing import NamedTuple

from ferrum_numba.perf.mutants import Mutant


class Harmless(NamedTuple):
    """A change in a line of a file below kernels/, as `shortened` leaves it."""

    file: str
    line: str
    old: str
    new: str
    why: str


def _narrow(file: str, line: str, product: str, why: str) -> Harmless:
    """Return the product of a line in 32 bits."""
    return Harmless(file, line, product, f"uint64(uint32({product}))", why)


FENCE = "the atomic between releases and acquires itself"
EQUAL = "what it chooses between is equal then"
NOTHING = "a copy of no bytes reads nothing"
LOADED = "loads again what it has"
CLEARED = "clears what nobody reads, or copies fill"
UNUSED = "copies tokens that nobody multiplies"
COLUMNS = "columns, of which there are at most 2^20"
FEW_ROWS = "some rows of the weight, with N of at most 2^20"
HARMLESS = (
    Harmless("decode/stream.py", "tile = locate(packed, n, first_step, first_slice)",
             "locate(packed, n, first_step, first_slice)",
             "(locate(packed, first_step, n, first_slice))", "the address has their product"),
    Harmless("decode/stream.py", "if two_scales:", "two_scales", "True", LOADED),
    Harmless("decode/stream.py", "if clustered:", "clustered", "True",
             "a cluster of one block waits for itself, and nobody sends"),
    Harmless("decode/stream.py", "if n_tiles > 1 and rows < tile_m:", "rows < tile_m",
             "(rows <= tile_m)", CLEARED),
    Harmless("decode/stream.py", "if n_tiles > 1 and rows < tile_m:",
             "n_tiles > 1 and rows < tile_m", "True", CLEARED),
    Harmless("gptq/program.py", "if k_block % blocks_per_group == 0:",
             "k_block % blocks_per_group == 0", "True", LOADED),
    Harmless("shared/columns.py", "if has_bias > 0:", "has_bias > 0", "True", "adds zeros"),
    Harmless("prefill/program.py", "role = uint32(warp_id - (CONSUMER_WARPS + 1))", "1", "2",
             "it does not matter which warp copies what"),
    Harmless("shared/stripes.py", "if uint32(end - first) > stripe_steps:",
             "uint32(end - first) > stripe_steps", "(uint32(end - first) >= stripe_steps)", EQUAL),
    Harmless("grouped_decode/result.py",
             "take = take_slots(1, PIECE_BYTES, slots_at_once, partial_bytes, 0)",
             "take_slots(1, PIECE_BYTES, slots_at_once, partial_bytes, 0)",
             "(take_slots(1, slots_at_once, PIECE_BYTES, partial_bytes, 0))",
             "one piece has no stride, and more slots at once add up in the same order"),
    Harmless("marlin/result.py", "fence_acq_rel_gpu()", "fence_acq_rel_gpu()", "pass", FENCE),
    Harmless("gptq/result.py", "fence_acq_rel_gpu()", "fence_acq_rel_gpu()", "pass", FENCE),
    Harmless("gptq/program.py", "if piece < w_pieces:", "piece < w_pieces", "(piece <= w_pieces)",
             "the rounds of all threads have no piece more"),
    Harmless("gptq/program.py",
             "source = uint64(m_row) * uint64(k) + uint64(k_row) if inside else uint64(0)",
             "inside", "True", NOTHING),
    Harmless("gptq/program.py",
             "source = uint64(word_row) * uint64(n) + uint64(n_column) if inside else uint64(0)",
             "inside", "True", NOTHING),
    Harmless("decode/result.py", "total = take(at, uint32(1), uint32(count - i), total)", "1", "2",
             "one piece is all that there is"),
    Harmless("shared/stripes.py", "if done < end:", "done < end", "(done <= end)", EQUAL),
    Harmless("shared/columns.py",
             "shifts = (float32(0), float32(0), float32(0), float32(0))", "0", "1",
             "without a bias nobody adds them"),
    Harmless("decode_wgmma/result.py",
             "rows = uint32(m - first_row) if uint32(m - first_row) < tile_m else uint32(tile_m)",
             "uint32(m - first_row) < tile_m", "False", "who writes looks at M itself"),
    Harmless("decode_wgmma/program.py", "if x_stop > 0:", "x_stop > 0", "(x_stop >= 0)",
             UNUSED),
    Harmless("decode/stream.py", "if more:", "more", "True", UNUSED),
    # offsets that never reach 32 bits
    _narrow("decode/result.py",
            "at = partial + uint64(i) * uint64(partial_bytes) + uint64(item * 16)",
            "uint64(i) * uint64(partial_bytes)", "all slots have 4 MiB at most"),
    _narrow("decode_wgmma/program.py",
            "cp_async_16(uint32(to + 3 * TILE_ROW_BYTES), gmem + row_bytes * uint64(3))",
            "row_bytes * uint64(3)", FEW_ROWS),
    _narrow("decode_wgmma/program.py",
            "group = uint64(uint32(lane_id >> 1)) * uint64(uint32(n >> 1))",
            "uint64(uint32(lane_id >> 1)) * uint64(uint32(n >> 1))", FEW_ROWS),
    _narrow("grouped_wgmma/schedule.py",
            "return ld_global_cg_u32(work_list + (uint64(uint32(block + HEADER)) << 2))",
            "uint64(uint32(block + HEADER)) << 2", "there are at most 2^20 blocks"),
    _narrow("marlin/result.py", "scale = load_columns(scales + (uint64(columns) << 1))",
            "uint64(columns) << 1", COLUMNS),
    _narrow("decode_wgmma/program.py",
            "group = uint64(uint32(lane_id >> 3)) * uint64(uint32(n * 2))",
            "uint64(uint32(lane_id >> 3)) * uint64(uint32(n * 2))", FEW_ROWS),
    _narrow("decode_wgmma/program.py",
            "words = words + row_bytes * uint64(k_tiles * num_warpgroups)",
            "row_bytes * uint64(k_tiles * num_warpgroups)", FEW_ROWS),
    _narrow("grouped_wgmma/copies.py",
            "weight = ld_global_cg_u32(topk_weights + (uint64(pair) << 2))", "uint64(pair) << 2",
            "there are at most 2^20 pairs"),
    _narrow("grouped_wgmma/copies.py",
            "k_steps, row_step = uint32(k // uint32(tile_k)), uint64(n) << 3", "uint64(n) << 3",
            FEW_ROWS),
    _narrow("prefill/result.py", "counter = counters + (uint64(which) << 2)",
            "uint64(which) << 2", "there are at most 2^24 tiles"),
    _narrow("shared/columns.py", "at = gmem + (uint64(pair) << 1)", "uint64(pair) << 1",
            COLUMNS),
    _narrow("decode/stream.py",
            "second = load(tile + tile_stride * uint64(half_tiles), tile_stride)",
            "tile_stride * uint64(half_tiles)", FEW_ROWS),
    _narrow("marlin/program.py", "gmem = gmem + uint64(n) * uint64(b_rows * 8)",
            "uint64(n) * uint64(b_rows * 8)", FEW_ROWS),
    _narrow("gptq/program.py", "group = ld_global_nc_u32(g_idx + uint64(k_row) * uint64(4))",
            "uint64(k_row) * uint64(4)", "K is at most 2^20"),
    _narrow("grouped_decode/result.py",
            "weight = ld_global_f32(topk_weights + (uint64(pair) << 2))", "uint64(pair) << 2",
            "there are at most 2^20 pairs"),
    _narrow("grouped_decode/result.py", "slab = uint64(expert) * uint64(uint32(n * 2))",
            "uint64(expert) * uint64(uint32(n * 2))", "E * N * 2 is at most 2^31"),
    _narrow("prefill/copies.py", "row_step = uint64(n) << 3", "uint64(n) << 3", FEW_ROWS),
    _narrow("marlin/result.py",
            "own = add_partial(own_partial + uint64(slot) * uint64(slot_bytes), own)",
            "uint64(slot) * uint64(slot_bytes)", "all slots of all SMs of a GPU fit 4 GiB"),
    _narrow("gptq/result.py", "counter = counters + uint64(tile) * uint64(4)",
            "uint64(tile) * uint64(4)", "there are fewer than 2^30 tiles"),
    _narrow("gptq/program.py", "b = ld_global_nc_v4(bias + uint64(n_column) * uint64(2))",
            "uint64(n_column) * uint64(2)", "N is at most 2^20"),
    _narrow("decode/stream.py", "tile = tile + tile_stride * uint64(warps_k * k_tiles)",
            "tile_stride * uint64(warps_k * k_tiles)", FEW_ROWS),
    _narrow("prefill/result.py",
            "gmem = gmem + step * uint64(uint32(rank * (part_rows // rows_at_once)))",
            "step * uint64(uint32(rank * (part_rows // rows_at_once)))",
            "some rows of the result, with N of at most 2^20"),
    _narrow("prefill/result.py", "at = gmem + (uint64(place) << 1)", "uint64(place) << 1",
            COLUMNS),
)  # fmt: skip


def reason(mutant: Mutant, text: str) -> str | None:
    """Return why nothing is wrong with a mutant of a text, None where something may be."""
    line = text.splitlines()[mutant.line - 1].strip()
    for one in HARMLESS:
        if one[:4] == (mutant.file, line, shortened(mutant.old), shortened(mutant.new)):
            return one.why
    return None


def shortened(text: str) -> str:
    """Return a text in one line."""
    return " ".join(text.split())
