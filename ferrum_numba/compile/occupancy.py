"""How many blocks of a kernel fit on one SM at once (CUDA's rules for sm_80 and later)."""

from __future__ import annotations

from ferrum_numba.compile.binary import Binary
from ferrum_numba.division import ceil_div, round_up
from ferrum_numba.gpu import Gpu

WARP_SIZE = 32
# a warp's registers are allocated in units of 256
REGISTER_UNIT = 256
# an SM has four partitions, each with a quarter of the registers; a block spreads over all of them
PARTITIONS = 4
SMEM_UNIT_BYTES = 128


def blocks_per_sm(binary: Binary, gpu: Gpu) -> int:
    """Return how many blocks an SM holds at once; 0: the kernel cannot be launched on this GPU."""
    return min(occupancy_limits(binary, gpu).values())


def occupancy_limits(binary: Binary, gpu: Gpu) -> dict[str, int]:
    """Return how many blocks each of an SM's resources would let it hold, by the resource."""
    warps = ceil_div(binary.num_threads, WARP_SIZE)
    return {
        "blocks": gpu.max_blocks_per_sm,
        "threads": gpu.max_threads_per_sm // (warps * WARP_SIZE),
        "registers": _by_registers(binary.registers, warps, gpu),
        "shared memory": _by_smem(binary.static_smem_bytes + binary.smem_bytes, gpu),
    }


def _by_registers(registers: int, warps: int, gpu: Gpu) -> int:
    warp_registers = round_up(max(registers, 1) * WARP_SIZE, REGISTER_UNIT)
    warps_per_sm = gpu.registers_per_sm // PARTITIONS // warp_registers * PARTITIONS
    return warps_per_sm // round_up(warps, PARTITIONS)


def _by_smem(size_bytes: int, gpu: Gpu) -> int:
    if size_bytes > gpu.smem_per_block:
        return 0
    block_bytes = round_up(size_bytes + gpu.smem_reserved, SMEM_UNIT_BYTES)
    return gpu.smem_per_sm // block_bytes
