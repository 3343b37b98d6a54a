"""A quantised checkpoint: its layers by name, fused projections, the experts of a block."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.errors import CheckpointError, FerrumError, ProblemError
from ferrum_numba.gptq import overflow
from ferrum_numba.gptq.config import GptqConfig
from ferrum_numba.gptq.files import MOST_EXPERTS, TensorFiles
from ferrum_numba.gptq.formats import READERS, find_layers, layer_of, outlined, weight_of
from ferrum_numba.gptq.fused import concatenate
from ferrum_numba.gptq.header import MOST_NAME
from ferrum_numba.gptq.stacks import NUMBER, Pattern
from ferrum_numba.gptq.stored import Parts, Stored
from ferrum_numba.gptq.tensors import GptqTensors

# last part of a fused projection's name -> those of its parts, in order
FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
}
# in names, padded to as many digits
NUMBERS, DIGITS = re.compile(r"\d+"), 12
# of a weight that is a stack of experts
STACK_DIMENSIONS = 3
# names that are compared with one that is not there
MOST_COMPARED = 10_000


@dataclass(frozen=True)
class LayerInfo:
    """What is known of a stored layer without loading its weight.

    format:     as in `GptqConfig.checkpoint_format`
    K, N:       rows and columns of the weight, of each where it is a stack
    group_size: rows that share a scale; K where there is one group
    dtype:      of the scales, such as float16
    error:      why the layer cannot be loaded; then the fields between name and error are None
    experts:    how many weights are stacked in it; None of no stack
    uneven:     where groups are not of one size: which, in words
    """

    name: str
    format: str | None = None
    K: int | None = None
    N: int | None = None
    group_size: int | None = None
    sym: bool | None = None
    act_order: bool | None = None
    bias: bool | None = None
    dtype: str | None = None
    error: str | None = None
    experts: int | None = None
    uneven: str | None = None


class GptqCheckpoint:
    """A checkpoint of int4 weights, open for reading; a context manager.

    Nothing is read but headers, config and index until a layer is asked for: then its tensors, into
    memory of their own.
    """

    def __init__(self, config: GptqConfig, files: TensorFiles, path: Path) -> None:
        self.config = config
        # as the config says, until it was told which reading that is
        self._zero_overflow = config.zero_overflow
        self.path = path
        self._files = files
        # name -> None, or what it is where that is no int4 weight
        self._layers = find_layers(files.entries)
        # layer 2 before layer 10
        self._names = sorted(self._layers, key=_by_number)

    @classmethod
    def open(cls, path: str | Path, *, zero_overflow: str | None = None) -> GptqCheckpoint:
        """Open a folder as Hugging Face has them, or one .safetensors file beside its config.

        zero_overflow: what a GPTQ v1 zero point means that is stored as 15; see `gptq.overflow`

        Raises:
            CheckpointError: config, index or a file is missing, damaged or not supported.
            ProblemError: an unknown zero_overflow.
        """
        overflow.check(zero_overflow)
        path = Path(path)
        with ExitStack() as stack:
            files = stack.enter_context(TensorFiles.open(path))
            try:
                config = GptqConfig.load(path if path.is_dir() else path.parent)
            except CheckpointError as error:
                others = {name: kind for name, kind in find_layers(files.entries).items() if kind}
                for name, kind in others.items():
                    raise CheckpointError(
                        f"{error}; {name} is {kind}, and only int4 is read"
                    ) from None
                raise
            stack.pop_all()
        return cls(replace(config, zero_overflow=zero_overflow), files, path)

    def linear(self, name: str) -> GptqTensors:
        """Return a layer, stored under this name or put together of the parts of its projection.

        Raises:
            CheckpointError: there is no such layer, or the config says it cannot be loaded.
            ProblemError: its tensors do not fit each other.
        """
        if name in self._layers:
            return self._read(name).loaded()
        prefix, _, last = name.rpartition(".")
        parts = [f"{prefix}.{part}" if prefix else part for part in FUSED.get(last, ())]
        if not any(part in self._layers for part in parts):
            raise self._unknown(name)
        self._refuse_16_bit(name, parts)
        return concatenate([self._read(part).loaded() for part in parts], name)

    def experts(self, prefix: str, projections: Sequence[str] = ()) -> Iterator[GptqTensors]:
        """Return the experts of a block, one at a time, each with its projections side by side.

        prefix:      such as model.layers.0.mlp.experts.{e}, with {e} for the number; {p} stands for
                     the projections where they do not come last, as in mlp.experts.{p}.{e}; without
                     {e} all experts are in one tensor [E, ...]. See `gptq.stacks` for models' names
        projections: such as gate_proj, up_proj; a fused one may be stored in parts; none where the
                     prefix is the whole name

        Raises:
            CheckpointError: no experts there, or one is missing.
            ProblemError: an expert that differs from the first in K, N or group size; at its turn.
        """
        pattern = Pattern.of(prefix, projections)
        names = [pattern.name(projection) for projection in projections or ("",)]
        if pattern.numbered:
            num_experts = self._count(pattern, prefix)
        else:
            num_experts = self._count_stacked(names, prefix)
        return self._experts(pattern, projections or ("",), num_experts)

    @property
    def names(self) -> list[str]:
        """Names of the quantised layers, as they are stored: parts of a fused one each."""
        return list(self._names)

    @property
    def other_names(self) -> list[str]:
        """Names of the tensors that are no quantised layer's, as they are stored."""
        return [name for name in self._files.entries if layer_of(name)[0] not in self._layers]

    def others(self) -> Iterator[tuple[str, Array]]:
        """Yield the tensors that are no quantised layer's, with their names, one at a time."""
        for name in self.other_names:
            yield name, self._files.read(name)

    def layers(self) -> list[LayerInfo]:
        """Return what is known of every stored layer; of weights and scales only what they are.

        Raises:
            CheckpointError: a file was closed, or cut short.
        """
        self._files.check()
        return [self._info(name) for name in self._names]

    def close(self) -> None:
        """Let go of the files; layers that were returned stay valid."""
        self._files.close()

    def __enter__(self) -> GptqCheckpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _config_of(self, name: str) -> GptqConfig:
        """Return a layer's config.

        Raises:
            CheckpointError: it is no int4 weight, by its tensors or by what the config says.
        """
        kind = self._layers.get(name)
        if kind is not None:
            raise CheckpointError(f"{self.path}: {name} is {kind}, and only int4 is read")
        config = self.config.for_layer(name)
        if config is None:
            rule = self.config.rule(name)
            assert rule is not None, "what has no rule is quantised"
            raise CheckpointError(
                f"{self.config.source}: {rule.key} says that {name} is not quantised; "
                f"its tensors are in {self.path} all the same"
            )
        return config

    def _read(self, name: str, expert: int | None = None) -> Stored:
        """Return a stored layer, or one of a stack."""
        config = self._config_of(name)
        parts = Parts(name, self._files.entries, self._files.read, self.path, expert)
        return self._stored(parts, config)

    def _stored(self, parts: Parts, config: GptqConfig) -> Stored:
        """Return a stored layer as its config says; what is read in one of several ways, once."""
        if config.zero_overflow != self._zero_overflow:
            config = replace(config, zero_overflow=self._zero_overflow)
        stored = READERS[config.checkpoint_format](parts, config)
        if self._zero_overflow is None and stored.layer.overflows:
            self._zero_overflow = overflow.CARRY
        return stored

    def _stacked(self, name: str) -> int | None:
        """Return how many experts are stacked in a layer; None where it is no stack."""
        weight = weight_of(self.config.checkpoint_format)
        entry = self._files.entries.get(f"{name}.{weight}")
        if entry is None or len(entry.shape) != STACK_DIMENSIONS:
            return None
        if entry.shape[0] > MOST_EXPERTS:
            raise CheckpointError(
                f"{self.path}: {name} is a stack of {entry.shape[0]:,} experts; {MOST_EXPERTS:,} "
                "are read at most"
            )
        return entry.shape[0]

    def _info(self, name: str) -> LayerInfo:
        try:
            experts = self._stacked(name)
            numbers: Sequence[int | None] = [None] if experts is None else range(experts)
            config = self._config_of(name)
            read = self._seen(config)
            stored = [Parts(name, self._files.entries, read, self.path, e) for e in numbers]
            layers = [self._stored(parts, config).layer for parts in stored]
        except FerrumError as error:
            return LayerInfo(name, error=str(error))
        layer = layers[0]
        return LayerInfo(
            name=name,
            format=config.checkpoint_format,
            K=layer.in_features,
            N=layer.out_features,
            group_size=layer.group_size,
            sym=all(layer.symmetric for layer in layers),
            act_order=any(layer.act_order for layer in layers),
            bias=layer.bias is not None,
            dtype=_name_of(layer.scales.dtype),
            experts=experts,
            uneven=next((each.uneven for each in layers if each.uneven), None),
        )

    def _seen(self, config: GptqConfig) -> Callable[[str, int | None], Array]:
        """Return what reads of a layer's tensors those whose contents say what the layer is."""
        # a weight whose zero points are 16 is checked for codes of 0
        if self._zero_overflow == overflow.SIXTEEN:
            return self._files.read
        unseen = outlined(config.checkpoint_format)

        def read(name: str, expert: int | None) -> Array:
            part = name.rpartition(".")[2]
            return (self._files.outline if part in unseen else self._files.read)(name, expert)

        return read

    def _refuse_16_bit(self, name: str, parts: Sequence[str]) -> None:
        """Raise CheckpointError if some parts of a projection are int4 and others are not."""
        entries = self._files.entries
        dense = [p for p in parts if p not in self._layers and f"{p}.weight" in entries]
        if dense:
            int4 = ", ".join(part for part in parts if part in self._layers)
            others = ", ".join(f"{p} ({entries[f'{p}.weight'].dtype})" for p in dense)
            raise CheckpointError(
                f"{self.path}: {name} cannot be one weight: int4 is {int4}, not quantised is "
                f"{others}; load the parts by their own names"
            )

    def _unknown(self, name: str) -> CheckpointError:
        if f"{name}.weight" in self._files.entries:
            weight = weight_of(self.config.checkpoint_format)
            return CheckpointError(
                f"{self.path}: {name} is not quantised; it has a tensor {name}.weight and no "
                f"{name}.{weight}"
            )
        # of more, and of longer ones, it takes minutes
        few = len(self._names) <= MOST_COMPARED and len(name) <= MOST_NAME
        near = difflib.get_close_matches(name, self._names, n=1) if few else []
        hint = f"did you mean {near[0]}?" if near else f"it has {len(self._names)} others"
        return CheckpointError(f"{self.path} has no quantised layer {name}; {hint}")

    def _count(self, pattern: Pattern, prefix: str) -> int:
        """Return how many experts there are, all of 0 to the last."""
        found = pattern.numbers(self._names)
        if not found:
            raise CheckpointError(f"{self.path} has no quantised layers {prefix}")
        # those that are not quantised count too: a layer of fewer experts is another layer
        last = max(found | pattern.numbers(self._dense_names()))
        if last >= len(found):
            missing = next(number for number in range(last + 1) if number not in found)
            name = prefix.replace(NUMBER, str(missing))
            raise CheckpointError(
                f"{self.path} has {prefix} up to {last}, but no quantised layers of {name}"
            )
        return len(found)

    def _dense_names(self) -> set[str]:
        """Return the names of layers that are not quantised."""
        ending = ".weight"
        return {name[: -len(ending)] for name in self._files.entries if name.endswith(ending)}

    def _count_stacked(self, names: Sequence[str], prefix: str) -> int:
        """Return how many experts are stacked in layers, as many in each."""
        counts = {name: self._stacked(name) for name in names}
        for name, count in counts.items():
            if count is None and name not in self._layers:
                raise CheckpointError(
                    f"a prefix of experts needs {NUMBER} for their number; got {prefix}"
                )
            if count is None:
                self._config_of(name)
                raise CheckpointError(f"{self.path}: {name} is one layer, no stack of experts")
        if len(set(counts.values())) > 1:
            raise CheckpointError(f"{self.path}: {counts} must be as many experts each")
        return next(iter(counts.values())) or 0

    def _experts(
        self, pattern: Pattern, projections: Sequence[str], num_experts: int
    ) -> Iterator[GptqTensors]:
        shape = None
        for e in range(num_experts):
            expert = self._expert(pattern, projections, e)
            got = (expert.in_features, expert.out_features, expert.group_size)
            shape = shape or got
            if got != shape:
                words = "K = {}, N = {}, group size {}".format
                raise ProblemError(
                    f"{expert.name}: all experts must be alike; the first has {words(*shape)}, "
                    f"this one {words(*got)}"
                )
            yield expert

    def _expert(self, pattern: Pattern, projections: Sequence[str], e: int) -> GptqTensors:
        if pattern.numbered:
            parts = [self.linear(pattern.name(projection, e)) for projection in projections]
        else:
            parts = [self._read(pattern.name(projection), e).loaded() for projection in projections]
        if len(parts) == 1:
            return parts[0]
        return concatenate(parts, pattern.name("+".join(projections), e))


@cache
def _name_of(dtype: np.dtype[Any]) -> str:
    """Return a type's name, which NumPy makes anew every time."""
    return str(dtype)


def _by_number(name: str) -> str:
    return NUMBERS.sub(lambda number: number[0].zfill(DIGITS), name)
