"""Files written a tensor at a time: as the library reads them, whole or not at all."""

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from ferrum_numba import CheckpointError
from ferrum_numba.gptq.files import DTYPES, TensorFiles
from ferrum_numba.gptq.writing import TensorWriter, aligned, new_folder


def write(path, tensors):
    with TensorWriter(path, tensors) as out:
        for name, array in tensors.items():
            out.add(name, array)


def test_every_type_and_shape_as_the_library_reads_it(tmp_path, rng):
    shapes = ((), (1,), (0, 3), (2, 3), (1, 2, 1, 2, 3))
    tensors = {
        f"{name} {shape} \u00e9": rng.integers(0, 2, shape).astype(dtype)
        for name, dtype in DTYPES.items()
        for shape in shapes
    }
    path = tmp_path / "x.safetensors"
    write(path, tensors)
    files = TensorFiles.open(path)
    for name, array in tensors.items():
        got = files.read(name)
        assert (got.dtype, got.shape) == (array.dtype, array.shape)
        assert got.tobytes() == array.tobytes()
    with safe_open(path, "np") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert {*opened.keys()} == {*tensors}


def test_what_is_not_contiguous(tmp_path):
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    write(tmp_path / "x", {"t": array.T, "b": array.astype(ml_dtypes.bfloat16)[:, ::2]})
    np.testing.assert_array_equal(load_file(tmp_path / "x")["t"], array.T)


@pytest.mark.parametrize("names", [(), ("a",)])
def test_a_file_of_less_than_was_named(tmp_path, names):
    with TensorWriter(tmp_path / "x", ["a", "b"]) as out:
        for name in names:
            out.add(name, np.zeros(3, np.uint8))
    assert {*load_file(tmp_path / "x")} == {*names}


def test_the_largest_names_and_sizes_have_room(tmp_path):
    shape = (10**9, 0, 10**3, 10**3, 10**3)
    tensors = {"n" * 5000: np.zeros(shape, np.float16), '"' * 5000: np.zeros(shape, np.float16)}
    write(tmp_path / "x", tensors)
    entries = TensorFiles.open(tmp_path / "x").entries
    assert {name: entry.shape for name, entry in entries.items()} == dict.fromkeys(tensors, shape)


def test_each_begins_at_a_multiple_of_its_elements(tmp_path):
    sizes = {"a": 1, "b": 4, "c": 2, "d": 4}
    assert aligned(sizes, sizes) == ["b", "d", "c", "a"]


def test_nothing_is_left_of_what_failed(tmp_path):
    def fail():
        with new_folder(tmp_path / "x") as folder:
            write(folder / "y", {"a": np.zeros(3)})
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError("no")])
def test_what_cannot_be_written_is_said(tmp_path, error):
    with (
        pytest.raises(CheckpointError, match=f"x cannot be written: {error.strerror or 'no'}"),
        new_folder(tmp_path / "x"),
    ):
        raise error


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    with pytest.raises(CheckpointError, match="is there already"), new_folder(tmp_path):
        pass
