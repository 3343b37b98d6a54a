"""Files and folders that are whole or not there, and what killed processes left of others."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from full_disk import files_of_at_most

from ferrum_numba import whole

# writes for ever, under a name of its own or over the same file, until it is killed
WRITER = """
import sys
from pathlib import Path
from ferrum_numba import whole
folder = Path(sys.argv[1])
i = 0
while True:
    whole.write_bytes(folder / "file", b"%d" % (i % 10) * 200_000)
    with whole.folder_beside(folder / "made") as made:
        (made / "a").write_bytes(b"a")
        (made / "b").write_bytes(b"b")
        whole.put(made, folder / "made")
    with whole.scratch() as place:
        (place / "c").write_bytes(b"c")
    if i == 0:
        print("ready", flush=True)
    i += 1
"""


@pytest.fixture(autouse=True)
def _own_scratch(tmp_path, monkeypatch):
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setattr(whole, "_swept", set())


@pytest.mark.parametrize("kills", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_a_writer_may_be_killed_at_any_time(tmp_path, kills):
    folder = tmp_path / "folder"
    folder.mkdir()
    for i in range(kills):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, folder], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        )  # fmt: skip
        assert writer.stdout.readline() == "ready\n"
        threading.Event().wait(0.0007 * (i % 40))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        content = (folder / "file").read_bytes()
        assert len(content) == 200_000
        assert content == content[:1] * 200_000
        assert sorted(path.name for path in (folder / "made").iterdir()) == ["a", "b"]
    whole.write_bytes(folder / "file", b"")
    with whole.scratch():
        assert len(list((tmp_path / "tmp").iterdir())) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["file", "made"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_another_process_is_writing_is_left_alone(tmp_path):
    with whole.writing(tmp_path / "a") as file:
        file.write(b"a")
        whole._swept.clear()
        whole.write_bytes(tmp_path / "b", b"b")
    assert (tmp_path / "a").read_bytes() == b"a"
    with whole.folder_beside(tmp_path / "c") as folder:
        whole._swept.clear()
        whole.write_bytes(tmp_path / "b", b"b")
        assert folder.is_dir()


def test_what_a_killed_process_left_goes(tmp_path):
    (tmp_path / f".a.0123{whole.ENDING}").write_bytes(b"half")
    (tmp_path / f".b.0123{whole.ENDING}").mkdir()
    (tmp_path / f".b.0123{whole.ENDING}" / "half").write_bytes(b"")
    (tmp_path / ".hidden").touch()
    (tmp_path / "tmp" / f"{whole.SCRATCH}0123{whole.ENDING}").mkdir()
    whole.write_bytes(tmp_path / "x", b"x")
    with whole.scratch():
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "tmp", "x"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/file")
    for content in (b"one", b"two"):
        whole.write_bytes(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real" / "file").read_bytes() == content
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["file"]


def test_a_full_disk_leaves_what_was_there(tmp_path):
    path = tmp_path / "a"
    whole.write_bytes(path, b"before")
    with files_of_at_most(1000), pytest.raises(OSError, match="File too large"):
        whole.write_bytes(path, b"x" * 5000)
    assert path.read_bytes() == b"before"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "tmp"]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_folder_takes_the_place_of_another(tmp_path, monkeypatch, at_once):
    def cannot(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    if not at_once:
        monkeypatch.setattr(whole, "_exchange", cannot)
    for name in ("first", "second"):
        with whole.folder_beside(tmp_path / "x") as folder:
            (folder / name).touch()
            whole.put(folder, tmp_path / "x")
        assert [path.name for path in (tmp_path / "x").iterdir()] == [name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tmp", "x"]


def test_many_writers_of_one_file(tmp_path):
    def write(content):
        for _ in range(50):
            whole.write_bytes(tmp_path / "a", content)

    threads = [threading.Thread(target=write, args=(b"%d" % i * 10_000,)) for i in range(4)]
    for thread in threads:
        thread.start()
    seen = set()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / "a").exists():
            seen.add((tmp_path / "a").read_bytes())
    assert seen <= {b"%d" % i * 10_000 for i in range(4)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "tmp"]


def test_the_longest_name_has_room(tmp_path):
    name = "n" * 255
    whole.write_bytes(tmp_path / name, b"x")
    assert Path(tmp_path / name).read_bytes() == b"x"
