"""How fast the tensor cores multiply when every step has other operands, from shared memory.

    out[t] = (k_steps / 4) * a[t] @ b.T       by ldmatrix and mma.sync, and by wgmma

    a    [tiles, 64, 128 bytes]    gmem, read once; smem, 4 steps of k that are gone through again
    b    [256, 128 bytes]          likewise
    out  [tiles, 64, 256]          gmem, written once, fp32 or int32

What a GEMM reaches whose loads are free: operands change from step to step, as a GEMM's do, and
their bits cost power. Of fp8, A changes its sign every 4 steps, so out[t] = a[t] @ b.T.

Bound by the tensor cores and their power, or by shared memory.
"""

from dataclasses import dataclass

from ferrum_numba.contract import Program, pointers, sizes
from ferrum_numba.kernels.ceilings.elements import ELEMENTS, FP16, STEP_BYTES
from ferrum_numba.kernels.ceilings.rates import Rate
from ferrum_numba.kernels.ceilings.tensor import (
    GROUP,
    TILE_M,
    TILE_N,
    MmaSync,
    TensorChain,
    Wgmma,
    full_size,
    tensor_op,
)
from ferrum_numba.space import space

# a row of a panel: what a swizzle of 128 bytes takes, the steps between two waits
PANEL_BYTES = GROUP * STEP_BYTES
A_BYTES, B_BYTES = TILE_M * PANEL_BYTES, TILE_N * PANEL_BYTES


@dataclass(frozen=True)
class FedChain(TensorChain):
    """Tiles of 64 x 256, and how often 32 bytes of k are added to each."""


@dataclass(frozen=True)
class FedConfig:
    """How many blocks share a SM; a block is four warps."""

    blocks_per_sm: int = 2

    @property
    def smem_bytes(self):
        """Shared memory a block: both panels, and as much more as keeps further blocks away."""
        return 227 * 1024 // self.blocks_per_sm // 1024 * 1024 - 1024


FED_CONFIGS = space(FedConfig, blocks_per_sm=(2, 1))
# of mma.sync no more than the two panels, which every GPU has room for
MMA_SMEM_BYTES = A_BYTES + B_BYTES


def _tests(element):
    small = ((1, 4), (2, 12)) if element.alternate else ((1, 4), (2, 8))
    return tuple(FedChain(*sizes) for sizes in (*small, full_size(element)))


OPS = {one.name: tensor_op(one, "tensor_fed", PANEL_BYTES, _tests(one)) for one in ELEMENTS}


class MmaFed(MmaSync):
    """mma.sync with its operands loaded by ldmatrix at every step; a warp has 64 x 64."""

    config = FedConfig
    word = "mma_sync_fed"

    def __init__(self, element=FP16):
        super().__init__(element)
        self.op = OPS[element.name]
        self.summary = f"ldmatrix and mma.sync of {element.name}, other operands every step"
        self.rate = Rate("tensor", element.unit, element.name, fed=True)

    def configs(self, gpu):
        """Return how many blocks a SM."""
        return FED_CONFIGS if super().configs(gpu) else ()

    def misfit(self, config, problem, gpu):
        """Return why the blocks' panels do not fit a SM, or None."""
        return gpu.lacks_smem(MMA_SMEM_BYTES, config.blocks_per_sm)

    def build(self, config, arch):
        """Return the program: Grid: tiles; Block: four warps; smem: a, b."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.ceilings.fed_program import build_mma_fed

        parameters = (*pointers("a", "b", "out"), *sizes("k_steps"))
        function = build_mma_fed(self.element)
        return Program(function, parameters, 128, config.blocks_per_sm, MMA_SMEM_BYTES)


class WgmmaFed(Wgmma):
    """wgmma.m64n256 with A and B in shared memory, swizzled as a GEMM's are."""

    config = FedConfig
    word = "wgmma_fed"

    def __init__(self, element=FP16):
        super().__init__(element)
        self.op = OPS[element.name]
        self.summary = (
            f"wgmma.m64n256 of {element.name}, A and B in shared memory, other operands every "
            "step; Hopper only"
        )
        self.rate = Rate("tensor", element.unit, element.name, fed=True)

    def configs(self, gpu):
        """Return how many blocks a SM; none but on Hopper."""
        return FED_CONFIGS if super().configs(gpu) else ()

    def build(self, config, arch):
        """Return the program: Grid: tiles; Block: a warpgroup; smem: a, b."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.ceilings.fed_program import build_wgmma_fed

        parameters = (*pointers("a", "b", "out"), *sizes("k_steps"))
        function = build_wgmma_fed(self.element)
        return Program(function, parameters, 128, config.blocks_per_sm, config.smem_bytes)
