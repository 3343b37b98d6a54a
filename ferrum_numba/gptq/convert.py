"""A quantised checkpoint in another format, without loss: a layer in memory at a time.

Codes, zero points and scales are the same to the bit, and so is every other tensor. What a format
cannot hold is refused, and nothing is left of it. What was written is read back at the end.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from ferrum_numba.errors import CheckpointError, ProblemError, ZeroOverflowWarning
from ferrum_numba.gptq.checkpoint import GptqCheckpoint, LayerInfo
from ferrum_numba.gptq.config import FILES, MODEL_FILE, SECTION, read_json
from ferrum_numba.gptq.described import Kind
from ferrum_numba.gptq.files import DTYPES, SINGLE, TensorFiles
from ferrum_numba.gptq.formats import PARTS
from ferrum_numba.gptq.quantize import Progress
from ferrum_numba.gptq.selection import HEADS, Model, Selection
from ferrum_numba.gptq.sources import unquantised
from ferrum_numba.gptq.targets import TARGETS, Target
from ferrum_numba.gptq.writing import (
    TensorWriter,
    aligned,
    copy_rest,
    new_folder,
    write_index,
    write_json,
)

# of the source, which say what the target is not
CONFIGS = (*FILES, "quantization_config.json")
# bytes in which a quantised layer's tensors all are whole
LAYER_ALIGNMENT = 16


@dataclass(frozen=True)
class Converted:
    """What was written.

    layers: how many quantised layers
    others: how many tensors besides them
    """

    layers: int
    others: int


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    to: str,
    *,
    zero_overflow: str | None = None,
    progress: Progress = lambda done, total, text: None,
) -> Converted:
    """Write a checkpoint in another format; all of it or, after an error or Ctrl-C, nothing.

    Args:
        source:        folder or .safetensors file of any format that is read
        target:        folder that is not there yet
        to:            "gptq", "gptq_v2", "awq", "compressed-tensors" or "marlin"
        zero_overflow: as for `GptqCheckpoint.open`; it must be given where it counts
        progress:      called with layers and tensors done, all of them, and the name of the next

    Raises:
        CheckpointError: a damaged source, one that is not quantised, or a target that cannot be
            written.
        ProblemError: a layer that the format cannot hold, by its name; or an unknown format or
            zero_overflow.
    """
    source, target = Path(source), Path(target)
    if to not in TARGETS:
        known = ", ".join(f'"{name}"' for name in TARGETS)
        raise ProblemError(f"a checkpoint can be written as one of {known}; got {to!r}")
    opened = GptqCheckpoint.open(source, zero_overflow=zero_overflow)
    with _overflow_refused(), opened as checkpoint, TensorFiles.open(source) as files:
        made = _Conversion(checkpoint, files, source, TARGETS[to])
        with new_folder(target) as folder:
            write_index(folder, made.write_files(folder, progress))
            made.write_configs(folder)
            made.read_back(folder, target)
    return Converted(len(made.infos), len(made.others))


class _Conversion:
    """A checkpoint on its way into another format.

    infos:  its layers
    others: names of its other tensors
    """

    def __init__(
        self, checkpoint: GptqCheckpoint, files: TensorFiles, source: Path, target: Target
    ) -> None:
        self._checkpoint, self._files, self._source = checkpoint, files, source
        self._target = target
        self.infos = {info.name: info for info in checkpoint.layers()}
        if not self.infos:
            raise CheckpointError(f"{source} has no quantised layer")
        for info in self.infos.values():
            if info.error is not None:
                raise CheckpointError(info.error)
            if getattr(info, "experts", None) is not None:
                raise ProblemError(
                    f"{info.name}: it is a stack of {info.experts} experts, and layers are "
                    "converted one by one"
                )
        self.others = checkpoint.other_names
        self._sym = all(info.sym for info in self.infos.values())

    def write_files(self, folder: Path, progress: Progress) -> dict[str, str]:
        """Write a file for each of the source; return tensor -> file."""
        layers, others = self._by_file()
        paths = list(dict.fromkeys([*layers.values(), *others.values()]))
        weight_map: dict[str, str] = {}
        done, total = 0, len(layers) + len(others)
        for path in paths:
            file = SINGLE if len(paths) == 1 else path.name
            mine = [name for name, where in layers.items() if where == path]
            rest = [name for name, where in others.items() if where == path]
            sizes = {name: DTYPES[self._files.entries[name].dtype].itemsize for name in rest}
            possible = [f"{name}.{part}" for name in mine for part in self._target.parts]
            with TensorWriter(folder / file, [*possible, *rest]) as out:
                # whole words first, so that all is aligned
                for name in mine:
                    progress(done, total, name)
                    layer = self._checkpoint.linear(name)
                    for part, array in self._target.write(layer, self._sym).items():
                        out.add(f"{name}.{part}", array)
                        weight_map[f"{name}.{part}"] = file
                    done += 1
                for name in aligned(rest, sizes):
                    progress(done, total, name)
                    out.add(name, self._files.read(name))
                    weight_map[name] = file
                    done += 1
            shutil.copymode(path, folder / file)
        progress(done, total, "")
        return weight_map

    def write_configs(self, folder: Path) -> None:
        """Write what says exactly what is there, and copy what else a loader needs."""
        configs = self._source if self._source.is_dir() else self._source.parent
        path = configs / MODEL_FILE
        model = read_json(path) if path.exists() else {}
        head = any(name.rpartition(".")[2] in HEADS for name in self.infos)
        config = self._target.config(self._kinds(), self._kept(model), head)
        if self._target.file is not None:
            write_json(folder / self._target.file, config)
        if model or self._target.file is None:
            write_json(folder / MODEL_FILE, {**unquantised(model), SECTION: config})
        if self._source.is_dir():
            copy_rest(self._source, folder, left_out=CONFIGS)

    def read_back(self, folder: Path, target: Path) -> None:
        """Raise CheckpointError unless a loader finds the same layers and other tensors."""
        with GptqCheckpoint.open(folder) as made:
            got = {info.name: info for info in made.layers()}
            others = set(made.other_names)
        for name in [*self.infos, *got]:
            if name not in got or name not in self.infos or not _same(self.infos[name], got[name]):
                raise CheckpointError(f"{target} was not written as it was meant: layer {name}")
        if others != set(self.others):
            raise CheckpointError(f"{target} was not written as it was meant: other tensors")

    def _by_file(self) -> tuple[dict[str, Path], dict[str, Path]]:
        """Return the file of each layer, of its largest tensor, and of each other tensor."""
        others = {name: self._files.entries[name].path for name in self.others}
        layers: dict[str, Path] = {}
        size = dict.fromkeys(self.infos, -1)
        for name, entry in self._files.entries.items():
            if name in others:
                continue
            layer, _, part = name.rpartition(".")
            if part not in PARTS:
                raise CheckpointError(
                    f"{self._source}: tensor {name} is none of a quantised layer's, and would be "
                    "lost"
                )
            elements = _product(entry.shape)
            if elements > size[layer]:
                size[layer], layers[layer] = elements, entry.path
        return layers, others

    def _kinds(self) -> dict[str, Kind]:
        return {
            name: Kind(info.K or 0, info.group_size or 0, bool(info.sym), bool(info.act_order))
            for name, info in self.infos.items()
        }

    def _kept(self, model: Mapping[str, Any]) -> list[str]:
        """Return the linear layers that are not quantised, as far as their tensors tell."""
        entries = {name: self._files.entries[name] for name in self.others}
        found = Selection(entries, Model.of(model))
        return [*(linear.name for linear in found.linears.values()), *found.exceptions]


def _same(one: LayerInfo, other: LayerInfo) -> bool:
    """Tell whether two layers are the same but for their formats."""
    return astuple(one)[:1] + astuple(one)[2:] == astuple(other)[:1] + astuple(other)[2:]


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


@contextmanager
def _overflow_refused() -> Iterator[None]:
    """Make an error of a warning: what is written can be taken for one thing only."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ZeroOverflowWarning)
            yield
    except ZeroOverflowWarning as warning:
        raise CheckpointError(f"{warning} (--zero-overflow)") from None
