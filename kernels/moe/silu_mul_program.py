"""The device program of silu_mul: silu_mul.py says what is computed."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.kernels.shared.silu import silu_mul as silu_times
from ferrum_numba.ptx.convert import PACK, UNPACK
from ferrum_numba.ptx.memory import ld_global_v4, st_global_v4
from ferrum_numba.ptx.sync import griddepcontrol_launch_dependents, griddepcontrol_wait
from ferrum_numba.reference.moe import GATE_RUN


def build(config):
    """Return the kernel of a config: a function of `SiluMul`'s parameters, in order."""
    num_threads, most_rows, programmatic = config.num_threads, config.rows, config.programmatic
    interleaved, half = config.interleaved, HALVES[config.dtype]
    unpack, pack = UNPACK[half], PACK[half]

    @cuda.jit(device=True, forceinline=True)
    def gated(gates, ups):
        g, u = unpack(gates), unpack(ups)
        return pack(silu_times(g[0], u[0]), silu_times(g[1], u[1]))

    def silu_mul(x, out, rows, columns):
        thread = uint32(uint32(cuda.blockIdx.y) * uint32(num_threads) + uint32(cuda.threadIdx.x))
        column = uint32(thread * uint32(GATE_RUN))
        row = uint32(uint32(cuda.blockIdx.x) * uint32(most_rows))
        # bytes from the start of a row of x, and from gate to up
        gate_bytes, up_bytes = uint64(column) * uint64(2), uint64(columns) * uint64(2)
        if interleaved:
            gate_bytes, up_bytes = uint64(column) * uint64(4), uint64(2 * GATE_RUN)
        if programmatic:
            griddepcontrol_wait()
            griddepcontrol_launch_dependents()
        if column < columns:
            for _ in range(most_rows):
                if row < rows:
                    at = uint64(row) * uint64(columns) * uint64(2)
                    gate = x + at + at + gate_bytes
                    g, u = ld_global_v4(gate), ld_global_v4(gate + up_bytes)
                    words = (gated(g[0], u[0]), gated(g[1], u[1]),
                             gated(g[2], u[2]), gated(g[3], u[3]))  # fmt: skip
                    st_global_v4(out + at + uint64(column) * uint64(2), words)
                row = uint32(row + 1)

    return silu_mul
