"""Every reader on a few hundred mutated files; `make fuzz` runs a million each."""

import warnings

import fuzz
import pytest
from readers import READERS, files_of

# of the store each opens a database
EXECUTIONS = {name: 30 if name == "store" else 120 for name in READERS}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_takes_what_is_good_and_refuses_what_is_not(tmp_path, name):
    files_of(READERS[name], tmp_path / "good")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        READERS[name].read(tmp_path / "good")
        found = fuzz.run(name, EXECUTIONS[name])
    assert found["findings"] == {}
    assert found["grown_mb"] < 64


def test_a_finding_is_told_with_its_number():
    def reads_a_number(folder):
        int((folder / "a").read_bytes())

    bad = fuzz.READERS["t"] = fuzz.Reader(
        lambda folder: (folder / "a").write_bytes(b"1"), reads_a_number, {"a": lambda rng, _: b"x"}
    )
    try:
        (words,) = fuzz.run("t", 3)["findings"].items()
    finally:
        del fuzz.READERS["t"]
    assert bad.mutated
    assert words[0].startswith("ValueError at ")
    assert words[1] == [3, 0]
