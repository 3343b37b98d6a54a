"""Mutants: what is changed, what is not, and that the same seed draws the same ones."""

import ast
from collections import Counter

import pytest

from ferrum_numba.kernels import GROUPED, PACKED, RAW
from ferrum_numba.perf import mutate
from ferrum_numba.perf.device_code import functions_of
from ferrum_numba.perf.mutants import KINDS, mutants_of, sample
from ferrum_numba.perf.mutants_harmless import HARMLESS, reason, shortened

CODE = '''
def make_parts(config):
    """Words of 3 + 4 are no code."""
    row_bytes = config.tile_k * 2

    @cuda.jit(device=True, forceinline=True)
    def fetch(smem, row, stage, phase):
        at = uint64(row) * row_bytes
        if row < 7:
            copy(smem, at)
        if row > stage:
            cuda.syncthreads()
        if row == 0:
            griddepcontrol_launch_dependents()
        wait(stage, phase)

    return fetch


def make_text(n):
    def twin(lanes, address):
        return address + 1

    return Instruction(f"x{n + 1}", twin)
'''


@pytest.fixture
def found():
    return {(one.kind, one.old, one.new) for one in mutants_of("a.py", CODE)}


def test_each_kind_of_change_is_made(found):
    assert {
        ("operator", "config.tile_k * 2", "(config.tile_k + 2)"),
        ("constant", "7", "8"),
        ("constant", "7", "6"),
        ("comparison", "row < 7", "(row <= 7)"),
        ("dropped", "copy(smem, at)", "pass"),
        ("dropped", "cuda.syncthreads()", "pass"),
        ("dropped", "wait(stage, phase)", "pass"),
        ("swapped", "copy(smem, at)", "(copy(at, smem))"),
        ("predicate", "row < 7", "True"),
        ("predicate", "row < 7", "False"),
        ("width", "uint64(row) * row_bytes", "uint64(uint32(uint64(row) * row_bytes))"),
        ("stage", "stage", "uint32(stage + 1)"),
        ("stage", "phase", "uint32(phase ^ 1)"),
    } <= found
    assert {kind for kind, _, _ in found} == set(KINDS)


def test_words_twins_hints_and_barriers_too_many_are_no_faults(found):
    assert not {
        one for one in found if "3 + 4" in one[1] or "address" in one[1] or "n + 1" in one[1]
    }
    assert not {one for one in found if "griddepcontrol" in one[1] or one[1] == "row == 0"}
    assert ("predicate", "row > stage", "False") in found
    assert ("predicate", "row > stage", "True") not in found


def test_a_mutant_changes_its_place_alone_and_leaves_python():
    for one in mutants_of("a.py", CODE):
        changed = one.apply(CODE)
        ast.parse(changed)
        assert changed[: one.begin] == CODE[: one.begin]
        assert changed[one.begin + len(one.new) :] == CODE[one.end :]


def test_a_sample_has_all_kinds_and_is_the_same_for_a_seed():
    mutants = mutants_of("a.py", CODE)
    drawn = sample(mutants, 16, "1 a")
    assert drawn == sample(mutants, 16, "1 a") != sample(mutants, 16, "2 a")
    assert {one.kind for one in drawn} == set(KINDS)
    assert len(sample(mutants, 10_000, "1 a")) == len(mutants)


@pytest.mark.parametrize("kernel", [*PACKED, *RAW, *GROUPED], ids=lambda kernel: kernel.name)
def test_every_design_has_mutants_of_every_kind_in_its_own_code(kernel):
    mutants = list(mutate.mutants_by_file(kernel))
    assert len(mutants) > 300
    assert {mutant.kind for mutant in mutants} == set(KINDS)
    functions = functions_of(kernel)
    assert all(mutant.function in functions[mutant.file] for mutant in mutants)


def test_a_design_has_of_shared_files_what_it_uses():
    prefill = next(kernel for kernel in PACKED if kernel.name == "prefill")
    functions = functions_of(prefill)
    assert functions["shared/stripes.py"] == {"stripe_bounds", "first_segment"}
    wgmma = next(kernel for kernel in GROUPED if kernel.name == "grouped_wgmma")
    assert "prefill/program.py" not in functions_of(wgmma)


@pytest.mark.parametrize("one", HARMLESS, ids=lambda one: f"{one.file}: {one.old} -> {one.new}")
def test_what_is_listed_as_harmless_is_a_mutant_still(one):
    text = (mutate.ROOT / "kernels" / one.file).read_text()
    same = [mutant for mutant in mutants_of(one.file, text) if reason(mutant, text) == one.why]
    assert any(shortened(mutant.old) == one.old for mutant in same)


def test_too_many_survivors_are_a_failure(capsys):
    outcomes = Counter({("decode", "stage", "killed"): 18, ("decode", "width", "far"): 1})
    outcomes["decode", "dropped", "equivalent"] = 9
    outcomes["decode", "dropped", "survived"] = 1
    assert mutate.report(outcomes) == 0
    assert "| decode | 29 | 19 | 0 | 1 | 9 | 1 |" in capsys.readouterr().out
    outcomes["decode", "dropped", "survived"] = 2
    assert mutate.report(outcomes) == 1
