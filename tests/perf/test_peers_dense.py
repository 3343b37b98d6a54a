"""perf/peers_dense.py: what it reads, asks of its peers and writes, without a GPU."""

from dataclasses import replace

import numpy as np
import pytest

from ferrum_numba import results
from ferrum_numba.errors import DeviceError, ProblemError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.w4a16 import OP, W4A16Problem
from ferrum_numba.measure import Policy, Samples
from ferrum_numba.perf import dense_rivals, peers_dense, peers_moe, routed_rivals
from ferrum_numba.perf.dense_rivals import DenseLayer
from ferrum_numba.perf.routed_rivals import Rival
from ferrum_numba.perf.routed_rows import row_of

PROBLEM = W4A16Problem(4, 64, 256, 128)
GPU = KNOWN["h200"]


def rows(*who):
    """Return rows of (name, us, peer, kind)."""
    taken = [Samples((1.0,) * 3, "cold", 7, (1980.0, 1980.0), 500.0, 50.0, ())]
    return [
        row_of(
            PROBLEM, Rival(name, {"tile_m": 8}, [], None, None, peer, kind), 1e-4,
            [replace(one, us=(us,) * 3) for one in taken], GPU, OP,
        )
        for name, us, peer, kind in who
    ]  # fmt: skip


ALL = (
    ("decode", 10.0, "", ""), ("marlin", 12.0, "", ""), ("humming", 13.0, "humming 0", "4-bit"),
    ("humming_w4a8", 9.0, "humming 0", "W4A8"), ("scaled_mm", 15.0, "torch._scaled_mm", "fp8"),
    ("cublas", 30.0, "cuBLAS", "fp16"),
)  # fmt: skip


def test_a_line_has_the_best_of_ours_and_of_the_4_bit_peers():
    assert peers_dense.line(rows(*ALL)).startswith("| 256 × 64 | 4 |")
    assert "| **10.0** | `decode` | 13.0 | humming 0 | 1.30 |" in peers_dense.line(rows(*ALL))
    assert "humming 0 9.0, torch._scaled_mm 15.0, cuBLAS 30.0 |" in peers_dense.line(rows(*ALL))
    alone = peers_dense.line(rows(ALL[-1]))
    assert "|  |  |  |  |  | cuBLAS 30.0 |" in alone


def test_rows_are_those_of_a_result_file(tmp_path):
    environment = results.environment(GPU, Policy(), ())
    peers_moe.store(tmp_path, GPU, results.ResultFile(environment, rows(*ALL)), OP.name)
    read = results.load(tmp_path / "h200" / "w4a16_gemm.json")
    assert [(row.peer, row.more.get("kind")) for row in read.rows[2:]] == [
        one[2:] for one in ALL[2:]
    ]
    # whatever is faster, a peer's row wins nothing
    assert [winner.row.kernel for winner in results.winners(read.rows)] == ["decode"]


def test_the_command_line_knows_its_words(capsys):
    assert peers_dense.weight_of("4096x14336") == (4096, 14336)
    with pytest.raises(ProblemError, match="a weight is KxN, such as 4096x14336; got 4096"):
        peers_dense.weight_of("4096")
    with pytest.raises(SystemExit):
        peers_dense.main(["--only", "marlin"])
    assert "marlin is none of ours, cublas, scaled_mm" in capsys.readouterr().err


def test_triton_s_sizes_divide_k_and_the_groups():
    for M in (1, 64, 4096):
        found = list(dense_rivals.triton_sizes(M, 4096, 128))
        assert found
        for config in found:
            assert 4096 % (config["block_k"] * config["split_k"]) == 0
            assert 128 % config["block_k"] == 0
    assert all(c["split_k"] == 1 for c in dense_rivals.triton_sizes(4096, 4096, 128))
    assert not list(dense_rivals.triton_sizes(1, 4096, 32))


@pytest.fixture
def on_cpu(monkeypatch):
    """Let PyTorch's tensors be in the host's memory."""
    torch = pytest.importorskip("torch")
    for module in (routed_rivals, dense_rivals):
        monkeypatch.setattr(module, "on_gpu", lambda array: torch.tensor(array.copy()))
        monkeypatch.setattr(module, "on_stream", lambda launch: lambda stream: launch())
    return torch


class Host:
    def synchronize(self):
        pass


def test_a_weight_is_dequantised_as_the_reference_does(on_cpu):
    inputs = OP.make_inputs(PROBLEM, np.random.default_rng(0))
    got = DenseLayer(PROBLEM, inputs).want().numpy()
    want = OP.reference(PROBLEM, inputs)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
    with pytest.raises(DeviceError, match="plain symmetric weights"):
        DenseLayer(replace(PROBLEM, bias=True), inputs)


@pytest.mark.parametrize("name", ["cublas", "tinygemm"])
def test_a_peer_is_checked_like_ours(on_cpu, name):
    layer = DenseLayer(PROBLEM, OP.make_inputs(PROBLEM, np.random.default_rng(0)))
    for one in dense_rivals.made(name, layer, 0):
        assert routed_rivals.checked(Host(), one, layer.want()) <= one.most_error


def test_what_is_missing_is_left_out_and_said(on_cpu, monkeypatch, capsys):
    def missing(layer, rotate_bytes):
        raise ImportError("No module named 'triton'")

    monkeypatch.setitem(dense_rivals.MAKERS, "triton", missing)
    layer = DenseLayer(PROBLEM, OP.make_inputs(PROBLEM, np.random.default_rng(0)))
    assert dense_rivals.made("triton", layer, 0) == []
    assert "triton is left out of W4A16Problem" in capsys.readouterr().err
