"""The PTX instructions as a page that is read in the tree, without the site.

    python -m ferrum_numba.perf.instructions_page

writes PAGE from `ferrum_numba.ptx`, in the sections of docs/reference/instructions.rst, which is
the site's page of the same; `tests/perf/test_instructions_page.py` asserts that it is current.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

from ferrum_numba import ptx
from ferrum_numba.errors import FerrumError, StoreError
from ferrum_numba.perf.readme_table import table
from ferrum_numba.ptx.instruction import Instruction

COMMAND = "python -m ferrum_numba.perf.instructions_page"
DOCS = Path(__file__).resolve().parent.parent / "docs"
SECTIONS = DOCS / "reference" / "instructions.rst"
PAGE = DOCS / "instructions.md"
SECTION = re.compile(r"^(.+)\n-+\n\n\.\. instructions:: ([\w.]+)$", re.MULTILINE)
# what begins a statement of PTX and is no opcode: a predicate, a label
NO_OPCODE = re.compile(r"^(@!?\S+\s+|\w+:(\s+|$))*")
# of a table of opcodes; a tensor map's fields are more
MOST_OPCODES = 4
INTRODUCTION = f"""\
# PTX instructions

<!-- written by {COMMAND}: what is changed here is lost -->
Each is a function of `ferrum_numba.ptx`: an instruction on a GPU, and NumPy on 32 lanes when
`check` interprets a kernel. `list --instructions`, with a word to look for behind it, prints them.
One that is not here is [declared in ten lines](own_kernel.md#instruction).

`u32`, `f32` and so on are registers, `u32x4` is a tuple of four; a *constant* is fixed when the
kernel is compiled. fp16 and bf16 are bits: a `u16`, or two in a `u32`. Addresses are in bytes:
`u64` in global memory, `u32` in shared memory. *Together* says which lanes must all execute it: a
warp's, a warpgroup's (four warps), or none but itself. What has no opcode here is no single
instruction: a function that makes one for its arguments, or an address. Whole docstrings are in
[ferrum_numba/ptx](../ferrum_numba/ptx), and on the site.
"""


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
        assert callable(one)
        return name + re.sub(r"(: |-> )'(\w+)'", r"\1\2", str(inspect.signature(one)))
    kinds = {operand: getattr(kind, "name", "constant") for operand, kind in one.operands.items()}
    result = f" -> {one.result.name}" if one.result else ""
    return f"{name}({', '.join(f'{n}: {kind}' for n, kind in kinds.items())}){result}"


def opcodes(template: str) -> list[str]:
    """Return the opcodes of an instruction's PTX in their order, each once."""
    statements = re.split(r"[;{}\n]", re.sub(r"//.*|\{[^{};]*\}", "", template))
    words = [NO_OPCODE.sub("", one.strip()).split() for one in statements]
    found = dict.fromkeys(one[0] for one in words if one)
    return [one for one in found if re.match(r"[a-z]+\d*(\.|$)", one)]


def sections() -> list[tuple[str, ModuleType]]:
    """Return the title and the module of every section.

    Raises:
        StoreError: this is no checkout.
    """
    if not SECTIONS.is_file():
        raise StoreError(f"{SECTIONS}: is not here; this command is for a checkout")
    found = SECTION.findall(SECTIONS.read_text(encoding="utf-8"))
    return [(title, import_module(name)) for title, name in found]


def row(name: str, one: object) -> tuple[str, ...]:
    """Return the cells of an instruction: call, opcodes, architecture, lanes, purpose."""
    purpose = inspect.cleandoc(getattr(one, "twin", one).__doc__ or "").partition("\n\n")[0]
    cells = [f"`{signature(name, one)}`", "", "", ""]
    if isinstance(one, Instruction):
        codes = opcodes(one.template)
        shown = [f"`{code}`" for code in codes[:MOST_OPCODES]]
        more = ["…"] if len(codes) > MOST_OPCODES else []
        together = "" if one.scope == "lane" else one.scope
        cells[1:] = [", ".join((*shown, *more)), one.arch, together]
    return tuple(cell.replace("|", "\\|") for cell in (*cells, " ".join(purpose.split())))


def parts() -> Iterator[str]:
    """Yield the introduction and the table of every section."""
    yield INTRODUCTION
    for title, module in sections():
        rows = [row(name, one) for name, one in declared(module)]
        heads = ["call", "PTX", "since", "together", "what it does"]
        yield f"## {title}\n\n`{module.__name__}`\n\n{table(heads, rows)}\n"


def page() -> str:
    """Return the page."""
    return "\n".join(parts())


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")


if __name__ == "__main__":
    try:
        main()
    except FerrumError as error:
        print(f"instructions_page: {error}", file=sys.stderr)
        sys.exit(2)
