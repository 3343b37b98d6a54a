"""The sizes that a program takes, whatever it is launched for."""

from __future__ import annotations

from typing import Any

from ferrum_numba.contract import Config, Kernel
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.kernels.shared.packed import K_MULTIPLE, N_MULTIPLE
from ferrum_numba.kernels.tools.gather_columns import MOST_K
from ferrum_numba.kernels.w4a16 import MOST, MOST_M, PACK_FACTOR, W4A16Problem
from ferrum_numba.linear.stages import ELEMENT_BYTES

# around one weight; what stands around a layer of experts takes any sizes that its problems have
TOOLS = frozenset({"gather_columns", "add_bias", "repack"})


def shapes(kernel: Kernel, config: Config) -> dict[str, Any]:
    """Return limits of M, N and K: multiple, least, most.

    N and K are those of the weight as it is stored, where a kernel reads packed tiles.
    """
    if kernel.op.problem not in (W4A16Problem, GroupedProblem) and kernel.name not in TOOLS:
        return {}
    n, k = _multiples(kernel.name, config)
    sizes = {
        "M": _limits(1, 1, MOST_M),
        "N": _limits(n, _least_n(kernel.name, config, n), MOST),
        "K": _limits(k, max(k, getattr(config, "cluster", 1) * k), MOST),
    }
    if kernel.op.problem is GroupedProblem:
        return {"N": sizes["N"], "K": sizes["K"]}
    if kernel.name == "gather_columns":
        most = config.row_bytes // ELEMENT_BYTES if config.staged else MOST_K
        return {"M": sizes["M"], "K": _limits(k, k, most)}
    if kernel.name == "add_bias":
        return {"M": sizes["M"], "N": sizes["N"]}
    if kernel.name == "repack":
        return {"N": sizes["N"], "K": sizes["K"]}
    return sizes


def _multiples(name: str, config: Config) -> tuple[int, int]:
    if name == "marlin":
        return config.tile_n, config.tile_k
    if name in ("decode", "grouped_decode"):
        return config.tile_n, config.step_k
    if name == "decode_wgmma":
        return N_MULTIPLE, K_MULTIPLE
    if name in ("prefill", "grouped_wgmma"):
        return N_MULTIPLE, config.tile_k
    return PACK_FACTOR, PACK_FACTOR


def _least_n(name: str, config: Config, multiple: int) -> int:
    if name == "grouped_wgmma":
        return int(config.tile_n)
    return config.unit_n if name == "prefill" else multiple


def _limits(multiple: int, least: int, most: int) -> dict[str, int]:
    return {"multiple": multiple, "least": least, "most": most}
