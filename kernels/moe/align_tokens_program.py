"""The device program of align_tokens: align_tokens.py says what is computed."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.moe.experts_here import make_load_experts
from ferrum_numba.kernels.shared.work_list import HEADER
from ferrum_numba.ptx.arithmetic import popc
from ferrum_numba.ptx.memory import (
    ld_shared_u32,
    ld_shared_v2,
    red_shared_add,
    st_global_u32,
    st_global_v4,
    st_shared_u32,
    st_shared_v2,
    st_shared_v4,
)
from ferrum_numba.ptx.shuffle import ballot, redux_add, shfl_idx, shfl_up
from ferrum_numba.ptx.special import cluster_ctarank, smem_base, thread_id
from ferrum_numba.ptx.sync import (
    bar_warp_sync,
    cluster_arrive,
    cluster_arrive_relaxed,
    cluster_wait,
    griddepcontrol_launch_dependents,
    griddepcontrol_wait,
    ld_shared_cluster_u32,
    mapa,
)

NO_EXPERT = 0xFFFFFFFF
# pairs of a lane whose ids are loaded at once
BATCH = 4


@cuda.jit(device=True, forceinline=True)
def word(address, index):
    """Return the address of a word of shared memory."""
    return uint32(address + uint32(index * uint32(4)))


@cuda.jit(device=True, forceinline=True)
def global_word(address, index):
    """Return the address of a word of global memory."""
    return address + uint64(index) * uint64(4)


@cuda.jit(device=True, forceinline=True)
def scan_warp(value, lane_id):
    """Return the sum of the values of the lanes up to this one."""
    for delta in (1, 2, 4, 8, 16):
        before = shfl_up(value, delta)
        if lane_id >= uint32(delta):
            value = uint32(value + before)
    return value


def make_fill(config):
    """Return what makes the list an empty one, and the counts zero."""
    num_threads, cluster = config.num_threads, config.cluster
    pieces = config.sums_offset // 16

    @cuda.jit(device=True, forceinline=True)
    def clear_counts(counts):
        zero = uint32(0)
        piece = thread_id()
        while piece < uint32(pieces):
            st_shared_v4(uint32(counts + uint32(piece * uint32(16))), (zero, zero, zero, zero))
            piece = uint32(piece + uint32(num_threads))

    @cuda.jit(device=True, forceinline=True)
    def fill_list(out, rank, num_pairs, block, most):
        """Write no expert, no rows and the sentinel, the threads of all blocks together."""
        total = uint32(most * uint32(block + uint32(2)))
        i = uint32(rank * uint32(num_threads) + thread_id())
        while i < total:
            value = num_pairs
            if i < uint32(most + most):
                value = uint32(0) if i >= most else uint32(NO_EXPERT)
            st_global_u32(global_word(out, uint32(i + uint32(HEADER))), value)
            i = uint32(i + uint32(num_threads * cluster))

    return clear_counts, fill_list


def make_passes(config):
    """Return the two passes of a warp over its run of pairs: count, and sort."""
    id_bits = config.experts.bit_length() - 1
    load_experts = make_load_experts(BATCH, 32)

    @cuda.jit(device=True, forceinline=True)
    def count_pairs(routing, counts, first, end):
        """Add up the pairs of each expert from first to end."""
        num_experts = routing[2]
        lane_id = uint32(thread_id() & uint32(31))
        experts = cuda.local.array(BATCH, uint32)
        while first < end:
            load_experts(experts, routing, uint32(first + lane_id), end)
            for i in range(BATCH):
                if experts[i] < num_experts:
                    red_shared_add(word(counts, experts[i]), uint32(1))
            first = uint32(first + uint32(32 * BATCH))

    @cuda.jit(device=True, forceinline=True)
    def rank_lanes(expert, is_kept):
        """Return how many lanes have this lane's expert, and how many of them come before it."""
        lane_id = uint32(thread_id() & uint32(31))
        below = uint32(uint32(uint32(1) << lane_id) - uint32(1))
        same = ballot(uint32(is_kept))
        for bit in range(id_bits):
            mine = uint32(uint32(expert >> uint32(bit)) & uint32(1))
            # of lanes whose bit is 0 where mine is, all bits of the ballot are flipped
            same = uint32(same & uint32(ballot(mine) ^ uint32(mine - uint32(1))))
        return popc(same), popc(uint32(same & below))

    @cuda.jit(device=True, forceinline=True)
    def place_pairs(counts, starts, places, expert, first, num_experts):
        """Write 32 pairs behind the start of their expert and the pairs of this warp so far."""
        is_kept = expert < num_experts
        lanes, before = rank_lanes(expert, is_kept)
        counter, so_far = word(counts, expert), uint32(0)
        if is_kept:
            so_far = ld_shared_u32(counter)
            start = ld_shared_u32(word(starts, expert))
            place = uint32(uint32(start + so_far) + before)
            lane_id = uint32(thread_id() & uint32(31))
            st_global_u32(global_word(places, place), uint32(first + lane_id))
        # all lanes have read it
        bar_warp_sync()
        if is_kept and before == uint32(0):
            st_shared_u32(counter, uint32(so_far + lanes))
        bar_warp_sync()

    @cuda.jit(device=True, forceinline=True)
    def sort_pairs(routing, counts, starts, first, end, places):
        """Write the pairs from first to end to their places."""
        num_experts = routing[2]
        lane_id = uint32(thread_id() & uint32(31))
        experts = cuda.local.array(BATCH, uint32)
        while first < end:
            load_experts(experts, routing, uint32(first + lane_id), end)
            for i in range(BATCH):
                if first < end:
                    place_pairs(counts, starts, places, experts[i], first, num_experts)
                first = uint32(first + uint32(32))

    return count_pairs, sort_pairs


def make_sums(config):
    """Return what sums over warps, over the cluster, and over experts."""
    experts, sorting_warps, num_warps = config.experts, config.sorting_warps, config.num_warps
    cluster = config.cluster

    @cuda.jit(device=True, forceinline=True)
    def sum_warps(counts, expert):
        """Return an expert's pairs in this block; each warp's count becomes those before it."""
        rows = cuda.local.array(sorting_warps, uint32)
        for row in range(sorting_warps):
            rows[row] = ld_shared_u32(word(counts, uint32(uint32(row * experts) + expert)))
        total = uint32(0)
        for row in range(sorting_warps):
            st_shared_u32(word(counts, uint32(uint32(row * experts) + expert)), total)
            total = uint32(total + rows[row])
        return total

    @cuda.jit(device=True, forceinline=True)
    def sum_blocks(sum_address, rank):
        """Return an expert's pairs in all blocks, and in those before this one."""
        total, before = uint32(0), uint32(0)
        for other in range(cluster):
            pairs = ld_shared_cluster_u32(mapa(sum_address, uint32(other)))
            total = uint32(total + pairs)
            if uint32(other) < rank:
                before = uint32(before + pairs)
        return total, before

    @cuda.jit(device=True, forceinline=True)
    def scan_experts(blocks, pairs, sums):
        """Return the blocks of the experts before this thread's, all blocks, and all pairs."""
        tid = thread_id()
        lane_id, warp_id = uint32(tid & uint32(31)), uint32(tid >> uint32(5))
        here = scan_warp(blocks, lane_id)
        warp_pairs = redux_add(pairs)
        if lane_id == uint32(31):
            st_shared_v2(uint32(sums + uint32(warp_id * uint32(8))), (here, warp_pairs))
        cuda.syncthreads()
        warp_blocks, warp_pairs = uint32(0), uint32(0)
        if lane_id < uint32(num_warps):
            both = ld_shared_v2(uint32(sums + uint32(lane_id * uint32(8))))
            warp_blocks, warp_pairs = both[0], both[1]
        upto = scan_warp(warp_blocks, lane_id)
        first = shfl_idx(uint32(upto - warp_blocks), warp_id)
        first = uint32(first + uint32(here - blocks))
        return first, shfl_idx(upto, uint32(31)), redux_add(warp_pairs)

    return sum_warps, sum_blocks, scan_experts


def make_write_blocks(cluster):
    """Return what writes the blocks of an expert, the blocks of the cluster in turn."""

    @cuda.jit(device=True, forceinline=True)
    def write_blocks(expert_ids, expert, place, blocks, pairs, block, most):
        while place < blocks:
            at = global_word(expert_ids, place)
            st_global_u32(at, expert)
            rows = min(block, uint32(pairs - uint32(place * block)))
            st_global_u32(global_word(at, most), rows)
            place = uint32(place + uint32(cluster))

    return write_blocks


def build(config):
    """Return the kernel of a config: a function of `AlignTokens`'s parameters, in order."""
    experts, sorting_warps, cluster = config.experts, config.sorting_warps, config.cluster
    sums_offset, starts_offset = config.sums_offset, config.starts_offset
    warps_offset = config.warps_offset
    clustered, programmatic = cluster > 1, config.programmatic
    clear_counts, fill_list = make_fill(config)
    count_pairs, sort_pairs = make_passes(config)
    sum_warps, sum_blocks, scan_experts = make_sums(config)
    write_blocks = make_write_blocks(cluster)

    def align_tokens(
        ids, expert_map, out,
        num_pairs, num_experts, num_ids, block, max_blocks, rounds, has_map,
    ):  # fmt: skip
        counts = smem_base()
        sums, starts = uint32(counts + sums_offset), uint32(counts + starts_offset)
        tid = thread_id()
        expert, warp_id = tid, uint32(tid >> uint32(5))
        rank = uint32(0)
        if clustered:
            rank = cluster_ctarank()
        clear_counts(counts)
        if programmatic:
            griddepcontrol_wait()
            griddepcontrol_launch_dependents()
        cuda.syncthreads()

        # a run of pairs a warp; none where there is no row of counts
        routing = (ids, expert_map, num_experts, num_ids, has_map)
        run, run_pairs = uint32(uint32(rank * uint32(sorting_warps)) + warp_id), uint32(rounds * 32)
        first_pair = uint32(run * run_pairs)
        end = min(num_pairs, uint32(first_pair + run_pairs))
        if warp_id >= uint32(sorting_warps):
            end = uint32(0)
        warp_counts = uint32(counts + uint32(warp_id * uint32(4 * experts)))
        count_pairs(routing, warp_counts, first_pair, end)
        fill_list(out, rank, num_pairs, block, max_blocks)
        cuda.syncthreads()

        pairs, before = uint32(0), uint32(0)
        if expert < num_experts:
            pairs = sum_warps(counts, expert)
        if clustered:
            if expert < num_experts:
                st_shared_u32(word(sums, expert), pairs)
            cluster_arrive()
            cluster_wait()
            if expert < num_experts:
                pairs, before = sum_blocks(word(sums, expert), rank)
            # no block may end before the others have read its sums: see the end
            cluster_arrive_relaxed()
        blocks = uint32(uint32(pairs + uint32(block - uint32(1))) // block)
        first, num_blocks, kept = scan_experts(blocks, pairs, uint32(counts + warps_offset))
        if expert < num_experts:
            st_shared_u32(word(starts, expert), uint32(uint32(first * block) + before))
            expert_ids = global_word(out, uint32(first + uint32(HEADER)))
            write_blocks(expert_ids, expert, rank, blocks, pairs, block, max_blocks)
        if rank == uint32(0) and tid == uint32(0):
            st_global_v4(out, (num_blocks, uint32(num_blocks * block), kept, uint32(0)))
        cuda.syncthreads()

        places = global_word(out, uint32(uint32(max_blocks + max_blocks) + uint32(HEADER)))
        sort_pairs(routing, warp_counts, starts, first_pair, end, places)
        if clustered:
            cluster_wait()

    return align_tokens
