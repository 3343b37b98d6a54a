"""How fast a GPU reads, copies and writes its memory, reads its L2, and starts a kernel.

    dram_read     out[t] = sum of the words of row t
    l2_read       out[t] = sum of the words of rows t, t + stride, ...: all of L2, `passes` times
    dram_copy     out[i] = data[i]
    dram_write    out[i] = i
    launch_floor  out[0] = token, by the first of many threads

    data  [size_bytes / 4] uint32, in rows of 4 KB; a warp takes a row, 16 bytes a lane

A read that is not used would not be made, so a warp sums what it reads; one that was left out
changes the sum. Sums are modulo 2^32 and exact.

Bound by gmem bandwidth, L2 bandwidth, or the time of a launch: that is what they measure.
"""

from dataclasses import dataclass

import numpy as np

from ferrum_numba.contract import Kernel, Launch, Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ProblemError
from ferrum_numba.kernels.ceilings.rates import Rate
from ferrum_numba.reference.ceilings import row_sums
from ferrum_numba.space import space

MIB = 2**20
ROW_BYTES = 4096
# what a warp loads with one instruction
WARP_BYTES = 512
# a lane's accesses to a row, all in flight at once
LANE_ACCESSES = ROW_BYTES // WARP_BYTES
# rows of one pass of L2 reads are far from those of the next: L1 has none of them
L2_STRIDE = 61
EXACT = Tolerance(0.0, 0.0, "sums and copies of integers are exact")


@dataclass(frozen=True)
class Sized:
    """How many bytes are read or written."""

    size_bytes: int

    def __post_init__(self):
        if self.size_bytes < ROW_BYTES or self.size_bytes % ROW_BYTES:
            got = self.size_bytes
            raise ProblemError(f"size_bytes must be a multiple of {ROW_BYTES}; got {got}")


class DramRead(Sized):
    """Beyond 8 times L2, so that next to nothing is found there."""


class DramCopy(Sized):
    """Bytes of the source, and again of the destination."""


class DramWrite(Sized):
    """Bytes of the destination."""


@dataclass(frozen=True)
class L2Read(Sized):
    """How often the bytes are read."""

    passes: int


@dataclass(frozen=True)
class LaunchFloor:
    """What the kernel writes, so that it must run."""

    token: int


@dataclass(frozen=True)
class RowConfig:
    """How the warps go over the rows."""

    blocks_per_sm: int = 8  # blocks launched a SM; what does not fit at once follows
    num_threads: int = 256


@dataclass(frozen=True)
class LaunchConfig:
    """How large the empty launch is."""

    num_threads: int = 256
    blocks_per_sm: int = 1


CONFIGS = space(RowConfig, blocks_per_sm=(8, 4, 16), num_threads=(256, 512))
LAUNCH_CONFIGS = space(LaunchConfig, num_threads=(256, 32, 1024), blocks_per_sm=(1, 2))


def _words(problem):
    return problem.size_bytes // 4


def _rows(problem):
    return problem.size_bytes // ROW_BYTES


def _data(problem, rng):
    # a gigabyte: what the generator makes, without a range to fit it to
    words = rng.bit_generator.random_raw(_words(problem) // 2).view(np.uint32)
    return {"data": words.reshape(_rows(problem), ROW_BYTES // 4)}


def _exact(problem):
    return EXACT


# of every Op, the last test is what the ceiling is measured with
READ = Op(
    name="dram_read",
    formula="out[t] = sum_i data[t, i] mod 2^32",
    problem=DramRead,
    make_inputs=_data,
    reference=lambda problem, inputs: row_sums(inputs["data"], 1, 0),
    output=lambda problem: ((_rows(problem),), np.dtype(np.uint32)),
    work=lambda problem: Work(flops=0, bytes=problem.size_bytes),
    tolerance=_exact,
    tests=(DramRead(ROW_BYTES), DramRead(9 * ROW_BYTES), DramRead(1024 * MIB)),
    activations=frozenset(),
)
COPY = Op(
    name="dram_copy",
    formula="out[i] = data[i]",
    problem=DramCopy,
    make_inputs=_data,
    reference=lambda problem, inputs: inputs["data"].reshape(-1),
    output=lambda problem: ((_words(problem),), np.dtype(np.uint32)),
    work=lambda problem: Work(flops=0, bytes=2 * problem.size_bytes),
    tolerance=_exact,
    tests=(DramCopy(ROW_BYTES), DramCopy(9 * ROW_BYTES), DramCopy(256 * MIB)),
    activations=frozenset(),
)
WRITE = Op(
    name="dram_write",
    formula="out[i] = i",
    problem=DramWrite,
    make_inputs=lambda problem, rng: {},
    reference=lambda problem, inputs: np.arange(_words(problem), dtype=np.uint32),
    output=lambda problem: ((_words(problem),), np.dtype(np.uint32)),
    work=lambda problem: Work(flops=0, bytes=problem.size_bytes),
    tolerance=_exact,
    tests=(DramWrite(ROW_BYTES), DramWrite(9 * ROW_BYTES), DramWrite(256 * MIB)),
    activations=frozenset(),
)
L2 = Op(
    name="l2_read",
    formula="out[t] = sum_p sum_i data[(t + p stride) mod rows, i] mod 2^32",
    problem=L2Read,
    make_inputs=_data,
    reference=lambda problem, inputs: row_sums(inputs["data"], problem.passes, L2_STRIDE),
    output=lambda problem: ((_rows(problem),), np.dtype(np.uint32)),
    work=lambda problem: Work(flops=0, bytes=problem.passes * problem.size_bytes),
    tolerance=_exact,
    tests=(L2Read(ROW_BYTES, 3), L2Read(9 * ROW_BYTES, 2), L2Read(16 * MIB, 64)),
    # not rotated: what is read must be in L2
    activations=frozenset({"data"}),
)
LAUNCH = Op(
    name="launch_floor",
    formula="out[0] = token",
    problem=LaunchFloor,
    make_inputs=lambda problem, rng: {},
    reference=lambda problem, inputs: np.array([problem.token], np.uint32),
    output=lambda problem: ((1,), np.dtype(np.uint32)),
    work=lambda problem: Work(flops=0, bytes=0),
    tolerance=_exact,
    tests=(LaunchFloor(12345),),
    activations=frozenset(),
)


class Read(Kernel):
    """Streams all of the data past L1."""

    name = "dram_read"
    op = READ
    config: type = RowConfig
    summary = "16-byte loads that leave L1 alone, a row a warp"
    rate = Rate("DRAM", "GB/s")

    def configs(self, gpu):
        """Return how to go over the rows."""
        return CONFIGS

    def refuses(self, problem):
        """Run every problem."""
        return None

    def build(self, config, arch):
        """Return the program."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.ceilings.memory_program import build_read

        names = sizes("num_rows", "passes", "stride")
        function = build_read(config, repeats=False)
        return Program(function, (*pointers("data", "out"), *names), config.num_threads)

    def prepare(self, problem, inputs):
        """Return the data as it is."""
        return dict(inputs)

    def launch(self, config, problem, gpu):
        """Return one pass."""
        scalars = {"num_rows": _rows(problem), "passes": 1, "stride": 0}
        return Launch(_grid(config, problem, gpu), scalars)


class ReadL2(Read):
    """Reads the same data many times, from L2."""

    name = "l2_read"
    op = L2
    summary = "16-byte loads past L1 of what fits L2, many times"
    rate = Rate("L2", "GB/s")

    def misfit(self, config, problem, gpu):
        """Return why the data would not stay in L2, or None."""
        if 2 * problem.size_bytes > gpu.l2_bytes:
            return (
                f"{problem.size_bytes} bytes do not stay in half of the L2 of {gpu.name}, "
                f"{gpu.l2_bytes} bytes"
            )
        return None

    def build(self, config, arch):
        """Return the program."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.ceilings.memory_program import build_read

        names = sizes("num_rows", "passes", "stride")
        function = build_read(config, repeats=True)
        return Program(function, (*pointers("data", "out"), *names), config.num_threads)

    def launch(self, config, problem, gpu):
        """Return all passes."""
        num_rows = _rows(problem)
        scalars = {"num_rows": num_rows, "passes": problem.passes, "stride": L2_STRIDE % num_rows}
        return Launch(_grid(config, problem, gpu), scalars)


class Copy(Read):
    """Copies all of the data."""

    name = "dram_copy"
    op = COPY
    summary = "16-byte loads and stores, a row a warp"

    def build(self, config, arch):
        """Return the program."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.ceilings.memory_program import build_copy

        parameters = (*pointers("data", "out"), *sizes("num_rows"))
        return Program(build_copy(config), parameters, config.num_threads)

    def launch(self, config, problem, gpu):
        """Return the launch."""
        return Launch(_grid(config, problem, gpu), {"num_rows": _rows(problem)})


class Write(Copy):
    """Writes numbers that cost nothing to make."""

    name = "dram_write"
    op = WRITE
    summary = "16-byte stores, a row a warp"

    def build(self, config, arch):
        """Return the program."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.ceilings.memory_program import build_write

        parameters = (*pointers("out"), *sizes("num_rows"))
        return Program(build_write(config), parameters, config.num_threads)


class Nothing(Kernel):
    """Starts and ends."""

    name = "launch_floor"
    op = LAUNCH
    config = LaunchConfig
    summary = "an empty kernel: what a launch costs in the regime it is measured in"
    rate = Rate("latency", "us")

    def configs(self, gpu):
        """Return sizes of a launch."""
        return LAUNCH_CONFIGS

    def refuses(self, problem):
        """Run every problem."""
        return None

    def build(self, config, arch):
        """Return the program."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.ceilings.memory_program import nothing

        return Program(nothing, (*pointers("out"), *sizes("token")), config.num_threads)

    def prepare(self, problem, inputs):
        """Return nothing."""
        return {}

    def launch(self, config, problem, gpu):
        """Return blocks for every SM."""
        return Launch((gpu.num_sms * config.blocks_per_sm, 1, 1), {"token": problem.token})


def _grid(config, problem, gpu):
    needed = ceil_div(_rows(problem), config.num_threads // 32)
    return (min(needed, gpu.num_sms * config.blocks_per_sm), 1, 1)
