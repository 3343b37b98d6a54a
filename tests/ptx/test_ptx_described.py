"""Instructions say what they take: in `help`, in their repr, and by `list --instructions`."""

import inspect
import json
import pydoc

import pytest

from ferrum_numba import cli, ptx
from ferrum_numba.ptx import fma_f32, lop3, st_shared_f32
from ferrum_numba.ptx.instruction import Instruction


@pytest.fixture
def run(capsys):
    """Run `list`; return (status, stdout, stderr)."""

    def run(*argv):
        return cli.main((), {}, ("list", *argv)), *capsys.readouterr()

    return run


def test_help_shows_operands_purpose_and_ptx():
    text = pydoc.render_doc(st_shared_f32, renderer=pydoc.plaintext)
    assert "st_shared_f32(address: u32, value: f32)" in text
    assert "Store an fp32 to shared memory." in text
    assert "st.shared.f32 [<address>], <value>;" in text
    module = pydoc.render_doc(inspect.getmodule(st_shared_f32), renderer=pydoc.plaintext)
    assert "st_shared_f32 = st_shared_f32(address: u32, value: f32)\n" in module


def test_an_instruction_shows_its_types():
    assert repr(lop3) == "lop3(a: u32, b: u32, c: u32, lut: constant) -> u32"
    assert str(inspect.signature(fma_f32)).endswith("-> f32")


def test_those_that_have_a_word_are_listed_in_80_columns(run, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    status, out, _ = run("--instructions", "st_shared_f32")
    assert (status, out.splitlines()[:2]) == (
        0,
        [
            "st_shared_f32(address: u32, value: f32) (since sm_80)",
            "    Store an fp32 to shared memory.",
        ],
    )
    status, out, _ = run("--instructions")
    assert (status, max(map(len, out.splitlines())) <= 80) == (0, True)
    assert f"{sum(callable(getattr(ptx, name)) for name in ptx.__all__)} instructions of" in out


def test_as_json_all_have_their_operands(run):
    _, out, _ = run("--instructions", "--json")
    found = {row["name"]: row for row in json.loads(out)}
    assert found["st_shared_f32"]["operands"] == {"address": "u32", "value": "f32"}
    assert found["st_shared_f32"]["result"] is None
    own = [one for one in vars(ptx).values() if isinstance(one, Instruction)]
    assert all(found[one.name]["arch"] == one.arch for one in own if one.name in ptx.__all__)


def test_a_word_that_none_has(run):
    status, out, err = run("--instructions", "st_sharde")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "no instruction has 'st_sharde' in its name, words or PTX; did you mean st_sha" in err
