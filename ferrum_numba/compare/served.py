"""What measures by the source of one revision, driven line by line from another.

    {"do": "open", "op": "w4a16_gemm", "problem": {...}, "kernel": "", "warmup_ms": 300}
    {"do": "round", "samples": 3}

Run as a script, with that revision first on the path. It uses what every revision has: older ones
must answer too.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cache
from importlib import import_module
from typing import Any

KERNELS = "ferrum_numba.kernels"
# between two looks at whether the driver is there, once its pipe is closed
POLL_S = 0.1


class Server:
    """One problem at a time, of one revision."""

    def __init__(self) -> None:
        from ferrum_numba.launch import Device

        self.device = Device.open()
        self.calls: list[Any] = []

    def open(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Choose what runs a problem, check it, take a first time."""
        from ferrum_numba.check import on_operands
        from ferrum_numba.compile import build
        from ferrum_numba.compile.sass import instruction_mix
        from ferrum_numba.launch import OperandSet
        from ferrum_numba.measure import Policy

        self.calls = []
        kernel, config, problem = self._choice(asked)
        binary = build(kernel, config, self.device.gpu.arch)
        operands = OperandSet(
            self.device, kernel, problem, rotate_bytes=Policy().rotate_bytes(self.device.gpu)
        )
        checked = on_operands(operands, config, binary)
        outcome: dict[str, Any] = {
            "status": "measured" if checked.ok else "wrong", "reason": checked.reason, "us": [],
            "rel_error": checked.rel_error, "max_error": checked.max_error,
        }  # fmt: skip
        if checked.ok:
            # kept alive by their calls
            self.calls = operands.bind(config, binary).calls()
            outcome["us"] = self._timed(3, asked["warmup_ms"])["us"]
        return {
            "kernel": kernel.name, "config": asdict(config), "registers": binary.registers,
            "spill_bytes": binary.spill_bytes, "smem_bytes": binary.smem_bytes,
            "source_hash": binary.fingerprint, "mix": instruction_mix(binary.cubin) or {},
            "outcome": outcome,
        }  # fmt: skip

    def round(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Time what is open once more, at the clocks that the other left."""
        return self._timed(asked["samples"], 0.0)

    def _timed(self, samples: int, warmup_ms: float) -> dict[str, Any]:
        from ferrum_numba.measure import Policy, measure

        policy = Policy(samples=samples, warmup_ms=warmup_ms)
        taken = measure(self.device, self.calls, "cold", policy)
        clocks, throttle = list(taken.clock_mhz), list(taken.throttle)
        extra = {"clock_mhz": clocks, "throttle": throttle, "calls": taken.calls}
        return {"us": list(taken.us), "extra": extra}

    def _choice(self, asked: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        from ferrum_numba.results import choose

        # by its name: the harness knows no kernel, the revision does
        house = import_module(KERNELS)
        kernels = [k for k in house.KERNELS if k.op.name == asked["op"]]
        if asked["kernel"]:
            kernels = [k for k in (*house.KERNELS, *house.TOOLS) if k.name == asked["kernel"]]
        if not kernels:
            raise ValueError(f"this revision has no kernel {asked['kernel'] or asked['op']}")
        problem = _problem(kernels[0].op.problem, asked["problem"])
        able = [k for k in kernels if k.refuses(problem) is None]
        choice = choose(decisions(self.device.gpu.key), problem, able or kernels, self.device.gpu)
        return choice.kernel, choice.config, problem


def _problem(kind: type, stored: Mapping[str, Any]) -> Any:
    """Return a problem; a field that this revision lacks must be at what it means by leaving it."""
    known = {field.name for field in fields(kind)}
    lost = {name for name in stored.keys() - known if stored[name] not in (False, None, "none")}
    if lost:
        raise ValueError(f"this revision's {kind.__name__} has no field {', '.join(sorted(lost))}")
    return kind(**{name: value for name, value in stored.items() if name in known})


@cache
def decisions(gpu_key: str) -> list[Any]:
    """Return what this revision decided for a GPU."""
    from ferrum_numba import shipped
    from ferrum_numba.results.decisions import load_decisions

    path = shipped.decisions_path(gpu_key)
    return list(load_decisions(path)) if path.is_file() else []


def end_with_driver() -> None:
    """End this process at once when the one that drives it is gone, even killed, even in a kernel.

    `compile.orphan` does it for processes of multiprocessing; this one has a pipe, whose other end
    is closed then. One that only closed it is still there, and waits for the last answer.
    """
    driver, watched = os.getppid(), select.poll()
    # of no events: a pipe says by itself that its other end is closed
    watched.register(0, 0)

    def watch() -> None:
        watched.poll()
        while os.getppid() == driver:
            time.sleep(POLL_S)
        # no cleaning up: it would wait for the GPU
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Answer line by line until the input ends."""
    # whatever prints must not mix with the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    end_with_driver()
    server: Server | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            server = server or Server()
            answer = server.open(asked) if asked["do"] == "open" else server.round(asked)
        except Exception as error:
            # whatever goes wrong is an answer, in one line
            name = "device" if type(error).__name__ == "DeviceError" else "error"
            answer = {name: " ".join(f"{error}".split()) or type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
