"""What to launch for which weight and M, as rows of exact formulas: `dispatch.json`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from ferrum_numba.contract import Launch
from ferrum_numba.export.formula import Formula, segments
from ferrum_numba.export.layer import Chosen, Layer, choose_stages, launch_of_rows, repack_stage
from ferrum_numba.export.programs import Programs
from ferrum_numba.gpu import Gpu
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.linear.stages import Stage
from ferrum_numba.results.decisions import Decision

Json = dict[str, Any]
AXES = "xyz"


def layer_rows(
    layer: Layer, asked: Iterable[int], decisions: Sequence[Decision], programs: Programs
) -> Iterator[Json]:
    """Yield the rows of a layer, from M = 1 to the largest that was asked for.

    An M that was not asked for runs what was chosen for the next larger one: a program serves any
    M, and a tile that is too tall only multiplies zeros. What they launch is added to the programs.
    """
    K, N = layer.stored()
    gpu, first = programs.gpu, 1
    picks = [(M, choose_stages(layer, M, decisions, gpu)) for M in sorted(set(asked))]
    for _, same in groupby(picks, lambda pick: _identity(pick[1])):
        found = list(same)
        last, chosen = found[-1]
        tuned = all(pick.choice.measured for _, pick in found)
        main = programs.add(chosen.main, tuned=tuned)
        for m_first, m_last, body in _ranges(chosen, first, last, programs):
            yield {
                "problem": layer.key(),
                "stored": {"K": K, "N": N},
                "m_first": m_first,
                "m_last": m_last,
                "symbol": main.symbol,
                "chosen_for": [{"m": M, "rule": pick.choice.rule} for M, pick in found],
                "tuned": tuned,
                **body,
            }
        first = last + 1


def repack_row(layer: Layer, programs: Programs) -> Json | None:
    """Return the row that packs a checkpoint's words once, None where there is nothing to pack."""
    stage = repack_stage(layer, programs.gpu)
    if stage is None:
        return None
    return packing_record(stage, layer.problem, layer.stored(), programs)


def packing_record(
    stage: Stage, weight: W4A16Problem | GroupedProblem, stored: tuple[int, int], programs: Programs
) -> Json:
    """Return the row of a stage that packs a weight, or that of an expert."""
    launch, (K, N) = stage.launch(programs.gpu), stored
    return {
        "K": weight.K,
        "N": weight.N,
        "act_order": weight.act_order,
        "stored": {"K": K, "N": N},
        "launches": [launch_record(stage, launch, values_of(launch), programs)],
    }


def formulas_up_to(stage: Stage, M: int, gpu: Gpu) -> Mapping[Any, Formula]:
    """Return the formulas of a stage's launch for M rows, and for some M below it."""
    *_, last = segments(lambda m: values_of(launch_of_rows(stage, m, gpu)), 1, M, _units(stage))
    return last.formulas


def launch_record(
    stage: Stage, launch: Launch, formulas: Mapping[Any, Formula], programs: Programs
) -> Json:
    """Return a launch as JSON: formulas of what varies with M, and the buffer of each pointer."""
    assert launch.then is None, "no exported kernel goes on with cuBLAS"
    exported = programs.add(stage)
    assert launch.programmatic == exported.launch.programmatic, "a program is launched in one way"
    pointers = [p.name for p in exported.parameters if p.kind == "pointer"]
    return {
        "symbol": exported.symbol,
        "grid": [formulas["grid", axis] for axis in AXES],
        "scalars": {name: formulas["scalars", name] for name in launch.scalars},
        "workspace": {name: formulas["workspace", name] for name in launch.workspace},
        "buffers": {
            name: stage.renamed.get(name, name) for name in pointers if name not in launch.workspace
        },
    }


def _ranges(
    chosen: Chosen, first: int, last: int, programs: Programs
) -> Iterator[tuple[int, int, Json]]:
    gpu, stages = programs.gpu, chosen.stages

    def values(M: int) -> dict[Any, int]:
        found = {("scratch", name): M * size for name, size in chosen.row_bytes.items()}
        for i, stage in enumerate(stages):
            found |= {(i, *key): v for key, v in values_of(launch_of_rows(stage, M, gpu)).items()}
        return found

    units = {unit for stage in stages for unit in _units(stage)}
    for m_first, m_last, formulas in segments(values, first, last, units):
        own = [{k[1:]: f for k, f in formulas.items() if k[0] == i} for i in range(len(stages))]
        launches = [
            launch_record(stage, launch_of_rows(stage, m_last, gpu), formulas_of, programs)
            for stage, formulas_of in zip(stages, own, strict=True)
        ]
        scratch = {key[1]: f for key, f in formulas.items() if key[0] == "scratch"}
        yield m_first, m_last, {"scratch": scratch, "launches": launches}


def _identity(chosen: Chosen) -> tuple[Any, ...]:
    """Return what is equal where the launches of two M are chosen alike."""
    return tuple((stage.kernel.name, stage.config) for stage in chosen.stages)


def _units(stage: Stage) -> set[int]:
    """Return what a launch of a stage may divide the rows by."""
    return {getattr(stage.config, name, 1) for name in ("tile_m", "rows")}


def values_of(launch: Launch) -> dict[Any, int]:
    """Return the whole numbers of a launch."""
    return {
        **{("grid", axis): size for axis, size in zip(AXES, launch.grid, strict=True)},
        **{("scalars", name): value for name, value in launch.scalars.items()},
        **{("workspace", name): size for name, size in launch.workspace.items()},
    }
