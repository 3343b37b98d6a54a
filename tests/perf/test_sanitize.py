"""The sanitizers' runs: what is checked under them, and what is made of what they say."""

import os

import pytest

from ferrum_numba import gpu
from ferrum_numba.errors import FerrumError
from ferrum_numba.kernels import PACKED
from ferrum_numba.perf import kept_programs, sanitize

H200 = gpu.find("h200")


def fake(folder, text, monkeypatch):
    """Put a compute-sanitizer on the PATH that says this and runs nothing."""
    path = folder / "compute-sanitizer"
    path.write_text(f"#!/bin/sh\necho \"$@\" >> {folder}/asked\ncat <<'END'\n{text}\nEND\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(gpu, "live", lambda: H200)
    monkeypatch.setattr(sanitize, "build_space", lambda pairs, arch, bar: None)


@pytest.mark.parametrize("kernel", sanitize.EVERY, ids=lambda k: k.name)
def test_every_kernel_is_checked_on_its_edges(kernel):
    found = list(sanitize.cases(kernel, H200, 2))
    problems = [p for p in kernel.op.tests if kernel.refuses(p) is None]
    small = [p for p in problems if kernel.op.work(p).flops <= sanitize.MOST_FLOPS]
    assert {str(problem) for _, problem in found} == {str(problem) for problem in small}
    assert found
    assert all(kernel.misfit(config, problem, H200) is None for config, problem in found)


def test_configs_of_the_space_are_among_them():
    found = list(sanitize.cases(PACKED[0], H200, 2))
    assert len({config for config, _ in found}) > 3


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("12 checks passed\n========= ERROR SUMMARY: 0 errors", True),
        ("12 checks passed\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors)", True),
        ("12 checks passed\n========= ERROR SUMMARY: 3 errors", False),
        ("12 checks passed\n========= RACECHECK SUMMARY: 4 hazards displayed", False),
        ("========= ERROR SUMMARY: 0 errors", False),
        ("wrong: decode ...\n========= ERROR SUMMARY: 0 errors", False),
        ("12 checks passed", False),
    ],
)
def test_only_a_summary_without_errors_of_a_run_that_checked_is_clean(
    tmp_path, monkeypatch, capsys, text, clean
):
    fake(tmp_path, text, monkeypatch)
    assert sanitize.main(["decode", "--tools", "racecheck"]) == (0 if clean else 1)
    asked = (tmp_path / "asked").read_text()
    assert "--tool racecheck" in asked
    assert asked.rstrip().endswith("-m ferrum_numba.perf.sanitize decode --child --configs 2")
    out = capsys.readouterr().out
    assert out.startswith("racecheck  decode ")
    # what it said is there to be read
    assert (text in out) == (not clean)


def test_programs_are_compiled_once_and_found_again(tmp_path, capsys):
    assert sanitize.main(["add_bias", "--configs", "1", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith(f"programs are in {tmp_path}\n")
    (kernel,) = (kernel for kernel in sanitize.EVERY if kernel.name == "add_bias")
    for config, _ in sanitize.cases(kernel, H200, 1):
        found = kept_programs.program(str(tmp_path), kernel, config, "sm_90a")
        assert found.arch == "sm_90a"
    other = next(k for k in sanitize.EVERY if k.name == "gather_columns")
    config = other.configs(H200)[0]
    with pytest.raises(FerrumError, match="has no program of gather_columns"):
        kept_programs.program(str(tmp_path), other, config, "sm_90a")
    with pytest.raises(FerrumError, match="is no folder of programs"):
        kept_programs.program(str(tmp_path / "no"), kernel, config, "sm_90a")


def test_mistakes_are_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(FerrumError, match="'memchek' is none of memcheck, racecheck"):
        sanitize.main(["--tools", "memchek"])
    with pytest.raises(FerrumError, match="'decod' is none of w4a16_gptq, marlin"):
        sanitize.main(["decod"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FerrumError, match="compute-sanitizer is not on the PATH"):
        sanitize.main(["decode"])
