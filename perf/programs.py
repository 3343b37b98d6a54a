"""The compiled programs that ship with the package: those of the decisions for every tuned GPU.

    python -m ferrum_numba.perf.programs

compiles what is missing in programs/<arch>/, on all processors, and removes what nobody asks for
any more; it takes no GPU. A program that is there is kept where all that decides it is as it was:
its function's fingerprint, and the versions of the compilers. The recipe beside it names the source
files that it was made of, by which it is known where no compiler is (see `compile.recipe`); a test
says when one is older than its source.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ferrum_numba import shipped
from ferrum_numba.compile import Job, build_many, cache, recipe
from ferrum_numba.compile.compiler import portable_key
from ferrum_numba.compile.sources import sources_of
from ferrum_numba.compile.toolchain import cuda_version
from ferrum_numba.contract import Config, Kernel
from ferrum_numba.errors import FerrumError
from ferrum_numba.gpu import KNOWN, Gpu
from ferrum_numba.kernels import GROUPED, KERNELS
from ferrum_numba.kernels.ceilings import CEILINGS
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.kernels.moe.route_topk import LOGITS, RouteProblem
from ferrum_numba.linear.choice import readers, shipped_decisions
from ferrum_numba.linear.moe_stages import MoeTask
from ferrum_numba.linear.stages import LayerTask, packing
from ferrum_numba.perf.decisions import gpu_keys
from ferrum_numba.results.decisions import Decision, stored_config
from ferrum_numba.tune.yardstick import yardsticks_of

COMMAND = "python -m ferrum_numba.perf.programs"


def wanted(gpu: Gpu) -> list[Job]:
    """Return the programs of a GPU's decisions, of what stands around them and of yardsticks."""
    rulers = yardsticks_of(CEILINGS, gpu)
    compared = [(one.kernel, one.kernel.default(one.problem, gpu)) for one in rulers]
    found = dict.fromkeys((*_decided(gpu), *compared))
    return [Job(kernel, config, gpu.arch) for kernel, config in found]


def _decided(gpu: Gpu) -> Iterator[tuple[Kernel, Config]]:
    """Yield what won, by every kernel, and what a layer with such a weight needs besides."""
    kernels = {kernel.name: kernel for kernel in KERNELS}
    decisions = shipped_decisions(gpu)
    for decision in decisions:
        kernel = kernels[decision.kernel]
        config = stored_config(kernel, decision.config)
        if config is None:
            continue
        yield kernel, config
        problem = kernel.op.problem(**decision.problem)
        if isinstance(problem, GroupedProblem):
            yield from _of_experts(problem, decisions, gpu)
            continue
        around = [packing(problem, gpu), packing(replace(problem, act_order=True), gpu)]
        for bias in (False, True):
            task = LayerTask(
                replace(problem, bias=bias), readers("marlin"), gathered=True, two_step=bias
            )
            around += task.stages(decisions, gpu)
        yield from ((stage.kernel, stage.config) for stage in around)


def _of_experts(
    problem: GroupedProblem, decisions: Sequence[Decision], gpu: Gpu
) -> Iterator[tuple[Kernel, Config]]:
    """Yield what a layer with such experts needs: of every kind of weight and of logits."""
    H, inner = problem.N, problem.K
    if not problem.per_pair:
        H, inner = problem.K, problem.N // 2
    one = replace(problem, per_pair=False, weighted=False, gated=False)
    for act_order, bias in ((False, False), (True, False), (False, True)):
        gate_up = replace(one, N=2 * inner, K=H, act_order=act_order, bias=bias)
        down = replace(gate_up, N=H, K=inner)
        around = [packing(each.expert, gpu) for each in (gate_up, down)]
        for logits in LOGITS:
            route = RouteProblem(one.tokens, one.num_experts, one.top_k, dtype=logits)
            task = MoeTask(gate_up, down, GROUPED, route, two_step=(bias, bias))
            around += task.stages(decisions, gpu)
        yield from ((stage.kernel, stage.config) for stage in around)


def write(jobs: Sequence[Job], folder: Path) -> tuple[int, int]:
    """Bring a folder up to date; return how many programs it has, and how many are new.

    Raises:
        BuildError: one does not compile
    """
    keys = {job: portable_key(job.kernel, job.config, job.arch) for job in jobs}
    missing = {
        key: job for job, key in keys.items() if cache.read(folder, cache.digest(key)) is None
    }
    for job, binary in build_many(list(missing.values()), progress=_report):
        if isinstance(binary, Exception):
            raise binary
        name = cache.digest(keys[job])
        cache.keep(folder, keys[job], replace(binary, fingerprint=name))
    kept = {cache.path(folder, cache.digest(key)) for key in keys.values()}
    cuda, _ = cuda_version()
    for job, key in keys.items():
        known = recipe.recipe_of(job.kernel, job.config, job.arch)
        assert known is not None, "kernels of this house ship"
        sources = sources_of(type(job.kernel).__module__)
        kept.add(recipe.keep(folder, known, cache.digest(key), sources, cuda=cuda))
    for path in set(folder.iterdir()) - kept:
        path.unlink()
    return len(set(keys.values())), len(missing)


def _report(done: int, total: int) -> None:
    print(f"\rcompiled {done} of {total}", end="\n" if done == total else "", file=sys.stderr)


def main(words: Sequence[str] | None = None) -> None:
    """Write the programs for every GPU that there are decisions for."""
    argparse.ArgumentParser(prog=COMMAND, description=__doc__.partition("\n")[0]).parse_args(words)
    jobs: dict[str, list[Job]] = {}
    for key in gpu_keys():
        gpu = KNOWN[key]
        jobs.setdefault(gpu.arch, []).extend(wanted(gpu))
    for arch, of_arch in jobs.items():
        folder = shipped.programs_folder(arch)
        programs, new = write(list(dict.fromkeys(of_arch)), folder)
        print(f"{programs} programs are in {folder}, {new} of them new")


if __name__ == "__main__":
    try:
        main()
    except FerrumError as error:
        print(f"programs: {error}", file=sys.stderr)
        sys.exit(2)
