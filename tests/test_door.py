"""What comes in from outside: regular files, bounded in size, depth and numbers."""

import json
import os
import socket

import pytest

from ferrum_numba import door


def test_what_is_no_regular_file_is_said(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    kinds = {"pipe": "a named pipe", "zero": "a device", ".": "a folder"}
    for name, kind in kinds.items():
        with pytest.raises(OSError, match=rf"it is {kind}, no file"):
            door.read_bytes(tmp_path / name)
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError, match=r"No such device|it is a socket"):
            door.read_bytes(tmp_path / "socket")
    with pytest.raises(OSError, match="no file has such a name"):
        door.read_bytes("a\0b")
    with pytest.raises(FileNotFoundError):
        door.read_bytes(tmp_path / "none")


def test_a_file_is_no_larger_than_said(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    assert door.read_bytes(tmp_path / "link", 5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes, and such a file 4 at most"):
        door.read_bytes(tmp_path / "a", 4)


@pytest.mark.parametrize("text", ["[1", "[" * 10**5, "[" * 66 + "]" * 66, "9" * 21, "-" + "9" * 20,
                                  '"\\ud800"', '{"\\udfff": 1}', b"\xff"])  # fmt: skip
def test_what_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        door.parse_json(text)


def test_what_python_writes_is_read():
    value = {"a": [1, -(2**63), 2**64 - 1, 1.5, None, True], "b": "\U0001f600é", "c": [[{}]]}
    assert door.parse_json(json.dumps(value)) == value
    assert door.parse_json(b"[NaN, Infinity]")[1] == float("inf")
    assert door.parse_json("[" * 64 + "]" * 64)


def test_values_are_short_in_a_sentence():
    assert door.shown({"a": 1}) == '{"a": 1}'
    assert len(door.shown("a" * 1000)) < 220
    assert len(door.quoted(["a"] * 1000)) < 220
    assert door.quoted("a'b") == repr("a'b")
