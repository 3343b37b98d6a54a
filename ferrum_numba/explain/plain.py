"""An explanation as plain data."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ferrum_numba.layout import Tile

if TYPE_CHECKING:
    from ferrum_numba.explain.facts import Explanation
    from ferrum_numba.roofline.bound import Bound


def as_plain(found: Explanation) -> dict[str, Any]:
    """Return the facts by name; the GPU as its key."""
    launch, occupancy = found.launch, found.occupancy
    return {
        "kernel": found.kernel,
        "problem": dict(found.problem),
        "config": dict(found.config),
        "differs": dict(found.differs),
        "gpu": found.gpu.key,
        "arch": found.arch,
        "launch": {
            "grid": list(launch.grid),
            "cluster": list(found.cluster),
            "num_threads": found.num_threads,
            "smem_bytes": found.smem_bytes,
            "static_smem_bytes": found.static_smem_bytes,
            "workspace_bytes": dict(launch.workspace),
            "programmatic": launch.programmatic,
            "launches": 1 + len(launch.repeats),
        },
        "occupancy": {**asdict(occupancy), "limited_by": occupancy.limited_by},
        "registers": found.registers,
        "spill_bytes": found.spill_bytes,
        "stack_bytes": found.stack_bytes,
        "fp64": found.doubles,
        "smem_map": [asdict(region) for region in found.regions],
        "sass": None if found.mix is None else dict(found.mix),
        "work": asdict(found.work),
        "bound": _bound(found.bound),
        "tiles": [_tile(tile) for tile in found.tiles],
        "remarks": list(found.remarks),
    }


def _bound(bound: Bound | None) -> dict[str, Any] | None:
    if bound is None:
        return None
    terms = [
        {"limit": t.limit, "us": t.us, "ceiling": t.ceiling.name, "rate": t.ceiling.text,
         "source": t.ceiling.source}
        for t in bound.terms
    ]  # fmt: skip
    return {
        "us": bound.us, "limit": bound.limit, "launch_us": bound.launch_us, "terms": terms,
        "modelled": True,
    }  # fmt: skip


def _tile(tile: Tile) -> dict[str, Any]:
    return {
        "name": tile.name, "rows": tile.rows, "columns": tile.columns,
        "lane": tile.lane.tolist(), "place": tile.place.tolist(), "place_is": tile.place_is,
    }  # fmt: skip
