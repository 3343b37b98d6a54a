"""Problems on which the ring of grouped_wgmma wraps and tiles are shared; `check` runs them."""

from ferrum_numba.contract import Corner
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.kernels.grouped_wgmma.kernel import Config

CORNERS = (
    Corner(GroupedProblem(40, 3, 2, 256, 768), num_sms=3),
    # many tiles a block: slots of pairs are used again
    Corner(GroupedProblem(24, 6, 2, 512, 256), Config(32, 256, 3, stripes=False), 1),
    # blocks of few pairs come last, and have a loop of their own
    Corner(
        GroupedProblem(30, 3, 2, 256, 512, 64, zero_points="gptq", bias=True, weighted=True),
        Config(48, 256, 3, scale_sums=True, short_m=24), 2,
    ),
)  # fmt: skip
