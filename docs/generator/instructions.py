"""`.. instructions:: ferrum_numba.ptx.memory` shows what a module declares, with its PTX."""

import inspect
from importlib import import_module
from types import ModuleType

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ferrum_numba import ptx
from ferrum_numba.ptx.instruction import Instruction
from generator.docstrings import indented, inline, restructured

# lanes that must execute an instruction together
TOGETHER = {"warp": "all lanes of a warp together", "warpgroup": "all of a warpgroup together"}
# of PTX that is shown whole; longer is that of a table, such as a tensor map's fields
LONGEST_LINES = 12


def declared(module: ModuleType) -> list[tuple[str, object]]:
    """Return the public instructions of a module, and the functions that make some."""
    return [
        (name, value)
        for name, value in vars(module).items()
        if name in ptx.__all__
        and (isinstance(value, Instruction) or value.__module__ == module.__name__)
    ]


def signature(name: str, one: object) -> str:
    """Return an instruction with the types of its operands, or a function with its own."""
    if not isinstance(one, Instruction):
        return f"{name}{inspect.signature(one)}"
    kinds = {operand: getattr(kind, "name", "constant") for operand, kind in one.operands.items()}
    result = f" -> {one.result.name}" if one.result else ""
    return f"{name}({', '.join(f'{n}: {kind}' for n, kind in kinds.items())}){result}"


def described(name: str, one: object) -> list[str]:
    """Return the lines that describe an instruction."""
    doc, _, source = inspect.cleandoc(one.__doc__ or "").partition("\n\nSource: ")
    lines = restructured(doc.splitlines())
    if isinstance(one, Instruction):
        code = one.template.splitlines()
        if len(code) > LONGEST_LINES:
            code = [*code[:LONGEST_LINES], "…"]
        lines += [".. code-block:: none", "", *indented(code), ""]
        said = [f"Since ``{one.arch}``", TOGETHER.get(one.scope), *inlined(source)]
        lines += ["; ".join(filter(None, said)), ""]
    head = f".. py:function:: {signature(name, one)}"
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
