"""Which experts pairs are of: what align_tokens and combine read alike."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.ptx.memory import ld_global_nc_u32, ld_global_u32


def make_load_experts(count, step):
    """Return what loads the experts of `count` pairs, `step` apart; all loads at once."""

    @cuda.jit(device=True, forceinline=True)
    def load_experts(experts, routing, pair, end):
        """Set experts [count] to those of the pairs; num_experts where one has none here.

        Pairs from `end` on, which is not 0, have none. Words are unsigned, so that an id below 0
        is too large.
        """
        ids, expert_map, num_experts, num_ids, has_map = routing
        for i in range(count):
            held = min(uint32(pair + uint32(step * i)), uint32(end - uint32(1)))
            experts[i] = ld_global_u32(ids + uint64(held) * uint64(4))
        if has_map > uint32(0):
            for i in range(count):
                is_known = experts[i] < num_ids
                known = experts[i] if is_known else uint32(0)
                here = ld_global_nc_u32(expert_map + uint64(known) * uint64(4))
                experts[i] = here if is_known else num_experts
        for i in range(count):
            is_pair = uint32(pair + uint32(step * i)) < end
            experts[i] = min(experts[i], num_experts) if is_pair else num_experts

    return load_experts
