"""An export from first to last: layers, their rows, programs, files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ferrum_numba.errors import DeviceError, ProblemError
from ferrum_numba.export.dispatch import Json, layer_rows, repack_row
from ferrum_numba.export.experts import Experts, experts_repacks, experts_rows
from ferrum_numba.export.folder import DISPATCH, MANIFEST, load, new_folder, put
from ferrum_numba.export.layer import Layer
from ferrum_numba.export.manifest import entry, manifest
from ferrum_numba.export.programs import Programs
from ferrum_numba.export.vectors import has_vector, vector
from ferrum_numba.gpu import Gpu
from ferrum_numba.kernels.grouped import OP as GROUPED_GEMM
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.kernels.w4a16 import OP as GEMM
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.linear.choice import shipped_decisions
from ferrum_numba.results.decisions import Decision
from ferrum_numba.results.file import write_json

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Options:
    """What an export holds besides cubins.

    store:     "marlin" or "raw" for all weights; None for packed where it can be
    bias_mode: "fused" or "two_step", of weights that have a bias
    ptx:       PTX of every program too
    vectors:   a test vector of every program whose result is of one type
    untuned:   a GPU that was never tuned is exported for too, with what kernels run by default
    """

    store: str | None = None
    bias_mode: str = "fused"
    ptx: bool = False
    vectors: bool = False
    untuned: bool = False


def export(
    problems: Iterable[W4A16Problem | GroupedProblem],
    gpu: Gpu,
    out: str | Path,
    options: Options = Options(),
    progress: Progress | None = None,
) -> Json:
    """Write what layers of these problems launch on a GPU, which need not be there.

    Args:
        problems: each weight with every M that is to run what was decided for it; of a layer of
                  experts one of its GEMMs, with every number of tokens; those of other Ops, which
                  the same sizes may name, are left out
        gpu:      that the programs are for
        out:      folder: a new one, an empty one, or an earlier export, which is replaced
        options:  what it holds
        progress: called with programs done and in all

    Returns:
        The manifest.

    Raises:
        DeviceError:  the GPU was never tuned, and untuned = False.
        ProblemError: no kernel can run a problem so, or none is one of a layer's.
        StoreError:   the folder is somebody's own, or cannot be written.
        BuildError:   a program does not compile.
    """
    given = list(problems)
    wanted = [one for one in given if isinstance(one, W4A16Problem | GroupedProblem)]
    if given and not wanted:
        raise ProblemError(
            f"layers are exported of {GEMM.name} and {GROUPED_GEMM.name}; got {given[0]}"
        )
    decisions = shipped_decisions(gpu)
    if not decisions and not options.untuned:
        raise DeviceError(
            f"{gpu.name} was never tuned: there are no decisions for {gpu.key}; "
            "--untuned exports what kernels run by default, marked so"
        )
    with new_folder(Path(out)) as folder:
        programs = Programs(gpu)
        dispatch = _dispatch(wanted, decisions, programs, options)
        entries = _entries(folder, programs, options, progress)
        made = manifest(gpu, tuned=bool(decisions))
        write_json(folder / MANIFEST, made, "entries", entries)
        head = {name: made[name] for name in ("schema", "gpu", "tuned")}
        head |= {name: rows for name, rows in dispatch.items() if name != "rows"}
        write_json(folder / DISPATCH, head, "rows", dispatch["rows"])
        written, _ = load(folder)
    return written


def _dispatch(
    problems: Iterable[W4A16Problem | GroupedProblem],
    decisions: Sequence[Decision],
    programs: Programs,
    options: Options,
) -> dict[str, list[Json]]:
    asked: dict[Layer, list[int]] = {}
    blocks: dict[Experts, list[int]] = {}
    for problem in problems:
        if isinstance(problem, GroupedProblem):
            block = Experts.of(problem, options.store, options.bias_mode)
            blocks.setdefault(block, []).append(problem.tokens)
            continue
        layer = Layer.of(problem, options.store, options.bias_mode)
        asked.setdefault(layer, []).append(problem.M)
    rows = [
        row for layer, ms in asked.items() for row in layer_rows(layer, ms, decisions, programs)
    ]
    repacks = [row for layer in asked if (row := repack_row(layer, programs)) is not None]
    experts = [
        row for block, ts in blocks.items() for row in experts_rows(block, ts, decisions, programs)
    ]
    repacks += [row for block in blocks for row in experts_repacks(block, programs)]
    # weights that differ in their type alone are packed alike
    packed = [row for i, row in enumerate(repacks) if row not in repacks[:i]]
    return {"repack": packed, **({"experts": experts} if experts else {}), "rows": rows}


def _entries(
    folder: Path, programs: Programs, options: Options, progress: Progress | None
) -> list[Json]:
    """Write the files of all programs and return their entries."""
    with_vectors = filter(has_vector, programs if options.vectors else ())
    vectors = {one.symbol: vector(one, programs) for one in with_vectors}
    binaries = programs.build(progress)
    later = programs.build_for_later() if options.ptx else {}
    entries = []
    for one in programs:
        binary, name = binaries[one.symbol], one.symbol
        made = {**entry(one, binary), **put(folder, f"cubin/{name}.cubin", binary.cubin)}
        if options.ptx:
            source = later.get(name, binary)
            ptx = put(folder, f"ptx/{name}.ptx", source.ptx.encode())
            made["ptx"] = {**ptx, "arch": source.arch, "later_gpus": name in later}
        if name in vectors:
            record, data = vectors[name]
            made["vectors"] = [{**put(folder, f"vectors/{name}.safetensors", data), **record}]
        entries.append(made)
    return entries
