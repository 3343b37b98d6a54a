"""Dense int4 GEMMs by this house's kernels and their peers, in turn on one board.

    python -m ferrum_numba.perf.peers_dense --store /tmp/run

prints µs a call for every weight and M, and adds a row of each to /tmp/run/<gpu>/w4a16_gemm.json,
which `perf.add_run` takes. It needs PyTorch; what else is missing is left out, and said. All have
the same rows and weights; of each peer the fastest of its candidates, each of them checked, is
timed cold, the order reversed from turn to turn. `pip install 'ferrum-numba[peers]'` brings all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ferrum_numba import results, shipped
from ferrum_numba.cli.names import select_kernels
from ferrum_numba.contract import describe
from ferrum_numba.errors import ContextError, FerrumError, LaunchError, ProblemError
from ferrum_numba.kernels import KERNELS
from ferrum_numba.kernels.w4a16 import OP, W4A16Problem
from ferrum_numba.launch import Device
from ferrum_numba.perf import routed_rivals
from ferrum_numba.perf.dense_rivals import MAKERS, DenseLayer, made
from ferrum_numba.perf.peers_moe import (
    POLICY,
    TURNS,
    chosen_for,
    compiled,
    count_of,
    counts_of,
    fastest,
    in_turn,
    kept,
    left_out,
    some_of,
    words_of,
)
from ferrum_numba.perf.problems import GROUP_SIZE, PEER_ROWS, PEER_SHAPES
from ferrum_numba.perf.routed_rivals import Chosen, Rival
from ferrum_numba.perf.routed_rows import row_of
from ferrum_numba.results import Row

WHO = ("ours", *MAKERS)
HEAD = (
    "| K × N | M | bound | ours | its kernel | best 4-bit peer | whose | peer / ours | others |",
    "|---|--:|--:|--:|---|--:|---|--:|---|",
)


def weight_of(text: str) -> tuple[int, int]:
    """Return K and N of `4096x14336`.

    Raises:
        ProblemError: it is not that.
    """
    K, _, N = text.partition("x")
    if not (K.isdecimal() and N.isdecimal()):
        raise ProblemError(f"a weight is KxN, such as 4096x14336; got {text}")
    return int(K), int(N)


class Contest:
    """All that multiply, on one weight after another."""

    def __init__(self, device: Device, who: Sequence[str], turns: int) -> None:
        self.device, self.who, self.turns = device, who, turns
        self.rotate_bytes = POLICY.rotate_bytes(device.gpu)

    def rows(
        self, problems: Sequence[W4A16Problem], chosen: Mapping[W4A16Problem, list[Chosen]]
    ) -> Iterator[list[Row]]:
        """Yield the rows of each problem."""
        for problem in problems:
            yield self._problem(problem, chosen.get(problem, []))

    def _problem(self, problem: W4A16Problem, chosen: Sequence[Chosen]) -> list[Row]:
        import torch

        inputs = OP.make_inputs(problem, np.random.default_rng(0))
        layer = DenseLayer(problem, inputs)
        want = layer.want()
        best: list[tuple[Rival, float]] = []
        # of ours each kernel is a rival of its own; a peer's losers let go of their copies
        for one in chosen:
            found = fastest(self.device, self._ours(problem, one), want)
            best += [found] if found else []
        for name in self.who:
            if name != "ours":
                found = fastest(self.device, made(name, layer, self.rotate_bytes), want)
                best += [found] if found else []
            torch.cuda.empty_cache()
        taken = in_turn(self.device, [rival for rival, _ in best], self.turns)
        return [
            row_of(problem, rival, error, samples, self.device.gpu, OP)
            for (rival, error), samples in zip(best, taken, strict=True)
        ]

    def _ours(self, problem: W4A16Problem, one: Chosen) -> list[Rival]:
        try:
            return [routed_rivals.ours(self.device, problem, one, self.rotate_bytes)]
        except ContextError:
            raise
        except LaunchError as reason:
            left_out(one.kernel.name, reason, describe(one.config))
            return []


def line(rows: Sequence[Row]) -> str:
    """Return a problem's line: the best of ours and of 4-bit peers, and all others, us a call."""
    problem = W4A16Problem(**rows[0].problem)
    ours = min((row for row in rows if not row.peer), key=lambda row: row.us, default=None)
    peers = sorted((row for row in rows if row.peer), key=lambda row: row.us)
    four = next((row for row in peers if row.more["kind"] == "4-bit"), None)
    others = ", ".join(f"{row.peer} {row.us:.1f}" for row in peers if row is not four)
    cells = [
        f"{problem.K} × {problem.N}", f"{problem.M}", f"{rows[0].bound_us:.1f}",
        f"**{ours.us:.1f}**" if ours else "", f"`{ours.kernel}`" if ours else "",
        f"{four.us:.1f}" if four else "", four.peer if four else "",
        f"{four.us / ours.us:.2f}" if four and ours else "", others,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main(words: Sequence[str] | None = None) -> None:
    """Time all on every problem that was asked for, print the table, store the rows."""
    args = _parser().parse_args(words)
    weights = [weight_of(text) for text in args.weight or ()]
    weights = weights or [(shape.K, shape.N) for shape in PEER_SHAPES]
    sets = [[W4A16Problem(M, N, K, GROUP_SIZE) for M in args.m] for K, N in weights]
    import torch

    device = Device.open()
    # makes the context that this device has opened PyTorch's own
    torch.cuda.init()
    chosen: Mapping[W4A16Problem, list[Chosen]] = {}
    if "ours" in args.only:
        kernels = [k for k in select_kernels(KERNELS, args.kernel) if k.op is OP]
        path = args.results or shipped.results_folder() / device.gpu.key / f"{OP.name}.json"
        known = results.decide(results.load(path).rows) if args.results or path.exists() else []
        asked = [problem for found in sets for problem in found]
        chosen = compiled(chosen_for(asked, device.gpu, kernels, known, None), device.gpu)
    contest = Contest(device, args.only, args.turns)
    environment = results.environment(device.gpu, POLICY, ())
    told = " ".join(sys.argv[1:] if words is None else words)
    environment["command"] = f"python -m ferrum_numba.perf.peers_dense {told}".strip()
    file = results.ResultFile(environment)
    taken = (found for problems in sets for found in contest.rows(problems, chosen))
    print("\n".join(HEAD))
    for found in kept(taken, file, args.store, device.gpu, OP.name):
        print(line(found), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weight", action="append", metavar="KxN")
    parser.add_argument("--m", type=counts_of, default=PEER_ROWS, metavar="M,M,…")
    parser.add_argument("--only", type=some_of(WHO), default=WHO, metavar=",".join(WHO))
    parser.add_argument("--kernel", type=words_of, default=(), metavar="NAME,…", help="of ours")
    parser.add_argument("--turns", type=count_of, default=TURNS, metavar="N")
    parser.add_argument("--results", type=Path, metavar="FILE", help="what ours are decided by")
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="adds the rows to its file")
    return parser


if __name__ == "__main__":
    try:
        main()
    except (FerrumError, ImportError) as error:
        print(f"peers_dense: {error}", file=sys.stderr)
        sys.exit(2)
