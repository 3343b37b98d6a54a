"""The example of docs/own_kernel.md is what its page says of it."""

import re

import page_runs
import pages
import pytest

from ferrum_numba import cli, gpu
from ferrum_numba.compile import build

PAGE = pages.ROOT / "docs" / "own_kernel.md"
H200 = gpu.find("h200")
# the outer wraps that the page says are left out
WRAPS = (
    (r"^( +(?:warp_id|lane_id|m) = )uint32\((.*)\)$", r"\1\2", 3),
    (r"n = uint32\(n \+ uint32\(32\)\)", "n = n + uint32(32)", 2),
)


@pytest.fixture
def package(ran, monkeypatch):
    """Go to the folder of the page's package, which gets its list."""
    found, folder = ran(PAGE)
    line = "from my_norm.kernel import MyNorm\n\nKERNELS = (MyNorm(),)\n"
    (folder / "my_norm" / "kernels.py").write_text(line)
    monkeypatch.chdir(folder)
    with page_runs.importable(folder):
        yield found["my_norm/kernel.py"], folder


def test_the_example_can_be_checked_on_sizes_of_ones_own(package, capsys):
    own = ("my_norm", "--kernels", "my_norm.kernels", "--on", "interpreter")
    assert cli.main((), {}, ["check", *own, "--problem", "M=5,N=129,eps=0.5"]) == 0
    assert "1 of 1 checks passed" in capsys.readouterr().out


def test_the_default_differs_by_problem(package):
    names, _ = package
    kernel, Problem = names["MyNorm"](), names["Problem"]
    assert [kernel.default(Problem(M, 64), H200).num_warps for M in (3, 4)] == [1, 4]


def test_an_eps_that_is_left_out_is_found(package):
    names, _ = package
    problem = names["OP"].tests[-1]
    inputs = names["OP"].make_inputs(problem, names["np"].random.default_rng(0))
    want = names["OP"].reference(problem, inputs).astype("f4")
    without = names["my_norm"](inputs["x"], 0).astype("f4")
    assert not names["OP"].tolerance(problem).compare(without, want).ok


def test_sums_of_64_bits_cost_registers(package):
    names, folder = package
    wide = (folder / "my_norm" / "kernel.py").read_text()
    for pattern, instead, count in WRAPS:
        wide, changed = re.subn(pattern, instead, wide, flags=re.MULTILINE)
        assert changed == count
    path = folder / "wide.py"
    path.write_text(wide)
    without = {"__name__": "wide"}
    exec(compile(wide, path, "exec"), without)
    registers = [
        build(found["MyNorm"](), found["Config"](), H200.arch).registers
        for found in (names, without)
    ]
    assert registers[1] >= registers[0] + 4
