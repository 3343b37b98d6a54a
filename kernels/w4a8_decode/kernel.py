"""W4A8 GEMM for few tokens, near the speed of memory: `decode` with 8-bit tokens.

    out[m, n] = half(sx[m] * sum_g scale[g, n] * sum_{k in g} x8[m, k] * (code[k, n] - zero[g, n])
                     + bias[n])

    x8           [M, Kp] e4m3 or int8          gmem, read by every warp; cp.async, padded smem
    sx           [1, Mp] float32               gmem, read in the epilogue
    packed       [Kp/16, 2Np] int32, Marlin    gmem, streamed once, straight to registers
    scales       [G, Np], permuted             gmem, once a step
    zero_points  [G, Np/8] int32, packed       gmem, once a step; not read in a symmetric weight
    bias         [Np], permuted                gmem, read once in the epilogue
    out          [M, N] row-major              gmem, written once

scales, bias and out are fp16 or bf16; operands are those of kernels/shared/packed_x8.py.

Stripes, steps, the hand-over of sums and the early start are `decode`'s own. Tokens come to shared
memory as bytes. Those of fp8 become fp16 there, exactly, and are multiplied with codes in fp16:
Hopper has no mma of fp8, and these sums lose nothing. int8 is multiplied as it is, 32 of k at once,
and summed exactly in int32 until a group ends.

Bound by gmem bandwidth and latency up to 8 tokens; see docs/designs/w4a8_decode.md#bound.
Limits: group_size in {-1, 32, 64, 128}; one scale a row of x8; fp8 from sm_89 on.
"""

from dataclasses import asdict, dataclass, replace

from ferrum_numba.contract import Program, pointers, sizes
from ferrum_numba.errors import ConfigError
from ferrum_numba.gpu import has_fp8, is_hopper_or_later
from ferrum_numba.kernels.decode import kernel as decode
from ferrum_numba.kernels.shared import packed as layout
from ferrum_numba.kernels.shared.packed_x8 import PackedX8Kernel
from ferrum_numba.reference.quantize_rows import X_TYPES

# n and k are those of the packed weight; x8 has x_columns, which are k, and out out_columns
PARAMETERS = (
    *pointers("x8", "sx", "packed", "scales", "zero_points", "bias", "out", "slots"),
    *sizes("m", "n", "k", "x_columns", "out_columns", "stripe_steps", "has_bias"),
)
DECODE = decode.Decode()


@dataclass(frozen=True)
class Config(decode.Config):
    """One way to tile: as `decode`."""

    x_dtype: str = "fp8"  # of x8
    x_group: int = -1  # k of x8 a scale: a row's

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.x_dtype not in X_TYPES or self.x_group != -1:
            raise ConfigError(
                f"x8 is {' or '.join(X_TYPES)}, with x_group -1; got {self.x_dtype}, {self.x_group}"
            )

    @property
    def x_row_bytes(self) -> int:
        """Bytes of a token's row of a step; 16 more, so that rows start four banks apart."""
        return self.step_k + 16


def with_bytes(config):
    """Return the config of 8-bit tokens that tiles as one of `decode`."""
    return Config(**asdict(config))


class W4A8Decode(PackedX8Kernel):
    """Weights as A, 8-bit tokens as n8; straight to registers, stripes over the SMs."""

    name = "w4a8_decode"
    config = Config
    models_shapes = True
    summary = "packed layout, few 8-bit tokens: weights to registers, as A of mma; stripes"

    def configs(self, gpu):
        """Return the configs that fit the GPU, the default first."""
        return tuple(with_bytes(config) for config in DECODE.configs(gpu))

    def refuses(self, problem):
        """Return why no config can run this problem, or None."""
        if problem.x_group != -1:
            return f"{self.name} needs x_group = -1, one scale a row; got {problem.x_group}"
        return super().refuses(problem)

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem, or None."""
        if config != self.specialise(config, problem):
            return f"compiled for other weights or types than {problem}"
        if config.x_dtype == "fp8" and not has_fp8(gpu.arch):
            return f"fp8 needs sm_89 or later; {gpu.name} is {gpu.arch}"
        return DECODE.misfit(config, problem.weight, gpu)

    def default(self, problem, gpu):
        """Return what `decode` runs such a weight with."""
        config = with_bytes(DECODE.default(problem.weight, gpu))
        return self.specialise(config, problem)

    def corners(self):
        """Return problems on which stripes, rings and hand-overs are met."""
        from ferrum_numba.kernels.w4a8_decode.corners import CORNERS

        return CORNERS

    def estimate_us(self, config, problem, gpu):
        """Return what a launch is expected to take, modelled: for ranking configs."""
        return DECODE.estimate_us(config, problem.weight, gpu)

    def build(self, config, arch):
        """Return the program: Grid: stripes; Block: warps_n * warps_k warps; smem: x8 + sums."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.w4a8_decode.program import build

        early = config.early and is_hopper_or_later(arch)
        return Program(
            build(config, early),
            PARAMETERS,
            config.num_threads,
            config.blocks_per_sm,
            config.smem_bytes,
            (config.cluster, 1, 1),
        )

    def launch(self, config, problem, gpu):
        """Return the stripes: as few blocks as give every one the same number of steps."""
        launch = DECODE.launch(config, problem.weight, gpu)
        # x8 is padded as the weight is
        columns = layout.stored_shape(problem.weight)[0]
        return replace(launch, scalars={**launch.scalars, "x_columns": columns})
