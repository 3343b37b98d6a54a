"""The device programs of memory.py, which says what they measure."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.ceilings.memory import LANE_ACCESSES, ROW_BYTES, WARP_BYTES
from ferrum_numba.ptx.memory import (
    ld_global_cg_v4,
    ld_global_nc_v4_stream,
    st_global_u32,
    st_global_v4,
)
from ferrum_numba.ptx.shuffle import shfl_xor


def nothing(out, token):
    if uint32(cuda.threadIdx.x) == 0 and uint32(cuda.blockIdx.x) == 0:
        st_global_u32(out, token)


def build_read(config, repeats):
    # reads that are repeated must find L2, not L1
    load = ld_global_cg_v4 if repeats else ld_global_nc_v4_stream
    num_warps = config.num_threads // 32

    @cuda.jit(device=True, forceinline=True)
    def add_row(total, address):
        for i in range(LANE_ACCESSES):
            word = load(address + uint64(i * WARP_BYTES))
            total = uint32(total + uint32(word[0] + word[1]))
            total = uint32(total + uint32(word[2] + word[3]))
        return total

    def read(data, out, num_rows, passes, stride):
        tid = uint32(cuda.threadIdx.x)
        lane_id = uint32(tid & 31)
        num_tasks = uint32(uint32(cuda.gridDim.x) * uint32(num_warps))
        task = uint32(uint32(cuda.blockIdx.x) * uint32(num_warps) + uint32(tid >> 5))
        lane_data = data + uint64(lane_id) * uint64(16)
        while task < num_rows:
            total = add_row(uint32(0), lane_data + uint64(task) * uint64(ROW_BYTES))
            if repeats:
                row = task
                left = passes
                while left > 1:
                    row = uint32(row + stride)
                    if row >= num_rows:
                        row = uint32(row - num_rows)
                    total = add_row(total, lane_data + uint64(row) * uint64(ROW_BYTES))
                    left = uint32(left - 1)
            for i in range(5):
                total = uint32(total + shfl_xor(total, uint32(16 >> i)))
            if lane_id == 0:
                st_global_u32(out + uint64(task) * uint64(4), total)
            task = uint32(task + num_tasks)

    return read


def build_copy(config):
    num_warps = config.num_threads // 32
    words_shape = (LANE_ACCESSES, 4)

    def copy(data, out, num_rows):
        tid = uint32(cuda.threadIdx.x)
        lane_id = uint32(tid & 31)
        num_tasks = uint32(uint32(cuda.gridDim.x) * uint32(num_warps))
        task = uint32(uint32(cuda.blockIdx.x) * uint32(num_warps) + uint32(tid >> 5))
        words = cuda.local.array(words_shape, uint32)
        while task < num_rows:
            offset = uint64(task) * uint64(ROW_BYTES) + uint64(lane_id) * uint64(16)
            # all loads before the first store: that many are in flight
            for i in range(LANE_ACCESSES):
                word = ld_global_nc_v4_stream(data + offset + uint64(i * WARP_BYTES))
                words[i, 0] = word[0]
                words[i, 1] = word[1]
                words[i, 2] = word[2]
                words[i, 3] = word[3]
            for i in range(LANE_ACCESSES):
                word = (words[i, 0], words[i, 1], words[i, 2], words[i, 3])
                st_global_v4(out + offset + uint64(i * WARP_BYTES), word)
            task = uint32(task + num_tasks)

    return copy


def build_write(config):
    num_warps = config.num_threads // 32

    def write(out, num_rows):
        tid = uint32(cuda.threadIdx.x)
        lane_id = uint32(tid & 31)
        num_tasks = uint32(uint32(cuda.gridDim.x) * uint32(num_warps))
        task = uint32(uint32(cuda.blockIdx.x) * uint32(num_warps) + uint32(tid >> 5))
        while task < num_rows:
            offset = uint64(task) * uint64(ROW_BYTES) + uint64(lane_id) * uint64(16)
            for i in range(LANE_ACCESSES):
                at = offset + uint64(i * WARP_BYTES)
                first = uint32(at >> uint64(2))
                word = (
                    first,
                    uint32(first + 1),
                    uint32(first + 2),
                    uint32(first + 3),
                )
                st_global_v4(out + at, word)
            task = uint32(task + num_tasks)

    return write
