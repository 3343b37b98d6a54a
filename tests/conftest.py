"""What every test shares: GPU tests skip with a reason, one cache for the run, seeded numbers."""

import os
import shutil
import tempfile

import numpy as np
import pytest

# tiny grids are the point of a test
os.environ["NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS"] = "0"

NO_GPU = "no CUDA GPU or driver on this machine"


def pytest_configure(config):
    """Give the run one compile cache of its own; workers of pytest-xdist inherit it."""
    if not hasattr(config, "workerinput"):
        config.cache_folder = tempfile.mkdtemp(prefix="ferrum-numba-tests-")
        os.environ["FERRUM_NUMBA_CACHE_DIR"] = config.cache_folder


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


def pytest_terminal_summary(terminalreporter):
    """Say in the last lines how many tests a GPU would have run."""
    skipped = terminalreporter.stats.get("skipped", [])
    num_gpu = sum("gpu" in report.keywords for report in skipped)
    if num_gpu:
        terminalreporter.write_line(f"{num_gpu} GPU tests were not run: {NO_GPU}")


@pytest.fixture(scope="session")
def device():
    """Return the first GPU, opened."""
    from ferrum_numba.launch import Device

    return Device.open()


@pytest.fixture
def rng():
    """Return a generator of the same numbers in every run."""
    return np.random.default_rng(0)
