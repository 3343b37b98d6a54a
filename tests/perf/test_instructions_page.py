"""The page of PTX instructions is what `ferrum_numba.ptx` declares."""

import re

import pytest

from ferrum_numba import ptx
from ferrum_numba.errors import StoreError
from ferrum_numba.perf import instructions_page
from ferrum_numba.ptx import memory, wgmma
from ferrum_numba.ptx.instruction import U32, instruction


def test_the_page_is_current():
    text = instructions_page.PAGE.read_text(encoding="utf-8")
    assert text == instructions_page.page(), instructions_page.COMMAND


def test_every_instruction_has_a_row():
    found = re.findall(r"^\| `(\w+)\(", instructions_page.page(), re.MULTILINE)
    assert sorted(found) == sorted(ptx.__all__)


def test_a_row_says_how_it_is_called_and_what_it_is():
    assert instructions_page.row("ld_global_nc_v2_if", memory.ld_global_nc_v2_if) == (
        "`ld_global_nc_v2_if(address: u64, pred: u32) -> u32x2`",
        "`setp.ne.u32`, `mov.b32`, `ld.global.nc.v2.u32`", "sm_80", "",
        "Load 8 constant bytes; 0 where pred is 0.",
    )  # fmt: skip
    assert instructions_page.row("wgmma_wait", wgmma.wgmma_wait)[:4] == (
        "`wgmma_wait(pending: constant)`", "`wgmma.wait_group.sync.aligned`", "sm_90a", "warpgroup",
    )  # fmt: skip
    made = instructions_page.row("wgmma_rs", wgmma.wgmma_rs)
    assert made[:2] == ("`wgmma_rs(n: int, dtype: str = 'f16') -> Instruction`", "")


def test_a_bar_ends_no_cell():
    @instruction("or.b32 <d>, <a>, <b>;")
    def either(a: U32, b: U32) -> U32:
        """Return a | b."""
        return a | b

    assert instructions_page.row("either", either)[-1] == "Return a \\| b."


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("ld.global.L1::no_allocate.u32 <d>, [<a>];", ["ld.global.L1::no_allocate.u32"]),
        ("{ .reg .pred p;\nsetp.ne.u32 p, <a>, 0;\n@!p bra done;\ndone: }", ["setp.ne.u32", "bra"]),
        ("add.u32 <d>, <a>, 1; add.u32 <d>, <d>, 1;", ["add.u32"]),
        ("a_symbol", []),
    ],
)
def test_opcodes_are_what_statements_begin_with(template, found):
    assert instructions_page.opcodes(template) == found


def test_a_place_without_the_tree_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(instructions_page, "SECTIONS", tmp_path / "none.rst")
    with pytest.raises(StoreError, match="this command is for a checkout"):
        instructions_page.page()
