"""The least time a problem can take on a GPU: modelled, never measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ferrum_numba.contract import Work

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu


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
