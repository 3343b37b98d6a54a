"""Which kernels read a store's layout, and which of them runs: the measured winner of this GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ferrum_numba import shipped
from ferrum_numba.contract import Kernel, Problem, describe
from ferrum_numba.gpu import Gpu
from ferrum_numba.kernels import DENSE, PACKED, RAW
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.launch import lacking
from ferrum_numba.results.decisions import Choice, Decision, choose, load_decisions

# by the kind of a store: those that read its layout
READERS: dict[str, tuple[Kernel, ...]] = {"marlin": PACKED, "raw": RAW}
# more of them, which need scratch for a whole weight: only for a layer that asked
DENSE_READERS: dict[str, tuple[Kernel, ...]] = {"marlin": DENSE}
# of the models that are tuned for
USUAL_GROUP_SIZE = 128
USUAL = {
    "zero_points": "none", "act_order": False, "bias": False, "dtype": "fp16", "gated": False,
}  # fmt: skip


def readers(kind: str, *, dense: bool = False) -> tuple[Kernel, ...]:
    """Return the kernels that may run on a kind of store."""
    return READERS[kind] + (DENSE_READERS.get(kind, ()) if dense else ())


def refusal(kind: str, problem: W4A16Problem) -> str | None:
    """Return why no kernel on a kind of store can run a problem, or None."""
    reasons = [kernel.refuses(problem) for kernel in READERS[kind]]
    return None if None in reasons else "; ".join(str(reason) for reason in reasons)


def dense_refusal(kind: str, *, on_gpu: bool) -> str | None:
    """Return why a layer in a kind of store cannot run with its whole weight dequantised."""
    if kind not in DENSE_READERS:
        return f'needs a packed weight; it is in store "{kind}"'
    lacks = [lacking(kernel) for kernel in DENSE_READERS[kind]]
    return lacks[0] if on_gpu and None not in lacks else None


def shipped_decisions(gpu: Gpu) -> list[Decision]:
    """Return what was decided for a GPU by the results that ship with the kernels."""
    path = shipped.decisions_path(gpu.key)
    return load_decisions(path) if path.is_file() else []


def kernel_for(
    problem: Problem, kernels: Sequence[Kernel], decisions: Sequence[Decision], gpu: Gpu
) -> Choice:
    """Return what to run a GEMM with: of one weight, or of a layer of experts.

    Where nothing was measured of its kind, what won its sizes without zero points, act-order, bias
    and gate in fp16, of the same group size or the usual one, serves it too, where it fits.

    Raises:
        ProblemError: no kernel can run it; says why each cannot.
    """
    kernels = [kernel for kernel in kernels if lacking(kernel) is None]
    choice = choose(decisions, problem, kernels, gpu)
    if choice.measured:
        return choice
    for plain in _plain(problem):
        similar = choose(decisions, plain, kernels, gpu)
        if not similar.measured or similar.kernel.refuses(problem) is not None:
            continue
        config = similar.kernel.specialise(similar.config, problem)
        if similar.kernel.misfit(config, problem, gpu) is None:
            return replace(similar, config=config)
    return choice


def _plain(problem: Problem) -> Iterator[Problem]:
    """Yield problems of these sizes as they are usual, that of the same group size first."""
    usual = {name: USUAL[name] for name in describe(problem) if name in USUAL}
    for group_size in dict.fromkeys((problem.group_size, min(USUAL_GROUP_SIZE, problem.K))):
        yield replace(problem, **usual, group_size=group_size)
