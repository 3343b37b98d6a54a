"""Collect what is known of a config: of its program, its launch and its problem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from ferrum_numba.compile import Binary, blocks_per_sm, build, occupancy_limits
from ferrum_numba.compile.remarks import count_doubles
from ferrum_numba.contract import Config, Kernel, Launch, Problem, Work, describe
from ferrum_numba.errors import ProblemError
from ferrum_numba.explain.fragments import fragments
from ferrum_numba.gpu import KNOWN, Gpu
from ferrum_numba.layout import Region, Tile
from ferrum_numba.shown import Drawing, Part, Shown, unlike, usual_fields

if TYPE_CHECKING:
    from ferrum_numba.roofline.bound import Bound
    from ferrum_numba.roofline.ceilings import Ceiling

WARP_SIZE = 32


@dataclass(frozen=True)
class Occupancy:
    """How many blocks of a program an SM holds at once.

    limits: by resource, as many as it would let there be
    waves:  how often the grid fills all SMs
    """

    blocks_per_sm: int
    limits: Mapping[str, int]
    warps_per_sm: int
    most_warps: int
    waves: float

    @property
    def limited_by(self) -> list[str]:
        """Return the resources that let no more blocks be there."""
        return [name for name, blocks in self.limits.items() if blocks == self.blocks_per_sm]


@dataclass(frozen=True, repr=False)
class Explanation(Shown):
    """A config of a kernel on a problem, for one GPU. A notebook shows it as text and pictures.

    problem, config: their fields by name
    sizes:     the problem's fields that are not at their default
    differs:   the config's fields that are not the default's
    regions:   of dynamic shared memory; empty where the kernel does not say
    tiles:     who holds what: of the kernel's own layouts, then of its tensor-core instructions
    mix:       instructions by opcode; None where no nvdisasm is installed
    doubles:   instructions of the PTX that compute in fp64
    bound:     the least time of the problem and what binds, modelled; None without ceilings
    remarks:   what is likely not meant, a sentence each
    """

    kernel: str
    summary: str
    problem: Mapping[str, Any]
    config: Mapping[str, Any]
    sizes: Mapping[str, Any]
    differs: Mapping[str, Any]
    gpu: Gpu
    arch: str
    launch: Launch
    num_threads: int
    cluster: tuple[int, int, int]
    smem_bytes: int
    static_smem_bytes: int
    registers: int
    spill_bytes: int
    stack_bytes: int
    doubles: int
    occupancy: Occupancy
    regions: tuple[Region, ...]
    tiles: tuple[Tile, ...]
    mix: Mapping[str, int] | None
    work: Work
    bound: Bound | None
    remarks: tuple[str, ...]

    def text(self, width: int = 80, pictures: bool = True) -> str:
        """Return it for a terminal of so many columns.

        pictures: whether who holds what is drawn too
        """
        from ferrum_numba.explain.text import as_text

        return as_text(self, width, pictures)

    def svg(self, facts: bool = True) -> str:
        """Return the map of shared memory and who holds what as one `<svg>` element.

        facts: whether launch, thread and bound stand above them, in words
        """
        from ferrum_numba.explain.drawing import as_svg

        return as_svg(self, facts)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data: numbers, lists and texts."""
        from ferrum_numba.explain.plain import as_plain

        return as_plain(self)

    def parts(self) -> Iterable[Part]:
        """Return what is said in words, and the pictures of `svg`."""
        from ferrum_numba.explain.text import facts_of

        return [facts_of(self), Drawing(self.svg(facts=False))]

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return self.text(pictures=False)


def explain(
    kernel: Kernel,
    problem: Problem,
    config: Config | None = None,
    *,
    gpu: Gpu = KNOWN["h200"],
    arch: str | None = None,
    ceilings: Sequence[Ceiling] | None = None,
) -> Explanation:
    """Compile a config and return what is known of it; needs no GPU.

    Args:
        config:   None for the one that an untuned problem runs with
        gpu:      whose limits and rates count
        arch:     to compile for; that of the GPU if None
        ceilings: of the board, for the bound; those of the datasheet if None

    Raises:
        ProblemError: the kernel refuses the problem, or the config does not fit it.
        BuildError:   it does not compile.
    """
    from ferrum_numba.roofline.bound import bound_of
    from ferrum_numba.roofline.ceilings import datasheet

    default, config = _configs(kernel, problem, config, gpu)
    arch = arch or gpu.arch
    binary, launch = build(kernel, config, arch), kernel.launch(config, problem, gpu)
    work, known = kernel.op.work(problem), describe(config)
    roofs = datasheet(asdict(gpu)) if ceilings is None else ceilings
    return Explanation(
        kernel=kernel.name,
        summary=kernel.summary,
        problem=describe(problem),
        config=known,
        sizes=unlike(describe(problem), usual_fields(type(problem))),
        differs=unlike(known, describe(default)),
        gpu=gpu,
        arch=arch,
        launch=launch,
        num_threads=binary.num_threads,
        cluster=binary.cluster,
        smem_bytes=binary.smem_bytes,
        static_smem_bytes=binary.static_smem_bytes,
        registers=binary.registers,
        spill_bytes=binary.spill_bytes,
        stack_bytes=binary.stack_bytes,
        doubles=count_doubles(binary.ptx),
        occupancy=_occupancy(binary, launch, gpu),
        regions=tuple(kernel.smem_map(config)),
        tiles=(*kernel.tiles(config), *fragments(binary.ptx)),
        mix=binary.sass,
        work=work,
        bound=bound_of((work.flops, work.bytes), describe(problem), roofs),
        remarks=binary.remarks,
    )


def _configs(
    kernel: Kernel, problem: Problem, config: Config | None, gpu: Gpu
) -> tuple[Config, Config]:
    """Return the default config and the one to explain."""
    reason = kernel.refuses(problem)
    if reason is not None:
        raise ProblemError(reason)
    if not kernel.runs_on(gpu):
        raise ProblemError(f"{kernel.name} has no config for {gpu.name}")
    default = kernel.default(problem, gpu)
    chosen = default if config is None else config
    misfit = kernel.misfit(chosen, problem, gpu)
    if misfit is not None:
        raise ProblemError(f"{kernel.name} cannot run {problem} with {chosen}: {misfit}")
    return default, chosen


def _occupancy(binary: Binary, launch: Launch, gpu: Gpu) -> Occupancy:
    blocks = blocks_per_sm(binary, gpu)
    warps = -(-binary.num_threads // WARP_SIZE)
    return Occupancy(
        blocks_per_sm=blocks,
        limits=occupancy_limits(binary, gpu),
        warps_per_sm=blocks * warps,
        most_warps=gpu.max_threads_per_sm // WARP_SIZE,
        waves=prod(launch.grid) / (max(1, blocks) * gpu.num_sms),
    )
