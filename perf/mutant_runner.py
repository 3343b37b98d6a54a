"""Judges what is planted in the tree that it runs in: a process for each mutant.

It is started in a copy of the tree (`perf/mutate.py`), where it imports all but the kernels' device
code, and then forks for each request, a line of JSON: what is forked imports the code as it stands.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ferrum_numba
from ferrum_numba import interpreter
from ferrum_numba.cases import cases_of
from ferrum_numba.cli.interpreted import TWICE_IN
from ferrum_numba.compile.compiler import compile_ptx
from ferrum_numba.perf import far_cases, fault_cases

ARCH, ENTRY = "sm_90a", "kernel"
# of address space, of which the windows of far cases take some
MOST_BYTES = 32 << 30
# what a case may take: so many times what it takes without a mutant, and at least
TIMES, LEAST_S = 10, 20.0


def main() -> int:
    """Answer requests until there are none."""
    interpreter.typing_context()
    for path in (Path(ferrum_numba.__file__).parent / "ptx").glob("*.py"):
        import_module(f"ferrum_numba.ptx.{path.stem}")
    for line in sys.stdin:
        print(json.dumps(_forked(json.loads(line))), flush=True)
    return 0


def _forked(request: dict[str, Any]) -> Any:
    context = get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(request, there))
    process.start()
    there.close()
    try:
        answer = here.recv()
    except EOFError:
        raise SystemExit(f"the process of {request} ended without an answer") from None
    process.join()
    return answer


def _answer(request: dict[str, Any], pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    asked: dict[str, Callable[..., Any]] = {"time": times, "check": judge, "ptx": ptx_digests}
    what = request.pop("what")
    if what == "check":

        def looping(words: dict[str, Any]) -> None:
            pipe.send(words)
            os._exit(0)

        request["looping"] = looping
    pipe.send(asked[what](**request))


def _cases(kernel: str) -> list[tuple[Any, int]]:
    """Return a kernel's cases in the order of `check`, and in how many orders each runs."""
    found = cases_of(fault_cases.NAMED[kernel], fault_cases.H200)
    return [(case, 1 if i % TWICE_IN else 2) for i, case in enumerate(found)]


def times(kernel: str) -> list[float]:
    """Return what each case takes in seconds, without a mutant.

    Raises:
        SystemExit: one fails.
    """
    taken = []
    for case, orders in _cases(kernel):
        began = time.perf_counter()
        found = fault_cases.run(case, orders)
        if not found.ok:
            raise SystemExit(f"{kernel} fails without a mutant: {case.problem}: {found.reason}")
        taken.append(time.perf_counter() - began)
    return taken


def judge(
    kernel: str, seconds: Sequence[float], looping: Callable[[dict[str, Any]], Any]
) -> dict[str, Any]:
    """Return why the first case fails, the quickest first, or nothing where all pass.

    After what `check` runs come the blocks at the far end of the largest problems.
    """
    cases = _cases(kernel)
    for number in sorted(range(len(cases)), key=lambda i: seconds[i]):
        case, orders = cases[number]
        why = _limited(
            max(LEAST_S, TIMES * seconds[number]), looping, fault_cases.run, case, orders
        )
        if why:
            return {"killed": why}
    for far in far_cases.CASES:
        if far.kernel == kernel:
            why = _limited(LEAST_S, looping, far_cases.run, far)
            if why:
                return {"killed": f"far: {why}"}
    return {}


def _limited(
    seconds: float, looping: Callable[[dict[str, Any]], Any], run: Callable[..., Any], *case: Any
) -> str:
    """Return what is wrong with a case, or nothing; a case that takes too long ends the process."""

    def stop(_: int, frame: Any) -> None:
        looping({"killed": f"loops: {_place(frame)}"})

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        found = run(*case)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        return f"raises {type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return found if isinstance(found, str) else "" if found.ok else found.reason


def _place(frame: Any) -> str:
    """Return the innermost line of a kernel that runs."""
    while frame is not None:
        if "/kernels/" in frame.f_code.co_filename:
            name = frame.f_code.co_filename.rpartition("/kernels/")[2]
            return f"kernels/{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "no line"


def ptx_digests(kernel: str, known: Sequence[str] = ()) -> list[str]:
    """Return the PTX of a kernel's programs, digested: up to the first that is not as known."""
    design, found = fault_cases.NAMED[kernel], []
    for config in _configs(kernel):
        try:
            text = compile_ptx(design.build(config, ARCH), ARCH, ENTRY)
        except Exception as error:
            text = f"does not compile: {error}"
        found.append(hashlib.sha256(text.encode()).hexdigest())
        if known and found[-1] != known[len(found) - 1]:
            break
    return found


def _configs(kernel: str) -> list[Any]:
    """Return the configs of the cases, and more of the space until it has each value of a field."""
    cases = [case for case, _ in _cases(kernel)]
    found = list(dict.fromkeys(case.config for case in cases))
    seen = {item for config in found for item in asdict(config).items()}
    design, problem = fault_cases.NAMED[kernel], cases[0].problem
    for choice in design.configs(fault_cases.H200):
        config = design.specialise(choice, problem)
        if set(asdict(config).items()) - seen:
            seen |= set(asdict(config).items())
            found.append(config)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
