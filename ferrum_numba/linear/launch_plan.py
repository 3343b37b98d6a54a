"""What runs a problem on a GPU: kernels chosen, built and loaded once for all layers that have it.

A plan is a list of launches: the columns of x are gathered first where an act-order weight asks for
it, and a bias is added last where it is added to the rounded result. Buffers change from layer to
layer and from call to call, so a plan has none; it takes addresses, in this order:

    x, out                                of the call
    packed, scales, zero_points, ...      of the weight, as its kernels name them; 0 where absent
    partials, counters, gathered, ...     of the stream's scratch
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

from ferrum_numba.compile import build
from ferrum_numba.contract import Config, Kernel, Problem
from ferrum_numba.errors import LaunchError
from ferrum_numba.kernels.tools.add_bias import AddBias, AddBiasProblem
from ferrum_numba.kernels.tools.gather_columns import GatherColumns, GatherProblem
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.launch import Device, Followed, Loaded, Needs, Order, Repeated, Scratch, load
from ferrum_numba.linear.choice import kernel_for, shipped_decisions
from ferrum_numba.results.decisions import Choice, Decision

ELEMENT_BYTES = 2
# of a call, given as numbers
CALL = ("x", "out")


@dataclass(frozen=True)
class LayerTask:
    """What a layer asks of a launch plan.

    kernels:  those that can read the layer's weight
    operands: names of the weight's buffers, in the order in which their addresses are given
    gathered: a kernel of its own brings the columns of x into the order of an act-order weight
    two_step: a kernel of its own adds the bias, to the rounded result
    """

    problem: W4A16Problem
    kernels: tuple[Kernel, ...]
    operands: tuple[str, ...]
    gathered: bool = False
    two_step: bool = False


@dataclass(frozen=True)
class Step:
    """One launch of a plan.

    renamed: name of a buffer by the parameter that takes it, where they differ
    config:  the kernel's default unless one is given
    """

    kernel: Kernel
    problem: Problem
    renamed: Mapping[str, str] = field(default_factory=dict)
    config: Config | None = None


# compared by identity
@dataclass(frozen=True, eq=False)
class LaunchPlan:
    """What runs one problem: launches in order, and the scratch they need, if any."""

    launches: tuple[Repeated | Followed, ...]
    num_operands: int
    needs: Needs | None
    device: Device
    scratch: Scratch

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
        with self._lock, self._device.activated():
            if task not in self._plans:
                self._plans[task] = self._make(task)
            return self._plans[task]

    def launch(self, step: Step, names: Sequence[str]) -> Repeated | Followed:
        """Return a kernel's launch, which takes the addresses of the named buffers."""
        gpu = self._device.gpu
        config = step.config or step.kernel.default(step.problem, gpu)
        binary = build(step.kernel, config, gpu.arch)
        loaded = self._loaded.get(binary.fingerprint)
        if loaded is None:
            loaded = self._loaded[binary.fingerprint] = load(binary, self._device)
        launch = step.kernel.launch(config, step.problem, gpu)
        return loaded.repeated(launch, Order(names, step.renamed))

    def _make(self, task: LayerTask) -> LaunchPlan:
        problem, scratch, renamed = task.problem, {}, {}
        steps = []
        if task.gathered:
            gather = GatherProblem(problem.M, problem.K)
            steps.append(Step(GatherColumns(), gather, {"out": "gathered"}))
            scratch["gathered"] = problem.M * problem.K * ELEMENT_BYTES
            problem, renamed = replace(problem, act_order=False), {"x": "gathered"}
        if task.two_step:
            problem = replace(problem, bias=False)
        choice = self._choose(problem, task.kernels)
        steps.append(Step(choice.kernel, problem, renamed, choice.config))
        scratch |= choice.kernel.launch(choice.config, problem, self._device.gpu).workspace
        if task.two_step:
            bias = AddBiasProblem(problem.M, problem.N, problem.dtype)
            steps.append(Step(AddBias(), bias, {"x": "out"}))
        names = (*CALL, *task.operands, *scratch)
        launches = tuple(self.launch(step, names) for step in steps)
        needs = Needs(scratch) if scratch else None
        return LaunchPlan(launches, len(task.operands), needs, self._device, self._scratch)

    def _choose(self, problem: W4A16Problem, kernels: tuple[Kernel, ...]) -> Choice:
        if self._decisions is None:
            self._decisions = shipped_decisions(self._device.gpu)
        return kernel_for(problem, kernels, self._decisions, self._device.gpu)
