"""humming-kernels' grouped GEMM as a rival: its own configs for a layer, and their neighbours.

humming compiles a kernel when it is asked for one, in a second or two, and picks its config by
the number of pairs. It has no tuner that a user can call, so what it picks is tried beside what it
picks for fewer and for more pairs, and beside configs one step away.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np

from ferrum_numba.errors import DeviceError
from ferrum_numba.kernels.grouped import GroupedProblem, expert_bytes
from ferrum_numba.launch.operands import copies_to_exceed
from ferrum_numba.perf.routed_rivals import Layer, Rival, Stack, by_pair, on_gpu, on_stream
from ferrum_numba.reference.moe import align_tokens

PACKAGE = "humming-kernels"
MEASURED_VERSION = "0.1.20"
# "indexed" gathers rows of x by pair as ours do; "grouped_contiguous" takes rows that lie sorted by
# expert, for which no time is counted
GEMMS = ("indexed", "grouped_contiguous")
# of the pairs at hand; what is picked for these may suit a skewed routing better
PAIRS = (0.25, 0.5, 1, 2, 4)
# what it picks for few rows of a wide weight
FEW_ROWS = {
    "mma_type": "mma", "use_stream_k": True, "num_stages": 4, "num_ctas_per_sm": 4,
    "use_warp_spec": False, "use_tma": False,
}  # fmt: skip
# int32 of its locks: more than any of its grids asks for
LOCKS = 1 << 16


def version() -> str:
    """Return the version of humming that is installed.

    Raises:
        DeviceError: there is none.
    """
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise DeviceError(
            f"{PACKAGE} is not installed: pip install {PACKAGE}=={MEASURED_VERSION}, or leave it "
            "out with --only ours,cublas"
        ) from None


class HummingStack:
    """A stack in humming's own layout, made by its own layer from a checkpoint's GPTQ tensors.

    It serves every problem of the stack.
    """

    def __init__(self, problem: GroupedProblem, stack: Stack) -> None:
        """Convert a stack.

        Raises:
            DeviceError: humming is not installed, or it cannot have such weights.
        """
        import torch

        self.version = version()
        if problem.dtype != "fp16" or problem.zero_points != "none" or problem.bias:
            raise DeviceError(f"humming is compared in fp16 on symmetric weights; got {problem}")
        try:
            self.config, operands = converted(problem, stack)
        # it compiles what repacks them, and asserts what it needs for that
        except (AssertionError, ValueError, RuntimeError) as error:
            words = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            raise DeviceError(
                f"humming cannot take these weights: {words} (HUMMING_COMPILER=nvcc or nvrtc says "
                "what it compiles with)"
            ) from error
        self._copies = [operands]
        self.locks = torch.zeros(LOCKS, dtype=torch.int32, device=stack.codes.device)

    def copies(self, count: int) -> list[dict[str, Any]]:
        """Return copies of the operands, by name."""
        while len(self._copies) < count:
            self._copies.append({name: t.clone() for name, t in self._copies[0].items()})
        return self._copies[:count]

    def rivals(self, layer: Layer, gemms: Iterable[str], rotate_bytes: int) -> list[Rival]:
        """Return what humming picks for a problem, and its neighbours, all compiled."""
        problem, found = layer.problem, []
        hit_bytes = len(layer.pairs) * expert_bytes(problem)
        copies = self.copies(copies_to_exceed(rotate_bytes, hit_bytes))
        for gemm in gemms:
            wanted = list(candidates(partial(self.picked, gemm=gemm), problem.num_pairs))
            routed = Routed(layer, gemm)
            for config, kernel in zip(wanted, self._compiled(gemm, wanted), strict=True):
                if kernel is not None:
                    found.append(self._rival(routed, config, kernel, copies))
        if not found:
            raise DeviceError(f"humming has no kernel for {problem}: each was left out")
        return found

    def picked(self, pairs: int, gemm: str) -> dict[str, Any]:
        """Return the config that humming picks for so many pairs."""
        from humming.tune import get_heuristics_config

        return dict(get_heuristics_config(self.config, shape_m=pairs, gemm_type=gemm))

    def _compiled(self, gemm: str, configs: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
        """Yield humming's handle of each config's kernel, None where there can be no such one."""
        from humming.kernel.humming import HummingKernel

        def compiled(config: Mapping[str, Any]) -> Any:
            compute = json.dumps({"gemm_type": gemm})
            try:
                return HummingKernel.prepare_kernels(
                    self.config.to_str(), compute, json.dumps(config), device=0
                )
            # it asserts what a config must be
            except (AssertionError, ValueError, RuntimeError) as error:
                words = " ".join(str(error).split())[:200]
                print(f"humming, {gemm}: left out: {words or config}", file=sys.stderr)
                return None

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            yield from threads.map(compiled, configs)

    def _rival(
        self, routed: Routed, config: Mapping[str, Any], kernel: Any,
        copies: Iterable[Mapping[str, Any]],
    ) -> Rival:  # fmt: skip
        from humming import ops

        arguments = routed.arguments(config["block_shape"][0])
        calls = [
            on_stream(
                partial(
                    ops.launch_kernel,
                    configs=kernel, outputs=routed.out, locks=self.locks, **arguments, **operands,
                )
            )
            for operands in copies
        ]  # fmt: skip
        return Rival(
            routed.name,
            flat({"gemm_type": routed.gemm, **config}),
            calls,
            partial(routed.out.fill_, float("nan")),
            routed.result,
            f"humming {self.version}{routed.remark}",
            "4-bit",
        )


def converted(problem: GroupedProblem, stack: Stack) -> tuple[Any, dict[str, Any]]:
    """Return humming's config of a layer and its operands, from a checkpoint's GPTQ tensors."""
    import torch
    from humming.layer import HummingLayer

    weights = {"quant_method": "gptq", "bits": 4, "desc_act": False, "sym": True}
    layer = HummingLayer(
        shape_n=problem.N,
        shape_k=problem.K,
        num_experts=problem.num_experts,
        weight_config={**weights, "group_size": problem.expert.group_rows},
        torch_dtype=torch.float16,
    ).cuda()
    layer.load_from_tensors({"qweight": qweight(stack.codes), "scales": stack.scales})
    layer.transform()
    names = ("weight", "weight_scale", "weight_scale_2", "zero_point")
    found = {name: getattr(layer, name, None) for name in names}
    return layer.humming_config, {name: t.detach() for name, t in found.items() if t is not None}


class Routed:
    """A layer's rows and routing as one kind of GEMM takes them, and its result.

    out: [num_pairs, N] by pair, or the rows sorted by expert
    """

    def __init__(self, layer: Layer, gemm: str) -> None:
        import torch

        self.layer, self.gemm = layer, gemm
        self.sorted = gemm != "indexed"
        self.name = "humming_sorted" if self.sorted else "humming"
        self.remark = ", rows sorted before" if self.sorted else ""
        self.order = torch.cat(list(layer.pairs.values()))
        rows = len(self.order) if self.sorted else layer.problem.num_pairs
        shape = (rows, layer.problem.N)
        self.out = torch.empty(shape, device=layer.x.device, dtype=torch.float16)
        self._known: dict[int, dict[str, Any]] = {}

    def arguments(self, block: int) -> dict[str, Any]:
        """Return the arguments of a kernel with blocks of so many rows."""
        # sorted rows need no blocks
        key = 0 if self.sorted else block
        if key not in self._known:
            make = contiguous if self.sorted else partial(indexed, block=block)
            self._known[key] = make(self.layer)
        return self._known[key]

    def result(self) -> Any:
        """Return the result by pair."""
        return by_pair(self.layer, self.out, self.order) if self.sorted else self.out


def candidates(picked: Any, pairs: int) -> Iterator[dict[str, Any]]:
    """Yield configs worth trying for so many pairs, the one that humming picks first.

    picked: number of pairs -> config
    """
    seen = set()
    first = picked(pairs)
    others = [picked(max(1, round(pairs * part))) for part in PAIRS]
    for config in (first, *others, *neighbours(first)):
        text = json.dumps(config, sort_keys=True)
        if text not in seen:
            seen.add(text)
            yield config


def neighbours(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield configs one step from this one; humming refuses those that cannot be."""
    yield {**config, "use_stream_k": not config.get("use_stream_k", True)}
    if config["block_shape"][0] in (8, 16):
        rows = config["block_shape"][0]
        yield {**FEW_ROWS, "block_shape": (rows, 128, 64), "warp_shape": (rows, 64, 32)}
    for name, least, most in (("num_ctas_per_sm", 1, 4), ("num_stages", 3, 8)):
        for step in (-1, 1):
            value = config.get(name, least) + step
            if least <= value <= most:
                yield {**config, name: value}
    (block_m, *block), (warp_m, *warp) = config["block_shape"], config["warp_shape"]
    for step in (-8, 8) if block_m == warp_m else ():
        if 8 <= block_m + step <= 256:
            shapes = {"block_shape": (block_m + step, *block), "warp_shape": (warp_m + step, *warp)}
            yield {**config, **shapes}


def qweight(codes: Any) -> Any:
    """Return GPTQ's words of codes [E, K, N]: [E, K / 8, N] int32, of 8 rows the first lowest."""
    import torch

    num_experts, K, N = codes.shape
    words = torch.zeros(num_experts, K // 8, N, device=codes.device, dtype=torch.int32)
    for i in range(8):
        words |= codes[:, i::8].int() << 4 * i
    return words


def indexed(layer: Layer, block: int) -> dict[str, Any]:
    """Return the arguments of a GEMM that finds its rows by pair, in blocks of so many rows."""
    problem = layer.problem
    found = align_tokens(layer.ids, problem.num_experts, block)
    blocks = int(found["num_blocks"][0])
    return {
        "inputs": layer.x,
        "sorted_ids": on_gpu(found["sorted_token_ids"][: blocks * block]),
        "expert_ids": on_gpu(found["expert_ids"][:blocks]),
        "num_tokens_padded": on_gpu(found["num_tokens_post_padded"]),
        "top_k": 1 if problem.per_pair else problem.top_k,
    }


def contiguous(layer: Layer) -> dict[str, Any]:
    """Return the arguments of a GEMM whose rows lie sorted by expert."""
    import torch

    counts = [len(layer.pairs.get(e, ())) for e in range(layer.problem.num_experts)]
    return {
        "inputs": torch.cat([layer.rows(expert) for expert in layer.pairs]),
        "expert_layout": on_gpu(np.cumsum([0, *counts], dtype=np.int64)),
    }


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as a result file has one: shapes as text, `8x128x64`."""
    return {
        name: "x".join(map(str, value)) if isinstance(value, list | tuple) else value
        for name, value in config.items()
    }
