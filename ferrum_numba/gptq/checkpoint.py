"""A quantised checkpoint: its layers by name, fused projections, the experts of a block."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from ferrum_numba.contract import Array
from ferrum_numba.errors import CheckpointError, FerrumError, ProblemError
from ferrum_numba.gptq import awq, legacy_marlin
from ferrum_numba.gptq.config import GptqConfig
from ferrum_numba.gptq.files import TensorFiles
from ferrum_numba.gptq.tensors import GptqTensors, concatenate

# last part of a fused projection's name -> those of its parts, in order
FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
}
# the tensor that makes a layer, by checkpoint format
WEIGHTS = {"gptq": "qweight", "gptq_v2": "qweight", "gemm": "qweight", "marlin": "B"}


@dataclass(frozen=True)
class LayerInfo:
    """What is known of a stored layer without loading its weight.

    format:     "gptq", "gptq_v2", "gemm" (AWQ's) or "marlin"
    K, N:       rows and columns of the weight
    group_size: rows that share a scale; K where there is one group
    dtype:      of the scales, such as float16
    error:      why the layer cannot be loaded; then the fields between name and error are None
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


class GptqCheckpoint:
    """A GPTQ, AWQ or legacy Marlin checkpoint, open for reading; a context manager.

    Nothing is read but headers, config and index until a layer is asked for. Tensors in GPTQ's own
    layout are views of the files; fused and converted ones are copies, one layer at a time.
    """

    def __init__(
        self, config: GptqConfig, files: TensorFiles, path: Path, zero_overflow: str | None = None
    ) -> None:
        self.config = config
        self._zero_overflow = zero_overflow
        self.path = path
        self._files = files
        self._weight = WEIGHTS[config.checkpoint_format]
        ending = f".{self._weight}"
        names = (name.removesuffix(ending) for name in files.entries if name.endswith(ending))
        # layer 2 before layer 10
        self._names = sorted(names, key=_by_number)

    @classmethod
    def open(cls, path: str | Path, *, zero_overflow: str | None = None) -> GptqCheckpoint:
        """Open a folder as Hugging Face has them, or one .safetensors file beside its config.

        zero_overflow: what a GPTQ v1 zero point means that is stored as 15; see `gptq.overflow`

        Raises:
            CheckpointError: config, index or a file is missing, damaged or not supported.
        """
        path = Path(path)
        files = TensorFiles.open(path)
        config = GptqConfig.load(path if path.is_dir() else path.parent)
        return cls(config, files, path, zero_overflow)

    def linear(self, name: str) -> GptqTensors:
        """Return a layer, stored under this name or put together of the parts of its projection.

        Raises:
            CheckpointError: there is no such layer, or the config says it cannot be loaded.
            ProblemError: its tensors do not fit each other.
        """
        if self._has(name, self._weight):
            return self._load(name)
        prefix, _, last = name.rpartition(".")
        parts = [f"{prefix}.{part}" if prefix else part for part in FUSED.get(last, ())]
        if not any(self._has(part, self._weight) for part in parts):
            raise self._unknown(name)
        return concatenate([self._load(part) for part in parts], name)

    def experts(self, prefix: str, projections: Sequence[str]) -> Iterator[GptqTensors]:
        """Return the experts of a block, one at a time, each with its projections side by side.

        prefix:      such as model.layers.0.mlp.experts.{e}
        projections: such as gate_proj, up_proj; a fused one may be stored in parts

        Raises:
            CheckpointError: no experts there, or one is missing.
            ProblemError: an expert that differs from the first in K, N or group size; at its turn.
        """
        num_experts = self._count(prefix)
        return self._experts(prefix, projections, num_experts)

    @property
    def names(self) -> list[str]:
        """Names of the quantised layers, as they are stored: parts of a fused one each."""
        return list(self._names)

    def others(self) -> Iterator[tuple[str, Array]]:
        """Yield the tensors that are no quantised layer's, with their names: views of the files."""
        layers = set(self._names)
        for name in self._files.entries:
            if name.rpartition(".")[0] not in layers:
                yield name, self._files.read(name)

    def layers(self) -> list[LayerInfo]:
        """Return what is known of every stored layer; only zero points and g_idx are read."""
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

    def _has(self, name: str, tensor: str) -> bool:
        return f"{name}.{tensor}" in self._files.entries

    def _tensor(self, name: str, tensor: str) -> Array:
        if not self._has(name, tensor):
            raise CheckpointError(f"{self.path}: layer {name} has no tensor {name}.{tensor}")
        return self._files.read(f"{name}.{tensor}")

    def _optional(self, name: str, tensor: str) -> Array | None:
        return self._tensor(name, tensor) if self._has(name, tensor) else None

    def _config_of(self, name: str) -> GptqConfig:
        config = self.config.for_layer(name)
        if config is None:
            raise CheckpointError(
                f"{self.config.source}: dynamic says that {name} is not quantised; "
                f"its tensor {name}.{self._weight} is in {self.path} all the same"
            )
        return config

    def _load(self, name: str) -> GptqTensors:
        """Return a stored layer, its weight in GPTQ's layout."""
        layer, stored_as = self._checked(name)
        weight = self._tensor(name, WEIGHTS[stored_as])
        if stored_as == "gemm":
            return replace(layer, qweight=awq.weight_from_awq(weight))
        if stored_as == "marlin":
            return replace(layer, qweight=legacy_marlin.weight_from_marlin(weight))
        return layer

    def _checked(self, name: str) -> tuple[GptqTensors, str]:
        """Return a layer and its format; a weight in another layout is only a stand-in of zeros."""
        config = self._config_of(name)
        stored_as = config.checkpoint_format
        weight = self._tensor(name, WEIGHTS[stored_as])
        bias, size = self._optional(name, "bias"), config.group_size
        if stored_as == "marlin":
            s = self._tensor(name, "s")
            return legacy_marlin.checked(name, weight, s, bias, group_size=size), stored_as
        scales, qzeros = self._tensor(name, "scales"), self._optional(name, "qzeros")
        if stored_as == "gemm":
            return awq.checked(name, weight, scales, qzeros, bias, group_size=size), stored_as
        tensors = (weight, scales, qzeros, self._optional(name, "g_idx"), bias)
        layer = GptqTensors.make(
            name, *tensors, group_size=size, sym=config.sym, desc_act=config.desc_act,
            checkpoint_format=stored_as, zero_overflow=self._zero_overflow,
        )  # fmt: skip
        return layer, stored_as

    def _info(self, name: str) -> LayerInfo:
        try:
            layer, stored_as = self._checked(name)
        except FerrumError as error:
            return LayerInfo(name, error=str(error))
        return LayerInfo(
            name=name,
            format=stored_as,
            K=layer.in_features,
            N=layer.out_features,
            group_size=layer.group_size,
            sym=layer.symmetric,
            act_order=layer.act_order,
            bias=layer.bias is not None,
            dtype=str(layer.scales.dtype),
        )

    def _unknown(self, name: str) -> CheckpointError:
        if self._has(name, "weight"):
            return CheckpointError(
                f"{self.path}: {name} is not quantised; it has a tensor {name}.weight and no "
                f"{name}.{self._weight}"
            )
        near = difflib.get_close_matches(name, self._names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {len(self._names)} others"
        return CheckpointError(f"{self.path} has no quantised layer {name}; {hint}")

    def _count(self, prefix: str) -> int:
        """Return how many experts there are, all of 0 to the last."""
        before, hole, after = prefix.partition("{e}")
        if not hole:
            raise CheckpointError(f"a prefix of experts needs {{e}} for their number; got {prefix}")
        pattern = re.compile(rf"{re.escape(before)}(\d+){re.escape(after)}\.")
        found = {int(match[1]) for match in map(pattern.match, self._names) if match}
        if not found:
            raise CheckpointError(f"{self.path} has no quantised layers {prefix}")
        missing = set(range(max(found))) - found
        if missing:
            name = prefix.replace("{e}", str(min(missing)))
            raise CheckpointError(
                f"{self.path} has {prefix} up to {max(found)}, but no quantised layers of {name}"
            )
        return len(found)

    def _experts(
        self, prefix: str, projections: Sequence[str], num_experts: int
    ) -> Iterator[GptqTensors]:
        shape = None
        for e in range(num_experts):
            expert = self._expert(prefix.replace("{e}", str(e)), projections)
            got = (expert.in_features, expert.out_features, expert.group_size)
            shape = shape or got
            if got != shape:
                words = "K = {}, N = {}, group size {}".format
                raise ProblemError(
                    f"{expert.name}: all experts must be alike; the first has {words(*shape)}, "
                    f"this one {words(*got)}"
                )
            yield expert

    def _expert(self, name: str, projections: Sequence[str]) -> GptqTensors:
        parts = [self.linear(f"{name}.{projection}") for projection in projections]
        if len(parts) == 1:
            return parts[0]
        return concatenate(parts, f"{name}.{'+'.join(projections)}")


def _by_number(name: str) -> list[tuple[bool, int | str]]:
    return [(part.isdecimal(), int(part) if part.isdecimal() else part) for part in name.split(".")]
