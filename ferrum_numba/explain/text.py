"""An explanation for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from math import prod
from typing import TYPE_CHECKING

from ferrum_numba.explain.crop import cropped
from ferrum_numba.layout import Region, Tile
from ferrum_numba.shown import Facts, words
from ferrum_numba.words import counted

if TYPE_CHECKING:
    from ferrum_numba.explain.facts import Explanation

# opcodes that are listed; the others are counted together
MOST_OPCODES = 16
# of a terminal's picture: rows of a tile, and what a cell and the names of rows take
MOST_ROWS, CELL, NAMES = 16, 4, 5
# what marks the regions of a bar, in their order
MARKS = "█▒▓░#=+:*%"
OF_MIX = "nvdisasm is not installed; pip install nvidia-cuda-nvdisasm counts the instructions"


def as_text(found: Explanation, width: int, pictures: bool) -> str:
    """Return all of it in lines of at most `width` characters."""
    differs = words(found.differs) or "the default config"
    title = f"{found.kernel} on {words(found.sizes)}, {differs}"
    parts = [
        *_wrapped(title, width, ""),
        *_wrapped(f"config: {words(found.config)}", width, ""),
        *_wrapped(f"for {found.gpu.name} ({found.gpu.source}), {found.arch}", width, ""),
        "", "launch", *_launch(found, width),
        "", "a thread", *_thread(found, width),
        "", "shared memory of a block", *_memory(found, width),
        "", "instructions", *_wrapped(mix_words(found.mix), width),
        "", "bound, modelled", *_bound(found, width),
    ]  # fmt: skip
    if found.remarks:
        parts += ["", "remarks", *(line for one in found.remarks for line in _wrapped(one, width))]
    if pictures and found.tiles:
        parts += ["", "who holds what", *_pictures(found, width)]
    return "\n".join(parts) + "\n"


def facts_of(found: Explanation) -> Facts:
    """Return what a notebook's table says of it."""
    config = words(found.differs) or "the default config"
    return Facts(
        f"{found.kernel} on {words(found.sizes)}, {config}; for {found.gpu.name} "
        f"({found.gpu.source}), {found.arch}",
        {
            "launch": "\n".join(launch_words(found)),
            "a thread": thread_words(found),
            "instructions": mix_words(found.mix),
            "bound, modelled": "\n".join(bound_words(found)),
            "remarks": "\n".join(found.remarks),
        },
    )


def launch_words(found: Explanation) -> list[str]:
    """Return a sentence each of grid, block, cluster, occupancy, and what is special."""
    launch, occupancy = found.launch, found.occupancy
    grid, cluster = (" x ".join(map(str, shape)) for shape in (launch.grid, found.cluster))
    lines = [f"grid {grid} = {counted(prod(launch.grid), 'block')} of {found.num_threads} threads"]
    if prod(found.cluster) > 1:
        lines.append(f"clusters of {cluster} blocks")
    most = ", ".join(f"{name} {blocks}" for name, blocks in occupancy.limits.items())
    lines += [
        f"{found.smem_bytes} bytes of dynamic shared memory a block, {found.static_smem_bytes} "
        "of static",
        f"an SM holds {counted(occupancy.blocks_per_sm, 'block')} at once, "
        f"{occupancy.warps_per_sm} of {occupancy.most_warps} warps; limited by "
        f"{' and '.join(occupancy.limited_by)} (the most that each lets: {most})",
        f"{occupancy.waves:.3g} waves over {found.gpu.num_sms} SMs",
    ]
    lines += [f"{size} bytes of scratch: {name}" for name, size in launch.workspace.items()]
    if launch.programmatic:
        lines.append("may start before the launch before has ended")
    if launch.co_resident:
        lines.append("its blocks wait for each other: all must fit at once")
    if launch.repeats:
        lines.append(f"{1 + len(launch.repeats)} launches, one after the other")
    if launch.then is not None:
        lines.append("then cuBLAS multiplies")
    return lines


def thread_words(found: Explanation) -> str:
    """Return registers, spills, stack and doubles in a sentence."""
    return (
        f"{found.registers} registers, {found.spill_bytes} bytes spilled, {found.stack_bytes} "
        f"bytes of stack, {counted(found.doubles, 'instruction')} in fp64"
    )


def bound_words(found: Explanation) -> list[str]:
    """Return what binds, and each term, in words."""
    bound, work = found.bound, found.work
    if bound is None:
        return ["no ceiling of memory or tensor cores is known of this GPU"]
    limits = {"latency": "launch and ramp-up: there is too little to do"}
    binds = limits.get(bound.limit, bound.limit)
    lines = [f"{bound.us:.3g} µs at least; what binds: {binds}"]
    amounts = {"memory": f"{work.bytes / 1e6:.3g} MB", "tensor": f"{work.flops / 1e9:.3g} GFLOP"}
    for term in bound.terms:
        amount = amounts.get(term.limit, "its weights")
        ceiling = f"{term.ceiling.name} {term.ceiling.text} ({term.ceiling.source})"
        lines.append(f"{term.limit}: {amount} at {ceiling} take {term.us:.3g} µs")
    return [*lines, f"launch: {bound.launch_us:.3g} µs"] if bound.launch_us else lines


def _launch(found: Explanation, width: int) -> list[str]:
    return [line for one in launch_words(found) for line in _wrapped(one, width)]


def _thread(found: Explanation, width: int) -> list[str]:
    return _wrapped(thread_words(found), width)


def _bound(found: Explanation, width: int) -> list[str]:
    return [line for one in bound_words(found) for line in _wrapped(one, width)]


def _memory(found: Explanation, width: int) -> list[str]:
    """Return the regions with a bar, or why there is none."""
    if not found.regions:
        return _wrapped(memory_words(found), width)
    lines = [f"  [{_bar(found.regions, found.smem_bytes, width - 4)}]"]
    for i, region in enumerate(found.regions):
        lines += _region(region, MARKS[i % len(MARKS)], width, 2)
        for part in region.parts:
            lines += _region(part, " ", width, 6)
    return lines


def memory_words(found: Explanation) -> str:
    """Return what is to be said where a kernel names no regions."""
    if found.smem_bytes:
        return (
            f"{found.smem_bytes} bytes, of which the kernel does not say what lies where: give "
            "its config a smem_map"
        )
    return "none is asked for at launch"


def _bar(regions: Iterable[Region], size_bytes: int, width: int) -> str:
    """Return a line in which every region has its share, and one character at least."""
    marks = ""
    for i, region in enumerate(regions):
        end = round((region.offset + region.size_bytes) / size_bytes * width)
        marks += MARKS[i % len(MARKS)] * max(1, end - len(marks))
    return marks[:width]


def _region(region: Region, mark: str, width: int, indent: int) -> list[str]:
    places = f"{region.places} x {region.size_bytes // region.places}"
    size = places if region.places > 1 else str(region.size_bytes)
    head = f"{' ' * indent}{mark} {region.offset:>6} {size:>11}  {region.name}: "
    text = textwrap.wrap(region.what, max(20, width - len(head))) or [""]
    return [head + text[0], *(" " * len(head) + line for line in text[1:])]


def mix_words(mix: Mapping[str, int] | None) -> str:
    """Return what instructions there are, the most first, or what to install to know."""
    if mix is None:
        return OF_MIX
    total = sum(mix.values())
    shown = dict(sorted(mix.items(), key=lambda item: -item[1])[:MOST_OPCODES])
    rest = total - sum(shown.values())
    text = ", ".join(f"{name} {count}" for name, count in shown.items())
    others = f", others {rest}" if rest else ""
    return f"{total} in the code, a loop's body once: {text}{others}"


def _pictures(found: Explanation, width: int) -> list[str]:
    return [line for tile in found.tiles for line in _picture(tile, width)]


def _picture(tile: Tile, width: int) -> list[str]:
    """Return a tile's lanes as a grid, as much of it as fits, and what lane 0 holds."""
    part, left_out = cropped(tile, MOST_ROWS, max(1, (width - NAMES - 2) // CELL))
    rows, columns = part.shape
    head = "  " + f"{tile.rows} \\ {tile.columns}".ljust(NAMES)
    lines = ["", *_wrapped(f"{tile.name}: the lane of each ({tile.rows}, {tile.columns})", width)]
    lines.append(head + "".join(f"{c:>{CELL}}" for c in range(columns)))
    lines += [
        f"  {r:>{NAMES}}" + "".join(f"{lane:>{CELL}}" for lane in part[r]) for r in range(rows)
    ]
    lines += _wrapped(left_out, width) if left_out else []
    held = ", ".join(f"{place} = ({r}, {c})" for place, r, c in tile.held_by(0)[:16])
    more = ", ..." if len(tile.held_by(0)) > 16 else ""
    return [*lines, *_wrapped(f"lane 0, {tile.place_is} = ({tile.rows}, {tile.columns}): {held}"
                              f"{more}", width)]  # fmt: skip


def _wrapped(text: str, width: int, indent: str = "  ") -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
    )
