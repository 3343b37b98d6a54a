"""A layer as it lies in a checkpoint: its tensors by the last part of their names."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ferrum_numba.contract import Array
from ferrum_numba.errors import CheckpointError
from ferrum_numba.gptq.tensors import GptqTensors


class Parts(NamedTuple):
    """The stored tensors of one layer, read when they are asked for.

    name:   of the layer
    has:    which tensors there are
    read:   returns one of them by its name; of a stack, that of an expert
    path:   of the checkpoint, for errors
    expert: which layer of a stack, the first dimension of its tensors; None of no stack
    """

    name: str
    has: Container[str]
    read: Callable[[str, int | None], Array]
    path: Path
    expert: int | None = None

    def need(self, tensor: str) -> Array:
        """Return a tensor.

        Raises:
            CheckpointError: the layer has none of this name.
        """
        found = self.optional(tensor)
        if found is None:
            raise CheckpointError(
                f"{self.path}: layer {self.name} has no tensor {self.name}.{tensor}"
            )
        return found

    def optional(self, tensor: str) -> Array | None:
        """Return a tensor, or None where the layer has none of this name."""
        name = f"{self.name}.{tensor}"
        if name not in self.has:
            return None
        return self.read(name, self.expert)


@dataclass(frozen=True)
class Stored:
    """A layer that was checked, and how to bring its weight into GPTQ's layout.

    layer:  its qweight stands in for one of another layout, where there is a `weight`
    weight: makes [K/8, N] int32 of the stored weight; None where that is GPTQ's own
    """

    layer: GptqTensors
    weight: Callable[[], Array] | None = None

    def loaded(self) -> GptqTensors:
        """Return the layer with its weight in GPTQ's layout."""
        return self.layer if self.weight is None else replace(self.layer, qweight=self.weight())
