"""Step 8: four warps multiply together; the weight is packed once, in the order they want it in."""

from dataclasses import dataclass

from numba import cuda, float32, uint32, uint64

from ferrum_numba import Launch, Program
from ferrum_numba.contract import Corner
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ConfigError
from ferrum_numba.kernels.shared.tile import add_tile, store_tile
from ferrum_numba.layout import begin, regions
from ferrum_numba.ptx.asynchronous import (
    cp_async_4,
    cp_async_16,
    cp_async_16_zfill,
    cp_async_commit,
    cp_async_wait,
)
from ferrum_numba.ptx.convert import splat_f32
from ferrum_numba.ptx.memory import ld_shared_u32, ld_shared_v4
from ferrum_numba.ptx.special import smem_base
from ferrum_numba.ptx.sync import fence_proxy_async_shared
from ferrum_numba.ptx.wgmma import (
    descriptor_step,
    smem_descriptor,
    wgmma_commit,
    wgmma_fence,
    wgmma_rs,
    wgmma_wait_acc,
)
from ferrum_numba.reference.gptq import pack_codes, unpack_codes
from ferrum_numba.space import space
from ladder.instructions import store_tokens
from ladder.op import PARAMETERS, Problem, Step
from ladder.reference import GROUP
from ladder.step3_registers import eight_weights, twice
from ladder.step4_mma import CORNERS

# the weight is the operand in registers: a warpgroup has 64 of its columns, and 64 of K a stage
TILE_N, TILE_K = 64, 64
# bytes of a token in a stage: a row that is swizzled over 8 rows
ROW_BYTES = 2 * TILE_K


@dataclass(frozen=True)
class Config:
    """One way to cut the work."""

    tile_m: int = 64  # rows of x a block
    warpgroups: int = 2  # that share the K of a stage
    num_stages: int = 4  # of the ring; all but one are on their way

    def __post_init__(self):
        if self.tile_m % 16 or not 16 <= self.tile_m <= 128:
            raise ConfigError(f"tile_m must be a multiple of 16 up to 128; got {self.tile_m}")
        if self.warpgroups not in (1, 2, 4):
            raise ConfigError(f"warpgroups must be 1, 2 or 4; got {self.warpgroups}")
        if self.num_stages < 2:
            raise ConfigError(f"num_stages must be at least 2; got {self.num_stages}")

    @property
    def num_threads(self):
        """Threads a block."""
        return 128 * self.warpgroups

    @property
    def stage_k(self):
        """K a stage."""
        return TILE_K * self.warpgroups

    @property
    def stage_map(self):
        """What lies where in a stage. Of words and scales a thread copies what it will read."""
        words = 2 * self.tile_m * self.stage_k
        scales = words + 16 * self.num_threads
        # the x of the next stage begins where a swizzle may begin
        return regions(
            ceil_div(scales + 4 * self.num_threads, 1024) * 1024,
            begin("x", 0, "[warpgroup, row, 64 of K], swizzled"),
            begin("words", words, "[thread, 4 words]"),
            begin("scales", scales, "[thread, 2 columns]"),
        )

    @property
    def smem_bytes(self):
        """Dynamic shared memory a block: the ring, and in its place at the end the sums."""
        return max(self.ring_bytes, (self.warpgroups - 1) * 256 * self.tile_m)

    @property
    def ring_bytes(self):
        """Bytes of the ring."""
        return self.num_stages * sum(part.size_bytes for part in self.stage_map)

    @property
    def smem_map(self):
        """What lies where in it, for `explain`."""
        return regions(self.ring_bytes, begin("ring", 0, "stages", self.num_stages, self.stage_map))


# the first that fits is the default
CONFIGS = space(Config, tile_m=(64, 16, 32, 128), warpgroups=(2, 4, 1), num_stages=(4, 3, 6))


def pack(qweight):
    """Return the words in the order that the lanes want: [K/64, N/64, 128 threads, 4 words].

    Of each 32 rows, a lane's q = lane % 4 are 2q and 2q + 1 of every eight, as in a product's
    operand; its columns are 2g and 2g + 1 of its warp's 16, g = lane / 4.
    """
    codes = unpack_codes(qweight)
    K, N = codes.shape
    codes = codes.reshape(K // 32, 4, 4, 2, N).swapaxes(1, 2).reshape(K, N)
    words = pack_codes(codes).view(qweight.dtype)
    # [stage, block of 32, q, column block, warp, g, column]
    words = words.reshape(K // 64, 2, 4, N // 64, 4, 8, 2)
    return words.transpose(0, 3, 4, 5, 2, 1, 6)


@cuda.jit(device=True, forceinline=True)
def fragment(left, right, half):
    """Return the operand of 16 of K: two pairs of each of a lane's columns."""
    return left[2 * half], right[2 * half], left[2 * half + 1], right[2 * half + 1]


def build(config):
    tile_m, warpgroups, num_stages = config.tile_m, config.warpgroups, config.num_stages
    num_threads, stage_k = config.num_threads, config.stage_k
    _, words_offset, scales_offset = (part.offset for part in config.stage_map)
    stage_bytes, in_flight = config.ring_bytes // num_stages, num_stages - 2
    x_bytes, x_rounds = tile_m * ROW_BYTES, tile_m // 16
    zeros, product, wait = splat_f32(tile_m // 2), wgmma_rs(tile_m), wgmma_wait_acc(tile_m)
    # eight rows of 128 bytes, swizzled, and then the next eight; 16 of K are 32 bytes
    describe, next_16 = smem_descriptor(ROW_BYTES, 8 * ROW_BYTES), descriptor_step(32)
    store = store_tokens(tile_m)
    # of a warp: tile_m / 2 fp32 a lane, its pieces of 16 bytes 512 apart
    sums_bytes = 64 * tile_m
    put_sums = store_tile("shared", tile_m // 2, 512)
    add_sums = add_tile("shared", tile_m // 2, 512)

    @cuda.jit(device=True, forceinline=True)
    def fetch_x(place, x, stage, m, M, K):
        """Begin to copy a stage's x, 16 bytes a piece; zeros for rows that are not there."""
        for i in range(x_rounds):
            piece = uint32(uint32(cuda.threadIdx.x) + i * num_threads)
            own_row, share = (piece >> 3) % tile_m, (piece >> 3) // tile_m
            row = uint32(m + own_row)
            k = uint32(stage * stage_k + share * TILE_K + (piece & 7) * 8)
            # of a row that is not there nothing is read, but the address must be one of x
            there = uint32(row < M)
            at = x + (uint64((row * K + k) * there) << 1)
            # the swizzle that the descriptor promises: pieces change places by their row
            to = place + (piece >> 3) * ROW_BYTES + ((piece ^ own_row) & 7) * 16
            cp_async_16_zfill(uint32(to), at, uint32(there * 16))

    @cuda.jit(device=True, forceinline=True)
    def fetch_weight(place, qweight, scales, share, thread, column, N):
        """Begin to copy the words and the scales that this thread will read of a share of K."""
        tid = uint32(cuda.threadIdx.x)
        tile = uint32(share * (N // TILE_N) + uint32(cuda.blockIdx.x))
        to = uint32(place + words_offset + tid * 16)
        cp_async_16(to, qweight + (uint64(tile * 128 + thread) << 4))
        group = uint32(share * TILE_K // GROUP)
        to = uint32(place + scales_offset + tid * 4)
        cp_async_4(to, scales + (uint64(group * N + column) << 1))

    def step8_wgmma(x, qweight, scales, out, M, N, K):
        # index: a warp has 16 columns of its warpgroup's 64, two a lane
        smem = smem_base()
        tid = uint32(cuda.threadIdx.x)
        lane, warpgroup, thread = uint32(tid & 31), uint32(tid >> 7), uint32(tid & 127)
        g, q = uint32(lane >> 2), uint32(lane & 3)
        column = uint32(uint32(cuda.blockIdx.x) * TILE_N + (thread >> 5) * 16 + g * 2)
        first_m = uint32(uint32(cuda.blockIdx.y) * tile_m)
        stages = uint32(K // stage_k)

        # prologue: all stages but one are on their way
        fetched = uint32(0)
        for _ in range(num_stages - 1):
            if fetched < stages:
                place = uint32(smem + fetched % num_stages * stage_bytes)
                share = uint32(fetched * warpgroups + warpgroup)
                fetch_x(place, x, fetched, first_m, M, K)
                fetch_weight(place, qweight, scales, share, thread, column, N)
            cp_async_commit()
            fetched = uint32(fetched + 1)

        # main loop: a stage a turn
        acc, one = zeros(float32(0)), uint32(1)
        stage = uint32(0)
        while stage < stages:
            cp_async_wait(in_flight)
            # wgmma reads shared memory through another proxy than copies write it
            fence_proxy_async_shared()
            # what others copied is there; and all have done with the stage that is filled next
            cuda.syncthreads()
            if fetched < stages:
                place = uint32(smem + fetched % num_stages * stage_bytes)
                share = uint32(fetched * warpgroups + warpgroup)
                fetch_x(place, x, fetched, first_m, M, K)
                fetch_weight(place, qweight, scales, share, thread, column, N)
            cp_async_commit()
            fetched = uint32(fetched + 1)

            place = uint32(smem + stage % num_stages * stage_bytes)
            words = ld_shared_v4(uint32(place + words_offset + tid * 16))
            pair = ld_shared_u32(uint32(place + scales_offset + tid * 4))
            low, high = twice((pair,), 0), twice((pair,), 1)
            left, right = eight_weights(words[0], low), eight_weights(words[1], high)
            left_2, right_2 = eight_weights(words[2], low), eight_weights(words[3], high)
            first = describe(uint32(place + warpgroup * x_bytes))
            second = next_16(first)
            third = next_16(second)
            # the operands are in registers: the products may begin
            wgmma_fence()
            acc = product(acc, fragment(left, right, 0), first, one)
            acc = product(acc, fragment(left, right, 1), second, one)
            acc = product(acc, fragment(left_2, right_2, 0), third, one)
            acc = product(acc, fragment(left_2, right_2, 1), next_16(third), one)
            wgmma_commit()
            acc = wait(acc, 0)
            stage = uint32(stage + 1)

        # reduction: the first of the warpgroups adds the others' sums, in their order
        warp = uint32(thread >> 5)
        if warpgroups > 1:
            # all have done with the ring
            cuda.syncthreads()
            if warpgroup > 0:
                own = uint32(smem + ((warpgroup - 1) * 4 + warp) * sums_bytes + lane * 16)
                put_sums(own, acc)
            cuda.syncthreads()
            if warpgroup == 0:
                for i in range(warpgroups - 1):
                    other = uint32(smem + (i * 4 + warp) * sums_bytes + lane * 16)
                    acc = add_sums(other, acc)

        # epilogue: a lane has two columns of tokens 2q, 2q + 1 of every eight
        token = uint32(first_m + q * 2)
        if warpgroup == 0 and token < M:
            at = out + (uint64(token * N + column) << 1)
            store(at, uint64(N) << 1, uint32(M - token), acc)

    return step8_wgmma


class Wgmma(Step):
    """Warpgroups, and a weight that is packed for them."""

    name = "step8_wgmma"
    config = Config
    summary = "wgmma with the packed weight in registers; Hopper only"

    def configs(self, gpu):
        """Return the configs whose shared memory fits a block, the default first; Hopper only."""
        if gpu.arch != "sm_90a":
            return ()
        return tuple(c for c in CONFIGS if gpu.lacks_smem(c.smem_bytes) is None)

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem on this GPU, or None."""
        if config.tile_m > 16 and config.tile_m >= 2 * problem.M:
            return f"half of tile_m = {config.tile_m} holds all of M = {problem.M}"
        if problem.K % config.stage_k:
            return f"K must be a multiple of {config.stage_k}, a stage's; got K = {problem.K}"
        return gpu.lacks_smem(config.smem_bytes)

    def corners(self):
        """Return what `check` runs beside the Op's tests."""
        # nine stages, so that the ring wraps
        return (*CORNERS, Corner(Problem(3, 128, 1152)))

    def build(self, config, arch):
        """Return the program. Block: warpgroups; smem: the ring."""
        return Program(build(config), PARAMETERS, config.num_threads, smem_bytes=config.smem_bytes)

    def prepare(self, problem, inputs):
        """Return the operands, the words packed for the lanes."""
        return {**inputs, "qweight": pack(inputs["qweight"])}

    def launch(self, config, problem, gpu):
        """Return blocks over the columns, times tiles of rows of x."""
        M, N, K = problem.M, problem.N, problem.K
        grid = (N // TILE_N, ceil_div(M, config.tile_m), 1)
        return Launch(grid, {"M": M, "N": N, "K": K})
