"""Round a model's weights to nearest, into a GPTQ checkpoint.

It is for who has no quantised model to try things with: the rounding knows nothing of activations,
so the result is worse than GPTQ's. Each file of the source becomes a file of its own. The library
writes a file from tensors that are all in memory: what is copied is a view of the source, what is
quantised takes a quarter of a 16-bit weight, so that a shard of 5 GB takes 1.3 GB, and a block of
one layer's columns in float32 on top.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ferrum_numba.contract import Array
from ferrum_numba.errors import CheckpointError, ProblemError
from ferrum_numba.gptq.config import FILES, MODEL_FILE, SECTION, read_json
from ferrum_numba.gptq.files import INDEX, SINGLE, TensorFiles
from ferrum_numba.gptq.tensors import FLOATS, PACK_FACTOR
from ferrum_numba.reference.gptq import pack_codes, pack_zero_points

LARGEST_CODE = 15
SYMMETRIC_ZERO_POINT = 8
# columns of the weight, rows of torch's, that are in memory as float32 at a time
BLOCK_COLUMNS = 512
ENDING = ".weight"
# tensors that only a quantised layer has
QUANTISED = (".qweight", ".B")
# parts of names of matrices that are no linear layers
NOT_LINEAR = ("embed", "wte", "wpe", "norm")
# last parts of names of routers: small, and quantising them sends tokens to other experts
ROUTERS = ("gate", "router", "shared_expert_gate")
HEAD = "lm_head"
# why a matrix is kept that no loader takes for quantised
THE_HEAD, NO_LAYER = "the head", "no linear layer"
# beside the weights, what a loader needs: configs, tokenizer, chat template
COPIED = (".json", ".txt", ".model", ".jinja", ".tiktoken")

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Recipe:
    """How to quantise.

    group_size:        rows that share a scale; -1 for all of them
    sym:               zero points of 8, else of their own
    checkpoint_format: of zero points, "gptq" or "gptq_v2"
    lm_head:           quantise the head too
    """

    group_size: int = 128
    sym: bool = True
    checkpoint_format: str = "gptq"
    lm_head: bool = False

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
    for first in range(0, N, BLOCK_COLUMNS):
        block = slice(first, first + BLOCK_COLUMNS)
        values = weight[block].astype(np.float32)
        ends = _ends(name, values, rows)
        scale = _scales(name, ends, recipe.sym, scales.dtype)
        zero = np.full(scale.shape, np.float32(SYMMETRIC_ZERO_POINT))
        if not recipe.sym:
            zero = np.clip(np.rint(-ends[0] / scale), 0, LARGEST_CODE)
        codes = np.rint(values / scale[:, group]) + zero[:, group]
        codes = np.clip(codes, 0, LARGEST_CODE).astype(np.uint8)
        qweight[:, block] = pack_codes(np.ascontiguousarray(codes.T))
        scales[:, block], zeros[:, block] = scale.T, zero.T.astype(np.uint8)
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


def _scales(name: str, ends: tuple[Array, Array], sym: bool, dtype: np.dtype[Any]) -> Array:
    """Return [n, G] float32, the scales as they will be stored; 1 where a group is all zeros."""
    low, high = ends
    # symmetric: from -8 to 7; the range to +-7.5 keeps both ends within half a scale
    with np.errstate(over="ignore"):
        span = 2 * np.maximum(-low, high) if sym else high - low
        scale = (span / LARGEST_CODE).astype(dtype).astype(np.float32)
    if not np.isfinite(scale).all():
        raise ProblemError(
            f"{name}: a group's weights span {span.max():.4g}, whose scale is too large for {dtype}"
        )
    scale[scale == 0] = 1
    return scale


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
    files = TensorFiles.open(source)
    configs = source if source.is_dir() else source.parent
    model = _model_config(configs)
    quantised = [name for name in files.entries if name.endswith(QUANTISED)]
    if quantised or SECTION in model:
        found = f"a tensor {quantised[0]}" if quantised else f"a {SECTION} in {MODEL_FILE}"
        raise CheckpointError(f"{source} is quantised already: it has {found}")
    report = Quantized()
    with _new_folder(Path(target)) as folder:
        weight_map = _write_files(files, folder, recipe, report, progress)
        if not report.layers:
            raise ProblemError(f"{source} has no linear layer to quantise: no [N, K] {ENDING}")
        _write_configs(folder, recipe, report, model, weight_map)
        if source.is_dir():
            _copy_rest(source, folder)
    return report


def _write_files(
    files: TensorFiles, folder: Path, recipe: Recipe, report: Quantized, progress: Progress
) -> dict[str, str]:
    """Write a file for each of the source and return tensor -> file; the report is filled."""
    by_file: dict[Path, list[str]] = {}
    for name, entry in files.entries.items():
        by_file.setdefault(entry.path, []).append(name)
    done = 0
    weight_map: dict[str, str] = {}
    for path, names in by_file.items():
        file = SINGLE if len(by_file) == 1 else path.name
        tensors: dict[str, Array] = {}
        for name in names:
            progress(done, len(files.entries), name)
            tensors |= _converted(files, name, recipe, report)
            done += 1
        # what Hugging Face's loader asks for
        save_file(tensors, folder / file, metadata={"format": "pt"})
        # the library's files are for their owner only
        shutil.copymode(path, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
    progress(done, done, "")
    return weight_map


def _converted(
    files: TensorFiles, name: str, recipe: Recipe, report: Quantized
) -> dict[str, Array]:
    """Return what becomes of one tensor: a layer's tensors, or itself."""
    entry = files.entries[name]
    tensor = files.read(name)
    if not name.endswith(ENDING) or len(entry.shape) != 2 or tensor.dtype not in FLOATS:
        return {name: tensor}
    layer = name.removesuffix(ENDING)
    reason = _kept_because(layer, entry.shape, recipe)
    if reason is not None:
        report.kept[layer] = reason
        return {name: tensor}
    report.layers.append(layer)
    made = quantize_weight(layer, tensor, recipe)
    return {f"{layer}.{part}": array for part, array in made.items()}


def _kept_because(layer: str, shape: tuple[int, ...], recipe: Recipe) -> str | None:
    last = layer.rpartition(".")[2]
    if last == HEAD and not recipe.lm_head:
        return THE_HEAD
    if any(word in last for word in NOT_LINEAR):
        return NO_LAYER
    if last in ROUTERS:
        return "a router"
    N, K = shape
    if N % PACK_FACTOR or K % PACK_FACTOR or not (N and K):
        return f"K = {K} and N = {N} must be multiples of {PACK_FACTOR}"
    return None


def _model_config(folder: Path) -> dict[str, Any]:
    path = folder / MODEL_FILE
    return read_json(path) if path.exists() else {}


def _write_configs(
    folder: Path,
    recipe: Recipe,
    report: Quantized,
    model: dict[str, Any],
    weight_map: dict[str, str],
) -> None:
    config = {
        "bits": 4, "desc_act": False, "quant_method": "gptq", "pack_dtype": "int32",
        **asdict(recipe),
    }  # fmt: skip
    # a loader takes every other linear layer for quantised
    exceptions = [name for name, why in report.kept.items() if why not in (THE_HEAD, NO_LAYER)]
    if exceptions:
        config["dynamic"] = {f"-:{re.escape(name)}$": {} for name in exceptions}
    _write_json(folder / FILES[0], config)
    if model:
        _write_json(folder / MODEL_FILE, {**model, SECTION: config})
    if len(set(weight_map.values())) > 1:
        _write_json(folder / INDEX, {"metadata": {}, "weight_map": weight_map})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _copy_rest(source: Path, folder: Path) -> None:
    """Copy what else a loader needs, but no index of files that are others now."""
    for path in sorted(source.iterdir()):
        wanted = path.suffix in COPIED and not path.name.endswith(".index.json")
        if wanted and path.is_file() and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to fill, which gets its name at the end; after an error it is gone."""
    if target.exists():
        raise CheckpointError(f"{target} is there already; the target must be a new folder")
    folder = target.parent / f".{target.name}.{secrets.token_hex(4)}"
    try:
        folder.mkdir()
        yield folder
        folder.rename(target)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
