"""A kernel against its reference: on the GPU, or by the interpreter where there is none."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from ferrum_numba.compile import Binary, build
from ferrum_numba.contract import Comparison, Config, Inputs, Kernel, Launch, Problem
from ferrum_numba.errors import ContextError, FerrumError, MismatchError, ProblemError
from ferrum_numba.gpu import KNOWN, Gpu, refuses_launch
from ferrum_numba.launch import Bound, Device, Loaded, OperandSet
from ferrum_numba.launch.buffer import POISON
from ferrum_numba.shown import Facts, Part, Shown, number
from ferrum_numba.tolerance import LARGE, on_processors, pieces_of

if TYPE_CHECKING:
    from ferrum_numba.interpreter import Tracer

How = Literal["gpu", "interpreter"]
Result = TypeVar("Result")
# rows of any model are shorter, so a store to the row before the first or after the last lands here
GUARD_BYTES = 256 * 1024
# orders of warps and blocks that the interpreter has
MOST_ORDERS = 8


@dataclass(frozen=True)
class Checked(Shown):
    """The outcome of one check: `reason` says what is wrong where it is not ok.

    remarks: what is likely not meant in the program, a sentence each
    """

    ok: bool
    rel_error: float
    max_error: float
    reason: str
    how: How
    seconds: float
    remarks: tuple[str, ...] = ()

    def parts(self) -> Iterable[Part]:
        """Return the outcome; not how long it took, which says more of the machine."""
        known = {
            "how": self.how,
            "relative error": number(self.rel_error, 2),
            "max error": number(self.max_error, 2),
            "reason": self.reason,
            "remarks": "\n".join(self.remarks),
        }
        return [Facts("ok" if self.ok else "failed", known)]


def on_interpreter(
    kernel: Kernel,
    config: Config,
    problem: Problem,
    *,
    arch: str = "sm_90a",
    gpu: Gpu = KNOWN["h200"],
    seed: int = 0,
    runs: int = 1,
    races: bool = True,
    trace: Tracer | None = None,
) -> Checked:
    """Run the kernel's own source on the CPU and compare with the reference.

    What is wrong with the kernel is in the row, never raised.

    Args:
        runs:  in how many orders of warps and blocks (`interpreter.SCHEDULES`), each on the
               workspace that the one before left behind; all must give the same bits
        races: whether the first of them refuses accesses that nothing orders
        trace: counts what the first of them does, line by line, in place of looking for races

    Raises:
        ToolchainError: numba, which knows the types of what a kernel computes, does not work.
    """
    # it comes with the compiler, which a check on the GPU may do without
    from ferrum_numba import interpreter
    from ferrum_numba.compile.toolchain import broken

    try:
        interpreter.typing_context()
    except Exception as error:
        # numba is asked for types, which takes what compiling does
        raise broken(error) from error
    remarks: list[str] = []

    def attempt() -> Comparison:
        _refuse(kernel, config, problem, gpu)
        inputs = kernel.op.make_inputs(problem, np.random.default_rng(seed))
        launch = kernel.launch(config, problem, gpu)
        buffers = _host_buffers(kernel, problem, inputs, launch)
        changing = (kernel.op.activations | {"out", *launch.workspace}) - launch.settled
        constant = buffers.keys() - changing
        program = kernel.build(config, arch)
        refusal = refuses_launch(launch.grid, program.num_threads)
        if refusal is not None:
            raise ProblemError(refusal)
        how: dict[str, Any] = {"constant": constant, "races": races, "trace": trace}
        remarks.extend(interpreter.run(program, launch, buffers, **how))
        want = kernel.op.reference(problem, inputs)
        found = kernel.op.tolerance(problem).compare(buffers["out"], want)
        if found.ok:
            first = buffers["out"].copy()
            for run, schedule in enumerate(interpreter.SCHEDULES[1:runs], start=2):
                # a structure has no axis to view as bytes
                buffers["out"].reshape(-1).view(np.uint8)[...] = POISON
                interpreter.run(program, launch, buffers, races=False, schedule=schedule)
                if not same_bits(first, buffers["out"]):
                    differs = _difference(first, buffers["out"], run)
                    raise MismatchError(f"{differs}; warps and blocks ran {schedule}")
        return found

    return replace(_checked("interpreter", attempt), remarks=tuple(remarks))


def on_gpu(
    kernel: Kernel,
    config: Config,
    problem: Problem,
    device: Device,
    *,
    binary: Binary | None = None,
    seed: int = 0,
    repeats: int = 2,
) -> Checked:
    """Run a kernel on the GPU on fresh inputs and compare with the reference.

    The output is poisoned and every buffer guarded; see `on_operands` for the rest.

    Raises:
        ContextError: the kernel took the CUDA context with it; the process is of no more use.
    """

    remarks: tuple[str, ...] = ()

    def attempt() -> Ran:
        nonlocal remarks
        _refuse(kernel, config, problem, device.gpu)
        built = binary or build(kernel, config, device.gpu.arch)
        remarks = built.remarks
        operands = OperandSet(device, kernel, problem, seed=seed, guard_bytes=GUARD_BYTES)
        return bind_and_run(operands, config, built, repeats=repeats)

    ran = _tried("gpu", attempt)
    checked = ran if isinstance(ran, Checked) else ran.check()
    return replace(checked, remarks=remarks)


def on_operands(
    operands: OperandSet, config: Config, binary: Binary, *, repeats: int = 2
) -> Checked:
    """Run a config on operands that are on the GPU already, and compare with the reference.

    Every run must give the same bits on the workspace that the run before left behind, and leave
    the guard zones alone. One set of operands, and its reference, serves many configs.

    Raises:
        ContextError: the kernel took the CUDA context with it; the process is of no more use.
    """
    return bind_and_run(operands, config, binary, repeats=repeats).check()


@dataclass(frozen=True)
class Ran:
    """What a config gave on the GPU, not yet compared with the reference.

    bound:   what ran, to be gone on with; None where it did not
    results: of each run, in its order
    failed:  what is wrong already
    """

    operands: OperandSet
    bound: Bound | None = None
    results: Sequence[npt.NDArray[Any]] = ()
    failed: Checked | None = None

    def check(self) -> Checked:
        """Compare; the host's work alone, so that another thread may do it."""
        return self.failed or _checked("gpu", self._compare)

    def _compare(self) -> Comparison:
        first, *others = self.results
        for i, got in enumerate(others, start=2):
            if not same_bits(first, got):
                raise MismatchError(_difference(first, got, i))
        tolerance = self.operands.kernel.op.tolerance(self.operands.problem)
        return tolerance.compare(first, self.operands.want)


def bind_and_run(
    operands: OperandSet,
    config: Config,
    binary: Binary,
    *,
    loaded: Loaded | None = None,
    into: Sequence[npt.NDArray[np.uint8]] = (),
    repeats: int = 2,
) -> Ran:
    """Run a config as `on_operands` does, and return what came of it.

    Args:
        loaded: the binary, where it is on the GPU already
        into:   where results are copied to, one array of bytes a run; new memory if empty

    Raises:
        ContextError: the kernel took the CUDA context with it; the process is of no more use.
    """

    def attempt() -> Ran:
        _refuse(operands.kernel, config, operands.problem, operands.device.gpu)
        bound = operands.bind(config, binary, loaded)
        prepared, results = bound.prepared(), []
        for i in range(repeats):
            operands.poison()
            prepared(0)
            results.append(operands.result(into[i]) if into else operands.result())
        # what one run does to a guard zone, no other takes back
        damage = bound.damage()
        if damage:
            raise MismatchError(f"written outside of {damage}")
        return Ran(operands, bound, results)

    ran = _tried("gpu", attempt)
    return Ran(operands, failed=ran) if isinstance(ran, Checked) else ran


def _refuse(kernel: Kernel, config: Config, problem: Problem, gpu: Gpu) -> None:
    reason = kernel.refuses(problem) or kernel.misfit(config, problem, gpu)
    if reason:
        raise ProblemError(reason)


def same_bits(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Tell whether two contiguous arrays hold the same bytes, NaN or not."""
    left, right = (one.reshape(-1).view(np.uint8) for one in (a, b))
    if left.size % 8 == 0:
        # an eighth of the comparisons
        left, right = left.view(np.uint64), right.view(np.uint64)
    if left.size < LARGE or left.size != right.size:
        return np.array_equal(left, right)
    with on_processors() as threads:
        return all(threads.map(np.array_equal, pieces_of(left), pieces_of(right)))


def _difference(first: npt.NDArray[Any], got: npt.NDArray[Any], run: int) -> str:
    for name in first.dtype.names or ():
        if first[name].tobytes() != got[name].tobytes():
            return f"{name}: {_difference(first[name], got[name], run)}"
    differ = first.view(np.uint8) != got.view(np.uint8)
    at = np.argwhere(differ)[0]
    at[-1] //= first.dtype.itemsize
    index = tuple(int(i) for i in at)
    return (
        f"run {run} on the same inputs and workspace gives other bits than the first: "
        f"{first[index]:.6g} became {got[index]:.6g} at {index}"
    )


def _host_buffers(
    kernel: Kernel, problem: Problem, inputs: Inputs, launch: Launch
) -> dict[str, npt.NDArray[Any]]:
    operands = kernel.prepare(problem, inputs)
    buffers = {name: np.ascontiguousarray(array) for name, array in operands.items()}
    buffers |= {name: np.zeros(size, np.uint8) for name, size in launch.workspace.items()}
    return buffers | {"out": _poisoned(*kernel.op.output(problem))}


def _poisoned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.full(math.prod(shape) * dtype.itemsize, POISON, np.uint8).view(dtype).reshape(shape)


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def _checked(how: How, attempt: Callable[[], Comparison]) -> Checked:
    began = time.perf_counter()
    result = _tried(how, attempt)
    if isinstance(result, Checked):
        return result
    ok, reason = result.ok, "" if result.ok else result.message
    seconds = time.perf_counter() - began
    return Checked(ok, result.rel_error, result.max_error, reason, how, seconds)


def _tried(how: How, attempt: Callable[[], Result]) -> Result | Checked:
    """Return what an attempt gives, or what went wrong: it must not end the check of others."""
    began = time.perf_counter()
    try:
        return attempt()
    except ContextError:
        raise
    except FerrumError as error:
        reason = str(error)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}{_where(error)}"
    return Checked(False, math.inf, math.inf, reason, how, time.perf_counter() - began)
