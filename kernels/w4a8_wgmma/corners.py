"""Problems on which the ring of w4a8_wgmma wraps and tiles are shared; `check` runs them."""

from ferrum_numba.contract import Corner
from ferrum_numba.kernels.w4a8 import W4A8Problem
from ferrum_numba.kernels.w4a8_wgmma.kernel import Config

CORNERS = (
    # stripes: tiles that blocks share, by blocks and by pairs of them
    Corner(W4A8Problem(40, 256, 640), Config(32, 128, 2), 7),
    Corner(W4A8Problem(20, 512, 384, 64, "gptq", bias=True), Config(16, 128, 3, pair=True), 6),
    # whole tiles in turn, that leave in several parts
    Corner(W4A8Problem(150, 128, 128, -1), Config(192, 128, 2, stripes=False), 1),
    Corner(W4A8Problem(40, 456, 256), Config(16, 128, 4, stripes=False), 3),
    # no rows that are cleared, after which a fence covers the mbarriers as well
    Corner(W4A8Problem(64, 256, 640), Config(32, 128, 3, stripes=False, cluster=2), 8),
    # two strips of columns a warp, one set of sums and two
    Corner(W4A8Problem(70, 256, 384, 32, "gptq"), Config(128, 256, 2, stripes=False), 1),
    Corner(W4A8Problem(20, 328, 896, 64), Config(16, 256, 3), 3),
    # scales of x8 that change with the stage, in stripes
    Corner(W4A8Problem(40, 256, 640, x_group=128), Config(32, 128, 2), 7),
    Corner(W4A8Problem(40, 256, 640, x_dtype="int8", x_group=128), Config(32, 256, 2), 4),
)
