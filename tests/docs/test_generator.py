"""What the site needs besides Sphinx: docstrings, links into the tree, navigation, commands."""

from importlib import import_module
from io import StringIO
from pathlib import Path

import pages
import pytest

pytest.importorskip("sphinx", reason="the extra `docs` is not installed")

from generator import commands, contents, docstrings, instructions, tree
from sphinx.application import Sphinx

from ferrum_numba import ptx
from ferrum_numba.cli.app import COMMANDS
from ferrum_numba.ptx import memory, wgmma

DOCSTRING = """\
Compute out = x * w_ for `M` rows, see docs/tuning.md#model.

It waits
for nothing.

Args:
    x, out: [M, K] fp16,
            contiguous
    K:      columns

Returns:
    The least `K`; 2*K
    at most.

Raises:
    ProblemError: no
    OSError:      a disk

    make it
"""


def test_a_docstring_becomes_restructured_text():
    assert docstrings.restructured(DOCSTRING.splitlines()) == [
        "Compute out = x \\* w\\_ for ``M`` rows, see ``docs/tuning.md#model``.", "",
        "It waits", "for nothing.", "",
        ":Args:",
        "   .. rst-class:: names", "",
        "   ``x``, ``out``", "      [M, K] fp16, contiguous",
        "   ``K``", "      columns", "",
        ":Returns:", "   The least ``K``; 2\\*K", "   at most.", "",
        ":Raises:",
        "   .. rst-class:: names", "",
        "   :py:exc:`~ferrum_numba.errors.ProblemError`", "      no",
        "   ``OSError``", "      a disk", "",
        "::", "", "   make it", "",
    ]  # fmt: skip


def test_a_class_has_a_table_of_its_fields_or_columns():
    lines = ["How.", "", "flops: all", "bytes: each", "       once"]
    assert docstrings.restructured(lines)[2:] == [
        ".. rst-class:: names", "", "``flops``", "   all", "``bytes``", "   each once", "",
    ]  # fmt: skip
    assert docstrings.restructured(["scales   [E, N]", "bias     [N]"]) == [
        "::", "", "   scales   [E, N]", "   bias     [N]", "",
    ]  # fmt: skip


def test_links_into_the_tree_stay_in_it():
    page = pages.ROOT / "docs" / "designs" / "decode.md"
    found = [
        tree.linked(to, page, pages.ROOT) for to in ("../../perf/peers.py#x", "../../..", "no")
    ]
    assert found == [Path("perf/peers.py"), None, None]


def test_files_of_a_folder(tmp_path):
    for name in ("b/c.py", "a.json", "b/__pycache__/c.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert tree.files(tmp_path) == [Path("a.json"), Path("b/c.py")]


@pytest.mark.filterwarnings("ignore:'myst_parser")
def test_places_and_files_of_a_small_tree(tmp_path):
    # anchors of headings and of text are places; files and folders are where the tree has them
    tree_of = {
        "README.md": "# One\n\n[a](docs/a.md#here) [b](docs/a.md#there) [c](docs/a.md#gone)\n",
        "docs/a.md": '# A\n\n## <a id="here"></a>Heading\n\n<a id="there"></a>Text [x](#here)'
        " [y](../kernels) [z](../kernels/k.py)\n",
        "kernels/k.py": "K = 1\n",
    }
    for name, text in tree_of.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    out, said = tmp_path / "out", StringIO()
    settings = {
        "extensions": ["myst_parser", "generator.anchors", "generator.tree"],
        "include_patterns": ["*.md", "docs/**"], "root_doc": "README", "html_theme": "basic",
        "suppress_warnings": ["toc.not_included"],
    }  # fmt: skip
    app = Sphinx(
        tmp_path, None, out, tmp_path / "doctrees", "html", settings, status=None, warning=said
    )
    app.build()
    (warning,) = said.getvalue().strip().splitlines()
    assert "local id not found in doc 'docs/a': 'gone'" in warning
    front, page = ((out / name).read_text() for name in ("README.html", "docs/a.html"))
    assert 'href="docs/a.html#here"' in front
    assert 'href="docs/a.html#there"' in front
    assert '<section id="here">' in page
    assert 'id="there"' in page
    assert page.count('id="here"') == 1
    assert 'href="../kernels/index.html"' in page
    assert 'href="../kernels/k.py"' in page
    assert 'href="k.py"' in (out / "kernels" / "index.html").read_text()
    assert (out / "kernels" / "k.py").read_text() == tree_of["kernels/k.py"]


def test_the_navigation_has_every_page_once():
    docnames = {page.relative_to(pages.ROOT).with_suffix("").as_posix() for page in pages.PAGES}
    rst = (pages.ROOT / "docs" / "reference").glob("*.rst")
    docnames |= {f"docs/reference/{path.stem}" for path in rst}
    groups = contents.contents(docnames, "README")
    found = [name for group in groups.values() for name in group]
    # notebooks are found, too
    notebooks = {f"docs/notebooks/{p.stem}" for p in (pages.ROOT / "docs").rglob("*.ipynb")}
    assert sorted({*found, *notebooks}) == sorted(
        docnames - {"README"} | {"Overview <self>"} | notebooks
    )
    assert len(found) == len(set(found))
    # the page that begins it has no number
    assert groups["Tutorial"][:2] == ["docs/tutorial/README", "docs/tutorial/01_scalar"]
    without = {name for name in docnames if not name.startswith("docs/tutorial/")}
    assert "Tutorial" not in contents.contents(without, "README")


def test_every_command_and_option_is_described():
    found = commands.commands()
    assert list(found) == list(COMMANDS)
    options = dict(commands.described(found["check"]))
    assert options["KERNEL"] == "names; all by default"
    assert options["--on {gpu,interpreter,auto}"]
    assert "--help" not in " ".join(options)


def test_every_instruction_is_on_the_page():
    text = (pages.ROOT / "docs" / "reference" / "instructions.rst").read_text()
    modules = [line.split()[-1] for line in text.splitlines() if ":: ferrum_numba" in line]
    found = [name for one in modules for name, _ in instructions.declared(import_module(one))]
    assert sorted(found) == sorted(ptx.__all__)


def test_an_instruction_is_described():
    lines = instructions.described("ld_global_nc_v2", memory.ld_global_nc_v2)
    assert lines[0] == ".. py:function:: ld_global_nc_v2(address: u64) -> u32x2"
    assert "      ld.global.nc.v2.u32 <d>, [<address>];" in lines
    assert '   Since ``sm_80``; PTX ISA, "Data Movement Instructions: ld"' in lines
    (together,) = (
        line for line in instructions.described("wgmma_wait", wgmma.wgmma_wait) if "Since" in line
    )
    assert "all of a warpgroup together" in together
