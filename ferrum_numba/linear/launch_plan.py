"""What runs a problem on a GPU: kernels chosen, built and loaded once for all layers that have it.

A plan is a list of launches, one for each of the problem's stages (see `stages`). Buffers change
from layer to layer and from call to call, so a plan has none; it takes addresses by name:

    x, out                                of the call
    packed, scales, zero_points, ...      of the weight, as its kernels name them; 0 where absent
    partials, counters, gathered, ...     of the stream's scratch
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from weakref import WeakKeyDictionary

from ferrum_numba.compile import build
from ferrum_numba.contract import Config, Kernel, Problem
from ferrum_numba.launch import Device, Followed, Loaded, Repeated, load
from ferrum_numba.linear.choice import shipped_decisions
from ferrum_numba.linear.stages import LayerTask, stages
from ferrum_numba.results.decisions import Decision

ELEMENT_BYTES = 2


@dataclass(frozen=True)
class Step:
    """One launch of a plan, and what picks the addresses it takes, in its own order."""

    launch: Repeated | Followed
    pick: Callable[[Mapping[str, int]], tuple[int, ...]]


@dataclass(frozen=True)
class LaunchPlan:
    """What runs one problem: launches in order, and the scratch they need, bytes by name."""

    steps: tuple[Step, ...]
    scratch: Mapping[str, int]

    def __call__(self, stream: int, addresses: Mapping[str, int]) -> None:
        """Launch on a stream; allocates nothing and waits for nothing."""
        for step in self.steps:
            step.launch(stream, step.pick(addresses))


class LaunchPlans:
    """The launch plans of one GPU, each made when it is first asked for."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._plans: dict[LayerTask, LaunchPlan] = {}
        self._by_rows: WeakKeyDictionary[object, dict[int, LaunchPlan]] = WeakKeyDictionary()
        self._loaded: dict[str, Loaded] = {}
        # read with the first plan: whoever only runs the reference needs none
        self._decisions: list[Decision] | None = None
        # a program is compiled once, however many threads ask for it
        self._lock = threading.Lock()

    def of(self, weight: object) -> dict[int, LaunchPlan]:
        """Return the plans of one weight by rows of x, for its users to fill; they go with it."""
        return self._by_rows.setdefault(weight, {})

    def get(self, task: LayerTask) -> LaunchPlan | None:
        """Return a plan if it was made before."""
        return self._plans.get(task)

    def make(self, task: LayerTask) -> LaunchPlan:
        """Return a plan, choosing, compiling and loading what it needs.

        Raises:
            ProblemError: no kernel can run the problem.
        """
        with self._lock:
            if task not in self._plans:
                self._plans[task] = self._make(task)
            return self._plans[task]

    def step(
        self,
        kernel: Kernel,
        problem: Problem,
        renamed: Mapping[str, str],
        config: Config | None = None,
    ) -> tuple[Step, Mapping[str, int]]:
        """Return a kernel's launch and the scratch it needs.

        renamed: name of a buffer by the parameter that takes it, where they differ
        config:  the kernel's default unless one is given
        """
        gpu = self._device.gpu
        config = config or kernel.default(problem, gpu)
        binary = build(kernel, config, gpu.arch)
        loaded = self._loaded.get(binary.fingerprint)
        if loaded is None:
            loaded = self._loaded[binary.fingerprint] = load(binary, self._device)
        launch = kernel.launch(config, problem, gpu)
        pick = itemgetter(*(renamed.get(name, name) for name in loaded.pointers(launch)))
        return Step(loaded.repeated(launch), pick), launch.workspace

    def _make(self, task: LayerTask) -> LaunchPlan:
        if self._decisions is None:
            self._decisions = shipped_decisions(self._device.gpu)
        steps: list[Step] = []
        scratch: dict[str, int] = {}
        for stage in stages(task, self._decisions, self._device.gpu):
            step, workspace = self.step(stage.kernel, stage.problem, stage.renamed, stage.config)
            steps.append(step)
            scratch |= workspace
        if task.gathered:
            scratch["gathered"] = task.problem.M * task.problem.K * ELEMENT_BYTES
        return LaunchPlan(tuple(steps), scratch)
