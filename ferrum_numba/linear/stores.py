"""Quantised weights in memory, one or a stack of experts: packed, or as their checkpoint has them.

Operands are on a GPU or in the host's memory, by the names that kernels have for them; see
kernels/shared/packed.py and kernels/gptq/kernel.py. Nothing else is kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.errors import ProblemError
from ferrum_numba.gptq.repack import marlin_weight
from ferrum_numba.gptq.tensors import GptqTensors, zero_words
from ferrum_numba.kernels.shared.packed import pack_bias, pack_other_operands, stored_shape
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.linear import choice
from ferrum_numba.linear.repacker import Repacker
from ferrum_numba.linear.runtime import Runtime, runtime
from ferrum_numba.linear.slabs import Slabs, filling, put_all
from ferrum_numba.linear.weight import Weight, rounded, rounded_scales
from ferrum_numba.reference import gptq, marlin_layout

# eight zero points of 8, in any order
EIGHTS = np.uint32(0x88888888).astype(np.int32)


class Store(ABC):
    """A weight, or a stack of experts of one shape and kind, in memory of a device.

    kind:     "marlin" or "raw"
    names:    operands that kernels read, in the order in which their addresses are given; what a
              weight does not have is given as 0, and never read
    weight:   its shape and kind
    operands: its arrays by name, a slab an expert
    runtime:  of the GPU that they are on, None for the host
    """

    kind: ClassVar[str]
    names: ClassVar[tuple[str, ...]]

    def __init__(self, weight: Weight, operands: Slabs, on: Runtime | None) -> None:
        self.weight = weight
        self.operands = operands
        self.runtime = on

    @classmethod
    def from_gptq(
        cls,
        layer: GptqTensors,
        *,
        device: Any = "cuda",
        dtype: str = "fp16",
        bias_mode: str = "fused",
    ) -> Self:
        """Put a layer's weight on a device; scales and bias are rounded to dtype once.

        Raises:
            ProblemError: no kernel on this layout can run it, or its scales are lost in dtype.
            DeviceError:  no such device.
        """
        return cls.from_experts([layer], 1, device=device, dtype=dtype, bias_mode=bias_mode)

    @classmethod
    def from_experts(
        cls,
        experts: Iterable[GptqTensors],
        num_experts: int,
        *,
        device: Any = "cuda",
        dtype: str = "fp16",
        bias_mode: str = "fused",
    ) -> Self:
        """Put a stack of experts on a device, one after the other as they come.

        Where only some have zero points or an order of their own, it is made explicit for all.

        Raises:
            ProblemError: they are not alike, fewer or more, or no kernel on this layout can run
                them.
            DeviceError: no such device.
        """
        on = runtime(device)
        weights: list[Weight] = []
        gpu = None if on is None else on.device
        with filling(gpu, num_experts) as slabs, Repacker(on) as repacker:
            for layer in experts:
                found = Weight.of(layer, dtype, bias_mode)
                _refuse_number(found.name, len(weights) + 1, num_experts)
                reason = cls.refusal(layer, found)
                if reason is not None:
                    raise ProblemError(f"{found.name}: {reason}")
                weights.append(found)
                weights[0].refuse_other(found)
                cls._put(slabs, len(weights) - 1, layer, found, repacker)
            _refuse_number("the stack", len(weights), num_experts, least=num_experts)
        return cls(_all_of(weights), slabs, on)

    @classmethod
    def refusal(cls, layer: GptqTensors, weight: Weight) -> str | None:
        """Return why no kernel on this layout can run a layer, or None."""
        return choice.refusal(cls.kind, weight.problem(1))

    @staticmethod
    @abstractmethod
    def shapes(weight: Weight) -> dict[str, tuple[tuple[int, ...], bool]]:
        """Return the shapes of a weight's operands by name, and which of them are int32.

        The others are of the weight's type.
        """

    @property
    def num_experts(self) -> int:
        """Weights in the store; 1 for a dense one."""
        return self.operands.num

    def problem(self, M: int) -> W4A16Problem:
        """Return the problem of M rows, for one expert."""
        return self.weight.problem(M)

    @property
    def gathered(self) -> bool:
        """Whether kernels need the columns of x in the order of the weight's rows."""
        return False

    @classmethod
    @abstractmethod
    def _put(
        cls, slabs: Slabs, index: int, layer: GptqTensors, weight: Weight, repacker: Repacker
    ) -> None:
        """Put one expert into its slabs."""

    @abstractmethod
    def bias_operand(self, bias: Array) -> Array:
        """Return a bias [N] as the kernels on this layout read it."""

    @abstractmethod
    def bias(self, expert: int) -> Array | None:
        """Return a copy of an expert's bias, [N] in the order of the columns; None without one."""

    @abstractmethod
    def parts(self, expert: int) -> dict[str, Array]:
        """Return an expert as the reference takes it: codes, scales, zero_points, g_idx, bias.

        With `perm` where the rows of the codes are those of columns perm of x.
        """


class MarlinStore(Store):
    """In Marlin's tiles, padded, bit-identical to those of IST-DASLab and vLLM.

    packed       [E, Kp/16, 2*Np] int32   rows in the order of their groups
    scales       [E, Gp, Np]              permuted
    zero_points  [E, Gp, Np/8] int32      of an asymmetric weight
    bias         [E, Np]                  permuted; [E, N] as it is where it is added in two steps
    perm         [E, K] int32             of a weight in act-order
    """

    kind = "marlin"
    names = ("packed", "scales", "zero_points", "bias", "perm")

    @classmethod
    def refusal(cls, layer: GptqTensors, weight: Weight) -> str | None:
        """Return why a layer cannot be packed, or None."""
        if weight.unpackable is not None:
            return weight.unpackable
        # packed rows are in the order of their groups, and so are the columns of x that kernels get
        return super().refusal(layer, replace(weight, act_order=False))

    @staticmethod
    def shapes(weight: Weight) -> dict[str, tuple[tuple[int, ...], bool]]:
        """Return the shapes of a weight's operands by name, and which of them are int32."""
        K, N = stored_shape(weight.problem(1))
        G = K // weight.group_size if weight.num_groups > 1 else 1
        shapes: dict[str, tuple[tuple[int, ...], bool]] = {
            "packed": ((K // marlin_layout.TILE_K, 2 * N), True),
            "scales": ((G, N), False),
        }
        if not weight.symmetric:
            shapes["zero_points"] = (G, N // 8), True
        if weight.bias:
            shapes["bias"] = (weight.N if weight.two_step else N,), False
        if weight.act_order:
            shapes["perm"] = (weight.K,), True
        return shapes

    @property
    def gathered(self) -> bool:
        """Whether kernels need the columns of x in the order of the packed rows."""
        return self.weight.act_order

    @classmethod
    def _put(
        cls, slabs: Slabs, index: int, layer: GptqTensors, weight: Weight, repacker: Repacker
    ) -> None:
        operands = _packed_operands(layer, weight)
        K, N = shape = stored_shape(weight.problem(1))
        zeros = (len(operands["scales"]), N // 8)
        absent = {
            "perm": lambda: np.arange(weight.K, dtype=np.int32),
            "zero_points": lambda: np.full(zeros, EIGHTS),
        }
        put_all(slabs, index, operands, absent)
        if repacker.runtime is None:
            packed = marlin_weight(layer.weight_parts, operands.get("perm"), shape)
            slabs.put("packed", index, packed, owned=True)
            return
        if index == 0:
            slabs.add("packed", (K // marlin_layout.TILE_K, 2 * N), np.int32)
        place = slabs.addresses(index)
        repacker(layer.qweight, place["perm"] if "perm" in operands else 0, place["packed"], shape)

    def bias_operand(self, bias: Array) -> Array:
        """Return a bias padded and permuted, or for a kernel that only adds it, as it is."""
        return bias if self.weight.two_step else pack_bias(self.problem(1), bias)

    def bias(self, expert: int) -> Array | None:
        """Return a copy of an expert's bias, not permuted."""
        if "bias" not in self.operands:
            return None
        bias = self.operands.get("bias", expert).copy()
        if self.weight.two_step:
            return bias
        plain: Array = marlin_layout.unpermute_scales(bias[None], False)[0, : self.weight.N]
        return plain

    def parts(self, expert: int) -> dict[str, Array]:
        """Return an expert as the reference takes it, unpacked."""
        weight, slabs = self.weight, self.operands
        G, N, grouped = weight.num_groups, weight.N, weight.num_groups > 1
        parts = {
            "codes": marlin_layout.unpack_weight(slabs.get("packed", expert))[: weight.K, :N],
            "scales": marlin_layout.unpermute_scales(slabs.get("scales", expert), grouped)[:G, :N],
            "g_idx": weight.ordered_groups,
        }
        if not weight.symmetric:
            zeros = marlin_layout.unpack_zero_points(slabs.get("zero_points", expert))
            parts["zero_points"] = zeros[:G, :N]
        bias = self.bias(expert)
        if bias is not None:
            parts["bias"] = bias
        if weight.act_order:
            parts["perm"] = slabs.get("perm", expert)
        return parts


class RawGptqStore(Store):
    """In the checkpoint's own layout; zero points are explicit, and in the words of v1.

    qweight  [E, K/8, N] int32
    scales   [E, G, N]
    qzeros   [E, G, N/8] int32
    g_idx    [E, K] int32        of a weight in act-order
    bias     [E, N]
    """

    kind = "raw"
    names = ("qweight", "scales", "qzeros", "bias", "g_idx")

    @classmethod
    def _put(
        cls, slabs: Slabs, index: int, layer: GptqTensors, weight: Weight, repacker: Repacker
    ) -> None:
        operands = {
            "qweight": layer.qweight,
            "scales": rounded_scales(layer, weight.dtype),
            "qzeros": zero_words(layer, "gptq"),
        }
        if layer.g_idx is not None:
            operands["g_idx"] = layer.g_idx
        if layer.bias is not None:
            operands["bias"] = rounded(layer.name, "bias", layer.bias, weight.dtype)
        put_all(slabs, index, operands, {"g_idx": lambda: weight.ordered_groups})

    @staticmethod
    def shapes(weight: Weight) -> dict[str, tuple[tuple[int, ...], bool]]:
        """Return the shapes of a weight's operands by name, and which of them are int32."""
        K, N, G = weight.K, weight.N, weight.num_groups
        shapes: dict[str, tuple[tuple[int, ...], bool]] = {
            "qweight": ((K // 8, N), True),
            "scales": ((G, N), False),
            "qzeros": ((G, N // 8), True),
        }
        if weight.bias:
            shapes["bias"] = (N,), False
        if weight.act_order:
            shapes["g_idx"] = (K,), True
        return shapes

    def bias_operand(self, bias: Array) -> Array:
        """Return a bias as it is."""
        return bias

    def bias(self, expert: int) -> Array | None:
        """Return a copy of an expert's bias."""
        return self.operands.get("bias", expert).copy() if "bias" in self.operands else None

    def parts(self, expert: int) -> dict[str, Array]:
        """Return an expert as the reference takes it."""
        weight, slabs = self.weight, self.operands
        parts = {
            "codes": gptq.unpack_codes(slabs.get("qweight", expert)),
            "scales": slabs.get("scales", expert),
            "zero_points": gptq.unpack_zero_points(slabs.get("qzeros", expert)),
            "g_idx": weight.ordered_groups,
        }
        for name in ("g_idx", "bias"):
            if name in slabs:
                parts[name] = slabs.get(name, expert)
        return parts


def _packed_operands(layer: GptqTensors, weight: Weight) -> dict[str, Array]:
    """Return all operands of a packed weight but the weight itself."""
    inputs = {"scales": rounded_scales(layer, weight.dtype)}
    if layer.qzeros is not None:
        inputs["zero_points"] = gptq.unpack_zero_points(layer.qzeros, layer.checkpoint_format)
    if layer.g_idx is not None:
        inputs["g_idx"] = layer.g_idx
    if layer.bias is not None:
        inputs["bias"] = rounded(layer.name, "bias", layer.bias, weight.dtype)
    operands = pack_other_operands(weight.problem(1), inputs)
    # a kernel that only adds it reads it as it is
    return operands | ({"bias": inputs["bias"]} if weight.two_step else {})


def _all_of(weights: list[Weight]) -> Weight:
    """Return what a stack is: what some experts have is explicit for all."""
    return replace(
        weights[0],
        symmetric=all(weight.symmetric for weight in weights),
        act_order=any(weight.act_order for weight in weights),
    )


def _refuse_number(name: str, got: int, num_experts: int, least: int = 1) -> None:
    if not least <= got <= num_experts:
        raise ProblemError(f"{name}: a stack of {num_experts} experts was asked for; got {got}")
