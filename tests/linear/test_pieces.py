"""More rows than a kernel counts: as many launches, the same rows."""

import gpu_of_host
import numpy as np
import pytest
from quantised import assert_close, layer, reference, rows

from ferrum_numba.kernels import w4a16
from ferrum_numba.launch import Graph
from ferrum_numba.linear import pieces
from ferrum_numba.linear.dense import MarlinLinear
from ferrum_numba.linear.offset import marlin_gemm_with_perm

MOST = 16
LAYERS = {
    "ordered": layer(128, 64, 64, zeros="gptq", bias=True),
    "act-order": layer(128, 64, 64, zeros="gptq", act_order=True),
}


@pytest.fixture
def gpu(monkeypatch):
    """A GPU whose kernels count 16 rows."""
    for module in (pieces, w4a16):
        monkeypatch.setattr(module, "MOST_M", MOST)
    monkeypatch.setattr(pieces, "GRAIN", 4)
    return gpu_of_host.install(monkeypatch)


@pytest.mark.parametrize("M", [1, 65_536, 65_537, 70_000, 131_072, 131_073, 1_000_000])
def test_pieces_are_all_rows(M):
    got = list(pieces.sizes(M))
    assert sum(got) == M
    assert len(got) == -(-M // 65_536)
    assert max(got) <= 65_536
    # two plans at most
    assert len(set(got[:-1])) <= 1


@pytest.mark.parametrize("store", ["marlin", "raw"])
@pytest.mark.parametrize("kind", LAYERS)
def test_many_rows_on_the_gpu(gpu, kind, store):
    x = rows(2 * MOST + 3, 128)
    linear = MarlinLinear.from_gptq(LAYERS[kind], store=store)
    got = linear(x)
    assert_close(got, reference(LAYERS[kind], x))
    # a piece is what its rows are by themselves
    first, *_ = pieces.sizes(len(x))
    np.testing.assert_array_equal(got[:first], linear(x[:first]))
    np.testing.assert_array_equal(linear(x), got)


def test_many_rows_to_an_address(gpu):
    tensors = LAYERS["ordered"]
    x = rows(MOST + 1, 128)
    source, out = gpu.array(x), gpu.empty((MOST + 1, 64))
    marlin_gemm_with_perm(0, source, MarlinLinear.from_gptq(tensors).store, out, MOST + 1)
    assert_close(out.read(), reference(tensors, x))


def test_many_rows_in_a_graph(gpu):
    tensors = LAYERS["act-order"]
    linear = MarlinLinear.from_gptq(tensors)
    linear.prepare(MOST + 1)
    x = rows(MOST + 1, 128)
    source, out = gpu.array(x), gpu.empty((MOST + 1, 64))
    graph = Graph.capture(gpu.device, [lambda stream: linear.forward(source, out, stream)])
    graph.launch(0)
    assert_close(out.read(), reference(tensors, x))
