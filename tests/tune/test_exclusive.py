"""The lock on measuring: where it lies, and what is said when it cannot."""

import os
from dataclasses import replace

import pytest

from ferrum_numba.cli import app
from ferrum_numba.errors import DeviceError, StoreError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.tune.exclusive import directory, exclusive

BOARD = replace(KNOWN["h200"], uuid="board-1")


@pytest.fixture(autouse=True)
def _no_lock_folder(monkeypatch):
    monkeypatch.delenv("FERRUM_NUMBA_LOCK_DIR", raising=False)


def test_the_lock_lies_in_the_cache_folder_that_is_set(monkeypatch, tmp_path):
    monkeypatch.setenv("FERRUM_NUMBA_CACHE_DIR", str(tmp_path / "not yet"))
    # a home that cannot be written is of no concern then
    monkeypatch.setenv("HOME", "/proc/no_such")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with exclusive(BOARD):
        assert (tmp_path / "not yet/measuring-board-1.lock").is_file()


@pytest.mark.parametrize("place", ["file/below", "file"])
def test_a_folder_that_cannot_be_written_is_one_sentence(monkeypatch, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("FERRUM_NUMBA_CACHE_DIR", str(tmp_path / place))
    with pytest.raises(StoreError) as refused, exclusive(BOARD):
        pass
    assert str(refused.value).startswith(f"{tmp_path / place} cannot be written: ")
    assert str(refused.value).endswith("; set FERRUM_NUMBA_CACHE_DIR to a folder that can")


def test_a_home_that_cannot_be_written_is_one_sentence(monkeypatch):
    for name in ("FERRUM_NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc/no_such")
    words = "/proc/no_such/.*ferrum-numba cannot be written: "
    with pytest.raises(StoreError, match=words), exclusive(BOARD):
        pass


def test_a_run_that_compiles_anew_minds_the_others(monkeypatch, tmp_path):
    """`--no-cache` compiles into a folder of its own; the GPU is the same."""
    monkeypatch.setenv("FERRUM_NUMBA_CACHE_DIR", str(tmp_path))
    with exclusive(BOARD), app._cache(True):
        assert os.environ["FERRUM_NUMBA_CACHE_DIR"] != str(tmp_path)
        assert directory() == tmp_path
        with pytest.raises(DeviceError, match="another process is measuring"), exclusive(BOARD):
            pass
    assert "FERRUM_NUMBA_LOCK_DIR" not in os.environ
