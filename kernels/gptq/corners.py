"""Problems on which the ring of w4a16_gptq wraps and tiles are cut off; `check` runs them."""

from ferrum_numba.contract import Corner
from ferrum_numba.kernels.gptq.kernel import Config
from ferrum_numba.kernels.w4a16 import W4A16Problem

CORNERS = (
    # tiles of all widths
    Corner(W4A16Problem(17, 320, 1024), Config(32, 256, 128, 3, 2)),
    Corner(W4A16Problem(5, 104, 520, 8), Config(16, 64, 128, 3)),
    # shares of many stages, of unequal lengths
    Corner(W4A16Problem(35, 200, 712, 24, "gptq", bias=True), Config(16, 128, 32, split_k=2)),
    Corner(W4A16Problem(9, 136, 616, 56, "gptq", act_order=True), Config(16, 128, 32, 4)),
)
