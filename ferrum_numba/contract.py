"""The two nouns of the project: an Op is what to compute, a Kernel is one way to compute it.

The harness (compile, launch, measure, tune, report) knows these classes and no kernel. A kernel
knows its Op. A reference knows NumPy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ferrum_numba.errors import ConfigError
from ferrum_numba.layout import Region, Tile
from ferrum_numba.tolerance import Comparison as Comparison
from ferrum_numba.tolerance import Tolerance as Tolerance

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu

Array = npt.NDArray[Any]
Inputs = Mapping[str, Array]
# a frozen dataclass of ints, bools and strings; opaque to the harness, which prints and stores it
Problem = Any
Config = Any


@dataclass(frozen=True)
class Work:
    """The least work a problem needs, whatever the kernel: the numerators of every rate.

    flops: multiplications and additions, 2*M*N*K for a GEMM
    bytes: compulsory traffic to device memory: each input read once, each output written once
    """

    flops: int
    bytes: int


def _refuse_thawed(what: str, kind: Any) -> None:
    """Refuse a dataclass whose objects may change: they are looked up by what they hold."""
    parameters = getattr(kind, "__dataclass_params__", None)
    if parameters is not None and not parameters.frozen:
        raise ConfigError(
            f"{what}, {kind.__name__}, is a dataclass that is not frozen: @dataclass(frozen=True)"
        )


@dataclass(frozen=True)
class Op:
    """What to compute.

    formula:     one line, with indices
    problem:     the frozen dataclass of its sizes
    make_inputs: (problem, rng) -> arrays in the Op's own layout, by name
    reference:   (problem, inputs) -> the exact result, float32 or wider
    output:      problem -> (shape, dtype) of what a kernel writes to its parameter `out`; several
                 results are the fields of one structure, in one buffer
    work:        problem -> Work
    tolerance:   problem -> Tolerance
    tests:       small problems on the edges of every tile; all kernels run them
    activations: names of inputs that change with every call; the others are weights, which the
                 cold regime rotates
    weight_bytes_read: problem -> bytes of the weights that a call reads; None for all of them
    """

    name: str
    formula: str
    problem: type
    make_inputs: Callable[[Problem, np.random.Generator], dict[str, Array]]
    reference: Callable[[Problem, Inputs], Array]
    output: Callable[[Problem], tuple[tuple[int, ...], np.dtype[Any]]]
    work: Callable[[Problem], Work]
    tolerance: Callable[[Problem], Tolerance]
    tests: tuple[Problem, ...]
    activations: frozenset[str]
    weight_bytes_read: Callable[[Problem], int] | None = None

    def __post_init__(self) -> None:
        _refuse_thawed(f"the problem of Op {self.name}", self.problem)
        example = f"tests=({self.problem.__name__}(...),)"
        if not isinstance(self.tests, tuple | list):
            raise ConfigError(
                f"the tests of Op {self.name} are {self.tests!r}, which is no tuple; a tuple of "
                f"one has a comma: {example}"
            )
        for one in self.tests:
            if not isinstance(one, self.problem):
                raise ConfigError(
                    f"the tests of Op {self.name} hold {one!r}; they must be problems: {example}"
                )


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel's scalar signature: the exported ABI.

    A pointer is a uint64 address of the buffer of that name; the others are plain scalars.
    """

    name: str
    kind: Literal["pointer", "uint32", "int32"]


def pointers(*names: str) -> tuple[Parameter, ...]:
    """Return pointer parameters of these names."""
    return tuple(Parameter(name, "pointer") for name in names)


def sizes(*names: str) -> tuple[Parameter, ...]:
    """Return uint32 parameters of these names."""
    return tuple(Parameter(name, "uint32") for name in names)


@dataclass(frozen=True)
class Program:
    """One compilable kernel: a Python function over scalars, and what the compiler must know.

    function:          the kernel, undecorated; its arguments are `parameters`, in order
    num_threads:       threads a block (launch bound)
    min_blocks_per_sm: second launch bound; caps the registers
    smem_bytes:        dynamic shared memory a block, asked for at launch
    cluster:           blocks a thread-block cluster, (1, 1, 1) for none
    lto:               link from LTO-IR, without which `setmaxnreg` is ignored
    """

    function: Callable[..., None]
    parameters: tuple[Parameter, ...]
    num_threads: int
    min_blocks_per_sm: int = 1
    smem_bytes: int = 0
    cluster: tuple[int, int, int] = (1, 1, 1)
    lto: bool = False


@dataclass(frozen=True)
class Matmul:
    """A product of plain row-major matrices that cuBLAS computes after a launch.

    out[m, n] = round(sum_k a[m, k] * b[k, n]), the sums in fp32

    a, b, out, scratch: buffers by name; [M, K], [K, N], [M, N], and what cuBLAS works in
    dtype:              "fp16" or "bf16", of all three
    scratch_bytes:      size of the scratch
    """

    a: str
    b: str
    out: str
    scratch: str
    M: int
    N: int
    K: int
    dtype: str
    scratch_bytes: int

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of the buffers, as `launch.cublas` takes their addresses."""
        return self.a, self.b, self.out, self.scratch


@dataclass(frozen=True)
class Launch:
    """How one program is launched for one problem.

    grid:         thread blocks (not clusters) in x, y, z
    scalars:      value of every non-pointer parameter, by name
    workspace:    bytes of every scratch buffer, by pointer name; zero before the first launch, and
                  the kernel leaves what must be zero at zero
    co_resident:  the blocks wait for each other, so all of them must fit on the GPU at once
    programmatic: may start before its predecessor ends (programmatic dependent launch)
    then:         what cuBLAS computes when the program has ended
    repeats:      scalars by which further launches of the program differ, one after the other
    settled:      activations that the launch just before does not write, by name: a programmatic
                  launch may read them before that one has ended
    """

    grid: tuple[int, int, int]
    scalars: Mapping[str, int]
    workspace: Mapping[str, int] = field(default_factory=dict)
    co_resident: bool = False
    programmatic: bool = False
    then: Matmul | None = None
    repeats: tuple[Mapping[str, int], ...] = ()
    settled: frozenset[str] = frozenset()

    def one_by_one(self) -> Iterator[Launch]:
        """Yield this launch, and each of those that repeat it, without repeats."""
        first = replace(self, repeats=())
        yield first
        for scalars in self.repeats:
            yield replace(first, scalars={**self.scalars, **scalars})


@dataclass(frozen=True)
class Corner:
    """A problem on which a design does what it does on none of its Op's tests by default.

    config:  None for the default
    num_sms: of the GPU it is launched for, so that few blocks have much to do; None for all
    """

    problem: Problem
    config: Config = None
    num_sms: int | None = None


class Kernel(ABC):
    """How to compute an Op: one design, stateless, picklable by reference.

    A subclass sets the class attributes and the abstract methods. Some config of `configs` must
    fit every problem that the kernel does not refuse: the first that fits is the default. A kernel
    that needs what a GPU does not have gives no configs for it, and is passed over there.

    What a program is compiled for and nobody may choose, such as the type of the activations, is a
    field of the config too, but not an axis of the space: `specialise` sets it.
    """

    name: str
    op: Op
    config: type
    summary: str
    # whether its launches go on with cuBLAS, which not every machine has
    needs_cublas: bool = False
    # whether `default` knows what suits a weight's shape better than what won on another's does
    models_shapes: bool = False

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        if "config" in vars(cls):
            _refuse_thawed(f"the config of kernel {getattr(cls, 'name', cls.__name__)}", cls.config)

    @property
    def made_by(self) -> Kernel:
        """The kernel whose programs these are: itself, unless it only stands for another."""
        return self

    @abstractmethod
    def configs(self, gpu: Gpu) -> Sequence[Config]:
        """Return the space of configs worth trying on this GPU, the likeliest to win first."""

    @abstractmethod
    def refuses(self, problem: Problem) -> str | None:
        """Return why no config can run this problem, with the nearest that can, or None."""

    def specialise(self, config: Config, problem: Problem) -> Config:
        """Return the config with what this problem dictates; only asked where it is not refused."""
        return config

    def misfit(self, config: Config, problem: Problem, gpu: Gpu) -> str | None:
        """Return why this config does not fit this problem on this GPU, or None."""
        return None

    def runs_on(self, gpu: Gpu) -> bool:
        """Return whether the kernel has a config for this GPU at all."""
        return bool(self.configs(gpu))

    def fitting(self, problem: Problem, gpu: Gpu) -> Iterator[Config]:
        """Yield the configs of the space that fit a problem, made for it, the likeliest first."""
        for choice in self.configs(gpu):
            config = self.specialise(choice, problem)
            if self.misfit(config, problem, gpu) is None:
                yield config

    def default(self, problem: Problem, gpu: Gpu) -> Config:
        """Return the config to run an untuned problem with: the first of `configs` that fits."""
        for config in self.fitting(problem, gpu):
            return config
        raise AssertionError(f"{self.name}: no config fits {problem}; the default must")

    def corners(self) -> Sequence[Corner]:
        """Return what `check` runs beside the Op's tests: rings that wrap, sums handed over, ..."""
        return ()

    def estimate_us(self, config: Config, problem: Problem, gpu: Gpu) -> float | None:
        """Return what a launch that fits is expected to take in us, modelled; None: no model.

        The tuner ranks configs by it. A kernel without one is ranked by what all launches show.
        """
        return None

    def smem_map(self, config: Config) -> Sequence[Region]:
        """Return what lies where in a block's dynamic shared memory.

        That is what a config has as its `smem_map`; nothing where it has none.
        """
        found: Sequence[Region] = getattr(config, "smem_map", ())
        return found

    def tiles(self, config: Config) -> Sequence[Tile]:
        """Return which lane holds what of the tiles of its operands' own layout, if any."""
        return ()

    @abstractmethod
    def build(self, config: Config, arch: str) -> Program:
        """Return the program of a config for an architecture such as `sm_90a`."""

    @abstractmethod
    def prepare(self, problem: Problem, inputs: Inputs) -> dict[str, Array]:
        """Return the operand buffers, in this kernel's own layout, by parameter name."""

    @abstractmethod
    def launch(self, config: Config, problem: Problem, gpu: Gpu) -> Launch:
        """Return how to launch the config's program for a problem; allocates nothing."""


def describe(value: Any) -> dict[str, Any]:
    """Return a problem or config as a plain dict, for tables and JSON."""
    return asdict(value)
