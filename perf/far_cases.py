"""The shipped kernels at the largest sizes: some blocks, at the far end of every operand.

Nothing of such a problem exists but a window at the end of each operand, of zeros, and the few
small ones whose values say where to go. A product that was computed in 32 bits, or in 16, leads out
of the window, which the interpreter refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ferrum_numba import interpreter
from ferrum_numba.contract import Config, Kernel, Launch, Problem
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import FerrumError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.interpreter import Window
from ferrum_numba.kernels import GROUPED, PACKED, RAW
from ferrum_numba.kernels.decode.kernel import Config as DecodeConfig
from ferrum_numba.kernels.decode_wgmma.kernel import Config as DecodeWgmmaConfig
from ferrum_numba.kernels.gptq.kernel import Config as GptqConfig
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.kernels.grouped_decode.kernel import Config as GroupedDecodeConfig
from ferrum_numba.kernels.grouped_wgmma.kernel import Config as GroupedWgmmaConfig
from ferrum_numba.kernels.marlin.kernel import Config as MarlinConfig
from ferrum_numba.kernels.prefill.kernel import Config as PrefillConfig
from ferrum_numba.kernels.shared import packed as layout
from ferrum_numba.kernels.w4a16 import MOST, MOST_M, W4A16Problem
from ferrum_numba.reference.moe import align_tokens

H200 = KNOWN["h200"]
NAMED: dict[str, Kernel] = {kernel.name: kernel for kernel in (*PACKED, *RAW, *GROUPED)}
# less than what a wrapped offset is off by, which is 4 GiB, and more than a block's tiles span
MOST_WINDOW = 1 << 30
# their first blocks have the last tiles; and what these keep at their own number, not their tile's
REVERSED, OF_FIRST = ("prefill", "decode_wgmma", "grouped_wgmma"), ("maps",)
STRIPE_STEPS = 16
WEIGHT_OPERANDS = ("packed", "scales", "zero_points", "bias")
# far is the weight, the result, or x; of experts, the last of many or of large ones
WEIGHT = W4A16Problem(3, MOST, MOST, 32, "gptq", bias=True)
RESULT = W4A16Problem(MOST_M, MOST, 64, -1, bias=True)
ROWS = W4A16Problem(MOST_M, 128, MOST)
EXPERTS = GroupedProblem(3, 1024, 2, 32_768, 32_768, 32, zero_points="gptq", bias=True)
LARGE_EXPERTS = GroupedProblem(3, 8, 2, 1 << 17, 1 << 17, 32, zero_points="gptq", bias=True)
PAIRS = GroupedProblem(MOST_M, 1, 16, 32_768, 128)
PAIRS_ROWS = GroupedProblem(MOST_M, 1, 16, 128, 16_384, per_pair=True)


@dataclass(frozen=True)
class Far:
    """Blocks of a launch.

    writes: what it must write to
    before: how many blocks before the last, which may wait for others
    num_sms: of the GPU: so many that a block has few steps
    """

    kernel: str
    config: Config
    problem: Problem
    writes: str
    before: int = 0
    num_sms: int = 1 << 26

    def launch(self) -> Launch:
        """Return the launch, of blocks of few steps."""
        kernel, config = NAMED[self.kernel], self.specialised()
        launch = kernel.launch(config, self.problem, replace(H200, num_sms=self.num_sms))
        if "slots" not in launch.workspace or kernel in GROUPED:
            return launch
        # these two make no more stripes than they have room for
        K, N = layout.stored_shape(self.problem)
        k_step = config.step_k if isinstance(config, DecodeConfig) else config.tile_k
        stripes = ceil_div(N, config.tile_n) * (K // k_step) // STRIPE_STEPS
        return replace(
            launch,
            grid=(stripes, *launch.grid[1:]),
            scalars={**launch.scalars, "stripe_steps": STRIPE_STEPS},
            workspace={"slots": stripes * launch.grid[1] * config.partial_bytes},
        )

    def specialised(self) -> Config:
        """Return the config for the problem."""
        return NAMED[self.kernel].specialise(self.config, self.problem)


def run(far: Far) -> str:
    """Return what is wrong, or nothing."""
    kernel, launch = NAMED[far.kernel], far.launch()
    small = dict(_small(kernel, far.problem, far.config.tile_m))
    windows = {
        name: Window(
            0 if name in OF_FIRST else size - min(size, MOST_WINDOW), min(size, MOST_WINDOW)
        )
        for name, size in (*_sizes(kernel, far.problem).items(), *launch.workspace.items())
    }
    x, y, z = (blocks - 1 for blocks in launch.grid)
    x = 0 if far.kernel in REVERSED else x - far.before
    try:
        program = kernel.build(far.specialised(), H200.arch)
        written = interpreter.run_some(program, launch, small, windows, [(x, y, z)])
    except FerrumError as error:
        return str(error)
    return "" if far.writes in written else f"wrote {sorted(written)}, not {far.writes}"


def bytes_of(problem: Problem) -> dict[str, int]:
    """Return the bytes of every operand on the packed layout and of the result.

    Those that are absent have some.
    """
    if isinstance(problem, GroupedProblem):
        one = bytes_of(problem.expert)
        stacked = {name: one[name] * problem.num_experts for name in WEIGHT_OPERANDS}
        rows = problem.num_pairs if problem.per_pair else problem.tokens
        out = 2 * problem.num_pairs * problem.out_columns
        return {**stacked, "x": 2 * rows * problem.K, "out": out, "topk_weights": 16}
    return _weight_bytes(problem, *layout.stored_shape(problem)) | {
        "x": 2 * problem.M * problem.K,
        "out": 2 * problem.M * problem.N,
    }


def _weight_bytes(problem: W4A16Problem, K: int, N: int) -> dict[str, int]:
    groups = ceil_div(K, problem.group_rows)
    zeros = 16 if problem.zero_points == "none" else groups * N // 2
    return {"packed": K * N // 2, "scales": 2 * groups * N, "zero_points": zeros, "bias": 2 * N}


def _sizes(kernel: Kernel, problem: Problem) -> dict[str, int]:
    """Return the bytes of every operand that is large, by the kernel's own names."""
    sizes = bytes_of(problem)
    if kernel in RAW:
        sizes["qweight"], sizes["qzeros"] = sizes.pop("packed"), sizes.pop("zero_points")
        # a symmetric weight stores its zero points too
        sizes["qzeros"] = ceil_div(problem.K, problem.group_rows) * problem.N // 2
    return sizes


def _small(kernel: Kernel, problem: Problem, block: int) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Yield the operands whose values say where to go: everything leads to the last place."""
    if kernel in RAW:
        yield "g_idx", problem.ordered_groups
    if isinstance(problem, GroupedProblem):
        ids = np.full((problem.tokens, problem.top_k), problem.num_experts - 1, np.int32)
        yield "ids", ids
        found = align_tokens(ids, problem.num_experts, block)
        yield f"list_{block}", np.frombuffer(found.tobytes(), np.int32)


_DECODE, _DECODE_WGMMA = DecodeConfig(8, 1, 4, 64, 1), DecodeWgmmaConfig(16, 2, 3)
_PREFILL, _MARLIN = PrefillConfig(64, 128, 4), MarlinConfig(16, 64, 128, 4, 4)
_SPLIT = GptqConfig(tile_k=128, num_stages=3, split_k=128)
_GROUPED, _GROUPED_WGMMA = GroupedDecodeConfig(8, 1, 4, 64, 1), GroupedWgmmaConfig(64, 128, 4)
CASES = (
    Far("decode", _DECODE, WEIGHT, "slots", before=1),
    Far("decode", _DECODE, RESULT, "out"),
    Far("decode", _DECODE, ROWS, "slots", before=1),
    Far("decode_wgmma", _DECODE_WGMMA, WEIGHT, "slots"),
    Far("decode_wgmma", _DECODE_WGMMA, RESULT, "out"),
    Far("decode_wgmma", _DECODE_WGMMA, ROWS, "slots"),
    Far("prefill", _PREFILL, WEIGHT, "partials"),
    Far("prefill", replace(_PREFILL, stripes=False), RESULT, "out"),
    Far("prefill", _PREFILL, ROWS, "partials"),
    Far("marlin", _MARLIN, WEIGHT, "partials"),
    Far("marlin", MarlinConfig(64, 256, 64, 3, 8), RESULT, "out"),
    Far("marlin", _MARLIN, ROWS, "partials"),
    # of a group of 8 rows the scales alone have 8 GiB
    Far("w4a16_gptq", _SPLIT, replace(WEIGHT, K=1 << 15, group_size=8), "partials"),
    Far("w4a16_gptq", GptqConfig(), RESULT, "out"),
    Far("w4a16_gptq", _SPLIT, replace(ROWS, K=1 << 16), "partials"),
    Far("grouped_decode", _GROUPED, EXPERTS, "slots", before=1, num_sms=1 << 15),
    Far("grouped_decode", _GROUPED, LARGE_EXPERTS, "slots", before=1, num_sms=1 << 19),
    Far("grouped_decode", _GROUPED, PAIRS, "out", num_sms=1 << 24),
    Far("grouped_decode", _GROUPED, PAIRS_ROWS, "slots", before=1, num_sms=1 << 22),
    Far("grouped_wgmma", _GROUPED_WGMMA, EXPERTS, "partials", num_sms=1 << 14),
    Far("grouped_wgmma", _GROUPED_WGMMA, LARGE_EXPERTS, "partials", num_sms=1 << 18),
    Far("grouped_wgmma", _GROUPED_WGMMA, PAIRS, "out", num_sms=1 << 22),
    Far("grouped_wgmma", _GROUPED_WGMMA, PAIRS_ROWS, "partials", num_sms=1 << 19),
)
