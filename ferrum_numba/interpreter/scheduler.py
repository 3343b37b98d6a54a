"""The launch: which block runs next, and what happens when nobody can move."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextvars import Context, copy_context
from functools import lru_cache, partial
from itertools import islice, product
from typing import Any

import numpy as np
from greenlet import getcurrent

from ferrum_numba.arguments import lacks_scalar, refuses_names
from ferrum_numba.contract import Launch, Matmul, Program
from ferrum_numba.errors import AGAINST_DOUBLES, InterpreterError
from ferrum_numba.interpreter.barriers import Barrier
from ferrum_numba.interpreter.block import Block, Index, Machine
from ferrum_numba.interpreter.casts import as_cast
from ferrum_numba.interpreter.lane import Lane, where
from ferrum_numba.interpreter.memory import Array, GlobalMemory, Window
from ferrum_numba.interpreter.numba_types import types
from ferrum_numba.interpreter.races.watch import Watch
from ferrum_numba.interpreter.rebind import FakeCuda, rebind
from ferrum_numba.interpreter.schedule import IN_TURN, Schedule
from ferrum_numba.interpreter.trace.tracer import Tracer
from ferrum_numba.interpreter.warp import LEFT, WARP_SIZE, Warp

# a polling loop may count its turns and give up, so nothing is declared dead at once
_IDLE_TURNS = 100
_KINDS = {"pointer": types.uint64, "uint32": types.uint32, "int32": types.int32}


def run(
    program: Program,
    launch: Launch,
    buffers: Mapping[str, Array],
    *,
    unwritten: Collection[str] = ("out",),
    races: bool = True,
    constant: Collection[str] | None = None,
    schedule: Schedule = IN_TURN,
    trace: Tracer | None = None,
) -> tuple[str, ...]:
    """Execute a program's own Python function on the CPU, in place on `buffers`.

    Args:
        program:   what to run; its function is used as it is
        launch:    grid and scalars; the workspace must be among the buffers, zeroed
        buffers:   pointer parameter -> C-contiguous array
        unwritten: buffers that may not be read before the kernel has written them
        races:     refuse accesses to the same bytes that nothing orders
        constant:  buffers that the launch before leaves alone, where it may still run (a
                   programmatic launch); None: it has ended
        schedule:  in which order warps and blocks run
        trace:     counts what warps do, line by line; races are not looked for then

    Returns:
        remarks: what is likely not meant, a sentence each

    Raises:
        RaceError: two accesses race; names both lines and what would order them.
        InterpreterError: the kernel broke a rule of the machine; names file, line and thread.
    """
    if launch.repeats:
        first, *others = launch.one_by_one()
        how: dict[str, Any] = {
            "races": races, "constant": constant, "schedule": schedule, "trace": trace,
        }  # fmt: skip
        remarks = run(program, first, buffers, unwritten=unwritten, **how)
        for one in others:
            # whatever the first has not written, it was to leave alone
            run(program, one, buffers, unwritten=(), **how)
        return remarks
    machine = Machine(GlobalMemory(buffers, unwritten, {}))
    if trace is not None:
        machine.watch = trace
    elif races:
        early = launch.programmatic and constant is not None
        machine.watch = Watch(machine.memory, launched_early=early, constant=constant or ())
    doubles = _execute(program, launch, machine, _blocks(program, launch, machine), schedule)
    machine.memory.write_back(buffers)
    if launch.then is not None:
        _multiply(launch.then, buffers)
    return tuple(f"{place}: computes in fp64; {AGAINST_DOUBLES}" for place in doubles)


def run_some(
    program: Program,
    launch: Launch,
    buffers: Mapping[str, Array],
    windows: Mapping[str, Window],
    blocks: Collection[Index],
) -> frozenset[str]:
    """Execute some blocks of a launch that is too large to be executed, or to have its operands.

    Args:
        buffers: pointer parameter -> C-contiguous array, which stays as it is
        windows: pointer parameter -> the part of it that may be touched
        blocks:  in the grid; of a cluster, its first

    Returns:
        the names of the buffers and windows that were written to

    Raises:
        InterpreterError: as `run`; an address that lies elsewhere, such as one of 32 bits.
    """
    machine = Machine(GlobalMemory(buffers, (), windows))
    _execute(program, launch, machine, _groups(program, machine, sorted(blocks)), IN_TURN)
    return machine.memory.stored()


def _execute(
    program: Program,
    launch: Launch,
    machine: Machine,
    groups: Iterator[list[Block]],
    schedule: Schedule,
) -> Sequence[Any]:
    """Run these blocks to their end; return the places where the program computes in fp64."""
    arguments = tuple(_arguments(program, launch, machine.memory))
    traced = isinstance(machine.watch, Tracer)
    function, doubles = _rebound(program, launch.grid, getcurrent(), traced)
    clusters = (_Cluster(group, function, arguments, schedule) for group in groups)
    with np.errstate(all="ignore"):
        _run_all(machine, clusters, schedule, launch.co_resident)
    found: Sequence[Any] = doubles
    return found


# a launch that repeats runs the same program again
@lru_cache(maxsize=1)
def _rebound(
    program: Program, grid: Index, scheduler: Any, traced: bool
) -> tuple[Callable[..., Any], Any]:
    """Return the function that lanes run, which hand their requests to the greenlet `scheduler`."""
    refusal = refuses_names(program)
    if refusal is not None:
        raise InterpreterError(refusal)
    kinds = [_KINDS[parameter.kind] for parameter in program.parameters]
    cuda = FakeCuda(grid, program.num_threads, traced=traced)
    return rebind(program.function, cuda, kinds, (LEFT,))


def _multiply(matmul: Matmul, buffers: Mapping[str, Array]) -> None:
    """Do what cuBLAS does after the program, in place."""
    M, N, K = matmul.M, matmul.N, matmul.K
    out = buffers[matmul.out]
    a, b = (buffers[name].reshape(-1).view(out.dtype) for name in (matmul.a, matmul.b))
    sums = a.reshape(M, K).astype(np.float32) @ b[: K * N].reshape(K, N).astype(np.float32)
    out[:] = sums.astype(out.dtype).reshape(out.shape)


def _arguments(program: Program, launch: Launch, memory: GlobalMemory) -> Iterator[Any]:
    """Yield the kernel's arguments: addresses and sizes, as wide as its signature has them."""
    lacking = lacks_scalar(program.parameters, launch.scalars)
    if lacking is not None:
        raise InterpreterError(lacking)
    for parameter in program.parameters:
        values = memory.address if parameter.kind == "pointer" else launch.scalars
        if parameter.name not in values:
            raise InterpreterError(f"no buffer is given for the parameter {parameter.name}")
        yield as_cast(_KINDS[parameter.kind])(values[parameter.name])


def _blocks(program: Program, launch: Launch, machine: Machine) -> Iterator[list[Block]]:
    """Yield the blocks of each cluster by rank; x runs fastest."""
    shape = program.cluster
    if any(blocks % of for blocks, of in zip(launch.grid, shape, strict=True)):
        raise InterpreterError(f"a grid of {launch.grid} blocks is no multiple of {shape}")
    steps = [range(0, blocks, of) for blocks, of in zip(launch.grid, shape, strict=True)]
    yield from _groups(program, machine, ((x, y, z) for z, y, x in product(*reversed(steps))))


def _groups(program: Program, machine: Machine, first: Iterable[Index]) -> Iterator[list[Block]]:
    """Yield the blocks of the clusters that begin with these, by rank."""
    shape = program.cluster
    for x, y, z in first:
        cluster: list[Block] = []
        barrier = Barrier("cluster barrier", partial(_live, cluster))
        for rank, (dz, dy, dx) in enumerate(product(*map(range, reversed(shape)))):
            place: Index = (x + dx, y + dy, z + dz)
            block = Block(
                machine, place, program.num_threads, program.smem_bytes, rank, cluster, barrier
            )
            cluster.append(block)
        yield cluster


def _live(cluster: list[Block]) -> int:
    return sum(block.live for block in cluster)


class _Cluster:
    """Blocks that start together and may wait for each other; mostly a single one."""

    def __init__(
        self,
        blocks: list[Block],
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        schedule: Schedule,
    ) -> None:
        context = copy_context()
        context.run(_set_lane_errors)
        self.blocks, self.schedule = blocks, schedule
        self.warps = [warp for block in blocks for warp in _warps(function, block, context)]
        for warp in self.warps:
            warp.start(arguments)
        if sum(blocks[0].index) % 2:
            self.warps.reverse()

    def run(self) -> bool:
        """Run until every warp waits or has ended; return whether anything was executed."""
        moved = any(list(self.schedule.turns(self.warps)))
        self.warps = [warp for warp in self.warps if warp.live]
        return moved


def _warps(function: Callable[..., Any], block: Block, context: Context) -> list[Warp]:
    warps: list[Warp] = []
    for first in range(0, block.num_threads, WARP_SIZE):
        threads = range(first, min(first + WARP_SIZE, block.num_threads))
        lanes = [Lane(function, block, thread) for thread in threads]
        for lane in lanes:
            lane.gr_context = context
        warps.append(Warp(block, lanes, warps))
    block.warps = warps
    return warps


def _set_lane_errors() -> None:
    np.seterr(all="ignore")
    # of integers; floats divided by zero are infinite
    np.seterr(divide="raise")


def _run_all(
    machine: Machine, waiting: Iterator[_Cluster], schedule: Schedule, co_resident: bool
) -> None:
    """Run all clusters; start one more only when those that run wait for something."""
    live: list[_Cluster] = list(islice(waiting, schedule.together))
    idle_turns = 0
    while True:
        events, pauses = machine.events, machine.pauses
        moved = any([cluster.run() for cluster in schedule.clusters(live, machine.turn)])
        machine.turn += 1
        for cluster in live:
            if not cluster.warps:
                _check_end(cluster)
        live = [cluster for cluster in live if cluster.warps]
        if machine.events != events:
            idle_turns = 0
            continue
        may_start = co_resident or len(live) < schedule.together
        started = next(waiting, None) if may_start else None
        if started is not None:
            live.append(started)
        elif not live:
            return
        else:
            idle_turns += 1
            # who has let the others go first reads in the next turn
            if idle_turns > _IDLE_TURNS or not (moved or machine.pauses != pauses):
                raise _deadlock(live, co_resident)


def _check_end(cluster: _Cluster) -> None:
    for block in cluster.blocks:
        bytes_in_flight = block.bulk_bytes_in_flight()
        if bytes_in_flight:
            raise InterpreterError(
                f"block {block.index} ends while {bytes_in_flight} bytes of its bulk copies are "
                "in flight; somebody must wait for their mbarrier"
            )


def _deadlock(live: list[_Cluster], co_resident: bool) -> InterpreterError:
    """Return an error that names what each of the first few waiting groups of lanes waits for."""
    lines: dict[str, str] = {}
    for cluster in live:
        for warp in cluster.warps:
            for group in warp.groups.values():
                lane = group.lanes[0]
                place = f"{where(lane.places())} {group.plan.name}"
                lines.setdefault(place, f"{place}: {warp.describe(group)}")
    advice = "" if co_resident else " (the launch is not co_resident: no further block was started)"
    shown = "\n  ".join(list(lines.values())[:8])
    return InterpreterError(f"deadlock: nobody can go on{advice}; waiting at\n  {shown}")
