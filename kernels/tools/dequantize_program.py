"""The device program of dequantize: dequantize.py says what is computed."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.tools.dequantize import AND_OR, BYTES_0, CODES, MAGIC, ZERO_POINT
from ferrum_numba.ptx.arithmetic import (
    lop3,
    mul_bf16x2,
    mul_f16x2,
    prmt,
    sub_bf16x2,
    sub_f16x2,
)
from ferrum_numba.ptx.memory import (
    ld_global_nc_u32,
    ld_global_nc_u32_stream,
    ld_global_nc_v4,
    st_global_v4_if,
)
from ferrum_numba.reference.marlin_layout import TILE_K, TILE_N


def _grouped_scales():
    """Return (row of a tile's scales, j, block) -> pairs of the lane's 8 columns."""

    @cuda.jit(device=True, forceinline=True)
    def load(row, j, block):
        # word 4g + j of the tile holds the scales of columns 16j + g and 16j + 8 + g
        place = row + uint64(j) * uint64(4)
        s0, s1 = ld_global_nc_u32(place), ld_global_nc_u32(place + uint64(16))
        s2, s3 = ld_global_nc_u32(place + uint64(32)), ld_global_nc_u32(place + uint64(48))
        s4, s5 = ld_global_nc_u32(place + uint64(64)), ld_global_nc_u32(place + uint64(80))
        s6, s7 = ld_global_nc_u32(place + uint64(96)), ld_global_nc_u32(place + uint64(112))
        half = uint32(0x5410) if block == 0 else uint32(0x7632)
        return prmt(s0, s1, half), prmt(s2, s3, half), prmt(s4, s5, half), prmt(s6, s7, half)

    return load


def _single_scales():
    """Return the same for one group, whose pairs of columns lie together."""

    @cuda.jit(device=True, forceinline=True)
    def load(row, j, block):
        # pair i of 8 columns is word 4i + the block's number in 32 columns
        inner = uint32((j & 1) * 2 + block)
        place = row + uint64(uint32((j >> 1) * 64 + inner * 4))
        return (
            ld_global_nc_u32(place), ld_global_nc_u32(place + uint64(16)),
            ld_global_nc_u32(place + uint64(32)), ld_global_nc_u32(place + uint64(48)),
        )  # fmt: skip

    return load


def _zeros(magic):
    """Return (row of a tile's zero points, j, block) -> pairs of magic number plus zero point."""

    @cuda.jit(device=True, forceinline=True)
    def pair(first, second, shift):
        both = prmt(uint32(first >> shift), uint32(second >> shift), uint32(BYTES_0))
        return lop3(both, uint32(CODES), uint32(magic), AND_OR)

    @cuda.jit(device=True, forceinline=True)
    def load(row, j, block):
        # nibbles j and j + 4 of word g are columns 16j + g and 16j + 8 + g
        low, high = ld_global_nc_v4(row), ld_global_nc_v4(row + uint64(16))
        shift = uint32(j * 4 + block * 16)
        return (
            pair(low[0], low[1], shift), pair(low[2], low[3], shift),
            pair(high[0], high[1], shift), pair(high[2], high[3], shift),
        )  # fmt: skip

    return load


def _weights(config):
    """Return (two columns' words, byte of both, 4 bits down, their scales, zeros) -> weights."""
    is_f16, magic = config.dtype == "fp16", MAGIC[config.dtype]
    sub = sub_f16x2 if is_f16 else sub_bf16x2
    mul = mul_f16x2 if is_f16 else mul_bf16x2

    @cuda.jit(device=True, forceinline=True)
    def weights(first, second, select, shift, scale, zero):
        codes = uint32(prmt(first, second, select) >> shift)
        return mul(sub(lop3(codes, uint32(CODES), uint32(magic), AND_OR), zero), scale)

    return weights


def build(config):
    """Return the kernel of a config: a function of `Dequantize`'s parameters, in order."""
    num_warps, has_zero_points = config.num_threads // 32, config.has_zero_points
    symmetric = MAGIC[config.dtype] | ZERO_POINT
    load_scales = _single_scales() if config.per_channel else _grouped_scales()
    load_zeros = _zeros(MAGIC[config.dtype])
    weights = _weights(config)

    @cuda.jit(device=True, forceinline=True)
    def store(place, words, select, shift, s, z, inside):
        row = (
            weights(words[0], words[1], select, shift, s[0], z[0]),
            weights(words[2], words[3], select, shift, s[1], z[1]),
            weights(words[4], words[5], select, shift, s[2], z[2]),
            weights(words[6], words[7], select, shift, s[3], z[3]),
        )
        st_global_v4_if(place, row, uint32(1) if inside else uint32(0))

    def dequantize(packed, scales, zero_points, out, k, n, n_tiles, group_tiles):
        # index: which tile of the warp, which rows and columns of the lane
        tid = uint32(cuda.threadIdx.x)
        lane_id = uint32(tid & 31)
        tile = uint32(uint32(cuda.blockIdx.x) * uint32(num_warps) + uint32(tid >> 5))
        k_tile = uint32(tile // n_tiles)
        n_tile = uint32(tile - k_tile * n_tiles)
        block = uint32(lane_id & 1)
        j, t = uint32(uint32(lane_id >> 1) & 3), uint32(lane_id >> 3)
        row = uint32(k_tile * TILE_K + t * 2)
        column = uint32(n_tile * TILE_N + j * 16 + block * 8)

        if k_tile * uint32(TILE_K) < k:
            source = packed + uint64(tile) * uint64(512) + uint64(uint32(t * 4 + j)) * uint64(4)
            words = (
                ld_global_nc_u32_stream(source), ld_global_nc_u32_stream(source + uint64(64)),
                ld_global_nc_u32_stream(source + uint64(128)),
                ld_global_nc_u32_stream(source + uint64(192)),
                ld_global_nc_u32_stream(source + uint64(256)),
                ld_global_nc_u32_stream(source + uint64(320)),
                ld_global_nc_u32_stream(source + uint64(384)),
                ld_global_nc_u32_stream(source + uint64(448)),
            )  # fmt: skip
            # of the tile's columns: 128 bytes of scales, 32 of zero points
            of_group = uint64(uint32(k_tile // group_tiles)) * uint64(n_tiles) + uint64(n_tile)
            s = load_scales(scales + of_group * uint64(128), j, block)
            if has_zero_points:
                z = load_zeros(zero_points + of_group * uint64(32), j, block)
            else:
                z = (uint32(symmetric), uint32(symmetric), uint32(symmetric), uint32(symmetric))

            # of both words, the byte with the codes of rows 2t and 2t + 8, then of the rows below
            select = uint32(BYTES_0 + block * 0x0101)
            below = uint32(select + 0x0202)
            line = uint64(n) * uint64(2)
            place = out + uint64(row) * line + uint64(column) * uint64(2)
            is_column = column < n
            store(place, words, select, 0, s, z, is_column and row < k)
            store(place + line, words, below, 0, s, z, is_column and row < k)
            row = uint32(row + 8)
            place = place + line * uint64(8)
            store(place, words, select, 4, s, z, is_column and row < k)
            store(place + line, words, below, 4, s, z, is_column and row < k)

    return dequantize
