"""One request of one warp in a pattern: what a model of requests is held against.

    pattern       out[l] = sum of the words that lane l accesses

    x        [2048] uint32       gmem; copied to shared memory where that is what is read
    scratch  [2048] uint32       workspace; what is stored goes there

Lane l accesses `size_bytes` at (l / share) * stride_bytes; lanes from `lanes` on access nothing. Of
lanes that store to one place any may be the last; nobody reads it. It measures no time:
`python -m ferrum_numba.perf.trace_against_ncu` counts its sectors and wavefronts by a trace and by
ncu.
"""

from dataclasses import dataclass

import numpy as np

from ferrum_numba.contract import Kernel, Launch, Op, Program, Tolerance, Work, pointers
from ferrum_numba.errors import ConfigError

WORDS, WARP_SIZE = 2048, 32
KINDS = ("ld.global", "st.global", "ld.shared", "st.shared", "ldmatrix", "cp.async")


@dataclass(frozen=True)
class Pattern:
    """Which lanes access what.

    kind: "ld.global", "st.global", "ld.shared", "st.shared", "ldmatrix" (four matrices, a row of 16
          bytes a lane) or "cp.async" (from the pattern to neighbouring 16 bytes of shared memory)
    """

    kind: str
    size_bytes: int = 4
    stride_bytes: int = 4
    share: int = 1
    lanes: int = WARP_SIZE

    def __post_init__(self):
        if self.kind not in KINDS or self.size_bytes not in (4, 8, 16):
            raise ConfigError(f"no pattern of {self.size_bytes} bytes is called {self.kind}")

    @property
    def words(self):
        """[lanes, words a lane] which words lanes access."""
        first = np.arange(self.lanes) // self.share * self.stride_bytes // 4
        return first[:, None] + np.arange(self.size_bytes // 4)


def reference(problem, inputs):
    """Return what each lane has seen, or what it was to store."""
    x, out = inputs["x"], np.zeros(WARP_SIZE, np.uint32)
    if problem.kind.startswith("st"):
        out[: problem.lanes] = x[: problem.lanes]
    elif problem.kind == "ldmatrix":
        # lane l has two columns of row l / 4 of each of four matrices
        lane = np.arange(WARP_SIZE)
        rows = problem.words[8 * np.arange(4)[:, None] + lane // 4, lane % 4]
        out[:] = x[rows].sum(axis=0, dtype=np.uint32)
    else:
        out[: problem.lanes] = x[problem.words].sum(axis=1, dtype=np.uint32)
    return out


# a run, a line apart, one for all, by fours, half of the lanes
GLOBAL = tuple(
    Pattern(kind, size, stride or size, share, lanes)
    for kind in ("ld.global", "st.global")
    for size in (4, 8, 16)
    for stride, share, lanes in ((0, 1, 32), (128, 1, 32), (0, 32, 32), (0, 4, 32), (0, 1, 16))
)
SHARED = tuple(
    Pattern(kind, size, stride, share)
    for kind in ("ld.shared", "st.shared")
    for size, stride, share in (
        # a run, two-way, eight-way; neighbours and fours that want the same, and all
        (4, 4, 1), (4, 8, 1), (4, 32, 1), (4, 4, 4), (4, 4, 32),
        (8, 8, 1), (8, 32, 1), (8, 8, 2), (8, 8, 4), (8, 128, 2),
        (16, 16, 1), (16, 32, 1), (16, 128, 1), (16, 16, 2), (16, 16, 4), (16, 16, 32),
        (16, 128, 2),
    )
)  # fmt: skip
OTHERS = (
    Pattern("ldmatrix", 16, 16), Pattern("ldmatrix", 16, 128), Pattern("ldmatrix", 16, 144),
    Pattern("cp.async", 16, 16), Pattern("cp.async", 16, 128), Pattern("cp.async", 16, 16, 4),
)  # fmt: skip

OP = Op(
    name="pattern",
    formula="out[l] = sum of the words that lane l accesses, mod 2^32",
    problem=Pattern,
    make_inputs=lambda problem, rng: {"x": rng.integers(0, 2**32, WORDS, np.uint32)},
    reference=reference,
    output=lambda problem: ((WARP_SIZE,), np.dtype(np.uint32)),
    work=lambda problem: Work(flops=0, bytes=0),
    tolerance=lambda problem: Tolerance(0.0, 0.0, "sums and copies of integers are exact"),
    tests=(*GLOBAL, *SHARED, *OTHERS),
    activations=frozenset(),
)


class Patterns(Kernel):
    """Makes one request; its config is the problem's own."""

    name = "pattern"
    op = OP
    config = Pattern
    summary = "one request of one warp"

    def configs(self, gpu):
        """Return any: `specialise` makes the pattern's own of it."""
        return (OP.tests[0],)

    def specialise(self, config, problem):
        """Return the config of a pattern, which is the pattern."""
        return problem

    def refuses(self, problem):
        """Return None: each of them is a row of memory that is there."""
        return None

    def build(self, config, arch):
        """Return the program of a pattern."""
        from ferrum_numba.kernels.ceilings.patterns_program import build

        return Program(
            build(config), pointers("x", "out", "scratch"), WARP_SIZE, smem_bytes=WORDS * 4 + 512
        )

    def prepare(self, problem, inputs):
        """Return the words."""
        return dict(inputs)

    def launch(self, config, problem, gpu):
        """Return a launch of one warp."""
        return Launch((1, 1, 1), {}, {"scratch": WORDS * 4})
