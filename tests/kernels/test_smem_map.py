"""What kernels say of their shared memory: all of it, once, as their programs ask for it."""

import numpy as np
import pytest

from ferrum_numba import gpu
from ferrum_numba.kernels import KERNELS, MOE, TOOLS
from ferrum_numba.kernels.shared.packed import packed_tile
from ferrum_numba.reference.gptq import unpack_nibbles
from ferrum_numba.reference.marlin_layout import pack_weight

H200 = gpu.find("h200")
SHARED = [k for k in (*KERNELS, *TOOLS, *MOE) if any(k.smem_map(c) for c in k.configs(H200))]


def assert_whole(regions, size_bytes):
    """Assert that regions follow each other without a gap, in whole places."""
    ends = [region.offset + region.size_bytes for region in regions]
    assert [region.offset for region in regions] == [0, *ends[:-1]]
    assert ends[-1] == size_bytes
    for region in regions:
        each, rest = divmod(region.size_bytes, region.places)
        assert rest == 0, region
        if region.parts:
            assert_whole(region.parts, each)


@pytest.mark.parametrize("kernel", SHARED, ids=lambda kernel: kernel.name)
def test_regions_are_all_of_the_shared_memory(kernel):
    for config in kernel.configs(H200):
        regions = kernel.smem_map(config)
        if config.smem_bytes:
            assert_whole(regions, config.smem_bytes)
            assert all(region.name for region in regions)


def test_every_kernel_with_shared_memory_says_what_lies_there():
    silent = [
        kernel.name
        for kernel in (*KERNELS, *TOOLS, *MOE)
        if kernel not in SHARED
        and any(getattr(config, "smem_bytes", 0) for config in kernel.configs(H200))
    ]
    assert silent == []


def test_the_packed_tile_is_what_is_packed(rng):
    codes = rng.integers(0, 16, (16, 64), np.uint8)
    nibbles = unpack_nibbles(pack_weight(codes)).reshape(32, 4, 8)
    tile = packed_tile()
    for (k, n), lane in np.ndenumerate(tile.lane):
        word, nibble = map(int, tile.place[k, n].split("."))
        assert nibbles[lane, word, nibble] == codes[k, n]
