"""A fleet on a real Dask cluster of this machine; what measures is the only thing that is faked."""

import sys
from functools import partial
from pathlib import Path

import pytest
import toy_cluster
from toy_kernel import Problem, Toy, make_binary

from ferrum_numba import results, tune
from ferrum_numba.errors import DeviceError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.measure import Policy
from ferrum_numba.tune import dask_fleet
from ferrum_numba.tune.dask_fleet import Cluster

distributed = pytest.importorskip("distributed", reason="the extra dask is not installed")

SUPPORT = Path(__file__).parent.parent / "support"
PROBLEMS = tuple(Problem(m) for m in (2, 3, 4, 5, 6, 7))


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Start a scheduler and two workers with a GPU each, as far as Dask knows."""
    folder = str(tmp_path_factory.mktemp("dask"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(SUPPORT))
        patch.setenv("FERRUM_NUMBA_LOCK_DIR", folder)
        patch.setattr(dask_fleet, "LOOK_S", 0.1)
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, resources={"GPU": 1}, dashboard_address=":0",
            local_directory=folder,
        ) as cluster:  # fmt: skip
            yield cluster.scheduler_address


@pytest.fixture
def task(tmp_path, monkeypatch):
    def build(pairs, *_, **__):
        return {(k.name, c): make_binary() for k, c in pairs}

    monkeypatch.setattr("ferrum_numba.tune.search.build_space", build)
    return tune.SearchTask((Toy(),), PROBLEMS, KNOWN["h200"], Policy(), tmp_path / "toy.json")


def measure(task, address, **measures):
    make = partial(toy_cluster.Measures, task.store_path.parent, **measures)
    with Cluster(address, toy_cluster.board) as cluster:
        assert cluster.gpu().key == "h200"
        return cluster.tune(task, make)


def asked(task):
    """Return (worker, M, speed) of all that was measured, or begun."""
    lines = (task.store_path.parent / "asked").read_text().splitlines()
    return [tuple(int(word) for word in line.split()) for line in lines]


def test_a_cluster_tunes_into_one_store(task, address):
    rows = measure(task, address)
    assert [row.status for row in rows] == ["measured"] * 24
    workers = {m: worker for worker, m, _ in asked(task)}
    assert len(set(workers.values())) == 2
    file = results.load(task.store_path)
    assert len(file.rows) == 24
    for row in file.rows:
        environment = file.environment_of(row)
        assert environment["uuid"] == f"board-{workers[row.problem['M']]}"
        assert (environment["driver"], environment["versions"]["cuda"]) == ("580.1", "13.0")
        assert environment["clocks"] == {"clock_mhz": 1980.0}


def test_what_a_killed_worker_was_at_is_measured_by_another(task, address):
    with pytest.warns(RuntimeWarning, match=r"dropped out: the worker tcp://\S+ was lost"):
        rows = measure(task, address, kills=((7, 3),))
    assert len(rows) == 24
    assert {row.status for row in rows} == {"measured"}
    again = [worker for worker, m, speed in asked(task) if (m, speed) == (7, 3)]
    assert len(set(again)) == 2
    assert len(results.load(task.store_path).rows) == 24


def test_a_candidate_that_ends_two_workers_is_a_row_that_says_so(task, address):
    with pytest.warns(RuntimeWarning, match="was lost"):
        rows = measure(task, address, kills=((6, 2),), always=True)
    bad = [row for row in rows if row.status != "measured"]
    (row,) = bad
    assert (row.problem["M"], row.config["speed"], row.status) == (6, 2, "failed")
    assert row.reason.startswith("ended the workers tcp://")
    assert row.reason.count("tcp://") == 2
    assert len(rows) == 24
    assert sum((m, speed) == (6, 2) for _, m, speed in asked(task)) == 2


@pytest.mark.parametrize(
    ("describe", "words"),
    [
        (toy_cluster.no_board, "no GPU to run on: there is none"),
        (toy_cluster.old_board, "has ferrum-numba 0.0.1, and needs "),
    ],
)
def test_a_worker_that_cannot_take_part_says_why(address, describe, words):
    with Cluster(address, describe) as cluster, pytest.raises(DeviceError, match=words):
        cluster.gpu()


def test_workers_of_another_model_are_left_out(task, address, monkeypatch):
    monkeypatch.setattr(dask_fleet, "CONNECT_S", 3.0)
    with (
        Cluster(address, toy_cluster.other_board) as cluster,
        pytest.raises(DeviceError, match="got NVIDIA H200 and NVIDIA A100-SXM4-80GB"),
    ):
        cluster.tune(task, partial(toy_cluster.Measures, task.store_path.parent))


def test_a_cluster_without_gpus_says_how_to_start_one(address, monkeypatch):
    monkeypatch.setattr(dask_fleet, "CONNECT_S", 0.5)
    monkeypatch.setattr(dask_fleet, "RESOURCE", "GPU of yours")
    words = f"dask worker {address} --nthreads 1 --resources GPU of yours=1"
    with Cluster(address) as found, pytest.raises(DeviceError, match=words):
        found.gpu()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "no address"])
def test_a_scheduler_that_does_not_answer_is_one_sentence(address, monkeypatch):
    monkeypatch.setattr(dask_fleet, "CONNECT_S", 1.0)
    with pytest.raises(DeviceError, match=f"no Dask scheduler answers at {address}: ") as refused:
        Cluster(address)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "address",
    ["no address", "http://somewhere:80", "tcp://somewhere:port"]
    + [f"tcp://127.0.0.1:{port}" for port in (0, 65536, 99999, -1)],
)
def test_what_is_no_address_is_refused_before_anything_connects(address, monkeypatch):
    # a client that failed to begin holds the process for a minute at its end
    monkeypatch.setattr(distributed, "Client", None)
    with pytest.raises(DeviceError, match=f"no Dask scheduler answers at {address}: "):
        Cluster(address)


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(DeviceError, match=r"pip install 'ferrum-numba\[dask\]'"):
        Cluster("tcp://127.0.0.1:9")
