"""Problems on which stripes of decode_wgmma end within slices and rings wrap; `check` runs them."""

from ferrum_numba.contract import Corner
from ferrum_numba.kernels.decode_wgmma.kernel import Config
from ferrum_numba.kernels.w4a16 import W4A16Problem

CORNERS = (
    Corner(W4A16Problem(12, 512, 1024), Config(16, 2, 3, 64, 1, 2, early=False), 2),
    Corner(W4A16Problem(9, 640, 768, 64, "gptq", bias=True), num_sms=2),
    # stages of two panels, of which the last has one; two tiles of tokens
    Corner(W4A16Problem(21, 576, 960, -1, "gptq", bias=True), Config(16, 1, 4, 128, 2, 1), 4),
)
