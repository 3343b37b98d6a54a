"""The README's examples work, and what it names is there."""

import json
import re
from pathlib import Path

import numpy as np
import page_runs
import pages
import pytest

from ferrum_numba import cli
from ferrum_numba.cli.app import COMMANDS
from ferrum_numba.reference.gptq import dequantize

ROOT = pages.ROOT
README = (ROOT / "README.md").read_text()
EXAMPLE = ("scale_by_element", "--kernels", "my_package.kernels", "--json")


@pytest.fixture(scope="module")
def found(ran):
    """Return the names that the README's examples leave."""
    return ran(ROOT / "README.md")[0]


@pytest.fixture
def package(ran, monkeypatch):
    """Go to the folder of the README's package."""
    _, folder = ran(ROOT / "README.md")
    monkeypatch.chdir(folder)
    with page_runs.importable(folder):
        yield


def test_the_example_passes_its_check(package, capsys):
    assert cli.main((), {}, ["check", *EXAMPLE, "--on", "interpreter"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["status"] for row in rows] == ["ok"] * 4


def test_the_example_can_be_planned(package, capsys):
    sizes = ["--problem", "M=4096,N=4096", "--limit", "1"]
    assert cli.main((), {}, ["plan", *EXAMPLE, *sizes, "--gpu", "h200"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["status"], row["spill_bytes"], row["kernel"]) == ("ok", 0, "scale_by_element")


def test_the_example_refuses_in_one_sentence(package, capsys):
    assert cli.main((), {}, ["plan", *EXAMPLE, "--problem", "M=65536,N=65536"]) == 2
    assert "M * N must be below 4294967296; got 4294967296" in capsys.readouterr().err


def test_the_first_example_is_short_and_right(ran, found):
    _, folder = ran(ROOT / "README.md")
    assert len([line for line in (folder / "first.py").read_text().splitlines() if line]) <= 11
    layer, x, y = (found["first.py"][name] for name in ("layer", "x", "y"))
    weight = dequantize(layer.qweight, layer.scales, layer.qzeros)
    assert (y.shape, y.dtype) == ((16, 4096), np.float16)
    # one rounding to fp16; sums near 0 are of terms up to 5
    np.testing.assert_allclose(y, x.astype(np.float32) @ weight, rtol=2**-10, atol=1e-3)


def test_layers_are_used_as_shown_of_a_checkpoint_made_there(found):
    found = found["use_it.py"]
    names = found["names"]
    for got, parts in ((found["y"], names[:3]), (found["z"], names[5:])):
        layers = [found["checkpoint"].linear(f"model.layers.0.{name}") for name in parts]
        read = [dequantize(layer.qweight, layer.scales, layer.qzeros) for layer in layers]
        want = found["x"].astype(np.float32) @ np.concatenate(read, axis=1)
        assert got.shape == want.shape
        # one rounding to fp16; sums near 0 are of terms up to 5
        np.testing.assert_allclose(got, want, rtol=2**-10, atol=1e-3)
    # and what was quantised is near to what the model had
    weight = np.concatenate([found["weights"][f"model.layers.0.{n}.weight"] for n in names[:3]])
    near = found["x"].astype(np.float32) @ weight.T.astype(np.float32)
    assert np.linalg.norm(found["y"] - near) < 0.15 * np.linalg.norm(near)


def tree():
    """Return every path that the section on the tree names, `<design>` as `*`."""
    section = README.split("## The tree")[1].split("\n## ")[0]
    found, above = [], {}
    for spaces, names in re.findall(r"^    ( *)((?:[\w.<>]+/? )+) ", section, re.MULTILINE):
        for name in names.split():
            above[len(spaces)] = above.get(len(spaces) - 2, Path()) / re.sub(r"<\w+>", "*", name)
            found.append(above[len(spaces)].as_posix())
    return found


@pytest.mark.parametrize("path", tree())
def test_what_the_tree_names_is_there(path):
    assert any(ROOT.glob(path))


def test_the_tree_names_every_folder():
    packages = [path.parent for path in ROOT.glob("*/__init__.py")]
    packages += [path.parent for path in (ROOT / "ferrum_numba").glob("*/__init__.py")]
    packages += [path.parent for path in (ROOT / "kernels").glob("*/__init__.py")]
    named = {found for path in tree() for found in ROOT.glob(path)}
    assert set(packages) <= named
    assert set((ROOT / "docs").glob("*.md")) <= named


def test_every_command_is_named():
    section = README.split("## Commands")[1].split("## ")[0]
    assert re.findall(r"^    ferrum-numba ([\w-]+)", section, re.MULTILINE) == [*COMMANDS]


def test_the_pictures_are_there():
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).stat().st_size > 10_000, path
