"""The device program of repack: repack.py says what is computed."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.tools.repack import PADDING, SELECT, TILE_LANES, WORD_ROWS
from ferrum_numba.ptx.arithmetic import lop3, prmt
from ferrum_numba.ptx.memory import ld_global_nc_v4_if, st_global_v4_if
from ferrum_numba.ptx.shuffle import shfl_xor
from ferrum_numba.reference.marlin_layout import TILE_N


def _load_words():
    """Return (weight, perm, row, column, k, n) -> words of 4 columns, as they are."""

    @cuda.jit(device=True, forceinline=True)
    def load(weight, perm, row, column, k, n):
        inside = uint32(1) if row * uint32(WORD_ROWS) < k and column < n else uint32(0)
        place = weight + (uint64(row) * uint64(n) + uint64(column)) * uint64(4)
        words = ld_global_nc_v4_if(place, inside)
        fill = uint32(0) if inside == 1 else uint32(PADDING)
        return (
            uint32(words[0] | fill), uint32(words[1] | fill),
            uint32(words[2] | fill), uint32(words[3] | fill),
        )  # fmt: skip

    return load


def _gather_words():
    """Return the same, of the rows that perm names: 8 codes of 4 columns from 8 rows of words."""

    @cuda.jit(device=True, forceinline=True)
    def take(total, word, shift, i):
        code = uint32(uint32(word >> shift) & 15)
        return uint32(total | uint32(code << uint32(4 * i)))

    @cuda.jit(device=True, forceinline=True)
    def gather(weight, perm, row, column, k, n):
        inside = uint32(1) if row * uint32(WORD_ROWS) < k and column < n else uint32(0)
        place = perm + uint64(row) * uint64(4 * WORD_ROWS)
        low = ld_global_nc_v4_if(place, inside)
        high = ld_global_nc_v4_if(place + uint64(16), inside)
        sources = (low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3])
        fill = uint32(0) if inside == 1 else uint32(PADDING)
        w0, w1, w2, w3 = fill, fill, fill, fill
        for i in range(WORD_ROWS):
            source = sources[i]
            offset = uint64(uint32(source >> 3)) * uint64(n) + uint64(column)
            words = ld_global_nc_v4_if(weight + offset * uint64(4), inside)
            shift = uint32(uint32(source & 7) * 4)
            w0 = take(w0, words[0], shift, i)
            w1 = take(w1, words[1], shift, i)
            w2 = take(w2, words[2], shift, i)
            w3 = take(w3, words[3], shift, i)
        return w0, w1, w2, w3

    return gather


def build(config):
    """Return the kernel of a config: a function of `Repack`'s parameters, in order."""
    gathers, num_threads = config.act_order, config.num_threads
    tiles_per_block = num_threads // TILE_LANES
    load = _gather_words() if gathers else _load_words()
    nibbles = 0x0F0F0F0F

    @cuda.jit(device=True, forceinline=True)
    def words_of_column(a, b, c, d):
        # nibbles: lower and upper ones of A and B, of C and D
        p = lop3(a, uint32(b << 4), uint32(nibbles), SELECT)
        r = lop3(uint32(a >> 4), b, uint32(nibbles), SELECT)
        q = lop3(c, uint32(d << 4), uint32(nibbles), SELECT)
        s = lop3(uint32(c >> 4), d, uint32(nibbles), SELECT)
        # bytes: word t = byte t of each
        pq02, pq13 = prmt(p, q, uint32(0x6240)), prmt(p, q, uint32(0x7351))
        rs02, rs13 = prmt(r, s, uint32(0x6240)), prmt(r, s, uint32(0x7351))
        return (
            prmt(pq02, rs02, uint32(0x5410)), prmt(pq13, rs13, uint32(0x5410)),
            prmt(pq02, rs02, uint32(0x7632)), prmt(pq13, rs13, uint32(0x7632)),
        )  # fmt: skip

    @cuda.jit(device=True, forceinline=True)
    def exchange(low, high, upper, mask):
        # the lower lane gives its high word for the other's low one
        got = shfl_xor(low if upper else high, uint32(mask))
        return (got, high) if upper else (low, got)

    @cuda.jit(device=True, forceinline=True)
    def store_column(place, a, b, c, d, strip, inside):
        # from word t of strip j to word j of thread t, in the four lanes j
        w0, w1, w2, w3 = words_of_column(a, b, c, d)
        odd, upper = (strip & uint32(1)) != 0, strip >= 2
        w0, w1 = exchange(w0, w1, odd, 1)
        w2, w3 = exchange(w2, w3, odd, 1)
        w0, w2 = exchange(w0, w2, upper, 2)
        w1, w3 = exchange(w1, w3, upper, 2)
        st_global_v4_if(place, (w0, w1, w2, w3), inside)

    def repack(qweight, perm, out, experts, k, n, k_tiles, n_tiles):
        # index: which tile, which half of its strips, which strip
        tid = uint32(cuda.threadIdx.x)
        strip, half = uint32(tid & 3), uint32(uint32(tid >> 2) & 1)
        tile = uint32(uint32(cuda.blockIdx.x) * uint32(tiles_per_block) + uint32(tid >> 3))
        tiles = uint32(k_tiles * n_tiles)
        expert = uint32(tile // tiles)
        rest = uint32(tile - expert * tiles)
        if gathers:
            # down a column first: the rows that blocks gather from are then the same
            n_tile = uint32(rest // k_tiles)
            k_tile = uint32(rest - n_tile * k_tiles)
            tile = uint32(expert * tiles + k_tile * n_tiles + n_tile)
        else:
            k_tile = uint32(rest // n_tiles)
            n_tile = uint32(rest - k_tile * n_tiles)
        # lanes beyond the last tile still take part in the shuffles
        inside = uint32(1) if expert < experts else uint32(0)
        k = k if expert < experts else uint32(0)

        weight = qweight + uint64(expert) * uint64(k // uint32(2)) * uint64(n)
        order = perm + uint64(expert) * uint64(k) * uint64(4)
        row = uint32(k_tile * 2)
        column = uint32(n_tile * TILE_N + strip * 16 + half * 4)
        a = load(weight, order, row, column, k, n)
        b = load(weight, order, uint32(row + 1), column, k, n)
        c = load(weight, order, row, uint32(column + 8), k, n)
        d = load(weight, order, uint32(row + 1), uint32(column + 8), k, n)

        # of column g, 4 threads of 16 bytes
        place = out + uint64(tile) * uint64(512) + uint64(half * uint32(256) + strip * uint32(16))
        store_column(place, a[0], b[0], c[0], d[0], strip, inside)
        store_column(place + uint64(64), a[1], b[1], c[1], d[1], strip, inside)
        store_column(place + uint64(128), a[2], b[2], c[2], d[2], strip, inside)
        store_column(place + uint64(192), a[3], b[3], c[3], d[3], strip, inside)

    return repack
