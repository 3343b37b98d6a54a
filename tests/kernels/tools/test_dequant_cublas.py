"""The dequantised weight and cuBLAS after it: what is handed to the library, and when."""

from argparse import Namespace
from dataclasses import replace

import gpu_of_host
import pytest
from quantised import layer

from ferrum_numba import check
from ferrum_numba.cli.session import Session
from ferrum_numba.compile import build
from ferrum_numba.contract import Matmul
from ferrum_numba.errors import LaunchError, ProblemError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels import DENSE, KERNELS, PACKED
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.launch import Graph, OperandSet, cublas, lacking
from ferrum_numba.linear.choice import kernel_for, readers
from ferrum_numba.linear.dense import MarlinLinear
from ferrum_numba.results import Decision, choose

(KERNEL,) = DENSE
H200 = KNOWN["h200"]
PROBLEM = W4A16Problem(4096, 8192, 8192)
MATMUL = Matmul("x", "weight", "out", "scratch", 3, 16, 8, "bf16", 64)


class Library:
    """cuBLAS as far as it is called: notes every call, and fails in the one it is told to."""

    def __init__(self, failing=None):
        self.calls, self.failing = [], failing

    def __getattr__(self, name):
        def function(*arguments):
            self.calls.append((name, [getattr(a, "value", a) for a in arguments]))
            return 7 if name == self.failing else 0

        return function


@pytest.fixture
def fake(monkeypatch):
    found = Library()
    monkeypatch.setattr(cublas, "library", lambda: found)
    return found


def test_cublas_counts_columns_first(fake):
    handle = cublas.Cublas()
    fake.calls.clear()
    handle(11, MATMUL, (1, 2, 3, 4))
    names = [name for name, _ in fake.calls]
    # setting a stream takes the workspace away
    assert names == ["cublasSetStream_v2", "cublasSetWorkspace_v2", "cublasGemmEx"]
    assert fake.calls[0][1][1] == 11
    assert fake.calls[1][1][1:] == [4, 64]
    gemm = fake.calls[2][1]
    assert gemm[1:6] == [0, 0, 16, 3, 8]
    # b, a and out: address, bf16 and leading dimension each; sums in fp32
    assert gemm[7:13] == [2, 14, 16, 1, 14, 8]
    assert gemm[14:] == [3, 14, 16, 68, -1]


def test_sums_of_a_split_k_stay_in_fp32(fake):
    cublas.Cublas()
    assert dict(fake.calls)["cublasSetMathMode"][1] == 16


@pytest.mark.parametrize("name", ["cublasCreate_v2", "cublasGemmEx"])
def test_a_failing_call_is_named(fake, name):
    fake.failing = name
    with pytest.raises(LaunchError, match=f"{name} failed with status 7"):
        cublas.Cublas()(0, MATMUL, (1, 2, 3, 4))


def test_without_cublas_it_says_what_brings_it(monkeypatch):
    monkeypatch.setattr(cublas, "library", lambda: None)
    with pytest.raises(LaunchError, match="pip install nvidia-cublas"):
        cublas.Cublas()
    assert "pip install nvidia-cublas" in lacking(KERNEL)
    assert all(lacking(kernel) is None for kernel in PACKED)


def test_commands_that_run_kernels_leave_it_out_where_there_is_no_cublas(monkeypatch, capsys):
    session = Session(Namespace(kernels=None, kernel=[]), KERNELS, {})
    monkeypatch.setattr(cublas, "library", lambda: None)
    assert session.runnable() == [kernel for kernel in KERNELS if kernel is not KERNEL]
    assert f"{KERNEL.name} is left out: it needs cuBLAS" in capsys.readouterr().err


def winning(problem):
    """Return the decision that it won a problem."""
    config = vars(KERNEL.default(problem, H200))
    return [Decision("w4a16_gemm", vars(problem), KERNEL.name, config, 100.0, "final")]


def test_a_layer_takes_it_where_it_won(fake):
    kernels = readers("marlin", dense=True)
    assert kernel_for(PROBLEM, kernels, winning(PROBLEM), H200).kernel is KERNEL


def test_a_layer_passes_it_over_where_there_is_no_cublas(monkeypatch):
    monkeypatch.setattr(cublas, "library", lambda: None)
    kernels = readers("marlin", dense=True)
    assert kernel_for(PROBLEM, kernels, winning(PROBLEM), H200).kernel is not KERNEL


def test_scratch_holds_the_weight():
    launch = KERNEL.launch(KERNEL.default(PROBLEM, H200), PROBLEM, H200)
    assert launch.workspace["weight"] == 2 * 8192 * 8192
    assert launch.then.buffers == ("x", "weight", "out", "cublas_scratch")
    assert launch.workspace["cublas_scratch"] == launch.then.scratch_bytes


def test_a_bias_is_refused():
    reason = KERNEL.refuses(replace(PROBLEM, bias=True))
    assert reason == "dequant_cublas would add a bias to the rounded result; got bias = True"


def test_the_interpreter_sees_a_wrong_product(monkeypatch):
    problem = W4A16Problem(5, 64, 128)
    config = KERNEL.default(problem, H200)
    assert check.on_interpreter(KERNEL, config, problem).ok
    launch = KERNEL.launch(config, problem, H200)
    # a and b the wrong way round have other shapes
    monkeypatch.setattr(KERNEL.__class__, "launch", lambda *_: replace(launch, then=None))
    assert not check.on_interpreter(KERNEL, config, problem).ok


@pytest.mark.parametrize("dense", [False, True])
def test_a_layer_uses_it_only_where_it_is_asked_to(fake, monkeypatch, dense):
    asked = []

    def kernel_for(problem, kernels, decisions, gpu):
        asked.extend(kernels)
        return choose(decisions, problem, PACKED, gpu)

    gpu_of_host.install(monkeypatch)
    monkeypatch.setattr("ferrum_numba.linear.stages.kernel_for", kernel_for)
    MarlinLinear.from_gptq(layer(128, 64, 64), dense=dense).prepare(1)
    assert (KERNEL in asked) == dense


def test_a_layer_in_the_checkpoint_s_layout_refuses_it():
    tensors = layer(128, 64, 64)
    message = 'dense = True needs a packed weight; it is in store "raw"'
    with pytest.raises(ProblemError, match=message):
        MarlinLinear.from_gptq(tensors, device="cpu", store="raw", dense=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_graph_of_it_gives_the_bits_of_a_launch(device, dtype):
    if lacking(KERNEL):
        pytest.skip(lacking(KERNEL))
    problem = W4A16Problem(300, 512, 1024, zero_points="gptq", dtype=dtype)
    operands = OperandSet(device, KERNEL, problem)
    config = KERNEL.default(problem, device.gpu)
    call = operands.bind(config, build(KERNEL, config, device.gpu.arch)).prepared()
    call(0)
    want = operands.result()
    operands.poison()
    Graph.capture(device, [call]).launch(0)
    assert operands.result().tobytes() == want.tobytes()
    assert KERNEL.op.tolerance(problem).compare(want, operands.want).ok
