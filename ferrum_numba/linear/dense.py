"""A dense quantised linear layer."""

from __future__ import annotations

from typing import Any, Literal

from ferrum_numba.errors import ProblemError
from ferrum_numba.gptq.tensors import GptqTensors
from ferrum_numba.linear.choice import dense_refusal
from ferrum_numba.linear.eight_bit import eight_bit_refusal
from ferrum_numba.linear.layer import Linear
from ferrum_numba.linear.select import make_store
from ferrum_numba.linear.stores import Store


class MarlinLinear(Linear):
    """out = x times a layer's weight, plus its bias.

    It holds the weight on its device and nothing else: scratch is shared by all layers of a stream.

    dense:       very many rows may run with the whole weight dequantised; see `from_gptq`
    activations: "fp8" or "int8": many rows of x are rounded to it; see `from_gptq`
    """

    def __init__(
        self, store: Store, *, dense: bool = False, activations: str | None = None
    ) -> None:
        if dense:
            reason = dense_refusal(store.kind, on_gpu=store.runtime is not None)
            if reason is not None:
                raise ProblemError(f"{store.weight.name}: dense = True {reason}")
        if activations is not None:
            reason = eight_bit_refusal(store, activations)
            if reason is not None:
                raise ProblemError(f"{store.weight.name}: {reason}")
        super().__init__(store.weight.name, store, dense=dense, x_dtype=activations)

    @classmethod
    def from_gptq(
        cls,
        layer: GptqTensors,
        *,
        device: Any = "cuda",
        store: Literal["marlin", "raw"] | None = None,
        dtype: str = "fp16",
        bias_mode: Literal["fused", "two_step"] = "fused",
        dense: bool = False,
        activations: Literal["fp8", "int8"] | None = None,
    ) -> MarlinLinear:
        """Put a checkpoint's layer on a device.

        Args:
            layer:     as `GptqCheckpoint.linear` returns it
            device:    "cuda:0", "cuda", a number, a torch.device; "cpu" runs the reference
            store:     "marlin" for packed tiles, "raw" for the checkpoint's own layout; by default
                       raw where FERRUM_TRITON_INT4 is 1, else packed where it can be
            dtype:     "fp16" or "bf16", of x and out; scales and bias are rounded to it once
            bias_mode: "fused" rounds once; "two_step" rounds before and after the bias is added, as
                       ferrum-kernels does
            dense:     very many rows may run with the whole weight dequantised, where that was
                       measured to be faster: 2 * K * N bytes of scratch a stream. Needs a packed
                       layer and cuBLAS
            activations: from 64 rows on, those of x are rounded to "fp8" (e4m3) or "int8", each by
                       its largest element, and multiplied so: tensor cores do twice as many. Fewer
                       rows are multiplied as they are. Needs a packed layer, and for fp8 sm_89

        Raises:
            ProblemError: the layer cannot be held so; it names the layer and says why.
            DeviceError:  no such device.
        """
        made = make_store([layer], 1, store=store, device=device, dtype=dtype, bias_mode=bias_mode)
        return cls(made, dense=dense, activations=activations)
