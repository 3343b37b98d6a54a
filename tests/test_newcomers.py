"""What somebody may get wrong in a first kernel of their own: refused or said in a sentence."""

import re
import sys
import textwrap
from dataclasses import dataclass
from math import exp as math_exp

import numpy as np
import pytest
from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba import check, cli
from ferrum_numba.contract import Kernel, Launch, Op, Program, Tolerance, Work, pointers
from ferrum_numba.errors import ConfigError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.ptx.convert import f16_to_f32, f32_to_f16
from ferrum_numba.ptx.memory import ld_global_f32, ld_global_u16, st_global_f32, st_global_u16
from ferrum_numba.tolerance import Tolerance as Bounds
from ferrum_numba.tune import plan


@dataclass(frozen=True)
class Problem:
    M: int
    N: int


@dataclass(frozen=True)
class Config:
    num_threads: int = 64


def op(**changes):
    return Op(**{
        "name": "twice",
        "formula": "out[i] = 2 x[i]",
        "problem": Problem,
        "make_inputs": lambda p, rng: {"x": rng.standard_normal((p.M, p.N)).astype(np.float32)},
        "reference": lambda p, inputs: 2 * inputs["x"],
        "output": lambda p: ((p.M, p.N), np.dtype(np.float32)),
        "work": lambda p: Work(flops=p.M * p.N, bytes=8 * p.M * p.N),
        "tolerance": lambda p: Tolerance(1e-6, 1e-6, "exact"),
        "tests": (Problem(2, 64),),
        "activations": frozenset({"x"}),
        **changes,
    })  # fmt: skip


class Twice(Kernel):
    name = "twice"
    op = op()
    config = Config
    summary = "an element a thread"
    num_threads = 64
    grid = (2, 1, 1)

    def configs(self, gpu):
        return [Config(self.num_threads)]

    def refuses(self, problem):
        return None

    def build(self, config, arch):
        return Program(self.program(), pointers("x", "out"), config.num_threads)

    def program(self):
        def twice(x, out):
            i = uint32(uint32(cuda.blockIdx.x) * uint32(64) + uint32(cuda.threadIdx.x))
            at = uint64(i) * uint64(4)
            st_global_f32(out + at, ld_global_f32(x + at) * float32(2))

        return twice

    def prepare(self, problem, inputs):
        return dict(inputs)

    def launch(self, config, problem, gpu):
        return Launch(self.grid, {})


def changed(**attributes):
    return type("Changed", (Twice,), attributes)()


def checked(kernel, problem=None):
    problem = problem or kernel.op.tests[0]
    return check.on_interpreter(kernel, kernel.configs(None)[0], problem)


def planned(kernel):
    (row,) = plan([kernel], kernel.op.tests, KNOWN["h200"])
    return row


def test_the_kernel_itself_is_right():
    found = checked(Twice())
    assert (found.ok, found.reason, found.remarks) == (True, "", ())
    assert (planned(Twice()).status, planned(Twice()).remarks) == ("ok", ())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_threads": 2048}, "2048 threads a block are asked for; 1 to 1024 can be launched"),
        ({"grid": (1, 65_536, 1)}, "the grid has 65536 blocks along y; 1 to 65535 can be launched"),
        ({"grid": (0, 1, 1)}, "the grid has 0 blocks along x; 1 to 2147483647 can be launched"),
    ],
    ids=["threads", "blocks", "none"],
)
def test_what_cuda_cannot_launch_is_refused_by_check_and_plan(changes, words):
    found = checked(changed(**changes))
    assert (found.ok, found.reason) == (False, words)
    row = planned(changed(**changes))
    assert (row.status, row.reason) == ("does not fit", words)


def test_doubles_by_accident_are_remarked_by_check_and_plan():
    def program(self):
        def twice(x, out):
            i = uint32(uint32(cuda.blockIdx.x) * uint32(64) + uint32(cuda.threadIdx.x))
            at = uint64(i) * uint64(4)
            st_global_f32(out + at, ld_global_f32(x + at) * 1.99999999)

        return twice

    for found in (checked(changed(program=program)), planned(changed(program=program))):
        (remark,) = found.remarks
        assert re.match(re.escape(__file__) + r":\d+: .*in fp64; write float32\(", remark)
    assert planned(changed(program=program)).fp64 >= 3
    assert planned(Twice()).fp64 == 0


def test_a_plain_function_and_numpy_are_refused_by_check_too():
    def calls(function):
        def program(self):
            def twice(x, out):
                i = uint32(uint32(cuda.blockIdx.x) * uint32(64) + uint32(cuda.threadIdx.x))
                at = uint64(i) * uint64(4)
                st_global_f32(out + at, float32(function(ld_global_f32(x + at))))

            return twice

        return checked(changed(program=program)).reason

    def helper(value):
        return value

    assert re.search(r":\d+: helper is a plain Python function.*decorate it", calls(helper))
    assert re.search(r":\d+: np.exp is no function of a kernel.*math.exp", calls(np.exp))


def test_exp_beyond_fp16_is_minus_zero_and_no_fault():
    def program(self):
        def gate(x, out):
            i = uint32(uint32(cuda.blockIdx.x) * uint32(64) + uint32(cuda.threadIdx.x))
            at = uint64(i) * uint64(2)
            value = f16_to_f32(ld_global_u16(x + at))
            # exp(-x) is infinite for the least x: the result is -0
            st_global_u16(out + at, f32_to_f16(value / (float32(1) + math_exp(-value))))

        return gate

    def inputs(problem, rng):
        x = np.linspace(-65_000, 65_000, problem.M * problem.N).reshape(problem.M, problem.N)
        return {"x": x.astype(np.float16)}

    def silu(problem, given):
        x = given["x"].astype(np.float64)
        with np.errstate(over="ignore"):
            return x / (1 + np.exp(-x))

    gate = op(
        name="gate", make_inputs=inputs, reference=silu,
        output=lambda p: ((p.M, p.N), np.dtype(np.float16)),
        tolerance=lambda p: Tolerance(1e-3, 1e-3, "fp16"),
    )  # fmt: skip
    found = checked(changed(op=gate, program=program))
    assert (found.ok, found.reason) == (True, "")


@pytest.mark.parametrize(
    ("tests", "words"),
    [
        (Problem(1, 1), r"are Problem\(M=1, N=1\), which is no tuple; .*tests=\(Problem\(...\),\)"),
        ((3,), r"hold 3; they must be problems: tests=\(Problem\(...\),\)"),
    ],
    ids=["comma", "number"],
)
def test_tests_that_are_no_problems_are_refused_where_the_op_is_made(tests, words):
    with pytest.raises(ConfigError, match=words):
        op(tests=tests)


MODULE = """
    from test_newcomers import Twice, changed, op

    KERNELS = ({kernels},)
"""


@pytest.mark.parametrize(
    ("kernels", "words"),
    [
        ("changed(op=op(tests=()))", "Op twice of twice has no tests, so nothing of it would be"),
        (
            "changed(configs=lambda self, gpu: [])",
            "twice has no config for NVIDIA H200",
        ),
        ("changed(refuses=lambda self, problem: 'no')", "twice can run none of the problems"),
        ("changed(name='other')", "a kernel of it is named other, as one that ships is"),
        ("Twice(), Twice()", "a kernel of it is named twice, as another of it is"),
    ],
    ids=["tests", "configs", "refused", "shipped", "twins"],
)
def test_nothing_to_check_and_names_that_are_taken_are_errors(
    kernels, words, request, tmp_path, monkeypatch, capsys
):
    module = f"newcomers_{request.node.callspec.id}"
    (tmp_path / f"{module}.py").write_text(textwrap.dedent(MODULE.format(kernels=kernels)))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    handed_in = (changed(name="other"),)
    argv = ["check", "--kernels", module, "--on", "interpreter"]
    if "twice" in words and "named" not in words:
        argv.insert(1, "twice")
    assert cli.main(handed_in, {}, argv) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


def test_a_wrong_result_says_what_it_is_of_the_right_one():
    want = np.random.default_rng(0).standard_normal((4, 6))
    bounds = Bounds(1e-4, 1e-4, "")
    assert "all of it is 2 times the reference" in bounds.compare(2 * want, want).message
    turned = np.ascontiguousarray(want.T).reshape(want.shape)
    almost = bounds.compare(want * (1 + 2e-4), want)
    assert not almost.ok
    assert "all of it" not in almost.message
    assert "it is the reference transposed" in bounds.compare(turned, want).message
    got = want.copy()
    got[1:, 3] += 1
    words = "3 of 24 elements are wrong, the first is (1, 3)"
    assert words in bounds.compare(got, want).message


def test_a_dataclass_that_is_not_frozen_is_refused():
    @dataclass
    class Thawed:
        M: int = 1

    words = "Thawed, is a dataclass that is not frozen: @dataclass(frozen=True)"
    with pytest.raises(ConfigError, match=re.escape(f"the problem of Op twice, {words}")):
        op(problem=Thawed, tests=(Thawed(),))
    with pytest.raises(ConfigError, match=re.escape(f"the config of kernel twice, {words}")):
        type("Other", (Twice,), {"config": Thawed})
