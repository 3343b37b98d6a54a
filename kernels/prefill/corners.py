"""Problems on which the ring of prefill wraps and tiles are shared; `check` runs them."""

from ferrum_numba.contract import Corner
from ferrum_numba.kernels.prefill.kernel import Config
from ferrum_numba.kernels.w4a16 import W4A16Problem

CORNERS = (
    # stripes: tiles that blocks share, by blocks and by pairs of them
    Corner(W4A16Problem(40, 256, 576), Config(32, 128, 2), 7),
    Corner(W4A16Problem(20, 512, 320, 64, "gptq", bias=True), Config(16, 128, 3, pair=True), 6),
    # whole tiles in turn, in two bands, that leave in several parts
    Corner(W4A16Problem(1030, 192, 64, -1), Config(256, 128, 2, stripes=False), 3),
    # several tiles a block, none of which fills the ring
    Corner(W4A16Problem(40, 456, 128), Config(16, 128, 4, stripes=False), 3),
    # no rows that are cleared, after which a fence covers the mbarriers as well
    Corner(W4A16Problem(64, 256, 640), Config(32, 128, 3, stripes=False, cluster=2), 8),
    Corner(W4A16Problem(64, 128, 448, bias=True), Config(64, 128, 2, stripes=False, cluster=4), 4),
    # two strips of columns a warp, with products of a third in flight
    Corner(W4A16Problem(20, 256, 320), Config(32, 256, 3, stripes=False), 1),
    # tiles that leave in three parts, and in two
    Corner(W4A16Problem(150, 128, 64, -1), Config(192, 128, 2, stripes=False), 1),
    Corner(W4A16Problem(70, 256, 256), Config(128, 128, 3, stripes=False, pair=True), 4),
    Corner(W4A16Problem(19, 328, 896, 64), Config(16, 256, 3, scale_sums=True), 3),
)
