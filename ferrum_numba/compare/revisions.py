"""Two revisions of this package against each other, each by its own source in a process of its own.

A revision is checked out in a worktree, which goes when all is done. What measures there is that
revision's own harness, driven by `served.py`, which uses nothing that older ones lack; what decides
is this one's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from ferrum_numba import whole
from ferrum_numba.compare.built import Built
from ferrum_numba.compare.live import Trial, against, tried
from ferrum_numba.contract import Op, Problem, describe
from ferrum_numba.errors import DeviceError, FerrumError
from ferrum_numba.gpu import Gpu
from ferrum_numba.measure import Policy
from ferrum_numba.tune.exclusive import exclusive
from ferrum_numba.tune.worker import Candidate, Outcome

# the tree as it is, with what is not committed
HERE = "."
# folders of a tree that are imported under the package's name
MAPPED = ("kernels", "reference", "perf")
SCRIPT = Path(__file__).with_name("served.py")


def find_revision(text: str) -> str | None:
    """Return the commit that a revision names in the repository here, or None."""
    if text == HERE:
        return HERE
    return _git("rev-parse", "--verify", "--quiet", f"{text}^{{commit}}")


def compare_revisions(
    revisions: Sequence[str],
    problems: Sequence[tuple[Op, Problem]],
    gpu: Gpu,
    policy: Policy,
    run: str,
    kernel: str = "",
) -> Iterator[Trial]:
    """Yield the trial of each problem: what the old revision runs it with, and what the new does.

    Args:
        revisions: two commits, or `.` for the tree as it is
        run:       the date that names this run
        kernel:    the one to compare; by default what each revision decided on

    Raises:
        DeviceError: no GPU, or another process is measuring on it.
        FerrumError: there is no repository here, or it has no such package.
    """
    with exclusive(gpu), whole.scratch() as folder:
        trees = [Path(folder, name) for name in ("old", "new")]
        with (
            _checked_out(revisions[0], trees[0]) as old,
            _checked_out(revisions[1], trees[1]) as new,
            Side(old) as first,
            Side(new) as second,
        ):
            both = Sides(first, second)
            for op, problem in problems:
                yield _trial(both, op, problem, gpu, policy, run, kernel)


def _trial(
    both: Sides, op: Op, problem: Problem, gpu: Gpu, policy: Policy, run: str, kernel: str
) -> Trial:
    asked = {"op": op.name, "problem": describe(problem), "kernel": kernel}
    (first, a), (second, b) = (side.open(asked, policy) for side in both.sides)
    # what a contest hands on to its measurer, and does not look into
    candidates = [cast(Candidate, side) for side in both.sides]
    good = a.status == b.status == "measured"
    taken = against(both, candidates, policy) if good else []
    return tried(op, problem, (first, second), (a, b), taken, gpu, run)


class Sides:
    """Two processes as one measurer."""

    def __init__(self, old: Side, new: Side) -> None:
        self.sides = (old, new)

    def run(self, candidate: Candidate, best_us: float | None) -> Outcome:
        """Not asked for: each side is checked when it is opened."""
        raise NotImplementedError

    def round(
        self, candidates: Sequence[Candidate], turn: int, samples: int
    ) -> list[Outcome] | None:
        """Time both, in odd rounds the last first; None where one has failed."""
        taken: dict[int, Outcome] = {}
        places = range(len(candidates))
        for i in places if turn % 2 == 0 else reversed(places):
            answer = cast(Side, candidates[i]).ask({"do": "round", "samples": samples})
            if "error" in answer:
                return None
            taken[i] = Outcome("measured", us=tuple(answer["us"]), extra=answer["extra"])
        return [taken[i] for i in places]


class Side:
    """A process that measures by the source of one tree."""

    def __init__(self, tree: Path) -> None:
        """Start it.

        tree: folder whose `ferrum_numba` is the whole package
        """
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        # each revision finds its own programs that ship, by its own rule
        environment.pop("FERRUM_NUMBA_PROGRAMS_DIR", None)
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=environment,
        )  # fmt: skip

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(10.0)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def ask(self, what: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer, which has `error` where it failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError as error:
            return {"error": f"the measuring process died ({error.strerror})"}
        if not line:
            code = self._process.wait(10.0)
            return {"error": f"the measuring process died with exit code {code}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def open(self, asked: Mapping[str, Any], policy: Policy) -> tuple[Built, Outcome]:
        """Make a problem's operands, check what runs it, and take a first time."""
        answer = self.ask({"do": "open", **asked, "warmup_ms": policy.warmup_ms})
        if "device" in answer:
            raise DeviceError(answer["device"])
        if "error" in answer:
            return Built(asked["kernel"] or "none", {}), Outcome("failed", answer["error"])
        outcome = answer.pop("outcome")
        return Built(**answer), Outcome(**{**outcome, "us": tuple(outcome["us"])})


@contextmanager
def _checked_out(revision: str, folder: Path) -> Iterator[Path]:
    """Hold a folder from which a revision is imported as it is installed."""
    top = _git("rev-parse", "--show-toplevel")
    if top is None:
        raise FerrumError("revisions are compared inside of a git repository; there is none here")
    if revision == HERE:
        yield _mirror(Path(top), folder)
        return
    tree = folder.with_name(f"{folder.name}-tree")
    done = subprocess.run(
        ["git", "worktree", "add", "--detach", "--quiet", str(tree), revision],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise FerrumError(f"{revision} cannot be checked out: {' '.join(done.stderr.split())}")
    try:
        yield _mirror(tree, folder)
    finally:
        _git("worktree", "remove", "--force", str(tree))


def _mirror(tree: Path, folder: Path) -> Path:
    """Make a package of links whose parts lie where an installation has them."""
    source = tree / "ferrum_numba"
    if not source.is_dir():
        raise FerrumError(f"{tree} has no package ferrum_numba to compare")
    package = folder / "ferrum_numba"
    package.mkdir(parents=True)
    for entry in [*source.iterdir(), *(tree / name for name in MAPPED)]:
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry.resolve())
    return folder


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
