"""`ferrum-numba warm`: compile beforehand what a checkpoint's layers will need."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferrum_numba.cli import options
from ferrum_numba.cli.output import print_json, say, writing
from ferrum_numba.cli.progress import progress
from ferrum_numba.cli.session import Session
from ferrum_numba.contract import describe
from ferrum_numba.errors import BuildError, CheckpointError, ProblemError, StoreError

if TYPE_CHECKING:
    from ferrum_numba.compile import Binary, Job
    from ferrum_numba.gptq.checkpoint import LayerInfo
    from ferrum_numba.linear.needs import Needs

HELP = "compile beforehand, on all processors, what a checkpoint's layers will need; resumable"
NO_BUILD = 1
USUAL_ROWS = "1-512"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint, the numbers of rows, and the GPU."""
    parser.add_argument("path", type=options.given, metavar="MODEL_DIR", help="the checkpoint")
    options.add_rows(
        parser, f"numbers of rows of x, or tokens; {USUAL_ROWS} by default", USUAL_ROWS
    )
    options.add_top_k(parser)
    options.add_gpu(parser)
    parser.add_argument(
        "--dtype", choices=("fp16", "bf16"), default="fp16", help="of x; fp16 by default"
    )


def run(session: Session) -> int:
    """Compile what is missing, and say what was there; 1 where one does not compile."""
    session.kept = "program"
    began = time.monotonic()
    jobs, kinds = _needed(session)
    found = [_available(job) for job in jobs]
    missing = [job for job, where in zip(jobs, found, strict=True) if where is None]
    failed: list[dict[str, Any]] = []
    session.keep(_built(missing), lambda pair: _note(session, failed, *pair))
    facts = {
        "gpu": session.gpu.key, "layers": kinds, "programs": len(jobs),
        "shipped": found.count("shipped"), "compiled_before": found.count("cache"),
        "compiled": session.rows_kept, "failed": failed, "seconds": time.monotonic() - began,
    }  # fmt: skip
    _print(session, facts)
    return NO_BUILD if failed else 0


def _needed(session: Session) -> tuple[list[Job], int]:
    """Return the programs, and how many kinds of layers need them."""
    from ferrum_numba.gptq.checkpoint import GptqCheckpoint
    from ferrum_numba.linear import needs

    args = session.args
    with GptqCheckpoint.open(args.path) as checkpoint:
        layers = checkpoint.layers()
    for layer in layers:
        if layer.error is not None:
            say(f"left out: {layer.error}")
    weights = needs.kinds(layers, args.dtype)
    if not weights:
        raise CheckpointError(f"{args.path} has no quantised layer that can be loaded")
    experts = list(_experts(layers, args))
    with progress("choose") as bar:
        jobs = needs.programs(weights, args.m, session.gpu, bar, experts)
    return jobs, len(weights) + len(experts)


def _experts(layers: Sequence[LayerInfo], args: argparse.Namespace) -> Iterator[Needs]:
    """Yield what the layers of experts need, each kind once; say why one is left out."""
    from ferrum_numba.gptq.config import experts_per_token
    from ferrum_numba.linear import moe_needs

    path = Path(args.path)
    top_k = args.top_k or experts_per_token(path if path.is_dir() else path.parent)
    for block in moe_needs.blocks(layers, args.dtype):
        if top_k is None:
            say("left out: layers of experts; config.json does not say how many a token has, "
                "--top-k does")  # fmt: skip
            return
        try:
            block.spec(top_k)
        except ProblemError as error:
            say(f"left out: the layer of experts of {error}")
            continue
        yield partial(block.programs, top_k)


def _available(job: Job) -> str | None:
    from ferrum_numba.compile import available

    return available(job.kernel, job.config, job.arch)


def _built(jobs: Sequence[Job]) -> Iterator[tuple[Job, Binary | BuildError]]:
    """Compile, and yield each config with its outcome; those of one program follow the first."""
    from ferrum_numba.compile import build, build_many
    from ferrum_numba.tune.space import by_program

    twins = by_program(jobs)
    with progress("compile") as bar:
        for first, outcome in build_many(list(twins), progress=bar):
            yield first, outcome
            for job in twins[first][1:]:
                # found by the program's fingerprint, and known by its config from now on
                again = outcome if isinstance(outcome, BuildError) else None
                yield job, again or build(job.kernel, job.config, job.arch)


def _note(
    session: Session, failed: list[dict[str, Any]], job: Job, outcome: Binary | BuildError
) -> None:
    if isinstance(outcome, BuildError):
        about = {"kernel": job.kernel.name, "config": describe(job.config)}
        failed.append({**about, "reason": str(outcome)})
    else:
        _refuse_unkept(job, outcome)
        session.rows_kept += 1


def _refuse_unkept(job: Job, binary: Binary) -> None:
    """Refuse to go on where nothing that is compiled is there afterwards.

    Raises:
        StoreError: says why the cache cannot be written.
    """
    from ferrum_numba.compile import cache

    if _available(job) is not None:
        return
    folder = cache.directory()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(binary.cubin + binary.ptx.encode())
    raise StoreError(f"{folder} does not keep what is compiled")


def _print(session: Session, facts: dict[str, Any]) -> None:
    if session.args.json:
        print_json(facts)
        return
    for failure in facts["failed"]:
        print(f"{failure['kernel']}: {failure['reason']}")
    print(
        f"{facts['layers']} kinds of layers need {facts['programs']} programs on "
        f"{session.gpu.name}: {facts['shipped']} ship, {facts['compiled_before']} were compiled "
        f"before, {facts['compiled']} now, in {facts['seconds']:.1f} s"
    )
