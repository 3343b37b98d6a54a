"""What every test shares: GPU tests skip with a reason, one cache for the run, seeded numbers."""

import gc
import os
import shutil
import tempfile
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# how long an example takes says how busy the machine is
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
# a worker of pytest-xdist is told the width of a terminal; a table on a pipe is as wide as it needs
os.environ.pop("COLUMNS", None)
# compilers and lanes allocate so much that a tenth of the time went into looking for cycles
gc.set_threshold(50_000)
# tiny grids are the point of a test
os.environ["NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS"] = "0"

NO_GPU = "no CUDA GPU or driver on this machine"


# the most expensive files, and tests with all of their cases, that `--cpu-times` lists
LISTED = 25
# CPU seconds of this process when the last report was made
SPENT = pytest.StashKey[float]()


def pytest_addoption(parser):
    parser.addoption(
        "--cpu-times",
        action="store_true",
        help="list what the files and tests cost, in CPU seconds: those of two processes add up",
    )


def pytest_configure(config):
    """Give the run one compile cache of its own; workers of pytest-xdist inherit it."""
    if not hasattr(config, "workerinput"):
        config.cache_folder = tempfile.mkdtemp(prefix="ferrum-numba-tests-")
        os.environ["FERRUM_NUMBA_CACHE_DIR"] = config.cache_folder
        # tests compile; those of what ships say so
        os.environ["FERRUM_NUMBA_PROGRAMS_DIR"] = os.path.join(config.cache_folder, "no-programs")


def pytest_unconfigure(config):
    """Remove the run's compile cache."""
    if hasattr(config, "cache_folder"):
        shutil.rmtree(config.cache_folder, ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none."""
    from ferrum_numba import gpu

    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not gpu.driver_present():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


def cpu_s():
    """Return the CPU seconds of this process and of the children that it has waited for."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Note what a test's setup, call or teardown cost; a worker's reports carry it home."""
    report = yield
    now = cpu_s()
    report.user_properties.append(("cpu_s", now - item.config.stash.get(SPENT, now)))
    item.config.stash[SPENT] = now
    return report


def pytest_collection_finish(session):
    """Begin to count where the tests begin."""
    session.config.stash[SPENT] = cpu_s()


def write_cpu_times(terminalreporter):
    """List the files, and the tests with all of their cases, that cost most."""
    files, tests = Counter(), Counter()
    for some in terminalreporter.stats.values():
        for report in some:
            # what is no test's report, such as a warning, has none
            for spent in dict(getattr(report, "user_properties", ())).values():
                files[report.nodeid.partition("::")[0]] += spent
                tests[report.nodeid.partition("[")[0]] += spent
    terminalreporter.write_line(f"{files.total():.0f} CPU seconds in tests")
    for title, costs in (("by file", files), ("by test, all cases", tests)):
        terminalreporter.section(title)
        for name, spent in costs.most_common(LISTED):
            terminalreporter.write_line(f"{spent:7.1f}  {name}")


def pytest_terminal_summary(terminalreporter):
    """Say what tests cost where that was asked, and how many tests a GPU would have run."""
    if terminalreporter.config.getoption("--cpu-times"):
        write_cpu_times(terminalreporter)
    skipped = terminalreporter.stats.get("skipped", [])
    # a module that was skipped whole has none
    num_gpu = sum("gpu" in getattr(report, "keywords", ()) for report in skipped)
    if num_gpu:
        terminalreporter.write_line(f"{num_gpu} GPU tests were not run: {NO_GPU}")


@pytest.fixture(scope="session")
def device():
    """Return the first GPU, opened."""
    from ferrum_numba.launch import Device

    return Device.open()


# more programs than a test of something else compiles
FEW_PROGRAMS = 16


@pytest.fixture(autouse=True)
def _compiles_here(monkeypatch):
    """Compile a few programs in this process: each other one takes a second to import as much.

    tests/compile is about the other ones, as is whatever runs a command of its own.
    """
    from ferrum_numba.compile import pool

    apart = pool._in_processes

    def here(jobs, workers, timeout_s):
        if len(jobs) > FEW_PROGRAMS:
            return apart(jobs, workers, timeout_s)
        return pool._in_process(jobs)

    monkeypatch.setattr(pool, "_in_processes", here)


@pytest.fixture
def rng():
    """Return a generator of the same numbers in every run."""
    return np.random.default_rng(0)
