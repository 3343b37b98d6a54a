"""A full disk while a command writes what a GPU gave, which is made up here."""

from dataclasses import replace

import pytest
from axpy import Axpy, Problem
from full_disk import contents, files_of_at_most, limits_of
from test_cli import Measured
from test_compare import Fake
from test_warm import M, compiled, model, run  # noqa: F401
from toy_kernel import Toy

from ferrum_numba import cli, gpu, tune, whole
from ferrum_numba.compare.designs import trials
from ferrum_numba.compile import cache
from ferrum_numba.tune.search import SearchTask, search
from ferrum_numba.tune.worker import Outcome


@pytest.fixture
def of_axpy(capsys, tmp_path, monkeypatch):
    """Run a command where a measurer stands for a GPU; return (status, stdout, stderr)."""
    measurer = Measured(Outcome("measured", us=(50.0,) * 9, rel_error=1e-7), [])

    def fake(kernels, problems, facts, *, policy, store_path, progress, **rest):
        rest = {name: rest[name] for name in rest if name not in ("timeout_s", "plan")}
        return search(SearchTask(kernels, problems, facts, policy, store_path, **rest), measurer)

    def compared(old, new, problems, facts, policy, date, timeout):
        return trials(Fake(), old, new, problems, facts, policy, date)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "live", lambda: replace(gpu.KNOWN["h200"], uuid="GPU-1"))
    monkeypatch.setattr(tune, "tune", fake)
    # in this process
    monkeypatch.setattr("ferrum_numba.compile.pool.os.cpu_count", lambda: 1)
    monkeypatch.setattr("ferrum_numba.compare.designs.compare_designs", compared)

    def run_it(*argv):
        status = cli.main((Axpy(), Toy()), {"small": (Problem(64),)}, argv)
        return status, *capsys.readouterr()

    return run_it


COMMANDS = {
    "bench": ("bench", "axpy", "--problem", "small", "--out"),
    "compare": ("compare", "axpy:num_threads=32", "axpy:num_threads=64", "--out"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_results_are_written_whole_or_not_at_all(of_axpy, tmp_path, name):
    words, path = COMMANDS[name], tmp_path / "rows.json"
    status, _, err = of_axpy(*words, "rows.json")
    assert status in (0, 1), err
    written = contents(path)
    assert written
    for before in (written, {}):
        for limit in limits_of(written, 2):
            with files_of_at_most(limit):
                status, out, err = of_axpy(*words, "rows.json")
            assert (status, out) == (2, ""), limit
            said = err.splitlines()[-1]
            assert said.startswith("ferrum-numba: ")
            assert "Traceback" not in err
            assert contents(path) == before, limit
        path.unlink(missing_ok=True)
    assert not list(tmp_path.rglob(f"*{whole.ENDING}*"))


def test_what_warm_cannot_keep_is_an_error(run, model, compiled):  # noqa: F811
    words = ("warm", model, *M, "--gpu", "a100")
    with files_of_at_most(0):
        status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err == f"ferrum-numba: {cache.directory()} cannot be written: File too large\n"
    assert contents(cache.directory()) == {}
    # with room again it goes on
    status, out, _ = run(*words)
    assert status == 0
    assert "0 were compiled before" in out
