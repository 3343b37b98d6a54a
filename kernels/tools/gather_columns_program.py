"""The device programs of gather_columns: gather_columns.py says what is computed."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.tools.gather_columns import COLUMNS
from ferrum_numba.ptx.asynchronous import cp_async_16, cp_async_commit, cp_async_wait
from ferrum_numba.ptx.memory import ld_global_nc_v4, ld_global_u16, ld_shared_u16, st_global_v4
from ferrum_numba.ptx.special import smem_base
from ferrum_numba.ptx.sync import griddepcontrol_launch_dependents, griddepcontrol_wait


def build(config):
    """Return the kernel of a config: a function of `GatherColumns`'s parameters, in order."""
    num_threads, rows, programmatic = config.num_threads, config.rows, config.programmatic

    @cuda.jit(device=True, forceinline=True)
    def pair(line, first, second):
        low = uint32(ld_global_u16(line + uint64(first) * uint64(2)))
        high = uint32(ld_global_u16(line + uint64(second) * uint64(2)))
        return uint32(low | uint32(high << 16))

    def gather_columns(x, perm, out, m, k):
        thread = uint32(uint32(cuda.blockIdx.y) * uint32(num_threads) + uint32(cuda.threadIdx.x))
        column = uint32(thread * COLUMNS)
        row = uint32(uint32(cuda.blockIdx.x) * uint32(rows))
        if programmatic:
            griddepcontrol_launch_dependents()
        if column < k:
            place = perm + uint64(column) * uint64(4)
            low = ld_global_nc_v4(place)
            high = ld_global_nc_v4(place + uint64(16))
            if programmatic:
                # x is the predecessor's
                griddepcontrol_wait()
            for _ in range(rows):
                if row < m:
                    line = x + uint64(row) * uint64(k) * uint64(2)
                    words = (
                        pair(line, low[0], low[1]), pair(line, low[2], low[3]),
                        pair(line, high[0], high[1]), pair(line, high[2], high[3]),
                    )  # fmt: skip
                    target = out + (uint64(row) * uint64(k) + uint64(column)) * uint64(2)
                    st_global_v4(target, words)
                row = uint32(row + 1)

    return gather_columns


def build_staged(config):
    """Return the same, of rows that pass through shared memory."""
    num_threads, rows, row_bytes = config.num_threads, config.rows, config.row_bytes
    programmatic = config.programmatic

    @cuda.jit(device=True, forceinline=True)
    def pair(line, first, second):
        low = uint32(ld_shared_u16(uint32(line + first * 2)))
        high = uint32(ld_shared_u16(uint32(line + second * 2)))
        return uint32(low | uint32(high << 16))

    def gather_columns(x, perm, out, m, k):
        smem = smem_base()
        first_row = uint32(uint32(cuda.blockIdx.x) * uint32(rows))
        pieces = uint32(k // uint32(COLUMNS))
        if programmatic:
            griddepcontrol_launch_dependents()
            griddepcontrol_wait()
        for i in range(rows):
            row = uint32(first_row + uint32(i))
            if row < m:
                line = x + uint64(row) * uint64(k) * uint64(2)
                piece = uint32(cuda.threadIdx.x)
                while piece < pieces:
                    place = uint32(smem + uint32(i * row_bytes) + piece * 16)
                    cp_async_16(place, line + uint64(piece) * uint64(16))
                    piece = uint32(piece + uint32(num_threads))
        cp_async_commit()
        cp_async_wait(0)
        cuda.syncthreads()
        piece = uint32(cuda.threadIdx.x)
        while piece < pieces:
            places = perm + uint64(piece) * uint64(32)
            low = ld_global_nc_v4(places)
            high = ld_global_nc_v4(places + uint64(16))
            for i in range(rows):
                row = uint32(first_row + uint32(i))
                if row < m:
                    line = uint32(smem + uint32(i * row_bytes))
                    words = (
                        pair(line, low[0], low[1]), pair(line, low[2], low[3]),
                        pair(line, high[0], high[1]), pair(line, high[2], high[3]),
                    )  # fmt: skip
                    target = uint64(row) * uint64(k) * uint64(2) + uint64(piece) * uint64(16)
                    st_global_v4(out + target, words)
            piece = uint32(piece + uint32(num_threads))

    return gather_columns
