"""Cases of the shipped kernels in which blocks share tiles, rings wrap and clusters hand over.

A case is a kernel, a config (None: the default) and a problem, on an H200 of few SMs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from ferrum_numba import check
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels import KERNELS
from ferrum_numba.kernels.decode.kernel import Config as DecodeConfig
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.kernels.prefill.kernel import Config as PrefillConfig
from ferrum_numba.kernels.w4a16 import W4A16Problem

H200 = KNOWN["h200"]
SMALL = 4
NAMED = {kernel.name: kernel for kernel in KERNELS}


class Case(NamedTuple):
    """One check."""

    kernel: str
    config: Any
    problem: Any
    num_sms: int


CASES = (
    # stripes over three SMs, several slices a block; and, with all SMs, a cluster
    Case("decode", None, W4A16Problem(5, 256, 512), 132),
    Case("decode", DecodeConfig(8, 2, 2, 64, 1), W4A16Problem(3, 640, 512, bias=True), 3),
    Case("decode", DecodeConfig(16, 1, 3, 64, 1), W4A16Problem(11, 320, 768, 64, "gptq"), 3),
    Case("decode_wgmma", None, W4A16Problem(12, 512, 1024), 3),
    Case("decode_wgmma", None, W4A16Problem(9, 640, 768, 64, "gptq", bias=True), 2),
    # a ring that wraps, tiles that blocks share, a cluster, a pair, sums that are scaled
    Case("prefill", PrefillConfig(64, 128, 3), W4A16Problem(70, 256, 768), 5),
    Case("prefill", PrefillConfig(32, 128, 3, stripes=False), W4A16Problem(70, 576, 512), 3),
    Case(
        "prefill", PrefillConfig(64, 128, 3, stripes=False, cluster=2), W4A16Problem(64, 256, 768),
        4,
    ),
    Case(
        "prefill", PrefillConfig(64, 128, 3, stripes=False, pair=True), W4A16Problem(70, 256, 512),
        4,
    ),
    # several tiles a block, none of which fills the ring
    Case("prefill", PrefillConfig(32, 128, 4, stripes=False), W4A16Problem(70, 576, 128), 3),
    Case("prefill", PrefillConfig(16, 256, 3, scale_sums=True), W4A16Problem(19, 328, 896, 64), 3),
    Case("marlin", None, W4A16Problem(17, 512, 1024), 3),
    Case("marlin", None, W4A16Problem(5, 320, 768, 64, "gptq", bias=True), 5),
    Case("w4a16_gptq", None, W4A16Problem(17, 256, 512), 3),
    Case("grouped_decode", None, GroupedProblem(5, 4, 2, 256, 512), 3),
    Case("grouped_wgmma", None, GroupedProblem(40, 3, 2, 256, 768), 3),
    # many tiles a block: slots of pairs are used again
    Case("grouped_wgmma", None, GroupedProblem(24, 6, 2, 512, 256), 1),
)  # fmt: skip


def run(case: Case, orders: int = 1) -> check.Checked:
    """Return what the interpreter says of a case."""
    kernel, gpu = NAMED[case.kernel], replace(H200, num_sms=case.num_sms)
    config = case.config
    if config is None:
        config = kernel.default(case.problem, gpu)
    config = kernel.specialise(config, case.problem)
    return check.on_interpreter(kernel, config, case.problem, gpu=gpu, runs=orders, races=True)


def cases_of(kernel: str) -> Iterator[Case]:
    """Yield a kernel's cases, and some small problems of its Op with default configs after them."""
    yield from (case for case in CASES if case.kernel == kernel)
    small = [
        problem for problem in NAMED[kernel].op.tests if NAMED[kernel].refuses(problem) is None
    ]
    yield from (Case(kernel, None, problem, 132) for problem in small[:SMALL])
