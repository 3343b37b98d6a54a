"""The tensors of one quantised layer in GPTQ's layout, checked and brought to one form.

qweight [K/8, N] int32   nibble i of word [r, n] is the code of row 8*r + i, column n
scales  [G, N]           G = ceil(K / group_size); the last group may be smaller
qzeros  [G, N/8] int32   nibble i of word [g, c] belongs to group g, column 8*c + i
g_idx   [K] int32        the group of each row
bias    [N]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ProblemError
from ferrum_numba.gptq import groups, overflow

# codes of a word
PACK_FACTOR = 8
FLOATS = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32))
# RMS error of a weight by the rounding of its scales, relative to them: a tenth of what int4 costs
MOST_SCALE_ERROR = 0.01
# the word of zero points of 8 everywhere, by the checkpoint format that stores it
SYMMETRIC_WORD = {"gptq": 0x77777777, "gptq_v2": 0x88888888}


@dataclass(frozen=True, eq=False)
class GptqTensors:
    """One layer's quantised weight; the arrays may be read-only views of a file.

    name:              such as model.layers.0.mlp.down_proj; every error names it
    qweight:           [K/8, N] int32
    scales:            [G, N] float16, bfloat16 or float32, as stored
    qzeros:            [G, N/8] int32; None for a zero point of 8 everywhere
    g_idx:             [K] int32; None where rows are in order: k // group_size
    bias:              [N] float16, bfloat16 or float32, or None
    group_size:        rows that share a scale, at least 1; K where there is one group. K divided by
                       it and rounded up is G, also where a g_idx gives groups other numbers of rows
    checkpoint_format: how qzeros are stored: "gptq" (each word less 0x11111111) or "gptq_v2"
    """

    name: str
    qweight: Array
    scales: Array
    qzeros: Array | None
    g_idx: Array | None
    bias: Array | None
    group_size: int
    checkpoint_format: str = "gptq"

    @classmethod
    def make(
        cls,
        name: str,
        qweight: Array,
        scales: Array,
        qzeros: Array | None = None,
        g_idx: Array | None = None,
        bias: Array | None = None,
        *,
        group_size: int = 128,
        sym: bool = False,
        desc_act: bool = False,
        checkpoint_format: str = "gptq",
        zero_overflow: str | None = None,
    ) -> GptqTensors:
        """Check a checkpoint's tensors and bring them to one form, without a copy.

        Zero points of 8 everywhere and the g_idx of ordered rows become None. `sym` means that
        stored zero points are ignored, whatever they say. A g_idx that orders rows otherwise counts
        whatever `desc_act` says; one of zeros alone counts with `desc_act` only, which asks for
        one. In a single group it is nothing.

        With a g_idx, scales may be those of the whole layer of which these are some rows: groups
        that no row is in are dropped, and `group_size` becomes what divides K into so many groups.

        group_size:    -1 for one group
        zero_overflow: what a v1 zero point means that is stored as 15: "carry", "wrap" or "sixteen"
                       (see `gptq.overflow`); None for "carry", with a warning

        Raises:
            ProblemError: tensors that do not fit each other; it names the layer and the tensor.
        """
        layer = cls(name, qweight, scales, qzeros, g_idx, bias, group_size, checkpoint_format)
        _check_weight(layer)
        rows = _group_rows(layer)
        if rows != layer.group_size:
            layer = replace(layer, group_size=rows)
        g_idx = _group_index(layer, desc_act)
        _check_scales(layer, any_number=g_idx is not None)
        if bias is not None:
            _check(layer, "bias", bias, (layer.out_features,), FLOATS)
        layer = replace(layer, g_idx=g_idx, qzeros=None if sym else _zero_points(layer))
        if layer.qzeros is not None and checkpoint_format == "gptq":
            layer = _without_overflow(layer, zero_overflow)
        return layer if layer.g_idx is None else _regular(layer)

    @property
    def weight_parts(self) -> tuple[Array, ...]:
        """The weights, each [K/8, n] int32, whose columns side by side are those of qweight."""
        return (self.qweight,)

    @property
    def in_features(self) -> int:
        """Rows of the weight, K."""
        return len(self.qweight) * PACK_FACTOR

    @property
    def out_features(self) -> int:
        """Columns of the weight, N."""
        return int(self.qweight.shape[1])

    @property
    def num_groups(self) -> int:
        """Rows of scales, G."""
        return len(self.scales)

    @property
    def symmetric(self) -> bool:
        """Tell whether every zero point is 8."""
        return self.qzeros is None

    @property
    def act_order(self) -> bool:
        """Tell whether the rows' groups are permuted."""
        return self.g_idx is not None

    @property
    def uneven(self) -> str | None:
        """Which group has another number of rows than in order, in words; None where none has."""
        if self.g_idx is None:
            return None
        return groups.uneven(self.g_idx, self.num_groups, self.group_size)

    @property
    def overflows(self) -> bool:
        """Tell whether some zero points are stored so that readers do not agree on them."""
        if self.qzeros is None or self.checkpoint_format != "gptq":
            return False
        return overflow.count(self.qzeros) > 0

    @property
    def row_groups(self) -> Array:
        """The group of each row, [K] int32."""
        if self.g_idx is not None:
            return self.g_idx
        return groups.in_order(self.in_features, self.group_size)


def zero_words(layer: GptqTensors, checkpoint_format: str) -> Array:
    """Return [G, N/8] int32, the layer's zero points as a format stores them, 8s made explicit."""
    shape = (layer.num_groups, layer.out_features // PACK_FACTOR)
    if layer.qzeros is None:
        return np.full(shape, SYMMETRIC_WORD[checkpoint_format], np.uint32).view(np.int32)
    # a word of one format and the same word of the other differ by 0x11111111, modulo 2^32
    offset = SYMMETRIC_WORD[checkpoint_format] - SYMMETRIC_WORD[layer.checkpoint_format]
    words: Array = layer.qzeros.view(np.uint32) + np.uint32(offset % 2**32)
    return words.view(np.int32)


def all_say_8(qzeros: Array, checkpoint_format: str) -> bool:
    """Tell whether every stored word means zero points of 8."""
    return bool((qzeros.view(np.uint32) == SYMMETRIC_WORD[checkpoint_format]).all())


def need_8(name: str, tensor: str, zeros: Array, because: str) -> None:
    """Raise ProblemError unless stored zero points are 8, as something else says they are."""
    if zeros.dtype != np.int32 or not all_say_8(zeros, "gptq_v2"):
        raise ProblemError(
            f"{name}: {tensor} must say 8 everywhere, as {because} does; it does not"
        )


def stand_in(K: int, N: int) -> Array:
    """Return [K/8, N] int32 of zeros that take no memory, for a weight in another layout."""
    return np.broadcast_to(np.int32(0), (K // PACK_FACTOR, N))


def check_matrix(name: str, tensor: str, array: Array, meaning: str) -> None:
    """Raise ProblemError unless a layer's tensor is a matrix of int32 that is not empty."""
    if array.ndim != 2 or array.dtype != np.int32 or array.size == 0:
        raise ProblemError(
            f"{name}: {tensor} must be {meaning} of int32; got {list(array.shape)} {array.dtype}"
        )


def _check(
    layer: GptqTensors,
    tensor: str,
    array: Array,
    shape: tuple[int, ...],
    dtypes: Sequence[np.dtype[Any]],
) -> None:
    """Raise ProblemError unless a tensor of the layer has this shape and one of these types."""
    if array.dtype not in dtypes:
        wanted = " or ".join(str(dtype) for dtype in dtypes)
        raise ProblemError(f"{layer.name}: {tensor} must be {wanted}; got {array.dtype}")
    if array.shape != shape:
        raise ProblemError(f"{layer.name}: {tensor} must be {list(shape)}; got {list(array.shape)}")


def _check_weight(layer: GptqTensors) -> None:
    check_matrix(layer.name, "qweight", layer.qweight, "[K/8, N]")
    if layer.out_features % PACK_FACTOR:
        raise ProblemError(
            f"{layer.name}: qweight must have a multiple of {PACK_FACTOR} columns; "
            f"got {list(layer.qweight.shape)}"
        )
    if layer.checkpoint_format not in SYMMETRIC_WORD:
        raise ProblemError(
            f'{layer.name}: checkpoint format must be "gptq" or "gptq_v2"; '
            f'got "{layer.checkpoint_format}"'
        )


def _group_rows(layer: GptqTensors) -> int:
    size, K = layer.group_size, layer.in_features
    if size != -1 and size < 1:
        raise ProblemError(f"{layer.name}: group_size must be -1 or at least 1; got {size}")
    return K if size == -1 else min(size, K)


def _check_scales(layer: GptqTensors, *, any_number: bool) -> None:
    """Raise ProblemError unless there are scales for each group, or for `any_number` of them."""
    G = ceil_div(layer.in_features, layer.group_size)
    scales = layer.scales
    if scales.ndim == 2 and scales.shape[1] == layer.out_features:
        if any_number:
            # those of more groups than these rows fill
            G = len(scales)
        elif len(scales) != G:
            raise ProblemError(
                f"{layer.name}: scales must have {G} rows, one for each {layer.group_size} of K = "
                f"{layer.in_features}; got {len(scales)}"
            )
    _check(layer, "scales", scales, (G, layer.out_features), FLOATS)


def _zero_points(layer: GptqTensors) -> Array | None:
    """Return the stored zero points, or None where all are 8."""
    if layer.qzeros is None:
        raise ProblemError(
            f"{layer.name}: qzeros are missing; a weight that is not symmetric needs "
            f"{[layer.num_groups, layer.out_features // PACK_FACTOR]} int32"
        )
    shape = (layer.num_groups, layer.out_features // PACK_FACTOR)
    _check(layer, "qzeros", layer.qzeros, shape, (np.dtype(np.int32),))
    return None if all_say_8(layer.qzeros, layer.checkpoint_format) else layer.qzeros


def _group_index(layer: GptqTensors, desc_act: bool) -> Array | None:
    """Return the stored g_idx, or None where rows are in order."""
    if layer.g_idx is not None:
        _check(layer, "g_idx", layer.g_idx, (layer.in_features,), (np.dtype(np.int32),))
    G = layer.num_groups if layer.scales.ndim == 2 else 0
    shape = (layer.in_features, G, layer.group_size)
    return groups.checked(layer.name, layer.g_idx, *shape, desc_act=desc_act)


def _without_overflow(layer: GptqTensors, zero_overflow: str | None) -> GptqTensors:
    """Return a layer whose v1 zero points all readers take for the same, by whole words."""
    assert layer.qzeros is not None
    qzeros = overflow.resolved(layer.name, layer.qzeros, zero_overflow)
    if zero_overflow != overflow.SIXTEEN or qzeros is layer.qzeros:
        return replace(layer, qzeros=qzeros)
    at = overflow.of_15(layer.qzeros)
    qweight = overflow.lowered(layer.name, layer.qweight, layer.row_groups, at)
    return replace(layer, qweight=qweight, qzeros=qzeros)


def _regular(layer: GptqTensors) -> GptqTensors:
    """Return a layer with a g_idx whose groups are as many as its group size divides K into."""
    assert layer.g_idx is not None
    regular = groups.regular(layer.g_idx, layer.num_groups, layer.group_size)
    if regular is None:
        return layer

    def kept(rows: Array) -> Array:
        return np.pad(rows[regular.used], ((0, regular.num_unused), (0, 0)))

    return replace(
        layer, scales=kept(layer.scales), g_idx=regular.g_idx, group_size=regular.group_size,
        qzeros=None if layer.qzeros is None else kept(layer.qzeros),
    )  # fmt: skip
