"""A layer of experts by this house's kernels, humming and cuBLAS, in turn on one board.

    python -m ferrum_numba.perf.peers_moe --store /tmp/run

prints µs a call for every layer, routing and number of tokens, and adds a row of each to
/tmp/run/<gpu>/grouped_gemm.json, which `perf.add_run` takes. It needs PyTorch, and humming unless
--only leaves it out. All have the same routing, rows and weights; of each rival the fastest of its
candidates, each of them checked, is timed cold, the order reversed from turn to turn. cuBLAS gets
dense weights, an expert a launch, and rows that lie sorted by expert.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np

from ferrum_numba import results, shipped
from ferrum_numba.cli.names import changed, select_kernels
from ferrum_numba.compile import Binary, Job, build, build_many
from ferrum_numba.contract import Config, Kernel, describe
from ferrum_numba.errors import ConfigError, ContextError, FerrumError, LaunchError, ProblemError
from ferrum_numba.gpu import Gpu
from ferrum_numba.kernels import KERNELS, TOOLS
from ferrum_numba.kernels.ceilings.memory import READ, Read
from ferrum_numba.kernels.grouped import OP, ROUTINGS, GroupedProblem
from ferrum_numba.launch import Device, OperandSet
from ferrum_numba.measure import Policy, Samples, measure
from ferrum_numba.perf import routed_rivals
from ferrum_numba.perf.problems import MOE_MODELS, TOKENS, ExpertShape, routed
from ferrum_numba.perf.routed_humming import GEMMS, HummingStack, version
from ferrum_numba.perf.routed_rivals import Chosen, Layer, Rival, Stack
from ferrum_numba.perf.routed_rows import HEAD, line, row_of
from ferrum_numba.results import Row
from ferrum_numba.tune.model import ranked
from ferrum_numba.tune.space import feasible

P = TypeVar("P")
# of the models' layers those that others were measured on, for every number of tokens
LAYERS = ("qwen3-moe.gate_up", "qwen3-moe.down", "mixtral.gate_up")
WHO = ("ours", "humming", "cublas")
# even, so that each order occurs as often as its reverse
TURNS = 2
# of a kernel of ours; of humming's there are what it picks and its neighbours
CANDIDATES = 6
POLICY = Policy(samples=11, warmup_ms=60.0)
# for the choice among a rival's candidates
QUICK = replace(POLICY, samples=3, warmup_ms=0.0, min_graph_us=150.0)


def layer_of(text: str) -> ExpertShape:
    """Return a layer by its name, or of `E,k,K,N` or `E,k,K,N,pair`.

    Raises:
        ProblemError: it is neither.
    """
    model, _, projection = text.partition(".")
    known = MOE_MODELS.get(model, {})
    if projection in known:
        return known[projection]
    sizes = text.removesuffix(",pair").split(",")
    if len(sizes) != 4 or not all(size.isdecimal() for size in sizes):
        names = ", ".join(f"{model}.{name}" for model in MOE_MODELS for name in MOE_MODELS[model])
        raise ProblemError(
            f"a layer is {names} or experts,top-k,K,N, with ,pair where x has a row a pair; "
            f"got {text}"
        )
    num_experts, top_k, K, N = map(int, sizes)
    return ExpertShape(num_experts, top_k, K, N, per_pair=text.endswith(",pair"))


def chosen_for(
    problems: Iterable[P],
    gpu: Gpu,
    kernels: Sequence[Kernel],
    decisions: Sequence[results.Decision],
    config: str | None,
    candidates: int = 1,
) -> dict[P, list[tuple[Kernel, Config]]]:
    """Return what each kernel of ours would run every problem with; nothing where all refuse.

    config:     changes of a config, `tile_m=16,...`, instead of what was decided
    candidates: configs of a kernel: what was decided, then the fastest by its model, if it has one
    """  # fmt: skip
    found: dict[P, list[tuple[Kernel, Config]]] = {}
    for problem in problems:
        able = [kernel for kernel in kernels if kernel.refuses(problem) is None]
        found[problem] = []
        for kernel in able:
            choice = results.choose(decisions, problem, [kernel], gpu).config
            if config:
                choice = kernel.specialise(changed(choice, config), problem)
                reason = kernel.misfit(choice, problem, gpu)
                if reason:
                    raise ConfigError(f"{kernel.name} cannot run {problem} so: {reason}")
            tried = [choice]
            if config is None and kernel.estimate_us(choice, problem, gpu) is not None:
                tried += ranked(kernel, feasible(kernel, problem, gpu)[0], problem, gpu)
            tried = list(dict.fromkeys(tried))[:candidates]
            found[problem] += [(kernel, one) for one in tried]
    return found


def compiled(
    chosen: Mapping[P, Sequence[tuple[Kernel, Config]]], gpu: Gpu
) -> dict[P, list[Chosen]]:
    """Compile all that is chosen, at once; what does not compile is left out."""
    pairs = {pair for found in chosen.values() for pair in found}
    jobs = {pair: Job(*pair, gpu.arch) for pair in pairs}
    built = dict(build_many(list(jobs.values())))
    binaries: dict[tuple[Kernel, Config], Binary] = {}
    for (kernel, config), job in jobs.items():
        binary = built[job]
        if isinstance(binary, Binary):
            binaries[kernel, config] = binary
        else:
            left_out(kernel.name, binary, describe(config))
    return {
        problem: [Chosen(*pair, binaries[pair]) for pair in found if pair in binaries]
        for problem, found in chosen.items()
    }


def left_out(name: str, reason: Exception, config: Mapping[str, Any]) -> None:
    """Say why a config is not timed."""
    words = " ".join(str(reason).split())[:300]
    print(f"{name} is left out: {words}; {dict(config)}", file=sys.stderr)


def fastest(device: Device, rivals: Iterable[Rival], want: Any) -> tuple[Rival, float] | None:
    """Return the fastest by a quick look of candidates that are right, and its relative error."""
    best: tuple[float, Rival, float] | None = None
    for rival in rivals:
        try:
            error = routed_rivals.checked(device, rival, want)
            us = median(measure(device, rival.calls, "cold", QUICK).us)
        except ContextError:
            raise
        # a wrong result, or a config that its own launcher refuses
        except (AssertionError, ValueError, RuntimeError) as reason:
            left_out(rival.name, reason, rival.config)
            continue
        if best is None or us < best[0]:
            best = us, rival, error
    return None if best is None else best[1:]


def in_turn(device: Device, rivals: Sequence[Rival], turns: int) -> list[list[Samples]]:
    """Time rivals cold, the order reversed from turn to turn."""
    taken: list[list[Samples]] = [[] for _ in rivals]
    for turn in range(turns):
        order = range(len(rivals))
        for i in order if turn % 2 == 0 else reversed(order):
            taken[i].append(measure(device, rivals[i].calls, "cold", POLICY))
    return taken


class Contest:
    """All rivals on one layer after another, whose weights each of them makes once."""

    def __init__(
        self, device: Device, who: Sequence[str], gemms: Sequence[str], turns: int
    ) -> None:
        self.device, self.who, self.gemms, self.turns = device, who, gemms, turns
        self.rotate_bytes = POLICY.rotate_bytes(device.gpu)

    def rows(
        self, problems: Sequence[GroupedProblem], chosen: Mapping[GroupedProblem, list[Chosen]]
    ) -> Iterator[list[Row]]:
        """Yield the rows of each problem of one layer."""
        stack = humming = None
        for problem in problems:
            inputs = OP.make_inputs(problem, np.random.default_rng(0))
            stack = stack or Stack(problem, inputs)
            if "humming" in self.who:
                humming = humming or HummingStack(problem, stack)
            layer = Layer(problem, inputs, stack)
            yield self._problem(layer, chosen.get(problem, []), humming)

    def _problem(
        self, layer: Layer, chosen: Sequence[Chosen], humming: HummingStack | None
    ) -> list[Row]:
        device, want = self.device, layer.want()
        # of ours each kernel is a rival of its own
        ours = list(self._ours(layer.problem, chosen))
        names = dict.fromkeys(rival.name for rival in ours)
        groups = [[rival for rival in ours if rival.name == name] for name in names]
        if humming is not None:
            groups += [humming.rivals(layer, [gemm], self.rotate_bytes) for gemm in self.gemms]
        if "cublas" in self.who:
            groups.append(routed_rivals.cublas(layer, self.rotate_bytes))
        best = [one for group in groups if (one := fastest(device, group, want)) is not None]
        taken = in_turn(device, [rival for rival, _ in best], self.turns)
        return [
            row_of(layer.problem, rival, error, samples, device.gpu)
            for (rival, error), samples in zip(best, taken, strict=True)
        ]

    def _ours(self, problem: GroupedProblem, chosen: Iterable[Chosen]) -> Iterator[Rival]:
        for one in chosen:
            try:
                yield routed_rivals.ours(self.device, problem, one, self.rotate_bytes)
            except ContextError:
                raise
            except LaunchError as reason:
                left_out(one.kernel.name, reason, describe(one.config))


def main(words: Sequence[str] | None = None) -> None:
    """Time every rival on every problem that was asked for, print the table, store the rows."""
    args = _parser().parse_args(words)
    sets = [
        [p for routing in args.routing for p in routed([layer_of(text)], args.tokens, routing)]
        for text in args.layer or LAYERS
    ]
    if "humming" in args.only:
        version()
    import torch

    device = Device.open()
    # makes the context that this device has opened PyTorch's own
    torch.cuda.init()
    chosen = _ours(args, device.gpu, [p for found in sets for p in found])
    contest = Contest(device, args.only, args.humming_gemm, args.turns)
    environment = results.environment(device.gpu, POLICY, ())
    # boards of one model differ: what memory bounds is to be held against this board's own rate
    environment["read_gbps"] = [plain_read_gbps(device)]
    told = " ".join(sys.argv[1:] if words is None else words)
    environment["command"] = f"python -m ferrum_numba.perf.peers_moe {told}".strip()
    file = results.ResultFile(environment)
    taken = (found for problems in sets for found in contest.rows(problems, chosen))
    print("\n".join(HEAD))
    for found in kept(taken, file, args.store, device.gpu, OP.name):
        print(line(found), flush=True)
    environment["read_gbps"].append(plain_read_gbps(device))
    store(args.store, device.gpu, file, OP.name)
    print(
        "a plain read, before and after: {:.0f} and {:.0f} GB/s".format(*environment["read_gbps"])
    )


def plain_read_gbps(device: Device) -> float:
    """Return the rate of a plain read of memory, 10^9 bytes/s, in the default form."""
    kernel, problem = Read(), READ.tests[-1]
    config = kernel.default(problem, device.gpu)
    with device.activated():
        bound = OperandSet(device, kernel, problem).bind(
            config, build(kernel, config, device.gpu.arch)
        )
        us = median(measure(device, bound.calls(), "cold", POLICY).us)
    return float(round(problem.size_bytes / us / 1e3, 1))


def _ours(
    args: argparse.Namespace, gpu: Gpu, problems: Sequence[GroupedProblem]
) -> dict[GroupedProblem, list[Chosen]]:
    if "ours" not in args.only:
        return {}
    grouped = [kernel for kernel in (*KERNELS, *TOOLS) if kernel.op is OP]
    if not grouped:
        rest = ",".join(word for word in args.only if word != "ours") or "humming,cublas"
        raise ConfigError(f"no kernel computes {OP.name} yet: leave ours out with --only {rest}")
    kernels = select_kernels(grouped, args.kernel)
    path = args.results or shipped.results_folder() / gpu.key / f"{OP.name}.json"
    rows = results.load(path).rows if args.results or path.exists() else []
    chosen = chosen_for(problems, gpu, kernels, results.decide(rows), args.config, args.candidates)
    return compiled(chosen, gpu)


def kept(
    taken: Iterable[list[Row]], file: results.ResultFile, folder: Path | None, gpu: Gpu, op: str
) -> Iterator[list[Row]]:
    """Yield each problem's rows, and keep them in a run's file: no row is lost with a later one."""
    for found in taken:
        file.rows += found
        if found:
            yield found
        store(folder, gpu, file, op)


def store(folder: Path | None, gpu: Gpu, file: results.ResultFile, op: str) -> None:
    """Put a run's rows into the file of an Op, if there is to be one."""
    if folder is None:
        return
    path = folder / gpu.key / f"{op}.json"
    date = file.environment["date"]
    file = replace(file, rows=[replace(row, run=date) for row in file.rows])
    results.save(path, results.merge(results.load(path), file) if path.exists() else file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layer", action="append", metavar="NAME|E,k,K,N[,pair]")
    parser.add_argument("--tokens", type=counts_of, default=TOKENS, metavar="T,T,…")
    for name, known in (("routing", ROUTINGS), ("only", WHO), ("humming-gemm", GEMMS)):
        usual = GEMMS[:1] if known is GEMMS else known
        parser.add_argument(
            f"--{name}", type=some_of(known), default=usual, metavar=",".join(known)
        )
    parser.add_argument("--kernel", type=words_of, default=(), metavar="NAME,…", help="of ours")
    parser.add_argument("--config", metavar="name=value,…", help="what to change in their configs")
    parser.add_argument(
        "--candidates",
        type=count_of,
        default=CANDIDATES,
        metavar="N",
        help="configs of ours a kernel",
    )
    parser.add_argument("--turns", type=count_of, default=TURNS, metavar="N")
    parser.add_argument("--results", type=Path, metavar="FILE", help="what ours are decided by")
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="adds the rows to its file")
    return parser


def words_of(text: str) -> list[str]:
    """Return the words of `a,b`."""
    return text.split(",")


def some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return what reads words of which each must be known."""

    def some(text: str) -> list[str]:
        for word in words_of(text):
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word} is none of {', '.join(known)}")
        return words_of(text)

    return some


def count_of(text: str) -> int:
    """Return a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number above 0")
    return int(text)


def counts_of(text: str) -> list[int]:
    """Return the numbers of `1,16`."""
    return [count_of(word) for word in words_of(text)]


if __name__ == "__main__":
    try:
        main()
    except (FerrumError, ImportError) as error:
        print(f"peers_moe: {error}", file=sys.stderr)
        sys.exit(2)
