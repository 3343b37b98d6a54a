"""Test vectors: operands as a program takes them, and what must come out, in safetensors files.

A file has a tensor for every operand that is read, under its parameter's name, and `expected`. What
else a program needs is in the vector's record in the manifest: formulas of grid, scalars and
workspace, and how near the result must be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from safetensors.numpy import save

from ferrum_numba.contract import Config, Kernel, Problem, describe
from ferrum_numba.errors import ProblemError
from ferrum_numba.export.dispatch import Json, formulas_up_to, launch_record
from ferrum_numba.export.programs import Exported, Programs
from ferrum_numba.gpu import Gpu
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.kernels.shared.packed import group_size_of
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.linear.stages import Stage

# sizes to try, the smallest first: some tile is not full, and K is long enough to be shared
ROWS = (5, 9, 17, 33, 65, 129, 193)
COLUMNS = (128, 256, 512, 1024)
DEPTHS = (1024, 2048)
GROUP_SIZES = (128, 64, 32, -1, 48, 8)
FEW_ROWS, FEW_EXPERTS = 9, 3
# as safetensors names them
TYPES: Mapping[str, str] = {
    "float16": "F16", "bfloat16": "BF16", "int32": "I32", "uint16": "U16",
}  # fmt: skip
SEED = 0


def has_vector(one: Exported) -> bool:
    """Tell whether a program's result is of one type, which a tensor can hold."""
    _, problem = next(iter(one.stages))
    return len(_types(one.kernel.op.output(problem)[1])) == 1


def vector(one: Exported, programs: Programs) -> tuple[Json, bytes]:
    """Return a vector's record, without its file, and the file's bytes."""
    stage = _small(one, programs)
    kernel, problem = stage.kernel, stage.problem
    inputs = kernel.op.make_inputs(problem, np.random.default_rng(SEED))
    taken = {parameter.name for parameter in one.parameters}
    prepared = kernel.prepare(problem, inputs)
    tensors = {name: array for name, array in prepared.items() if name in taken}
    (_, dtype), tolerance = kernel.op.output(problem), kernel.op.tolerance(problem)
    (kind,) = _types(dtype)
    expected = kernel.op.reference(problem, inputs)
    tensors["expected"] = np.frombuffer(expected.tobytes(), kind) if dtype.names else expected
    launch = kernel.launch(stage.config, problem, programs.gpu)
    rows = getattr(problem, "M", 1)
    record = {
        "problem": describe(problem),
        "M": rows,
        "out": TYPES[kind.name],
        "tolerance": {"rel": tolerance.rel, "max": tolerance.max},
        **launch_record(stage, launch, formulas_up_to(stage, rows, programs.gpu), programs),
    }
    plain = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    return record, save(plain, {"symbol": one.symbol})


def _small(one: Exported, programs: Programs) -> Stage:
    """Return a small problem that a program can run, by the launch that shares the most sums."""
    kernel, gpu = one.kernel, programs.gpu
    configs = list(dict.fromkeys(config for config, _ in one.stages))
    for problem in _problems(one):
        stages = [Stage(kernel, problem, c) for c in configs if _fits(kernel, c, problem, gpu)]
        if stages:
            return max(stages, key=lambda stage: _workspace_bytes(stage, gpu))
    raise ProblemError(f"{one.symbol}: none of the small problems suits it; export without vectors")


def _problems(one: Exported) -> Iterator[Problem]:
    if one.kernel.op.problem is W4A16Problem:
        for M, K, N in product(ROWS, DEPTHS, COLUMNS):
            yield from _kinds(M, N, K)
        return
    # the first is of one row, or one tile: it finds little; of what is dropped nothing is written
    whole = (problem for problem in one.kernel.op.tests[1:] if not getattr(problem, "dropped", 0))
    yield from whole
    if one.kernel.op.problem is GroupedProblem:
        for (_, problem), tokens in product(one.stages, ROWS):
            yield replace(
                problem, tokens=tokens, num_experts=FEW_EXPERTS, top_k=2, K=DEPTHS[0],
                N=2 * COLUMNS[0], group_size=group_size_of(problem.expert),
            )  # fmt: skip
        return
    # what is compiled for a size of the layers has no other
    for _, problem in one.stages:
        few = {name: min(getattr(problem, name), FEW_ROWS) for name in ("M", "tokens", "rows")
               if hasattr(problem, name)}  # fmt: skip
        yield replace(problem, **few)


def _kinds(M: int, N: int, K: int) -> Iterator[W4A16Problem]:
    for act_order, zero_points, dtype, size in product(
        (False, True), ("none", "gptq"), DTYPES, GROUP_SIZES
    ):
        yield W4A16Problem(M, N, K, size, zero_points, act_order, True, dtype)


def _types(dtype: np.dtype[Any]) -> set[np.dtype[Any]]:
    """Return the types of a result's elements: one, or those of its fields."""
    if dtype.names is None:
        return {dtype}
    return {dtype[name].base for name in dtype.names}


def _fits(kernel: Kernel, config: Config, problem: Problem, gpu: Gpu) -> bool:
    return kernel.refuses(problem) is None and kernel.misfit(config, problem, gpu) is None


def _workspace_bytes(stage: Stage, gpu: Gpu) -> int:
    launch = stage.launch(gpu)
    return sum(launch.workspace.values())
