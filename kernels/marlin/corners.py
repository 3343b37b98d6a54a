"""Problems on which stripes of marlin end within slices, and its ring wraps; `check` runs them."""

from ferrum_numba.contract import Corner
from ferrum_numba.kernels.marlin.kernel import Config
from ferrum_numba.kernels.w4a16 import W4A16Problem

CORNERS = (
    Corner(W4A16Problem(17, 512, 1024), num_sms=3),
    Corner(W4A16Problem(5, 320, 768, 64, "gptq", bias=True), num_sms=5),
    # two tiles of rows, wide ones
    Corner(W4A16Problem(35, 256, 640, 32, bias=True), Config(32, 256, 64, 3, 8), 3),
)
