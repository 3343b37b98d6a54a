"""What becomes of gptq's sums where blocks share a tile: the last to arrive adds them all."""

from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.kernels.shared.tile import add_tile, store_tile
from ferrum_numba.ptx.convert import splat_f32
from ferrum_numba.ptx.memory import (
    atom_add_acq_rel_gpu,
    ld_shared_u32,
    st_global_u32,
    st_shared_u32,
)
from ferrum_numba.ptx.sync import fence_acq_rel_gpu


def make_sum_of_shares(config):
    """Return what adds the sums of all blocks that share a tile."""
    acc_floats = 8 * (config.tile_m // 16)
    acc_size = 128 * acc_floats  # of a warp
    warp_bytes, acc_bytes = uint32(2 * acc_size), uint64(acc_size)
    slot_bytes = uint64(2 * acc_size * (config.num_threads // 32))
    zeros = splat_f32(acc_floats)
    store_partial = store_tile("global", acc_floats, 512)
    add_partial = add_tile("global", acc_floats, 512)

    @cuda.jit(device=True, forceinline=True)
    def sum_of_shares(acc01, acc23, partials, counters, flag, warps, split, shares):
        """Add the sums of the blocks that share a tile: the last to arrive adds all, in order.

        Returns whether this block is the last, and then the sums.
        """
        tid, lane_id, warp_id = warps
        tile = uint32(cuda.blockIdx.y * cuda.gridDim.x + cuda.blockIdx.x)
        first_slot = partials + uint64(tile * shares) * slot_bytes
        first_slot = first_slot + uint64(warp_id * warp_bytes + lane_id * uint32(16))
        slot = first_slot + uint64(split) * slot_bytes
        store_partial(slot, acc01)
        store_partial(slot + acc_bytes, acc23)
        counter = counters + uint64(tile) * uint64(4)
        cuda.syncthreads()
        if tid == 0:
            fence_acq_rel_gpu()
            st_shared_u32(flag, atom_add_acq_rel_gpu(counter, uint32(1)))
        cuda.syncthreads()
        complete = uint32(ld_shared_u32(flag) + uint32(1)) == shares
        if complete:
            fence_acq_rel_gpu()
            if tid == 0:
                # ready for the next launch
                st_global_u32(counter, uint32(0))
            acc01 = zeros(float32(0))
            acc23 = zeros(float32(0))
            slot = first_slot
            while slot < first_slot + uint64(shares) * slot_bytes:
                acc01 = add_partial(slot, acc01)
                acc23 = add_partial(slot + acc_bytes, acc23)
                slot = slot + slot_bytes
        return complete, acc01, acc23

    return sum_of_shares
