"""Problems on which blocks of grouped_decode share slices and have several; `check` runs them."""

from ferrum_numba.contract import Corner
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.kernels.grouped_decode.kernel import Config

CORNERS = (
    Corner(GroupedProblem(5, 4, 2, 256, 640), Config(8, 2, 2, 64, 1), 3),
    Corner(GroupedProblem(40, 2, 2, 192, 640), Config(32, 1, 4, 128, 1), 4),
    # slices of three and more blocks, over blocks of the list
    Corner(
        GroupedProblem(9, 3, 2, 192, 768, 64, zero_points="gptq", bias=True, weighted=True),
        Config(8, 1, 2, 64, 1), 21,
    ),
    # a list that is full
    Corner(GroupedProblem(1, 3, 2, 128, 256), Config(8, 1, 2, 64, 1), 3),
    # each block of the list by itself; and pairs without a list, some of them dropped
    Corner(GroupedProblem(11, 3, 2, 256, 640), Config(8, 2, 2, 128, 1, buckets=True), 21),
    Corner(
        GroupedProblem(3, 1, 4, 128, 512), Config(8, 1, 2, 128, 1, direct=True, buckets=True), 36,
    ),
)  # fmt: skip
