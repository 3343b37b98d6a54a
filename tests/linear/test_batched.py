"""ferrum-kernels' functions for many experts at once, and those around its GEMMs."""

import re

import gpu_of_host
import numpy as np
import pytest
from quantised import assert_close, layer, reference, rows

import ferrum_numba
from ferrum_numba.errors import CaptureError, LaunchError, ProblemError
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.launch import Graph
from ferrum_numba.linear.batched import gemm_phase_batched, marlin_gemm_moe
from ferrum_numba.linear.experts import ExpertStack
from ferrum_numba.linear.steps import add_bias, moe_combine
from ferrum_numba.reference import moe

K, N, E = 128, 64, 4
SENTINEL = -9999.0
TENSORS = [layer(K, N, 64, seed=e, name=f"experts.{e}", zeros="gptq", bias=True) for e in range(E)]
# tokens of each expert in ferrum-kernels' own acceptance test
COUNTS = (16, 8, 12, 4)
DEVICES = ("cpu", "cuda")


@pytest.fixture
def gpu(monkeypatch):
    return gpu_of_host.install(monkeypatch)


def arrays_on(gpu, device, *values):
    return values if device == "cpu" else tuple(gpu.array(v) for v in values)


def read(array):
    return array if isinstance(array, np.ndarray) else array.read()


def store(device, **options):
    return ExpertStack.from_gptq(TENSORS, device=device, **options).store


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["marlin", "raw"])
def test_runs_of_rows_go_to_their_experts(gpu, device, kind):
    inputs = rows(9, K)
    x, out = arrays_on(gpu, device, inputs, np.full((10, N), SENTINEL, np.float16))
    runs = [(2, 0, 5, 3), (0, 3, 1, 2), (3, 5, 0, 0), (2, 8, 9, 1)]
    gemm_phase_batched(0, x, store(device, store=kind), iter(runs), out, K)
    got = read(out)
    for expert, first, to, m in runs:
        if m:
            want = reference(TENSORS[expert], inputs[first : first + m])
            assert_close(got[to : to + m], want)
    assert (got[[0, 3, 4, 8]] == SENTINEL).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("active", [None, (0, 3, 1)])
def test_row_27_experts_in_buckets(gpu, device, active):
    inputs = rows(sum(COUNTS), K)
    firsts = np.cumsum((0, *COUNTS))[:-1].astype(np.int32)
    counts = np.array(COUNTS, np.int32)
    x, out = arrays_on(gpu, device, inputs, np.full((len(inputs), N), SENTINEL, np.float16))
    ids = None if active is None else np.array(active, np.int32)
    number = E if active is None else len(active)
    marlin_gemm_moe(0, x, store(device), out, firsts, counts, ids, number, 16, N, E)
    got = read(out)
    for e, (first, count) in enumerate(zip(firsts, counts, strict=True)):
        part = got[first : first + count]
        if active is None or e in active:
            assert_close(part, reference(TENSORS[e], inputs[first : first + count]))
        else:
            assert (part == SENTINEL).all()


def test_counts_on_the_gpu_are_read_but_not_in_a_capture(gpu):
    held, inputs = store("cuda"), rows(4, K)
    x, out = gpu.array(inputs), gpu.empty((4, N))

    class Torchlike:
        """What copies itself to the host when it is asked."""

        def __init__(self, values):
            self._values = values

        def get(self):
            return self._values

    firsts, counts = Torchlike(np.array([0, 3, 3, 3])), Torchlike(np.array([3, 0, 1, 0]))
    arguments = (firsts, counts, None, E, 16, N, E)
    marlin_gemm_moe(0, x, held, out, *arguments)
    assert_close(out.read()[:3], reference(TENSORS[0], inputs[:3]))
    assert_close(out.read()[3:], reference(TENSORS[2], inputs[3:]))
    words = "experts.0: a_row_offsets, tokens_per_expert cannot be read by the host while a graph"
    with pytest.raises(CaptureError, match=words):
        Graph.capture(gpu.device, [lambda s: marlin_gemm_moe(s, x, held, out, *arguments)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((None, 4, 8, N, E), "prob_m must be the most rows of an expert; got prob_m = 8, expert 0 "
                             "has 16"),
        ((None, 4, 16, 32, E), "n_per_expert and num_experts_global must be the stack's, 64 and 4; "
                               "got 32 and 4"),
        ((None, 4, 16, N, 8), "got 64 and 8"),
        ((np.array([0, 4]), 2, 16, N, E), "active_expert_ids must be 0..3; got 4"),
        ((np.array([0, 4]), 3, 16, N, E), "active_expert_ids must be 3 integers; got int64 [2]"),
        ((np.array([0.5]), 1, 16, N, E), "active_expert_ids must be 1 integers; got float64 [1]"),
    ],
)  # fmt: skip
def test_buckets_that_cannot_be(arguments, words):
    x, out = rows(40, K), np.empty((40, N), np.float16)
    firsts = np.cumsum((0, *COUNTS))[:-1]
    with pytest.raises(ProblemError, match=re.escape(words)):
        marlin_gemm_moe(0, x, store("cpu"), out, firsts, np.array(COUNTS), *arguments)


@pytest.mark.parametrize(
    ("runs", "k", "words"),
    [
        ([(0, 0, 0, 1), (4, 0, 0, 1)], K, "expert must be 0..3; got 4"),
        ([(0, 0, 0, 1), (1, 3, 0, 2)], K, "x must have 2 rows of 128 from row 3 on; it has 4"),
        ([(0, 0, 0, 1), (1, 0, 4, 1)], K, "out must have 1 rows of 64 from row 4 on; it has 4"),
        ([(0, 0, 0, 1)], 64, "k must be the stack's K; got k = 64, K = 128"),
    ],
)  # fmt: skip
def test_nothing_is_run_where_one_cannot_be(runs, k, words):
    out = np.full((4, N), SENTINEL, np.float16)
    with pytest.raises(ProblemError, match=re.escape(words)):
        gemm_phase_batched(0, rows(4, K), store("cpu"), runs, out, k)
    assert (out == SENTINEL).all()


# a bias


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["marlin", "raw"])
def test_experts_round_twice_as_ferrum_kernels_do(gpu, device, kind):
    x = rows(3, K)
    plain = ExpertStack.from_gptq(
        [layer(K, N, 64, seed=e, zeros="gptq") for e in range(E)], device=device, store=kind
    )
    two_step = ExpertStack.from_gptq(TENSORS, device=device, store=kind, bias_mode="two_step")
    fused = ExpertStack.from_gptq(TENSORS, device=device, store=kind)
    differ = 0
    for e, tensors in enumerate(TENSORS):
        want = plain.expert(e)(x)
        if device == "cuda":
            on_gpu, bias = gpu.array(want), gpu.array(tensors.bias)
            add_bias(None, on_gpu, bias)
            want = on_gpu.read()
        else:
            add_bias(None, want, tensors.bias)
        got = two_step.expert(e)(x)
        np.testing.assert_array_equal(got, want)
        differ += (got != fused.expert(e)(x)).sum()
    # of 768
    assert differ > 50


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_bias_is_added_in_place(gpu, device, dtype):
    inputs, bias = rows(6, 24, dtype), rows(1, 24, dtype, seed=5)[0]
    want = (inputs.astype("f4") + bias.astype("f4")).astype(DTYPES[dtype])
    x, b = arrays_on(gpu, device, inputs.reshape(2, 3, 24).copy(), bias)
    add_bias(0, x, b)
    np.testing.assert_array_equal(read(x).reshape(6, 24), want)


def test_a_bias_in_a_graph(gpu):
    x, bias = gpu.array(rows(3, 24)), gpu.array(rows(1, 24)[0])
    with pytest.raises(CaptureError, match="add_bias: a kernel cannot be loaded while a graph is"):
        Graph.capture(gpu.device, [lambda stream: add_bias(stream, x, bias)])
    add_bias(0, x, bias)
    before = x.read()
    graph = Graph.capture(gpu.device, [lambda stream: add_bias(stream, x, bias)])
    graph.launch(0)
    want = (before.astype("f4") + bias.read().astype("f4")).astype(np.float16)
    np.testing.assert_array_equal(x.read(), want)


@pytest.mark.parametrize(
    ("x", "bias", "error", "words"),
    [
        (rows(3, 24), rows(3, 24), ProblemError,
         "add_bias: bias must be [24] for x of [3, 24]; got [3, 24]"),
        (rows(3, 24), rows(1, 24, "bf16")[0], ProblemError,
         "add_bias: bias must be fp16; got bf16"),
        (np.zeros((3, 24), np.float32), rows(1, 24)[0], ProblemError,
         "add_bias: x must be rows of fp16 or bf16; got [3, 24] of fp32"),
        ([1], rows(1, 24)[0], LaunchError, "add_bias: x: a layer needs a torch tensor"),
        (np.broadcast_to(np.float16(0), (3, 24)).copy(order="F"), rows(1, 24)[0], LaunchError,
         "add_bias: x: "),
    ],
)  # fmt: skip
def test_a_bias_that_cannot_be_added(x, bias, error, words):
    with pytest.raises(error, match=re.escape(words)):
        add_bias(0, x, bias)


# sums


@pytest.mark.parametrize("device", DEVICES)
def test_row_32_sums_of_pairs(gpu, device):
    ids = np.array([[3, 900], [-1, 0], [-7, -1]], np.int32)
    weights = np.random.default_rng(0).random((3, 2), np.float32)
    of_pairs = rows(6, 40)
    of_pairs[[2, 4, 5]] = np.nan
    want = moe.combine(of_pairs, np.minimum(ids, 0), weights, 1)
    out = np.full((3, 40), SENTINEL, np.float16)
    a, b, c, out = arrays_on(gpu, device, of_pairs, ids, weights, out)
    moe_combine(0, a, b, c, out)
    np.testing.assert_array_equal(read(out), want)
    assert (want[2] == 0).all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"rows": rows(5, 40)}, ProblemError, "rows must be [6, 40] for topk_ids of [3, 2] and "
                                              "rows of [5, 40]; got [5, 40]"),
        ({"out": np.empty((2, 40), np.float16)}, ProblemError, "out must be [3, 40]"),
        ({"topk_ids": np.zeros((3, 2), np.int64)}, ProblemError,
         "topk_ids must be int32; got int64"),
        ({"topk_weights": np.zeros((3, 2))}, ProblemError,
         "topk_weights must be fp32; got float64"),
        ({"topk_ids": np.zeros(6, np.int32)}, ProblemError, "rows must be [0, 40]"),
    ],
)  # fmt: skip
def test_sums_that_cannot_be(change, error, words):
    arguments = {
        "rows": rows(6, 40), "topk_ids": np.zeros((3, 2), np.int32),
        "topk_weights": np.zeros((3, 2), np.float32), "out": np.empty((3, 40), np.float16),
    }  # fmt: skip
    with pytest.raises(error, match=re.escape(f"moe_combine: {words}")):
        moe_combine(0, *{**arguments, **change}.values())


def test_a_sum_over_its_own_rows():
    of_pairs = rows(6, 40)
    ids, weights = np.zeros((3, 2), np.int32), np.zeros((3, 2), np.float32)
    with pytest.raises(LaunchError, match="moe_combine: out overlaps rows"):
        moe_combine(0, of_pairs, ids, weights, of_pairs[:3])


@pytest.mark.parametrize(
    "name", ["add_bias", "gemm_phase_batched", "marlin_gemm_moe", "moe_combine"]
)
def test_public_names(name):
    assert getattr(ferrum_numba, name).__name__ == name
