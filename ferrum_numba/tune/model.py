"""What a problem needs at least and what a config is expected to take: modelled, not measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import ceil, prod
from typing import TYPE_CHECKING, Literal

from ferrum_numba.compile import Binary, blocks_per_sm
from ferrum_numba.contract import Config, Kernel, Problem, Work

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu

# before the first block works, and after the last
CALL_US = 2.0
# what of the datasheet's rates a good kernel gets
SHARE = 0.85
# how far apart two times are that the model of all launches tells apart
CLASS = 1.3
# multiplications and additions of one `HMMA` of a warp (m16n8k16), and what an SM issues in a cycle
HMMA_FLOPS, SCHEDULERS = 4096, 4


def memory_us(work: Work, gpu: Gpu) -> float:
    """Return the time the compulsory bytes take at the GPU's memory bandwidth."""
    return work.bytes / gpu.dram_gbps / 1e3


def tensor_us(work: Work, gpu: Gpu) -> float:
    """Return the time the FLOPs take at the GPU's tensor-core rate."""
    return work.flops / gpu.tensor_tflops / 1e6


def bound_us(work: Work, gpu: Gpu) -> float:
    """Return the modelled lower bound on the time: the slower of memory and tensor cores."""
    return max(memory_us(work, gpu), tensor_us(work, gpu))


def bound_by(work: Work, gpu: Gpu) -> Literal["memory", "tensor"]:
    """Return which of the two bounds the time."""
    return "memory" if memory_us(work, gpu) >= tensor_us(work, gpu) else "tensor"


def estimate_us(
    kernel: Kernel,
    config: Config,
    problem: Problem,
    gpu: Gpu,
    binary: Binary | None = None,
    mix: Mapping[str, int] | None = None,
) -> float:
    """Return what a launch is expected to take: by the kernel's own model, else by what all show.

    What every launch shows: the time of its bytes and of its FLOPs, rows of zeros in the last tiles
    counted, the issue slots of its instructions, and how much of the GPU its waves leave idle. In
    classes, a factor CLASS apart: on recorded landscapes it tells no more, and within a class the
    kernel's own order is the better one.

    Args:
        binary: where it was built: says how many blocks share an SM
        mix:    instructions of the binary by opcode, where they were counted
    """
    own = kernel.estimate_us(config, problem, gpu)
    if own is not None:
        return own
    work = kernel.op.work(problem)
    padding = _padding(config, problem)
    busy = max(
        memory_us(work, gpu) / SHARE,
        tensor_us(work, gpu) * padding / SHARE,
        issue_us(work, mix or {}, gpu) * padding,
    )
    launch = kernel.launch(config, problem, gpu)
    resident = blocks_per_sm(binary, gpu) if binary else 1
    us = CALL_US + busy * idle_factor(prod(launch.grid), max(1, resident), gpu)
    return CLASS ** round(math.log(us, CLASS))


def issue_us(work: Work, mix: Mapping[str, int], gpu: Gpu) -> float:
    """Return the time in which the SMs issue a program's instructions; 0 where nobody counted them.

    Of the code only its mix is known: so many instructions to every product of a warp.
    """
    products = mix.get("HMMA", 0)
    if not products:
        return 0.0
    instructions = work.flops / HMMA_FLOPS * sum(mix.values()) / products
    return instructions / (SCHEDULERS * gpu.num_sms * gpu.clock_mhz)


def idle_factor(blocks: int, resident: int, gpu: Gpu) -> float:
    """Return how much longer a launch takes than if its blocks were spread evenly.

    In a last wave that is not full, and on the SMs that have one block less, nothing is done.
    """
    if blocks <= resident * gpu.num_sms:
        return ceil(blocks / gpu.num_sms) * gpu.num_sms / blocks
    wave = resident * gpu.num_sms
    return ceil(blocks / wave) * wave / blocks


def _padding(config: Config, problem: Problem) -> float:
    """Return how many rows are multiplied for each that there is."""
    tile_m, M = getattr(config, "tile_m", 1), getattr(problem, "M", 1)
    return ceil(M / tile_m) * tile_m / M


def ranked(
    kernel: Kernel,
    configs: Sequence[Config],
    problem: Problem,
    gpu: Gpu,
    binaries: Mapping[Config, Binary] | None = None,
) -> list[Config]:
    """Return configs that fit, the fastest by the model first; of equals, the likelier."""
    known = binaries or {}

    def us(config: Config) -> float:
        return estimate_us(kernel, config, problem, gpu, known.get(config))

    return sorted(configs, key=us)
