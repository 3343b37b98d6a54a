"""A Hugging Face model's linear layers replaced by those of a quantised checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ferrum_numba.errors import CheckpointError, ProblemError
from ferrum_numba.gptq.checkpoint import FUSED, GptqCheckpoint
from ferrum_numba.gptq.tensors import GptqTensors
from ferrum_numba.torch.buffers import from_array
from ferrum_numba.torch.experts import ExpertStack, GatedExperts, is_silu
from ferrum_numba.torch.fused import Fused, Part
from ferrum_numba.torch.layout import NAMES
from ferrum_numba.torch.linear import MarlinLinear

GATED = ("gate_proj", "up_proj")
DOWN = "down_proj"


@dataclass
class Replaced:
    """What became of a model.

    layers: names of the checkpoint's quantised layers that are in it now
    fused:  names of the modules that several of them share
    loaded: names of the other tensors that were copied into it
    unused: names of the checkpoint's other tensors that it has no place for
    """

    layers: list[str] = field(default_factory=list)
    fused: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def replace_linears(
    model: nn.Module,
    checkpoint: GptqCheckpoint | str | Path,
    *,
    device: Any = None,
    dtype: torch.dtype | None = None,
    store: Literal["marlin", "raw"] | None = None,
    fuse: bool = True,
) -> Replaced:
    """Put a checkpoint's quantised layers in the place of a model's, and its other tensors too.

    q, k and v become one weight, and gate and up, where the model has them as layers of their own
    and the checkpoint quantises them alike; so do the experts of a block that the model has as
    tensors of three dimensions.

    Args:
        model:      whose modules have the checkpoint's names, such as transformers' `from_config`
                    makes: its weights need no values
        checkpoint: open, or its folder
        device:     of the layers; by default that of the weight in whose place each comes
        dtype:      of the layers; by default that of the model
        store:      as for `MarlinLinear`
        fuse:       whether projections of one x become one weight

    Raises:
        CheckpointError: a damaged checkpoint, or one with layers that the model does not have.
        ProblemError:    a layer of another shape than the model's, or that cannot be held. After an
                         error some of the model's layers may be replaced.
    """
    if not isinstance(checkpoint, GptqCheckpoint):
        with GptqCheckpoint.open(checkpoint) as opened:
            return replace_linears(
                model, opened, device=device, dtype=dtype, store=store, fuse=fuse
            )
    work = _Work(model, checkpoint, device, dtype or _type_of(model), store)
    work.experts()
    if fuse:
        work.projections()
    work.linears()
    left = sorted(work.names - set(work.done.layers))
    if left:
        raise CheckpointError(
            f"{checkpoint.path} has {len(left)} quantised layers that the model has no place for, "
            f"such as {left[0]}"
        )
    work.others()
    return work.done


class _Work:
    """A model in which layers are being replaced."""

    def __init__(
        self,
        model: nn.Module,
        checkpoint: GptqCheckpoint,
        device: Any,
        dtype: torch.dtype,
        store: Literal["marlin", "raw"] | None,
    ) -> None:
        self.model, self.checkpoint, self.device = model, checkpoint, device
        self.options: dict[str, Any] = {"dtype": dtype, "store": store}
        self.names = set(checkpoint.names)
        self.done = Replaced()

    def experts(self) -> None:
        """Replace modules that hold their experts' weights as tensors of three dimensions."""
        for name, module in list(self.model.named_modules()):
            weight = getattr(module, "gate_up_proj", None)
            stacked = isinstance(weight, torch.Tensor) and weight.dim() == 3
            if not stacked or f"{name}.0.{DOWN}" not in self.names:
                continue
            silu = is_silu(module.act_fn)
            gate_up = self._stack(name, GATED, weight, interleave=silu)
            down = self._stack(name, (DOWN,), weight)
            _set(self.model, name, GatedExperts(gate_up, down, module.act_fn))
            self.done.fused.append(name)

    def projections(self) -> None:
        """Replace linear layers that multiply the same x by one for all of them."""
        for name, parent in list(self.model.named_modules()):
            for fused_name, parts in FUSED.items():
                whole = f"{name}.{fused_name}" if name else fused_name
                linears: dict[str, Any] = {part: getattr(parent, part, None) for part in parts}
                full = [f"{whole.removesuffix(fused_name)}{part}" for part in parts]
                if hasattr(parent, fused_name) or not self.names.issuperset(full):
                    continue
                if not all(isinstance(linear, nn.Linear) for linear in linears.values()):
                    continue
                try:
                    layer = self.checkpoint.linear(whole)
                except ProblemError:
                    # they are quantised in different ways
                    continue
                self._fuse(parent, fused_name, linears, layer)
                self.done.layers += full
                self.done.fused.append(whole)

    def linears(self) -> None:
        """Replace the linear layers that are left."""
        for name, module in list(self.model.named_modules()):
            if isinstance(module, nn.Linear) and name in self.names:
                layer = self.checkpoint.linear(name)
                self._same(name, (module.in_features, module.out_features), layer)
                made = MarlinLinear.from_gptq(
                    layer, device=self._place(name, module.weight), **self.options
                )
                _set(self.model, name, made)
                self.done.layers.append(name)

    def others(self) -> None:
        """Copy the tensors that are no quantised layer's, such as embeddings and norms."""
        places = dict(self.model.named_parameters(remove_duplicate=False))
        places |= dict(self.model.named_buffers())
        for name, array in self.checkpoint.others():
            place = places.get(name)
            if place is None:
                self.done.unused.append(name)
                continue
            tensor = from_array(array)
            if tensor.shape != place.shape:
                raise ProblemError(
                    f"{name} must be {list(place.shape)} as in the model; "
                    f"the checkpoint has {list(tensor.shape)}"
                )
            if place.is_meta:
                raise ProblemError(
                    f"{name} is on the meta device; make the model on the device where it will run"
                )
            with torch.no_grad():
                place.copy_(tensor)
            self.done.loaded.append(name)

    def _stack(
        self,
        name: str,
        projections: tuple[str, ...],
        weight: torch.Tensor,
        *,
        interleave: bool = False,
    ) -> ExpertStack:
        experts = self.checkpoint.experts(f"{name}.{{e}}", projections)
        place = self._place(name, weight)
        stack = ExpertStack.from_gptq(
            list(experts), device=place, interleave=interleave, **self.options
        )
        got, want = stack.layout.num_experts, weight.shape[0]
        if got != want:
            raise ProblemError(f"{name} has {want} experts in the model, {got} in the checkpoint")
        self.done.layers += [f"{name}.{e}.{p}" for e in range(got) for p in projections]
        return stack

    def _fuse(
        self, parent: nn.Module, name: str, linears: dict[str, nn.Linear], layer: GptqTensors
    ) -> None:
        first = next(iter(linears.values()))
        sizes = [linear.out_features for linear in linears.values()]
        self._same(layer.name, (first.in_features, sum(sizes)), layer)
        made = MarlinLinear.from_gptq(
            layer, device=self._place(layer.name, first.weight), **self.options
        )
        fused = Fused(made, sizes)
        setattr(parent, name, fused)
        for index, part in enumerate(linears):
            setattr(parent, part, Part(fused, index))

    def _same(self, name: str, want: tuple[int, int], layer: GptqTensors) -> None:
        got = layer.in_features, layer.out_features
        if got != want:
            raise ProblemError(
                f"{name} must be K, N = {want} as in the model; the checkpoint has {got}"
            )

    def _place(self, name: str, weight: torch.Tensor) -> torch.device:
        place = torch.device(weight.device if self.device is None else self.device)
        if place.type == "meta":
            raise ProblemError(f"{name} is on the meta device; say device=")
        return place


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _type_of(model: nn.Module) -> torch.dtype:
    for parameter in model.parameters():
        if parameter.dtype in NAMES:
            return parameter.dtype
    raise ProblemError("a model must be in float16 or bfloat16: call .half() of it, or say dtype=")
