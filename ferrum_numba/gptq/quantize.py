"""Round a model's weights to nearest, into a GPTQ checkpoint.

It is for who has no quantised model to try things with: the rounding knows nothing of activations,
so the result is worse than GPTQ's. Each file of the source becomes a file of its own, a tensor in
memory at a time, and a block of its columns in float32 on top. What was written is read back.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.errors import CheckpointError, ProblemError
from ferrum_numba.gptq import described, selection
from ferrum_numba.gptq.checkpoint import GptqCheckpoint
from ferrum_numba.gptq.config import FILES, MODEL_FILE, SECTION, read_json
from ferrum_numba.gptq.files import DTYPES, SINGLE, TensorFiles
from ferrum_numba.gptq.selection import QUANTISED_PARTS, Linear, Model, Selection
from ferrum_numba.gptq.tensors import MOST_SCALE_ERROR, PACK_FACTOR
from ferrum_numba.gptq.writing import (
    TensorWriter,
    aligned,
    copy_rest,
    new_folder,
    write_index,
    write_json,
)
from ferrum_numba.reference.gptq import pack_codes, pack_zero_points

LARGEST_CODE = 15
SYMMETRIC_ZERO_POINT = 8
# columns of the weight, rows of torch's, that are in memory as float32 at a time
BLOCK_COLUMNS = 512
# tensors that only a quantised layer has
QUANTISED = (".qweight", ".B", ".weight_packed")

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Recipe:
    """How to quantise.

    group_size:        rows that share a scale; -1 for all of them
    sym:               zero points of 8, else of their own
    checkpoint_format: of zero points, "gptq" or "gptq_v2"
    lm_head:           quantise the head too
    include, exclude:  regular expressions of names: of what is quantised though it is kept by
                       default, and of what is kept, which wins
    """

    group_size: int = 128
    sym: bool = True
    checkpoint_format: str = "gptq"
    lm_head: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.group_size != -1 and self.group_size < 1:
            raise ProblemError(f"group_size must be -1 or at least 1; got {self.group_size}")
        if self.checkpoint_format not in ("gptq", "gptq_v2"):
            raise ProblemError(
                f'checkpoint format must be "gptq" or "gptq_v2"; got "{self.checkpoint_format}"'
            )


@dataclass
class Quantized:
    """What was written.

    layers: names of the layers that were quantised
    kept:   matrices that were copied as they are -> why
    """

    layers: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)


def quantize_weight(name: str, weight: Array, recipe: Recipe) -> dict[str, Array]:
    """Return the tensors of a quantised layer.

    Args:
        name:   for errors
        weight: [N, K] float16, bfloat16 or float32, as torch's Linear has it; K and N multiples
                of 8
        recipe: how

    Returns:
        qweight [K/8, N] int32, scales [G, N], qzeros [G, N/8] int32, g_idx [K] int32. A weight is
        at most half a scale off its value, besides the rounding of the scale to the weight's own
        16-bit type (float32: to float16).

    Raises:
        ProblemError: a weight that is not finite, or too large for its scale's type.
    """
    N, K = weight.shape
    rows = K if recipe.group_size == -1 else min(recipe.group_size, K)
    group = np.arange(K, dtype=np.int32) // np.int32(rows)
    G = int(group[-1]) + 1
    bf16 = weight.dtype == ml_dtypes.bfloat16
    qweight = np.empty((K // PACK_FACTOR, N), np.int32)
    scales = np.empty((G, N), ml_dtypes.bfloat16 if bf16 else np.float16)
    zeros = np.full((G, N), SYMMETRIC_ZERO_POINT, np.uint8)
    # sums of squares, of scales and of what their type makes of them
    whole = lost = 0.0
    for first in range(0, N, BLOCK_COLUMNS):
        block = slice(first, first + BLOCK_COLUMNS)
        values = weight[block].astype(np.float32)
        exact, zero = _grid(_ends(name, values, rows), recipe)
        scale = _stored(name, exact, scales.dtype)
        whole += float(np.square(exact, dtype=np.float64).sum())
        lost += float(np.square(scale - exact, dtype=np.float64).sum())
        scale[scale == 0] = 1
        codes = np.rint(values / scale[:, group]) + zero[:, group]
        codes = np.clip(codes, 0, LARGEST_CODE).astype(np.uint8)
        qweight[:, block] = pack_codes(np.ascontiguousarray(codes.T))
        scales[:, block], zeros[:, block] = scale.T, zero.T.astype(np.uint8)
    if lost > MOST_SCALE_ERROR**2 * whole:
        raise ProblemError(
            f"{name}: {scales.dtype} makes an error of {np.sqrt(lost / whole):.1%} of its scales, "
            f"which must be at most {MOST_SCALE_ERROR:.0%}: its weights are too small; bfloat16 "
            "ones keep their range"
        )
    qzeros = pack_zero_points(zeros, recipe.checkpoint_format)
    return {"qweight": qweight, "scales": scales, "qzeros": qzeros, "g_idx": group}


def _ends(name: str, values: Array, rows: int) -> tuple[Array, Array]:
    """Return the least and the largest weight of each group, [n, G] each; 0 is in every range."""
    starts = np.arange(0, values.shape[1], rows)
    low = np.minimum(np.minimum.reduceat(values, starts, axis=1), 0)
    high = np.maximum(np.maximum.reduceat(values, starts, axis=1), 0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ProblemError(f"{name}: a weight must be finite; this one holds NaN or infinity")
    return low, high


def _grid(ends: tuple[Array, Array], recipe: Recipe) -> tuple[Array, Array]:
    """Return the scale and the zero point of each group, [n, G] float32 each."""
    low, high = ends
    # symmetric: from -8 to 7; the range to +-7.5 keeps both ends within half a scale
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if recipe.sym:
            scale = 2 * np.maximum(-low, high) / LARGEST_CODE
            return scale, np.full(scale.shape, np.float32(SYMMETRIC_ZERO_POINT))
        scale = (high - low) / LARGEST_CODE
        zero = np.clip(np.nan_to_num(np.rint(-low / scale)), 0, LARGEST_CODE)
    if recipe.checkpoint_format == "gptq":
        # v1 stores 0 as 15, which readers take for three values: a code of the range is given up
        scale = np.where(zero == 0, np.maximum(scale, high / (LARGEST_CODE - 1)), scale)
        zero = np.maximum(zero, 1)
    return scale, zero


def _stored(name: str, scale: Array, dtype: np.dtype[Any]) -> Array:
    """Return [n, G] float32, scales as they will be stored."""
    with np.errstate(over="ignore", under="ignore"):
        stored: Array = scale.astype(dtype).astype(np.float32)
    if not np.isfinite(stored).all():
        raise ProblemError(
            f"{name}: a group's weights span {LARGEST_CODE * float(scale.max()):.4g}, whose scale "
            f"is too large for {dtype}"
        )
    return stored


def quantize_checkpoint(
    source: str | Path,
    target: str | Path,
    recipe: Recipe = Recipe(),
    progress: Progress = lambda done, total, text: None,
) -> Quantized:
    """Write a GPTQ checkpoint of a model; all of it or, after an error or Ctrl-C, nothing.

    Args:
        source:   .safetensors file or Hugging Face folder, float16, bfloat16 or float32
        target:   folder that is not there yet
        recipe:   how
        progress: called with tensors done, tensors in all and the name of the next

    Raises:
        CheckpointError: a damaged or quantised source, or a target that cannot be written.
        ProblemError: a weight that cannot be quantised, or no layer that can.
    """
    source = Path(source)
    with TensorFiles.open(source) as files:
        return _quantized(files, source, Path(target), recipe, progress)


def _quantized(
    files: TensorFiles, source: Path, target: Path, recipe: Recipe, progress: Progress
) -> Quantized:
    configs = source if source.is_dir() else source.parent
    model = _model_config(configs)
    quantised = [name for name in files.entries if name.endswith(QUANTISED)]
    if quantised or SECTION in model:
        found = f"a tensor {quantised[0]}" if quantised else f"a {SECTION} in {MODEL_FILE}"
        raise CheckpointError(f"{source} is quantised already: it has {found}")
    chosen = Selection(
        files.entries, Model.of(model), head=recipe.lm_head, include=recipe.include,
        exclude=recipe.exclude,
    )  # fmt: skip
    if not chosen.linears:
        raise ProblemError(f"{source} has no linear layer to quantise: no [N, K] .weight")
    report = Quantized([linear.name for linear in chosen.linears.values()], chosen.kept)
    with new_folder(target) as folder:
        weight_map = _write_files(files, folder, recipe, chosen, progress)
        write_index(folder, weight_map)
        config = _config(recipe, chosen)
        write_json(folder / FILES[0], config)
        if model:
            write_json(folder / MODEL_FILE, {**model, SECTION: config})
        if source.is_dir():
            copy_rest(source, folder)
        _read_back(folder, target, recipe, chosen)
    return report


def _write_files(
    files: TensorFiles, folder: Path, recipe: Recipe, chosen: Selection, progress: Progress
) -> dict[str, str]:
    """Write a file for each of the source and return tensor -> file."""
    by_file: dict[Path, list[str]] = {}
    for name, entry in files.entries.items():
        by_file.setdefault(entry.path, []).append(name)
    done = 0
    weight_map: dict[str, str] = {}
    for path, names in by_file.items():
        file = SINGLE if len(by_file) == 1 else path.name
        made = {name: _names(name, chosen) for name in names}
        # what is quantised first: whole words
        sizes = {
            name: 16 if name in chosen.linears else DTYPES[files.entries[name].dtype].itemsize
            for name in names
        }
        with TensorWriter(folder / file, chain.from_iterable(made.values())) as out:
            for name in aligned(names, sizes):
                progress(done, len(files.entries), name)
                for part, array in _converted(files.read(name), name, recipe, chosen):
                    out.add(part, array)
                done += 1
        shutil.copymode(path, folder / file)
        weight_map |= {part: file for parts in made.values() for part in parts}
    progress(done, done, "")
    return weight_map


def _names(name: str, chosen: Selection) -> list[str]:
    """Return the tensors that one becomes."""
    linear = chosen.linears.get(name)
    return [name] if linear is None else [f"{linear.name}.{part}" for part in QUANTISED_PARTS]


def _converted(
    tensor: Array, name: str, recipe: Recipe, chosen: Selection
) -> list[tuple[str, Array]]:
    """Return what becomes of one tensor: a layer's tensors, or itself."""
    linear = chosen.linears.get(name)
    if linear is None:
        return [(name, tensor)]
    weight = tensor.T if linear.by_rows else tensor
    made = quantize_weight(linear.name, weight, recipe)
    return [(f"{linear.name}.{part}", array) for part, array in made.items()]


def _model_config(folder: Path) -> dict[str, Any]:
    path = folder / MODEL_FILE
    return read_json(path) if path.exists() else {}


def _kind(linear: Linear, recipe: Recipe) -> described.Kind:
    size = linear.K if recipe.group_size == -1 else min(recipe.group_size, linear.K)
    return described.Kind(linear.K, size, recipe.sym)


def _config(recipe: Recipe, chosen: Selection) -> dict[str, Any]:
    """Return the config of what was written."""
    layers = {linear.name: _kind(linear, recipe) for linear in chosen.linears.values()}
    head = any(name.rpartition(".")[2] in selection.HEADS for name in layers)
    config = described.gptq(layers, chosen.exceptions, recipe.checkpoint_format, lm_head=head)
    return config | {"group_size": recipe.group_size}


def _read_back(folder: Path, target: Path, recipe: Recipe, chosen: Selection) -> None:
    """Raise CheckpointError unless a loader finds the layers that were quantised, and no other."""
    want = {
        linear.name: (linear.K, linear.N, _kind(linear, recipe).group_size)
        for linear in chosen.linears.values()
    }
    with GptqCheckpoint.open(folder) as made:
        got = {info.name: (info.K, info.N, info.group_size) for info in made.layers()}
        listed = [name for name in chosen.exceptions if made.config.for_layer(name) is not None]
    wrong = listed + [name for name in want.keys() | got.keys() if want.get(name) != got.get(name)]
    if wrong:
        raise CheckpointError(f"{target} was not written as it was meant: {sorted(wrong)[0]}")
