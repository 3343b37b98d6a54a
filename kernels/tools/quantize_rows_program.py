"""The device program of quantize_rows: quantize_rows.py says what is computed."""

from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.kernels.shared.packed_x8 import M_MULTIPLE
from ferrum_numba.kernels.tools.quantize_rows import COLUMNS
from ferrum_numba.ptx.arithmetic import div_f32
from ferrum_numba.ptx.convert import PACK8, UNPACK, bf16_to_f32, f16_to_f32
from ferrum_numba.ptx.memory import (
    ld_global_nc_v4,
    ld_global_u16,
    ld_global_v4,
    ld_shared_u32,
    st_global_f32,
    st_global_v4,
    st_shared_u32,
)
from ferrum_numba.ptx.shuffle import redux_max, shfl_xor
from ferrum_numba.ptx.special import smem_base
from ferrum_numba.ptx.sync import griddepcontrol_launch_dependents, griddepcontrol_wait
from ferrum_numba.reference.quantize_rows import LARGEST, LEAST

# lanes whose columns share a scale
GROUP_LANES = 8


def make_load(config):
    """Return what loads sixteen columns of a row, as eight words of two."""
    gathers = config.gathers

    @cuda.jit(device=True, forceinline=True)
    def pair(line, first, second):
        low = uint32(ld_global_u16(line + uint64(first) * uint64(2)))
        high = uint32(ld_global_u16(line + uint64(second) * uint64(2)))
        return uint32(low | uint32(high << 16))

    @cuda.jit(device=True, forceinline=True)
    def gather(line, places):
        a, b = ld_global_nc_v4(places), ld_global_nc_v4(places + uint64(16))
        return (
            pair(line, a[0], a[1]),
            pair(line, a[2], a[3]),
            pair(line, b[0], b[1]),
            pair(line, b[2], b[3]),
        )

    @cuda.jit(device=True, forceinline=True)
    def eight(line, perm, column, k):
        if column >= k:
            return uint32(0), uint32(0), uint32(0), uint32(0)
        if gathers:
            return gather(line, perm + uint64(column) * uint64(4))
        return ld_global_v4(line + uint64(column) * uint64(2))

    @cuda.jit(device=True, forceinline=True)
    def load(line, perm, column, k):
        return eight(line, perm, column, k), eight(line, perm, uint32(column + 8), k)

    return load


@cuda.jit(device=True, forceinline=True)
def larger(word, peak):
    """Return the largest of a peak and a word's halves, all without their signs."""
    low, high = uint32(word & uint32(0x7FFF)), uint32(uint32(word >> 16) & uint32(0x7FFF))
    peak = low if low > peak else peak
    return high if high > peak else peak


@cuda.jit(device=True, forceinline=True)
def largest_of(words, peak):
    """Return the largest of a peak and of eight columns."""
    return larger(words[3], larger(words[2], larger(words[1], larger(words[0], peak))))


def make_convert(config):
    """Return (factors, convert): of a peak's bits, and of sixteen columns by a factor."""
    element = {"fp8": "e4m3", "int8": "s8"}[config.x_dtype]
    pack, unpack = PACK8[element], UNPACK[HALVES[config.dtype]]
    widen = {"fp16": f16_to_f32, "bf16": bf16_to_f32}[config.dtype]
    largest, least = float(LARGEST[config.x_dtype]), float(LEAST)

    @cuda.jit(device=True, forceinline=True)
    def factors(bits):
        """Return what a row is multiplied by, and its scale; a NaN stays one."""
        peak = widen(bits)
        if peak < float32(least):
            peak = float32(least)
        return div_f32(float32(largest), peak), div_f32(peak, float32(largest))

    @cuda.jit(device=True, forceinline=True)
    def two(lower, upper, factor):
        """Return columns j, j + 8, j + 1, j + 9 as a word."""
        a, b = unpack(lower), unpack(upper)
        first = pack(float32(a[0] * factor), float32(b[0] * factor))
        second = pack(float32(a[1] * factor), float32(b[1] * factor))
        return uint32(uint32(first & uint32(0xFFFF)) | uint32(second << 16))

    @cuda.jit(device=True, forceinline=True)
    def convert(words, factor):
        lower, upper = words
        return (
            two(lower[0], upper[0], factor),
            two(lower[1], upper[1], factor),
            two(lower[2], upper[2], factor),
            two(lower[3], upper[3], factor),
        )

    return factors, convert


def build(config):
    """Return the kernel of a config: a function of `QuantizeRows`'s parameters, in order."""
    num_threads, programmatic = config.num_threads, config.programmatic
    by_row, num_warps = config.x_group < 0, config.num_threads // 32
    load, (factors, convert) = make_load(config), make_convert(config)

    @cuda.jit(device=True, forceinline=True)
    def peak_of_block(peak):
        """Return the largest of all lanes, to all of them."""
        smem, tid = smem_base(), uint32(cuda.threadIdx.x)
        peak = redux_max(peak)
        if uint32(tid & 31) == 0:
            st_shared_u32(uint32(smem + uint32(tid >> 5) * 4), peak)
        cuda.syncthreads()
        lane = uint32(tid & 31)
        peak = uint32(0)
        if lane < num_warps:
            peak = ld_shared_u32(uint32(smem + lane * 4))
        return redux_max(peak)

    def quantize_rows(x, perm, out, m, k, columns):
        row, tid = uint32(cuda.blockIdx.x), uint32(cuda.threadIdx.x)
        line = x + uint64(row) * uint64(k) * uint64(2)
        to = out + uint64(row) * uint64(columns)
        padded_m = uint32(uint32(m + (M_MULTIPLE - 1)) & uint32(0xFFFFFFFF - (M_MULTIPLE - 1)))
        scales = out + uint64(m) * uint64(columns)
        if programmatic:
            griddepcontrol_wait()
            griddepcontrol_launch_dependents()
        factor = float32(0)
        if by_row:
            peak, column = uint32(0), uint32(tid * COLUMNS)
            while column < columns:
                words = load(line, perm, column, k)
                peak = largest_of(words[0], largest_of(words[1], peak))
                column = uint32(column + num_threads * COLUMNS)
            factor, scale = factors(peak_of_block(peak))
            if tid == 0:
                st_global_f32(scales + uint64(row) * uint64(4), scale)
        # all lanes of a warp go on together: those of a group exchange what they have
        first = uint32(0)
        while first < columns:
            column = uint32(first + tid * COLUMNS)
            words = load(line, perm, column, k if column < columns else uint32(0))
            if not by_row:
                peak = largest_of(words[0], largest_of(words[1], uint32(0)))
                for mask in (1, 2, 4):
                    other = shfl_xor(peak, uint32(mask))
                    peak = other if other > peak else peak
                factor, scale = factors(peak)
                if column < columns and uint32(tid % uint32(GROUP_LANES)) == 0:
                    group = uint32(column // uint32(GROUP_LANES * COLUMNS))
                    place = uint64(group) * uint64(padded_m) + uint64(row)
                    st_global_f32(scales + place * uint64(4), scale)
            if column < columns:
                st_global_v4(to + uint64(column), convert(words, factor))
            first = uint32(first + num_threads * COLUMNS)

    return quantize_rows
