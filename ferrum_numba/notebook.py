"""What a person calls in a notebook: the commands, on kernels at hand, as objects that are shown.

    from ferrum_numba import notebook

    notebook.check(kernel)
    notebook.plan(kernel, problem, gpu="h200")
    notebook.explain(kernel, problem)

Nothing here needs a GPU. What takes long has a bar in the cell, and nothing where there is no
notebook.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from ferrum_numba import shipped
from ferrum_numba.cases import Case, cases_of
from ferrum_numba.check import on_interpreter
from ferrum_numba.contract import Config, Kernel, Problem, describe
from ferrum_numba.errors import ProblemError, StoreError
from ferrum_numba.explain import Explanation
from ferrum_numba.explain import explain as _explain
from ferrum_numba.gpu import Gpu, find
from ferrum_numba.report import Document, Sources, document
from ferrum_numba.report.drawing import Drawer
from ferrum_numba.results import Candidates, CheckRow, Checks, ResultFile, load
from ferrum_numba.results.display import Usual
from ferrum_numba.roofline import Svg
from ferrum_numba.shown import usual_fields, words
from ferrum_numba.tracing import Trace
from ferrum_numba.tracing import trace as _trace
from ferrum_numba.tune import NotebookBar
from ferrum_numba.tune import plan as _plan

# the GPU that is meant where none is named
GPU = "h200"


def check(
    kernel: Kernel,
    problems: Problem | Iterable[Problem] | None = None,
    config: Config | None = None,
    *,
    gpu: str | Gpu = GPU,
    limit: int | None = None,
) -> Checks:
    """Check a kernel against its reference on the CPU, by the interpreter.

    Args:
        problems: one or several; None for the Op's tests and the kernel's own corners
        config:   None for the kernel's default
        limit:    most checks

    Raises:
        ProblemError: the kernel can run none of them.
    """
    facts = _facts(gpu)
    cases = _cases(kernel, _several(problems), config, facts)[:limit]
    if not cases:
        raise ProblemError(f"nothing to check: {kernel.name} can run none of the problems")
    rows, bar = [], NotebookBar(f"check {kernel.name}")
    usual: dict[tuple[str, str], dict[str, Any]] = {}
    for done, case in enumerate(cases, start=1):
        found = on_interpreter(*case[:3], arch=facts.arch, gpu=case.gpu)
        about = describe(case.problem), describe(case.config)
        rows.append(
            CheckRow(kernel.name, kernel.op.name, *about, **asdict(found), num_sms=case.gpu.num_sms)
        )
        usual[kernel.name, words(about[0])] = describe(kernel.default(case.problem, case.gpu))
        bar(done, len(cases))
    return Checks(rows, Usual(usual, {kernel.name: usual_fields(kernel.op.problem)}))


def trace(
    kernel: Kernel, problem: Problem, config: Config | None = None, *, gpu: str | Gpu = GPU
) -> Trace:
    """Count, line by line, what a kernel's warps do: `ferrum_numba.trace` for a GPU's name."""
    return _trace(kernel, problem, config, gpu=_facts(gpu))


def plan(
    kernels: Kernel | Iterable[Kernel],
    problems: Problem | Iterable[Problem],
    *,
    gpu: str | Gpu = GPU,
    limit: int | None = None,
) -> Candidates:
    """Compile the configs of kernels for a GPU and say what each becomes.

    limit: most configs a kernel and problem, half of them the likeliest; None for all
    """
    found = [kernels] if isinstance(kernels, Kernel) else list(kernels)
    bar = NotebookBar("plan")
    some = _several(problems) or []
    return _plan(found, some, _facts(gpu), limit=limit, progress=bar, counted=True)


def explain(
    kernel: Kernel, problem: Problem, config: Config | None = None, *, gpu: str | Gpu = GPU
) -> Explanation:
    """Say what a config is on a GPU: launch, memory, lanes, code, bound."""
    return _explain(kernel, problem, config, gpu=_facts(gpu))


def recorded(op: str, gpu: str = GPU) -> ResultFile:
    """Return the results of an Op that ship with the kernels.

    Raises:
        StoreError: none do of this Op and GPU.
    """
    folder = shipped.results_folder()
    path = None if folder is None else folder / gpu / f"{op}.json"
    if path is None or not path.is_file():
        raise StoreError(f"no results of {op} on {gpu} ship with the kernels")
    return load(path)


def of_kernels(file: ResultFile, *names: str) -> ResultFile:
    """Return what a result file has of some kernels alone."""
    return ResultFile(file.environment, [r for r in file.rows if r.kernel in names], file.earlier)


def report(*files: ResultFile, **sources: Any) -> Document:
    """Return the report of some results; of ceilings recorded on the same GPU, where there are any.

    sources: further fields of `report.Sources`
    """
    found = {"ceilings": _ceilings(files), **sources}
    return document(Sources(files=files, **found))


def roofline(*files: ResultFile) -> Svg:
    """Return the roofline of results, the first Op's of theirs.

    Raises:
        StoreError: there is nothing in them to draw.
    """
    for picture in report(*files).pictures:
        if picture.kind == "roofline":
            svg, _ = Drawer().draw(picture)
            return Svg(svg)
    raise StoreError("nothing to draw: no row that counts has a bound")


def _ceilings(files: Sequence[ResultFile]) -> list[ResultFile]:
    gpus = {str(file.environment.get("gpu")) for file in files}
    try:
        found = recorded("ceilings")
    except StoreError:
        return []
    return [found] if str(found.environment.get("gpu")) in gpus else []


def _facts(gpu: str | Gpu) -> Gpu:
    return find(gpu) if isinstance(gpu, str) else gpu


def _several(problems: Problem | Iterable[Problem] | None) -> list[Problem] | None:
    if problems is None or isinstance(problems, list | tuple):
        return problems if problems is None else list(problems)
    return [problems]


def _cases(
    kernel: Kernel, problems: list[Problem] | None, config: Config | None, facts: Gpu
) -> list[Case]:
    if problems is None and config is None:
        return list(cases_of(kernel, facts))
    able = [p for p in problems or kernel.op.tests if kernel.refuses(p) is None]
    return [Case(kernel, config or kernel.default(p, facts), p, facts) for p in able]
