"""A quantised linear layer as a module of torch's."""

from __future__ import annotations

from typing import Any, Literal

import torch

from ferrum_numba.gptq.tensors import GptqTensors
from ferrum_numba.linear.dense import MarlinLinear as OnDevice
from ferrum_numba.torch import operator
from ferrum_numba.torch.buffers import OfStack, type_name
from ferrum_numba.torch.layout import Layout


class MarlinLinear(OfStack):
    """y = x times a layer's weight, plus its bias.

    Its buffers have the names that kernels have for them, and the shapes of `Layout.buffers`. It is
    made empty, to load a state into, or by `from_gptq`.

    layout: what the weight is
    """

    @classmethod
    def from_gptq(
        cls,
        layer: GptqTensors,
        *,
        device: Any = "cuda",
        store: Literal["marlin", "raw"] | None = None,
        dtype: torch.dtype | str = torch.float16,
        bias_mode: Literal["fused", "two_step"] = "fused",
        dense: bool = False,
    ) -> MarlinLinear:
        """Put a checkpoint's layer on a device.

        Args:
            layer:  as `GptqCheckpoint.linear` returns it
            device: of torch's; "cpu" runs the reference
            store:  "marlin" for packed tiles, "raw" for the checkpoint's own layout; by default
                    packed where it can be
            dtype:  float16 or bfloat16, of x, y, scales and bias
            bias_mode, dense: as for `ferrum_numba.MarlinLinear.from_gptq`

        Raises:
            ProblemError: the layer cannot be held so; it names the layer and says why.
            DeviceError:  no such device.
        """
        made = OnDevice.from_gptq(
            layer, device=cls.place(device), store=store, dtype=type_name(dtype),
            bias_mode=bias_mode, dense=dense,
        )  # fmt: skip
        return cls.of(made.store, Layout.of(made.store, dense=dense))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [..., K] times the weight, [..., N], plus bias."""
        return operator.linear(x, *self.operands(), self.layout_text)
