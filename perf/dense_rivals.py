"""Who multiplies by one dense weight besides this house: cuBLAS, PyTorch, humming, Triton.

All get the same rows and the same codes and scales, which PyTorch holds once for all M of a weight.
What multiplies in other types than fp16 x int4 is checked against what it was given: fp8 and int8
rows are rounded before the clock runs, and its row says so.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from ferrum_numba.errors import DeviceError
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.launch.operands import copies_to_exceed
from ferrum_numba.perf.routed_humming import qweight, version
from ferrum_numba.perf.routed_rivals import MOST_ERROR, ZERO_POINT, Rival, on_gpu, on_stream

# of ||got - want|| / ||want||: in bf16 the result has 8 bits, and so have dequantised weights
BF16_ERROR = 6e-3
# Hopper sums fp8 in fewer bits than fp32 has
FP8_ERROR = 1e-2
# int8 rows against what they were before they were rounded
INT8_ROWS_ERROR = 2e-2
FP8_MOST = 448.0
# of tinygemm's layout
INNER_K_TILES = 8
# of Triton's blocks: rows, columns and k
DECODE = ((16, 64, 128), (16, 128, 128), (16, 64, 64))
BATCH = ((32, 128, 64), (64, 128, 64), (64, 64, 64))
PREFILL = ((128, 128, 64), (128, 256, 64), (64, 128, 64))
SPLITS = (1, 2, 4, 8)


class DenseLayer:
    """A weight on the GPU: symmetric, in ordered groups, fp16; and the rows of a problem.

    codes, scales: [K, N] uint8, [G, N] float16
    """

    def __init__(self, problem: W4A16Problem, inputs: Mapping[str, Any]) -> None:
        if problem.zero_points != "none" or problem.act_order or problem.bias:
            raise DeviceError(f"peers are compared on plain symmetric weights; got {problem}")
        self.codes, self.scales = on_gpu(inputs["codes"]), on_gpu(inputs["scales"])
        self.problem = problem
        self.group_rows = -(-problem.K // len(self.scales))
        self.x = on_gpu(inputs["x"])

    def weight(self, scales: Any = None) -> Any:
        """Return the weight, [K, N] float32; of other scales than its own, if some are given."""
        scales = self.scales if scales is None else scales
        rows = scales.float().repeat_interleave(self.group_rows, 0)
        return (self.codes.float() - ZERO_POINT) * rows[: len(self.codes)]

    def want(self) -> Any:
        """Return the result in float32, [M, N]."""
        return self.x.float() @ self.weight()

    def out(self, dtype: Any = None) -> Any:
        """Return room for a result."""
        import torch

        shape = (self.problem.M, self.problem.N)
        return torch.empty(shape, device=self.x.device, dtype=dtype or torch.float16)


def rival(
    name: str,
    launches: Sequence[Callable[[], Any]],
    out: Any,
    peer: str,
    kind: str,
    config: Mapping[str, Any],
    want: Any = None,
    most_error: float = MOST_ERROR,
) -> Rival:
    """Return a rival whose launches, one for each copy of the weight, all write to `out`."""
    return Rival(
        name, config, [on_stream(launch) for launch in launches],
        partial(out.fill_, float("nan")), lambda: out, peer, kind, want=want,
        most_error=most_error,
    )  # fmt: skip


def clones(tensor: Any, rotate_bytes: int) -> list[Any]:
    """Return copies of a tensor that exceed so many bytes together; strides stay as they are."""
    count = copies_to_exceed(rotate_bytes, tensor.nbytes)
    return [tensor, *(tensor.clone() for _ in range(count - 1))]


def cublas(layer: DenseLayer, rotate_bytes: int) -> Iterator[Rival]:
    """Yield PyTorch's product of dense fp16 weights in either layout."""
    import torch

    dense, out = layer.weight().half(), layer.out()
    for layout, weight in (("rows", dense), ("columns", dense.t().contiguous().t())):
        launches = [
            partial(torch.mm, layer.x, one, out=out) for one in clones(weight, rotate_bytes)
        ]
        yield rival("cublas", launches, out, "cuBLAS", "fp16", {"layout": layout})


def scaled_mm(layer: DenseLayer, rotate_bytes: int) -> Iterator[Rival]:
    """Yield torch._scaled_mm of fp8 rows and weights, with one scale each."""
    import torch

    e4m3 = torch.float8_e4m3fn

    def rounded(values: Any) -> tuple[Any, Any]:
        scale = values.float().abs().max() / FP8_MOST
        return (values.float() / scale).to(e4m3), scale

    x, x_scale = rounded(layer.x)
    weight, w_scale = rounded(layer.weight().t().contiguous())
    want = (x.float() * x_scale) @ (weight.float() * w_scale).t()
    out = layer.out(torch.bfloat16)

    def launch(one: Any) -> None:
        torch._scaled_mm(
            x, one.t(), scale_a=x_scale, scale_b=w_scale, out_dtype=torch.bfloat16,
            use_fast_accum=True, out=out,
        )  # fmt: skip

    launches = [partial(launch, one) for one in clones(weight, rotate_bytes)]
    config = {"rows": "fp8, rounded before"}
    yield rival("scaled_mm", launches, out, "torch._scaled_mm", "fp8", config, want, FP8_ERROR)


def tinygemm(layer: DenseLayer, rotate_bytes: int) -> Iterator[Rival]:
    """Yield torch._weight_int4pack_mm, which knows bf16 alone."""
    import torch

    codes = layer.codes.t().contiguous()
    pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).contiguous()
    packed = torch._convert_weight_to_int4pack(pairs, INNER_K_TILES)
    x, scales = layer.x.bfloat16(), layer.scales.bfloat16()
    both = torch.stack([scales, torch.zeros_like(scales)], -1).contiguous()
    want, out = x.float() @ layer.weight(scales), layer.out(torch.bfloat16)

    def launch(one: Any) -> None:
        out.copy_(torch._weight_int4pack_mm(x, one, layer.group_rows, both))

    launches = [partial(launch, one) for one in clones(packed, rotate_bytes)]
    config = {"dtype": "bf16", "inner_k_tiles": INNER_K_TILES}
    yield rival("tinygemm", launches, out, "torch tinygemm", "4-bit", config, want, BF16_ERROR)


def humming(layer: DenseLayer, rotate_bytes: int, rows: str = "float16") -> Iterator[Rival]:
    """Yield humming's own layer, as it picks its configs; of int8 rows, with what rounds them.

    Raises:
        DeviceError: humming is not installed.
    """
    import torch

    found = version()
    from humming.layer import HummingLayer

    problem, quantised = layer.problem, rows != "float16"
    weights = {"quant_method": "gptq", "bits": 4, "desc_act": False, "sym": True}
    inputs = {"dtype": rows, "quant_mode": "dynamic_token"} if quantised else None
    made = HummingLayer(
        shape_n=problem.N, shape_k=problem.K, input_config=inputs, torch_dtype=torch.float16,
        weight_config={**weights, "group_size": layer.group_rows},
    ).cuda()  # fmt: skip
    tensors = {"qweight": qweight(layer.codes[None])[0], "scales": layer.scales}
    made.load_from_tensors(tensors)
    made.transform()
    out = layer.out()
    count = copies_to_exceed(rotate_bytes, made.weight.nbytes)
    copies = [made, *(copy.deepcopy(made) for _ in range(count - 1))]
    launches = [partial(one.forward, layer.x, outputs=out) for one in copies]
    name, kind = ("humming_w4a8", "W4A8") if quantised else ("humming", "4-bit")
    config = {"rows": rows, "rounded": "while timed" if quantised else "not"}
    error = INT8_ROWS_ERROR if quantised else MOST_ERROR
    yield rival(name, launches, out, f"humming {found}", kind, config, most_error=error)


def humming_w4a8(layer: DenseLayer, rotate_bytes: int) -> Iterator[Rival]:
    """Yield humming's layer of int8 rows."""
    yield from humming(layer, rotate_bytes, "int8")


def triton_sizes(M: int, K: int, group_rows: int) -> Iterator[dict[str, Any]]:
    """Yield sizes of blocks worth trying."""
    blocks = DECODE if M <= 16 else BATCH if M <= 128 else PREFILL
    for block_m, block_n, block_k in blocks:
        if group_rows % block_k:
            continue
        for split_k in SPLITS if M <= 64 else (1,):
            if K % (block_k * split_k) == 0:
                yield {
                    "block_m": block_m, "block_n": block_n, "block_k": block_k, "split_k": split_k,
                    "num_warps": 8 if block_m * block_n >= 16384 else 4,
                    "num_stages": 3 if block_m * block_n >= 32768 else 4,
                }  # fmt: skip


def triton(layer: DenseLayer, rotate_bytes: int) -> Iterator[Rival]:
    """Yield a Triton W4A16 kernel in a few sizes."""
    from ferrum_numba.perf.dense_triton import launch_of

    words = qweight(layer.codes[None])[0].contiguous()
    out, copies = layer.out(), clones(words, rotate_bytes)
    for config in triton_sizes(layer.problem.M, layer.problem.K, layer.group_rows):
        launches = [
            launch_of(config, layer.x, one, layer.scales, out, layer.group_rows) for one in copies
        ]
        yield rival("triton_w4a16", launches, out, "Triton W4A16", "4-bit", config)


Maker = Callable[[DenseLayer, int], Iterator[Rival]]
MAKERS: dict[str, Maker] = {
    "cublas": cublas, "scaled_mm": scaled_mm, "tinygemm": tinygemm, "humming": humming,
    "humming_w4a8": humming_w4a8, "triton": triton,
}  # fmt: skip


def made(name: str, layer: DenseLayer, rotate_bytes: int) -> list[Rival]:
    """Return a peer's candidates; none where what it needs is missing, which is said."""
    try:
        return list(MAKERS[name](layer, rotate_bytes))
    # each asserts in its own way what it can have
    except (
        AssertionError,
        AttributeError,
        ImportError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as why:
        words = " ".join(f"{type(why).__name__}: {why}".split())[:300]
        print(f"{name} is left out of {layer.problem}: {words}", file=sys.stderr)
        return []
