"""Problems on which the ring of grouped_wgmma wraps and tiles are shared; `check` runs them."""

from ferrum_numba.contract import Corner
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.kernels.grouped_wgmma.kernel import Config

CORNERS = (
    Corner(GroupedProblem(40, 3, 2, 256, 768), num_sms=3),
    # many tiles a block: slots of pairs are used again
    Corner(GroupedProblem(24, 6, 2, 512, 256), num_sms=1),
    Corner(GroupedProblem(12, 3, 2, 256, 128), Config(32, 256, 3, stripes=False), 1),
    # tiles of more than two waves, of which more than one is cut, a step longer than evenly
    Corner(GroupedProblem(24, 11, 2, 128, 448, 64), Config(16, 128, 3), 4),
    # tiles that leave in three and four parts
    Corner(GroupedProblem(150, 1, 1, 128, 64, -1), Config(192, 128, 2), 1),
    Corner(GroupedProblem(200, 1, 1, 128, 64, -1), Config(256, 128, 2), 1),
    # more blocks of the list than a warp puts in order at once
    Corner(
        GroupedProblem(60, 40, 2, 128, 64, -1, routing="skewed"), Config(16, 128, 2, short_m=8), 3,
    ),
    # blocks of few pairs come last, and have a loop of their own
    Corner(
        GroupedProblem(30, 3, 2, 256, 512, 64, zero_points="gptq", bias=True, weighted=True),
        Config(48, 256, 3, scale_sums=True, short_m=24), 2,
    ),
)  # fmt: skip
