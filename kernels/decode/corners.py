"""Problems on which blocks of decode share slices and have several; `check` runs them."""

from ferrum_numba.contract import Corner
from ferrum_numba.kernels.decode.kernel import Config
from ferrum_numba.kernels.w4a16 import W4A16Problem

CORNERS = (
    # stripes of several whole slices
    Corner(W4A16Problem(11, 320, 768, 64, "gptq"), Config(16, 1, 2, 64, 1), 3),
    # stripes that end within slices, over two tiles of tokens: a slice has up to three blocks
    Corner(W4A16Problem(11, 256, 1024, bias=True), Config(8, 2, 2, 64, 1), 10),
    Corner(W4A16Problem(3, 192, 1024, 128), Config(8, 1, 4, 128, 2), 3),
    Corner(
        W4A16Problem(19, 200, 960, 32, "gptq", bias=True, dtype="bf16"), Config(32, 2, 2, 64, 1), 4
    ),
    # clusters of more than two blocks, and of several warps side by side
    Corner(W4A16Problem(5, 256, 512), Config(8, 4, 2, 128, 1, cluster=3)),
)
