"""Problems on which w4a8_decode hands sums over, and steps are short; `check` runs them."""

from ferrum_numba.contract import Corner
from ferrum_numba.kernels.w4a8 import W4A8Problem
from ferrum_numba.kernels.w4a8_decode.kernel import Config

CORNERS = (
    Corner(W4A8Problem(3, 128, 1024, 64, "gptq"), Config(8, 1, 2, 128, 1), 3),
    Corner(W4A8Problem(3, 128, 1024, 64, "gptq", x_dtype="int8"), Config(8, 1, 2, 128, 1), 3),
    Corner(W4A8Problem(12, 128, 512, 32), Config(16, 1, 2, 64, 1, cluster=2), 4),
    Corner(W4A8Problem(20, 128, 512, x_dtype="int8", bias=True), Config(32, 1, 2, 64, 1), 3),
)
