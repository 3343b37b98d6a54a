"""The device programs of waiting.py, which says what they measure."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.ceilings.memory import ROW_BYTES
from ferrum_numba.ptx.memory import (
    atom_add_acq_rel_gpu,
    ld_acquire_gpu,
    ld_global_cg_u32,
    ld_global_nc_u32,
    red_add_release_gpu,
    st_global_u32,
)
from ferrum_numba.ptx.shuffle import shfl_xor


def kernel_ramp(data, out):
    tid = uint32(cuda.threadIdx.x)
    block = uint32(cuda.blockIdx.x)
    if tid < 32:
        total = ld_global_nc_u32(data + uint64(block) * uint64(ROW_BYTES) + uint64(tid) * uint64(4))
        for j in range(5):
            total = uint32(total + shfl_xor(total, uint32(16 >> j)))
        if tid == 0:
            st_global_u32(out + uint64(block) * uint64(4), total)


def grid_barrier(token, out, left, count, rounds):
    tid = uint32(cuda.threadIdx.x)
    block = uint32(cuda.blockIdx.x)
    blocks = uint32(cuda.gridDim.x)
    at = uint64(block) * uint64(4)
    if tid == 0:
        st_global_u32(left + at, ld_global_nc_u32(token + at))
    wanted = uint32(0)
    turn = uint32(0)
    while turn < rounds:
        cuda.syncthreads()
        wanted = uint32(wanted + blocks)
        if tid == 0:
            red_add_release_gpu(count, uint32(1))
            while ld_acquire_gpu(count) < wanted:
                pass
        cuda.syncthreads()
        turn = uint32(turn + 1)
    if tid == 0:
        following = uint32(block + 1)
        if following == blocks:
            following = uint32(0)
        st_global_u32(out + at, ld_global_cg_u32(left + uint64(following) * uint64(4)))
        # the last to go leaves zeros for the next launch; nobody looks at them any more
        if atom_add_acq_rel_gpu(count + uint64(4), uint32(1)) == uint32(blocks - 1):
            st_global_u32(count, uint32(0))
            st_global_u32(count + uint64(4), uint32(0))
