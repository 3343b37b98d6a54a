"""What a weight is, apart from its bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ProblemError
from ferrum_numba.gptq.tensors import GptqTensors
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.kernels.w4a16 import W4A16Problem

BIAS_MODES = ("fused", "two_step")


@dataclass(frozen=True)
class Weight:
    """Shape and kind of a weight, or of all experts of a stack.

    name:       of the layer, or of the first expert; every error has it
    group_size: rows that share a scale; K for one group
    dtype:      "fp16" or "bf16", of x, scales, bias and out
    bias:       there is one
    bias_mode:  "fused": added to the fp32 sum; "two_step": to the rounded result, which is rounded
                again
    symmetric:  every zero point is 8
    act_order:  the rows' groups are permuted
    """

    name: str
    K: int
    N: int
    group_size: int
    dtype: str
    bias: bool
    bias_mode: str
    symmetric: bool
    act_order: bool

    @classmethod
    def of(cls, layer: GptqTensors, dtype: str, bias_mode: str) -> Weight:
        """Return what a layer's tensors are.

        Raises:
            ProblemError: an unknown dtype or bias mode.
        """
        for words, got, known in (("dtype", dtype, DTYPES), ("bias_mode", bias_mode, BIAS_MODES)):
            if got not in known:
                wanted = " or ".join(f'"{name}"' for name in known)
                raise ProblemError(f"{layer.name}: {words} must be {wanted}; got {got!r}")
        return cls(
            name=layer.name,
            K=layer.in_features,
            N=layer.out_features,
            group_size=layer.group_size,
            dtype=dtype,
            bias=layer.bias is not None,
            bias_mode=bias_mode,
            symmetric=layer.symmetric,
            act_order=layer.act_order,
        )

    @property
    def num_groups(self) -> int:
        """Rows of scales, G: the last group may be a smaller one."""
        return ceil_div(self.K, self.group_size)

    @property
    def ordered_groups(self) -> Array:
        """The group of each row where they are in order: [K] int32."""
        return np.arange(self.K, dtype=np.int32) // np.int32(self.group_size)

    @property
    def two_step(self) -> bool:
        """Whether a bias is added to the rounded result."""
        return self.bias and self.bias_mode == "two_step"

    def problem(self, M: int) -> W4A16Problem:
        """Return the problem of M rows.

        Raises:
            ProblemError: sizes that no kernel has; it names the layer.
        """
        try:
            return W4A16Problem(
                M, self.N, self.K,
                group_size=self.group_size if self.num_groups > 1 else -1,
                # whatever a checkpoint stores, stores hold the words of v1 or none
                zero_points="none" if self.symmetric else "gptq",
                act_order=self.act_order, bias=self.bias, dtype=self.dtype,
            )  # fmt: skip
        except ProblemError as error:
            raise ProblemError(f"{self.name}: {error}") from None

    def refuse_other(self, other: Weight) -> None:
        """Raise ProblemError unless an expert has the shape and kind of the first one."""
        for words in ("K", "N", "group_size", "bias"):
            mine, others = getattr(self, words), getattr(other, words)
            if mine != others:
                raise ProblemError(
                    f"{other.name}: all experts of a stack must have the same {words}; "
                    f"{self.name} has {mine}, this one {others}"
                )


def rounded(name: str, tensor: str, values: Array, dtype: str) -> Array:
    """Return a tensor in a layer's type, rounded once.

    Raises:
        ProblemError: a value that is not finite, or not in that type.
    """
    with np.errstate(over="ignore"):
        result = np.asarray(values).astype(DTYPES[dtype])
    wrong = ~np.isfinite(result.astype(np.float32))
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ProblemError(
            f"{name}: {tensor} must be finite in {dtype}; got {float(values[at]):g} at {list(at)}"
        )
    return result
