"""Planted faults: each still has its place in the kernels, and leaves Python behind."""

import ast

import pytest

from ferrum_numba.perf.fault_list import FAULTS
from ferrum_numba.perf.faults import ROOT, planted, row


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kernel}: {fault.name}")
def test_a_fault_has_its_place(fault):
    text = (ROOT / "kernels" / fault.file).read_text()
    changed = planted(text, fault)
    assert changed != text
    ast.parse(changed)


def test_a_row_says_what_was_found_and_where():
    reason = "/x/kernels/decode/program.py:7: reads (write-after-read) kernels/decode/result.py:9 x"
    assert row(FAULTS[0], reason).endswith(
        "| write-after-read: decode/program.py:7, decode/result.py:9 |"
    )
    assert "**not found**" in row(FAULTS[0], None)
