"""What a weight is, apart from its bytes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import PrecisionWarning, ProblemError
from ferrum_numba.gptq.tensors import MOST_SCALE_ERROR, GptqTensors
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.kernels.w4a16 import W4A16Problem

BIAS_MODES = ("fused", "two_step")
# of scales in float64 at a time
BLOCK_COLUMNS = 4096


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
    uneven:     which of them has another number of rows than in order, in words, if one has
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
    uneven: str | None = None

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
            uneven=layer.uneven,
        )

    @property
    def unpackable(self) -> str | None:
        """Why its rows cannot be packed in the order of their groups, or None."""
        if self.uneven is None:
            return None
        return f"the packed layout needs groups of one size; by g_idx {self.uneven}"

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
    if values.dtype == DTYPES[dtype]:
        result = values
    else:
        with np.errstate(over="ignore", under="ignore"):
            result = np.asarray(values).astype(DTYPES[dtype])
    wrong = ~np.isfinite(result)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        hint = _wider(dtype) if np.isfinite(values[at]) else ""
        raise ProblemError(
            f"{name}: {tensor} must be finite in {dtype}; got {float(values[at]):g} at {list(at)}"
            f"{hint}"
        )
    return result


def rounded_scales(layer: GptqTensors, dtype: str) -> Array:
    """Return a layer's scales [G, N] in a type, rounded once.

    An error of the scales is the same error of the weight: above `MOST_SCALE_ERROR` of all of it,
    it is refused, of single columns told by a `PrecisionWarning`. Only numbers below 6e-6 lose so
    much in fp16, where they have few bits, and below 3e-8 none; bf16 has them all.

    Raises:
        ProblemError: a scale that is not finite in that type, or too much is lost.
    """
    result = rounded(layer.name, "scales", layer.scales, dtype)
    if result is layer.scales:
        return result
    # sums of squares over the groups of each column
    lost, whole = np.empty((2, layer.out_features))
    for first in range(0, layer.out_features, BLOCK_COLUMNS):
        block = slice(first, first + BLOCK_COLUMNS)
        stored = layer.scales[:, block].astype(np.float64)
        np.square(stored).sum(axis=0, out=whole[block])
        stored -= result[:, block].astype(np.float64)
        np.square(stored).sum(axis=0, out=lost[block])
    error = float(np.sqrt(lost.sum() / whole.sum())) if whole.any() else 0.0
    if error > MOST_SCALE_ERROR:
        raise ProblemError(
            f"{layer.name}: {dtype} makes an error of {error:.1%} of its scales, which are up to "
            f"{_largest(layer.scales):.2g}; at most {MOST_SCALE_ERROR:.0%} is allowed"
            f"{_wider(dtype)}"
        )
    worse = np.count_nonzero(lost > MOST_SCALE_ERROR**2 * whole)
    if worse:
        share = float(np.sqrt((lost[whole > 0] / whole[whole > 0]).max()))
        warnings.warn(
            f"{layer.name}: {dtype} makes an error of up to {share:.1%} of the scales of {worse} "
            f"of its {layer.out_features} columns, and of {error:.1%} of all{_wider(dtype)}",
            PrecisionWarning,
            stacklevel=2,
        )
    return result


def _largest(values: Array) -> float:
    return max(abs(float(values.max())), abs(float(values.min())))


def _wider(dtype: str) -> str:
    return '; dtype="bf16" has the range for it' if dtype == "fp16" else ""
