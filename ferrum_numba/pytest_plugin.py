"""pytest for a package of kernels: each is checked, and timed against a stored baseline.

    pytest --ferrum-kernels my_package.kernels
    ferrum-numba bench --kernels my_package.kernels my_kernel --out baseline.json
    pytest --ferrum-kernels my_package.kernels --ferrum-baseline baseline.json

Every kernel of the module's KERNELS gets a test for each test problem of its Op, and each corner of
its own, on the GPU, or by the interpreter where there is none. With a baseline, every row of it
that is one of theirs gets a test besides: the time now over the time then. A test fails where that
is above the tolerance and the samples bear it out; what they leave open is reported and passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ferrum_numba.contract import Kernel
    from ferrum_numba.results import Row

# a board differs from itself by some per cent from one day to the next
TOLERANCE = 1.05
ON = ("auto", "gpu", "interpreter")
DEVICE = pytest.StashKey[Any]()


class Failed(Exception):
    """A kernel that is wrong or slower, with the reason; no traceback says more."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what to test, where, and against what."""
    group = parser.getgroup("ferrum", "kernels of ferrum-numba")
    group.addoption("--ferrum-kernels", metavar="MODULE", help="test the KERNELS of this module")
    group.addoption("--ferrum-on", choices=ON, default="auto", help="where kernels are checked")
    group.addoption(
        "--ferrum-baseline", metavar="FILE", help="a result file that nothing may be slower than"
    )
    group.addoption(
        "--ferrum-tolerance", type=float, default=TOLERANCE, metavar="RATIO",
        help=f"time now over time then that is still none slower; {TOLERANCE:g}",
    )  # fmt: skip


def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add the tests of the kernels to those that were found."""
    module = config.getoption("--ferrum-kernels")
    baseline = config.getoption("--ferrum-baseline")
    if not module:
        if baseline:
            raise pytest.UsageError("--ferrum-baseline needs --ferrum-kernels MODULE")
        return
    from ferrum_numba.cli.names import import_kernels
    from ferrum_numba.errors import FerrumError

    try:
        kernels = import_kernels(module)
        items += _checks(session, kernels, _where(config))
        if baseline:
            items += _timings(session, kernels, Path(baseline))
    except FerrumError as error:
        raise pytest.UsageError(str(error)) from error


def _where(config: pytest.Config) -> str:
    from ferrum_numba import gpu

    asked: str = config.getoption("--ferrum-on")
    if asked != "auto":
        return asked
    return "gpu" if gpu.driver_present() else "interpreter"


def _checks(session: pytest.Session, kernels: tuple[Kernel, ...], on: str) -> Iterator[pytest.Item]:
    from ferrum_numba import gpu
    from ferrum_numba.cases import cases_of

    facts = gpu.live() if on == "gpu" else gpu.find("h200")
    for kernel in kernels:
        for case in cases_of(kernel, facts):
            yield CheckItem.of(session, case, on)


def _timings(
    session: pytest.Session, kernels: tuple[Kernel, ...], path: Path
) -> Iterator[pytest.Item]:
    from ferrum_numba.errors import StoreError
    from ferrum_numba.results import best, stored_config
    from ferrum_numba.results.pairs import load_measured

    by_name = {kernel.name: kernel for kernel in kernels}
    rows = [row for row in best(load_measured(path).rows) if row.kernel in by_name]
    if not rows:
        raise StoreError(f"{path}: has no row of {', '.join(by_name)}")
    for row in rows:
        kernel = by_name[row.kernel]
        config = stored_config(kernel, row.config)
        if config is None:
            raise StoreError(f"{path}: {row.kernel} has no config {dict(row.config)} any more")
        case = (kernel, config, kernel.op.problem(**row.problem))
        yield TimeItem.of(session, case, row)


class KernelItem(pytest.Item):
    """A test of one kernel with one config on one problem."""

    kind = ""
    case: tuple[Any, ...]
    about: Any

    @classmethod
    def of(cls, session: pytest.Session, case: tuple[Any, ...], about: Any) -> KernelItem:
        """Return the test of a kernel, a config, a problem, and what else one needs."""
        kernel, _, problem, *_ = case
        item: KernelItem = cls.from_parent(session, name=f"{cls.kind}[{kernel.name}-{problem}]")
        item.case, item.about = case, about
        return item

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return the reason; of what nobody expected, the traceback."""
        if isinstance(excinfo.value, Failed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Return where the test comes from: its kernel."""
        return self.config.rootpath, None, self.name

    def device(self) -> Any:
        """Return the GPU, opened once for all tests."""
        from ferrum_numba.launch import Device

        if DEVICE not in self.session.stash:
            self.session.stash[DEVICE] = Device.open()
        return self.session.stash[DEVICE]


class CheckItem(KernelItem):
    """Whether a kernel computes its reference."""

    kind = "check"

    def runtest(self) -> None:
        """Check it on the GPU, or by the interpreter."""
        from ferrum_numba import check

        if self.about == "gpu":
            kernel, config, problem, facts = self.case
            found = check.on_gpu(kernel, config, problem, replace(self.device(), gpu=facts))
        else:
            found = check.on_interpreter(*self.case[:3], gpu=self.case[3])
        if not found.ok:
            raise Failed(f"{self.name} is wrong on the {found.how}: {found.reason}")


class TimeItem(KernelItem):
    """Whether a kernel takes no longer than it did."""

    kind = "time"

    def runtest(self) -> None:
        """Time it as the row was timed; skip where there is no GPU of its name."""
        from ferrum_numba import gpu

        if not gpu.driver_present():
            pytest.skip("no CUDA GPU or driver on this machine")
        tolerance = self.config.getoption("--ferrum-tolerance")
        words = judged(self.name, self.timed(self.about), self.about, tolerance)
        self.add_report_section("call", "time", words)

    def timed(self, then: Row) -> Row:
        """Return the row of this moment."""
        from statistics import median

        from ferrum_numba.compile import build
        from ferrum_numba.launch import OperandSet
        from ferrum_numba.measure import Policy, measure

        kernel, config, problem = self.case
        device, policy = self.device(), Policy()
        if then.arch and then.arch != device.gpu.arch:
            pytest.skip(f"the baseline is of {then.arch}; this GPU is {device.gpu.arch}")
        operands = OperandSet(device, kernel, problem, rotate_bytes=policy.rotate_bytes(device.gpu))
        bound = operands.bind(config, build(kernel, config, device.gpu.arch))
        taken = measure(device, bound.calls(), then.regime, policy)
        return replace(
            then, us=median(taken.us), samples=taken.us, rounds=(), contest="", stage="full",
            run="now", board=device.gpu.uuid, board_factor=None,
        )  # fmt: skip


def judged(name: str, now: Row, then: Row, tolerance: float) -> str:
    """Return how a time compares with the one before, in words.

    Raises:
        Failed: it is slower by more than the tolerance, and the samples bear that out.
    """
    from ferrum_numba.results.pairs import verdict_of

    verdict = verdict_of(now, then)
    words = f"{now.us:.4g} us now, {then.us:.4g} then: {verdict.ratio:.3f} times"
    if verdict.name == "SLOWER" and verdict.ratio > tolerance:
        raise Failed(f"{name} got slower: {words}; {tolerance:g} times are allowed")
    return f"{words}, {verdict.name}"
