"""`.. instructions:: ferrum_numba.ptx.memory` shows what a module declares, with its PTX."""

import inspect
from importlib import import_module

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ferrum_numba import ptx
from ferrum_numba.ptx.described import shown
from ferrum_numba.ptx.instruction import Instruction
from ferrum_numba.ptx.listed import declared
from generator.docstrings import indented, inline, restructured

# lanes that must execute an instruction together
TOGETHER = {"warp": "all lanes of a warp together", "warpgroup": "all of a warpgroup together"}


def described(name: str, one: object) -> list[str]:
    """Return the lines that describe an instruction."""
    # of an instruction, what is written of it: its own docstring has the PTX too
    doc = getattr(one, "twin", one).__doc__ or ""
    doc, _, source = inspect.cleandoc(doc).partition("\n\nSource: ")
    lines = restructured(doc.splitlines())
    if isinstance(one, Instruction):
        lines += [".. code-block:: none", "", *indented(shown(one.template)), ""]
        said = [f"Since ``{one.arch}``", TOGETHER.get(one.scope), *inlined(source)]
        lines += ["; ".join(filter(None, said)), ""]
    head = f".. py:function:: {name}{inspect.signature(one)}"
    return [head, *indented(["", *lines])]


def inlined(source: str) -> list[str]:
    """Return where an instruction is described, in one line."""
    return [inline(" ".join(source.split()).rstrip("."))] if source else []


class Instructions(SphinxDirective):
    """All of a module: signature, purpose, PTX, since which architecture."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the descriptions."""
        module = import_module(self.arguments[0])
        lines = [f".. py:currentmodule:: {ptx.__name__}", ""]
        lines += [*restructured(inspect.cleandoc(module.__doc__ or "").splitlines()), ""]
        for name, one in declared(module):
            lines += described(name, one)
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> None:
    """Register the directive."""
    app.add_directive("instructions", Instructions)
