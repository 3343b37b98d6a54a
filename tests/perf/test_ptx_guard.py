"""The guard of refactors: which programs it compares, and what it says of those that differ."""

import re

import pytest

from ferrum_numba.kernels import KERNELS, MOE, TOOLS
from ferrum_numba.kernels.ceilings import CEILINGS
from ferrum_numba.perf import ptx_guard

ADD = """.version 8.0
.target sm_90a
.address_size 64
.visible .entry add(.param .u64 out)
{
    .reg .b64 p;
    .reg .b32 r;
    ld.param.u64 p, [out];
    mov.u32 r, %tid.x;
    add.u32 r, r, 1;
    st.global.u32 [p], r;
    ret;
}
"""


@pytest.fixture
def folders(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    for folder in (before, after):
        folder.mkdir()
        (folder / "same.ptx").write_text(ADD)
    return before, after


def test_every_kernel_is_among_the_programs_and_no_name_stands_twice():
    programs = list(ptx_guard.programs())
    assert {kernel.name for _, kernel, _, _ in programs} == {
        kernel.name for kernel in (*KERNELS, *TOOLS, *MOE, *CEILINGS)
    }
    assert len({name for name, *_ in programs}) == len(programs)


def test_the_same_bytes_are_no_difference(folders, capsys):
    before, after = map(str, folders)
    assert ptx_guard.main(["compare", before, after]) == 0
    assert "0 of 1 programs differ" in capsys.readouterr().out


def test_what_differs_is_named_with_its_first_line(folders, capsys):
    before, after = folders
    (before / "other.ptx").write_text(ADD)
    (after / "other.ptx").write_text(ADD.replace("r, r, 1", "r, r, 2"))
    (after / "new.ptx").write_text(ADD)
    assert ptx_guard.main(["compare", str(before), str(after)]) == 1
    said = capsys.readouterr().out
    assert "other.ptx: line 10 was 'add.u32 r, r, 1;', is 'add.u32 r, r, 2;'" in said
    assert re.search(r"new.ptx: not in .*before", said)
    assert "2 of 3 programs differ" in said


@pytest.mark.parametrize(
    ("was", "now", "words"),
    [
        (".reg .b32 r;", ".reg .b32 r, unused;", "same machine code"),
        ("add.u32 r, r, 1;", "add.u32 r, r, 1; mul.lo.u32 r, r, r;", r"instructions, now .*IMAD"),
    ],
    ids=["text alone", "code"],
)
def test_sass_tells_a_change_of_text_from_one_of_code(folders, capsys, was, now, words):
    before, after = folders
    (before / "other.ptx").write_text(ADD)
    (after / "other.ptx").write_text(ADD.replace(was, now))
    assert ptx_guard.main(["compare", str(before), str(after), "--sass"]) == 1
    assert re.search(words, capsys.readouterr().out)
