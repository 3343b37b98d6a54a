"""The files behind a program: all that decide it, by their text, without importing them."""

import os
import subprocess
import sys
import time

import pytest

import ferrum_numba
from ferrum_numba.compile import fingerprint, sources
from ferrum_numba.compile.sources import changed, edited, sources_of
from ferrum_numba.kernels import KERNELS, MOE, TOOLS
from ferrum_numba.kernels.ceilings import CEILINGS
from ferrum_numba.kernels.w4a16 import W4A16Problem

HOUSE = (*KERNELS, *TOOLS, *MOE, *CEILINGS)
LONG_AGO = time.time() - 1e6
STEP_S = 0.02


def module_of(kernel):
    return type(kernel).__module__


def name_of(module):
    return module.removeprefix("ferrum_numba.").replace(".", "/") + ".py"


@pytest.mark.parametrize("kernel", HOUSE, ids=lambda kernel: kernel.name)
def test_every_function_of_a_program_is_in_a_file_that_was_found(kernel, monkeypatch):
    """The compiler's own walk over a program meets no function of another file."""
    met = set()
    walk = fingerprint._Walk.function

    def note(self, function):
        met.add(function.__module__)
        walk(self, function)

    monkeypatch.setattr(fingerprint._Walk, "function", note)
    config = kernel.config()
    fingerprint.function_fingerprint(kernel.build(config, "sm_90a").function)
    ours = {name_of(module) for module in met if module.startswith("ferrum_numba.")}
    found = sources_of(module_of(kernel))
    assert ours
    assert ours <= found.keys()
    assert {name_of(module_of(kernel)), "compile/compiler.py", "ptx/instruction.py"} <= found.keys()


def test_what_decides_nothing_is_left_out():
    found = sources_of("ferrum_numba.kernels.decode.kernel")
    assert {"kernels/decode/steps.py", "kernels/shared/int4.py", "ptx/mma.py"} <= found.keys()
    others = [name for name in found if name.startswith(("kernels/prefill", "kernels/tools"))]
    assert not others
    assert not found.keys() & {"errors.py", "compile/cache.py", "kernels/__init__.py"}
    # a problem's defaults and a stripe's length decide what the host asks of a program
    assert {name_of(W4A16Problem.__module__), "kernels/shared/cut.py"} <= found.keys()


@pytest.fixture
def house(tmp_path, monkeypatch):
    """Return a copy of the files of one tool, in the place of the package."""
    found = sources_of("ferrum_numba.kernels.tools.add_bias")
    for name in found:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(sources._file(name).read_bytes())
    monkeypatch.setattr(sources, "_file", lambda name: tmp_path / name)
    # a process that began when they were there; file systems count in steps of some milliseconds
    monkeypatch.setattr(ferrum_numba, "BEGAN", time.time() + STEP_S)
    time.sleep(3 * STEP_S)
    sources._digest.cache_clear()
    yield tmp_path, found
    sources._digest.cache_clear()


FILES = ("kernels/tools/add_bias.py", "kernels/tools/add_bias_program.py", "ptx/convert.py")


def test_files_that_are_as_they_were(house):
    _, found = house
    assert changed(found) is None
    assert not edited(found)


@pytest.mark.parametrize("name", FILES)
def test_an_edited_file_is_named(house, name):
    folder, found = house
    path = folder / name
    path.write_bytes(path.read_bytes() + b"\n# more\n")
    os.utime(path, (LONG_AGO, LONG_AGO))
    assert changed(found) == name


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_gone_is_named(house, name):
    folder, found = house
    (folder / name).unlink()
    assert changed(found) == name


def test_what_was_edited_since_the_process_began_is_not_what_runs(house):
    folder, found = house
    # with the same text: what this process has loaded may be an older one
    path = folder / FILES[0]
    os.utime(path)
    assert changed(found) == FILES[0]
    assert edited(found)


def test_an_edit_that_keeps_the_time_of_another_file_is_one(house):
    folder, found = house
    # as rsync -a and cp -p leave it
    path = folder / FILES[0]
    path.write_bytes(path.read_bytes())
    os.utime(path, (LONG_AGO, LONG_AGO))
    assert changed(found) == FILES[0]
    assert edited(found)


def test_the_process_began_before_any_other_file_of_the_package_was_read():
    words = (
        "import sys, ferrum_numba as f; print(f.BEGAN > 0, "
        "[name for name in sys.modules if name.startswith('ferrum')])"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout == "True ['ferrum_numba']\n"


def test_a_clock_that_goes_wrong_is_no_edit(house, monkeypatch):
    folder, found = house
    os.utime(folder / FILES[0])
    monkeypatch.setattr(ferrum_numba, "BEGAN", LONG_AGO)
    monkeypatch.setattr(sources.time, "time", lambda: LONG_AGO + 1.0)
    assert changed(found) is None


def test_a_file_is_read_once_a_process(house):
    folder, found = house
    assert changed(found) is None
    (folder / FILES[0]).write_text("other")
    # the code that was loaded is the one that was found good
    assert changed(found) is None


def test_a_new_import_is_followed(house, monkeypatch):
    folder, found = house
    path = folder / "kernels/tools/add_bias_program.py"
    path.write_bytes(b"def late():\n    from ferrum_numba.ptx import shuffle\n" + path.read_bytes())
    (folder / "ptx/shuffle.py").write_text("import numpy\n")
    (folder / "ptx/__init__.py").write_text("")
    sources._name.cache_clear()
    more = sources_of("ferrum_numba.kernels.tools.add_bias")
    sources._name.cache_clear()
    assert more.keys() - found.keys() == {"ptx/shuffle.py", "ptx/__init__.py"}


def test_it_takes_milliseconds():
    """All files of all kernels: 5 ms on a quiet machine."""
    found = {}
    for kernel in KERNELS + TOOLS + MOE:
        found |= sources_of(module_of(kernel))
    times = []
    for _ in range(5):
        sources._digest.cache_clear()
        began = time.process_time()
        assert changed(found) is None
        times.append(time.process_time() - began)
    assert len(found) > 50
    print(f"{len(found)} files, {1e3 * min(times):.1f} ms")
    assert min(times) < 0.02
