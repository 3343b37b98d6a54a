"""A plan as a folder: programs, ranking and what was pruned, to be tuned where nothing compiles.

    DIR/manifest.json        what was planned, and from which sources; written last, at once
    DIR/programs/NAME.cubin  each program once, with its PTX and a digest of the whole

A plan that was interrupted is gone on with: programs that are there are not compiled again.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ferrum_numba import door
from ferrum_numba.compile import Binary, Job, build_many, cache
from ferrum_numba.compile.recipe import OURS
from ferrum_numba.compile.sources import changed, sources_of
from ferrum_numba.contract import Config, Kernel, Problem
from ferrum_numba.errors import BuildError, StoreError
from ferrum_numba.gpu import driver_cuda
from ferrum_numba.results import Planned
from ferrum_numba.results.file import load_json, write_json
from ferrum_numba.results.row import as_text
from ferrum_numba.results.validate import ARCH, sizes_error
from ferrum_numba.tune.space import Binaries, Progress, by_program, program_of, silent

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from ferrum_numba.gpu import Gpu

SCHEMA = 1
MANIFEST, PROGRAMS = "manifest.json", "programs"
# where something is known of a candidate of a plan
Place = tuple[str, Problem, Config]


def program_key(fingerprint: str) -> str:
    """Return the key under which a plan keeps a program."""
    return cache.key({"program": fingerprint})


def build_into(
    folder: Path,
    pairs: Iterable[tuple[Kernel, Config]],
    arch: str,
    progress: Progress = silent,
    executor: Executor | None = None,
) -> tuple[Binaries, dict[tuple[str, Any], str]]:
    """Compile programs into a folder, but for those that it has; needs no GPU.

    executor: what compiles; None for processes of this machine

    Returns:
        what was built, and the file name of each program, by kernel name and config

    Raises:
        StoreError: the folder cannot be written.
    """
    jobs = [Job(kernel, config, arch) for kernel, config in dict.fromkeys(pairs)]
    groups = by_program(jobs, progress)
    built: dict[Job, Binary | BuildError] = {}
    names: dict[Job, str] = {}
    for first in groups:
        known = program_of(first.kernel, first.config, arch)
        if isinstance(known, str):
            names[first] = cache.digest(program_key(known))
            found = cache.read(folder, names[first])
            if found is not None:
                built[first] = found
    missing = [first for first in groups if first not in built]

    def report(done: int, total: int) -> None:
        progress(len(groups) - total + done, len(groups), "compile")

    for job, outcome in build_many(missing, progress=report, executor=executor):
        built[job] = outcome
        if isinstance(outcome, Binary):
            known = program_of(job.kernel, job.config, arch)
            key = program_key(known if isinstance(known, str) else outcome.fingerprint)
            names[job] = cache.digest(key)
            try:
                cache.keep(folder, key, outcome)
            except OSError as error:
                raise StoreError(f"{folder} cannot be written: {error.strerror}") from error
    members = [(job, first) for first, group in groups.items() for job in group]
    return (
        {(job.kernel.name, job.config): built[first] for job, first in members},
        {
            (job.kernel.name, job.config): names[first]
            for job, first in members
            if isinstance(built[first], Binary)
        },
    )


def write(
    folder: Path,
    kernels: Sequence[Kernel],
    gpu: Gpu,
    rows: Sequence[Planned],
    names: Sequence[str | None],
    *,
    facts: Mapping[str, Any],
) -> None:
    """Write a plan's manifest, which makes the folder a plan, and drop programs that it has not.

    Args:
        names: file name of each row's program
        facts: what else is to be known of it: the toolchain, the expected minutes

    Raises:
        StoreError: the folder cannot be written.
    """
    head = {
        "schema": SCHEMA,
        "gpu": asdict(gpu),
        "arch": rows[0].arch if rows else gpu.arch,
        "sources": {kernel.name: _sources(kernel) for kernel in kernels},
        **facts,
    }
    listed = [{**asdict(row), "program": name} for row, name in zip(rows, names, strict=True)]
    head["digest"] = _digest({**head, "candidates": listed})
    write_json(folder / MANIFEST, head, "candidates", listed)
    wanted = {name for name in names if name}
    for file in (folder / PROGRAMS).glob("*.cubin"):
        if file.stem not in wanted:
            file.unlink()


class _Candidate(msgspec.Struct):
    kernel: str
    problem: dict[str, Any]
    config: dict[str, Any]
    status: Literal["ok", "spills", "does not fit", "build failed"]
    reason: str
    program: Annotated[str, Meta(pattern=f"^{cache.NAME.pattern}$")] | None
    estimate_us: Annotated[float, Meta(gt=0, le=1e18)] | None = None


class _Manifest(msgspec.Struct):
    arch: Annotated[str, Meta(pattern=f"^{ARCH.pattern}$")]
    sources: dict[str, dict[Annotated[str, Meta(max_length=256)], str]]
    candidates: list[_Candidate]
    cuda: list[int] | None = None


@dataclass(frozen=True)
class Plan:
    """A plan that was read, for the kernels at hand."""

    folder: Path
    kernels: tuple[Kernel, ...]
    manifest: Mapping[str, Any]

    @classmethod
    def read(cls, folder: str | Path, kernels: Sequence[Kernel]) -> Plan:
        """Read a plan.

        Args:
            kernels: those to tune; of the plan only theirs counts

        Raises:
            StoreError: it is no plan, or it was made of other sources than are here.
        """
        path = Path(folder)
        if not (path / MANIFEST).is_file():
            raise StoreError(f"{path} is no plan, or one that was not finished: no {MANIFEST}")
        manifest = load_json(path / MANIFEST, SCHEMA)
        if manifest.get("digest") != _digest(manifest):
            raise StoreError(f"{path / MANIFEST} is damaged; bring the plan's folder again")
        # a digest says that the file is whole, not who wrote it
        wrong = _manifest_error(manifest)
        if wrong:
            raise StoreError(f"{path / MANIFEST} is damaged: {wrong}")
        found = cls(path, tuple(k for k in kernels if k.name in manifest["sources"]), manifest)
        for kernel in found.kernels:
            file = _differs(kernel, manifest["sources"][kernel.name])
            if file is not None:
                raise StoreError(
                    f"{path} was planned before {file} was changed; "
                    f"plan again: ferrum-numba plan --out {path}"
                )
        return found

    def refuse(self, gpu: Gpu) -> None:
        """Refuse a GPU that the programs are not for.

        Raises:
            StoreError: it is of another architecture, or its driver is too old for them.
        """
        if gpu.arch != self.manifest["arch"]:
            raise StoreError(
                f"{self.folder} was planned for {self.manifest['arch']}, {gpu.name} is {gpu.arch}"
            )
        newest, needed = driver_cuda(), (self.manifest.get("cuda") or [0])[0]
        if newest is not None and newest[0] < needed:
            raise StoreError(
                f"{self.folder} holds programs of CUDA {needed}, "
                f"the driver here is of CUDA {newest[0]}"
            )

    @cached_property
    def problems(self) -> list[Problem]:
        """The problems that were planned, in their order."""
        return list(dict.fromkeys(problem for (_, problem, _), _ in self._candidates))

    @cached_property
    def estimates(self) -> dict[Place, float]:
        """What each candidate is expected to take, us."""
        return {
            place: row["estimate_us"]
            for place, row in self._candidates
            if row.get("estimate_us") is not None
        }

    @cached_property
    def binaries(self) -> Binaries:
        """Every program, read once, and what was said of those that did not compile.

        Raises:
            StoreError: a program is missing or damaged.
        """
        read: dict[str, Binary] = {}
        found: Binaries = {}
        for (name, _, config), row in self._candidates:
            file = row["program"]
            if row["status"] == "build failed":
                found[name, config] = BuildError(row["reason"])
            elif file is not None:
                found[name, config] = read[file] = read.get(file) or self._program(file)
        return found

    def _program(self, name: str) -> Binary:
        binary = cache.read(self.folder / PROGRAMS, name)
        if binary is None:
            path = cache.path(self.folder / PROGRAMS, name)
            raise StoreError(f"{path} is missing or damaged; bring the plan's folder again")
        return binary

    @cached_property
    def _candidates(self) -> list[tuple[Place, Mapping[str, Any]]]:
        kernels = {kernel.name: kernel for kernel in self.kernels}
        found = []
        for row in self.manifest["candidates"]:
            kernel = kernels.get(row["kernel"])
            if kernel is None:
                continue
            # a problem or config that the kernel no longer has would have other sources
            place = _made(kernel.op.problem, row["problem"]), _made(kernel.config, row["config"])
            found.append(((kernel.name, *place), row))
        return found


def _manifest_error(manifest: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a manifest as JSON has it, or None."""
    try:
        candidates = msgspec.convert(manifest, _Manifest).candidates
    except msgspec.ValidationError as error:
        return door.in_words(error)
    found = ((i, sizes_error(one.problem, one.config)) for i, one in enumerate(candidates))
    return next((f"candidates[{i}]: {wrong}" for i, wrong in found if wrong), None)


def _made(kind: type[Any], stored: Mapping[str, Any]) -> Any:
    """Return a problem or a config of its stored fields.

    Raises:
        StoreError: they are of another.
    """
    try:
        return kind(**stored)
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"a plan has a {kind.__name__} of {door.shown(stored)}: {error}"
        ) from error


def _digest(manifest: Mapping[str, Any]) -> str:
    """Return the digest of a manifest, less the one that it has."""
    rest = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(as_text(rest).encode()).hexdigest()


def _sources(kernel: Kernel) -> dict[str, str]:
    """Return the digests of the files that decide a kernel's programs, by name."""
    module = type(kernel.made_by).__module__
    if module.startswith(OURS):
        return sources_of(module)
    file = inspect.getsourcefile(type(kernel.made_by))
    # of a kernel of one's own its module alone is known
    return {module: hashlib.sha256(Path(file).read_bytes()).hexdigest()} if file else {}


def _differs(kernel: Kernel, sources: Mapping[str, str]) -> str | None:
    """Return the first file that is not what it was, or None."""
    if type(kernel.made_by).__module__.startswith(OURS):
        return changed(sources)
    with suppress(OSError):
        return next((name for name, d in _sources(kernel).items() if sources.get(name) != d), None)
    return type(kernel).__module__


def size_bytes(folder: Path) -> int:
    """Return the size of a plan's files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
