"""Cases of how a tile of pairs leaves: weighted, gated, rounded, transposed."""

import numpy as np
from numba import cuda
from numba.cuda.types import float32, uint32, uint64
from ptx_cases import Case

from ferrum_numba import ptx
from ferrum_numba.kernels.dtypes import DTYPES, HALVES
from ferrum_numba.kernels.grouped_wgmma.steps import store_pairs
from ferrum_numba.kernels.shared.tile import add_tile

OUT_PAD = 16


def case(n, dtype, gated, begin, end):
    """Return a case of columns begin to end: a warpgroup's D [64, n], as the rows of pairs."""
    rows, strip_bytes = end - begin, 16 if gated else 32
    row_bytes = 4 * strip_bytes + OUT_PAD
    store = store_pairs(n, row_bytes, HALVES[dtype], gated, begin, end)
    add, splat = add_tile("global", n // 2, 2048), ptx.splat_f32(n // 2)
    pieces = rows * row_bytes // 16

    def pairs_kernel(values, factors, weights, out):
        t = uint32(cuda.threadIdx.x)
        lane = uint32(t & 31)
        smem = ptx.smem_base()
        table = uint32(smem + rows * row_bytes)
        piece = t
        while piece < uint32(pieces):
            nothing = uint32(0)
            ptx.st_shared_v4(uint32(smem + piece * 16), (nothing, nothing, nothing, nothing))
            piece = uint32(piece + 128)
        if t < rows:
            ptx.st_shared_u32(uint32(table + t * 4), ptx.ld_global_u32(weights + uint64(t * 4)))
        cuda.syncthreads()
        acc = add(values + uint64(t * 16), splat(float32(0)))
        row = uint32((t >> 5) * 16 + (lane >> 2))
        low = ptx.ld_global_v2(factors + uint64(row * 8))
        high = ptx.ld_global_v2(factors + uint64(row * 8 + 64))
        scale = (ptx.bits_f32(low[0]), ptx.bits_f32(high[0]))
        bias = (ptx.bits_f32(low[1]), ptx.bits_f32(high[1]))
        to = uint32(smem + (t >> 5) * strip_bytes)
        if gated:
            to = uint32(to + (lane & 15) * row_bytes)
        else:
            to = uint32(to + ((lane >> 4) * 8 + (lane & 7)) * row_bytes + ((lane >> 3) & 1) * 16)
        store(to, acc, scale, bias, uint32(table + (lane & 3) * 8))
        cuda.syncthreads()
        piece = t
        while piece < uint32(pieces):
            value = ptx.ld_shared_v4(uint32(smem + piece * 16))
            ptx.st_global_v4(out + uint64(piece * 16), value)
            piece = uint32(piece + 128)

    def exact(inputs):
        """Return [rows, row_bytes / 2] float64."""
        out = np.zeros((n, row_bytes // 2))
        sums = np.zeros((64, n))
        for j, thread, c in np.ndindex(inputs["values"].shape):
            warp, lane = divmod(thread, 32)
            row, column = 16 * warp + lane // 4 + 8 * (c // 2), 8 * j + 2 * (lane % 4) + c % 2
            scale, bias = inputs["factors"][row].astype(np.float64)
            sums[row, column] = np.float32(inputs["values"][j, thread, c] * scale + bias)
        if gated:
            halves = sums.reshape(4, 2, 8, n)
            gate, up = halves[:, 0].reshape(32, n), halves[:, 1].reshape(32, n)
            sums = gate / (1 + np.exp(-gate)) * up
        out[:, : len(sums)] = sums.T
        out = out[begin:end] * inputs["weights"][:, None].astype(np.float64)
        return out

    def want(inputs):
        return exact(inputs).astype(np.float32).astype(DTYPES[dtype])

    def bound(inputs):
        # one step of the type, and what exp and a reciprocal cost
        eps = 2.0**-10 if dtype == "fp16" else 2.0**-7
        return np.abs(exact(inputs)) * eps + 1e-6

    return Case(
        f"store_pairs_n{n}_{dtype}_{'gated' if gated else 'whole'}_{begin}_{end}",
        (store,),
        pairs_kernel,
        lambda rng: {
            "values": rng.standard_normal((n // 8, 128, 4)).astype(np.float32) * 4,
            "factors": rng.standard_normal((64, 2)).astype(np.float32),
            "weights": rng.random(rows).astype(np.float32),
        },
        want,
        bound,
        num_threads=128,
        smem_bytes=rows * row_bytes + 4 * rows,
    )


CASES = (
    case(16, "fp16", False, 0, 16),
    case(64, "bf16", False, 16, 48),
    case(16, "bf16", True, 0, 16),
    case(96, "fp16", True, 64, 96),
)
