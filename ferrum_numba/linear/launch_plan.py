"""What runs a problem on a GPU: kernels chosen, built and loaded once for all layers that have it.

A plan is a list of launches, one for each of the task's stages (see `stages`). Buffers change from
layer to layer and from call to call, so a plan has none; it takes addresses, in this order:

    x, out                                of the call
    packed, scales, zero_points, ...      of the weight, as its kernels name them; 0 where absent
    partials, counters, gathered, ...     of the stream's scratch, and parts of it
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from ferrum_numba.compile import build
from ferrum_numba.errors import LaunchError
from ferrum_numba.launch import (
    Device,
    Followed,
    InTurn,
    Loaded,
    Needs,
    Order,
    Repeated,
    Scratch,
    capturing,
    load,
)
from ferrum_numba.linear.choice import shipped_decisions
from ferrum_numba.linear.stages import Stage, Task
from ferrum_numba.results.decisions import Decision

# of a call, given as numbers
CALL = ("x", "out")


# compared by identity
@dataclass(frozen=True, eq=False)
class LaunchPlan:
    """What runs one problem: launches in order, and the scratch they need, if any."""

    launches: tuple[Repeated | Followed | InTurn, ...]
    num_operands: int
    needs: Needs | None
    device: Device
    scratch: Scratch
    # of launches that pass each other something in scratch: two threads' must not mix on a stream
    lock: AbstractContextManager[Any] | None = None

    def __call__(self, stream: int, x: int, out: int, operands: bytes) -> None:
        """Launch on a stream; allocates nothing and waits for nothing once its scratch is there.

        x, out:   addresses
        operands: addresses of the weight's buffers, packed as `Order` has them

        Raises:
            CaptureError: the stream is being captured, and there is no memory for its scratch.
            LaunchError:  the driver refused.
        """
        needs = self.needs
        try:
            if needs is not None:
                operands += self.scratch.addresses(stream, needs)
            if self.lock is None:
                for launch in self.launches:
                    launch(stream, x, out, operands)
            else:
                with self.lock:
                    for launch in self.launches:
                        launch(stream, x, out, operands)
        except LaunchError:
            # asked only now: the driver launches nothing in another GPU's context
            if self.device.is_current():
                raise
            with self.device.activated():
                self(stream, x, out, operands[: 8 * self.num_operands])


class LaunchPlans:
    """The launch plans of one GPU, each made when it is first asked for."""

    def __init__(self, device: Device, scratch: Scratch) -> None:
        self._device, self._scratch = device, scratch
        self._plans: dict[Task, LaunchPlan] = {}
        self._by_rows: WeakKeyDictionary[object, dict[int, Any]] = WeakKeyDictionary()
        self._loaded: dict[str, Loaded] = {}
        # read with the first plan: whoever only runs the reference needs none
        self._decisions: list[Decision] | None = None
        self._in_order = threading.RLock()
        # a program is compiled once, however many threads ask for it
        self._lock = threading.Lock()

    def of(self, weight: object) -> dict[int, Any]:
        """Return the plans of one weight by rows of x, for its users to fill; they go with it."""
        return self._by_rows.setdefault(weight, {})

    def get(self, task: Task, stream: int) -> LaunchPlan | None:
        """Return a plan, making it where it is new: but None where the stream is being captured.

        Raises:
            ProblemError: no kernel can run the problem.
        """
        made = self._plans.get(task)
        if made is None and not capturing(stream):
            made = self.make(task)
        return made

    def make(self, task: Task) -> LaunchPlan:
        """Return a plan, choosing, compiling and loading what it needs.

        Raises:
            ProblemError: no kernel can run the problem.
        """
        with self._lock, self._device.activated():
            if task not in self._plans:
                self._plans[task] = self._make(task)
            return self._plans[task]

    def launch(self, stage: Stage, names: Sequence[str]) -> Repeated | Followed | InTurn:
        """Return a stage's launch, which takes the addresses of the named buffers."""
        gpu = self._device.gpu
        binary = build(stage.kernel, stage.config, gpu.arch)
        loaded = self._loaded.get(binary.fingerprint)
        if loaded is None:
            loaded = self._loaded[binary.fingerprint] = load(binary, self._device)
        return loaded.repeated(stage.launch(gpu), Order(names, stage.renamed))

    def _make(self, task: Task) -> LaunchPlan:
        gpu = self._device.gpu
        if self._decisions is None:
            self._decisions = shipped_decisions(gpu)
        planned = tuple(task.stages(self._decisions, gpu))
        scratch: dict[str, int] = {}
        parts: dict[str, tuple[str, int]] = {}
        for stage in planned:
            parts |= stage.parts
            # stages run one after the other: what several need is as large as the most
            for name, size_bytes in {**stage.makes, **stage.launch(gpu).workspace}.items():
                scratch[name] = max(size_bytes, scratch.get(name, 0))
        names = (*CALL, *task.operands, *scratch, *parts)
        launches = tuple(self.launch(stage, names) for stage in planned)
        needs = Needs(scratch, parts) if scratch else None
        several = len(launches) > 1 or not isinstance(launches[0], Repeated)
        return LaunchPlan(
            launches, len(task.operands), needs, self._device, self._scratch,
            self._in_order if several and needs is not None else None,
        )  # fmt: skip
