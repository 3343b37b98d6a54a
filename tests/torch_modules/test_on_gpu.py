"""The GPU's path of the modules: by the interpreter, on tensors that pass for a GPU's."""

import re
from dataclasses import replace

import gpu_of_host
import host_driver
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch_on_host  # noqa: E402
from quantised import assert_close, layer, reference, rows  # noqa: E402

import ferrum_numba  # noqa: E402
from ferrum_numba.errors import CaptureError, LaunchError, ProblemError  # noqa: E402
from ferrum_numba.kernels import w4a16  # noqa: E402
from ferrum_numba.launch import Graph  # noqa: E402
from ferrum_numba.linear import pieces  # noqa: E402
from ferrum_numba.torch import (  # noqa: E402
    ExpertStack,
    GatedExperts,
    MarlinLinear,
    moe,
    on_gpu,
    operator,
)

pytestmark = pytest.mark.filterwarnings("ignore")
STORES = ("marlin", "raw")
STREAM = torch_on_host.STREAM
TENSORS = layer(128, 64, 64, zeros="gptq", act_order=True, bias=True)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(on_gpu, "known", {})
    monkeypatch.setattr(moe, "known", {})
    return gpu_of_host.install(monkeypatch)


@pytest.fixture
def tensors(gpu, monkeypatch):
    made = torch_on_host.install(monkeypatch, gpu)
    monkeypatch.setattr(operator, "_current_stream", lambda device: STREAM)
    return made


def on(tensors, module):
    """Return a module's operands in the GPU's memory, as its operator takes them."""
    moved = (None if t is None else tensors.of(t.numpy()) for t in module.operands())
    return (*moved, module.layout_text)


@pytest.mark.parametrize("M", [1, 18])
@pytest.mark.parametrize("store", STORES)
def test_the_operator_runs_kernels(gpu, tensors, store, M):
    operands = on(tensors, MarlinLinear.from_gptq(TENSORS, device="cpu", store=store))
    x = rows(M, 128)
    for shape in ((M, 128), (1, M, 128)):
        y = operator.linear_on_gpu(tensors.of(x).reshape(shape), *operands)
        assert tuple(y.shape) == (*shape[:-1], 64)
        assert_close(y.numpy().reshape(M, 64), reference(TENSORS, x))


def test_more_rows_than_a_kernel_counts(gpu, tensors, monkeypatch):
    for module in (pieces, w4a16):
        monkeypatch.setattr(module, "MOST_M", 16)
    monkeypatch.setattr(pieces, "GRAIN", 4)
    operands = on(tensors, MarlinLinear.from_gptq(TENSORS, device="cpu"))
    x = rows(35, 128)
    for _ in range(2):
        got = operator.linear_on_gpu(tensors.of(x), *operands)
        assert_close(got.numpy(), reference(TENSORS, x))


def test_operands_are_looked_at_again_when_one_is_another(gpu, tensors):
    weight, scales, *others = on(tensors, MarlinLinear.from_gptq(TENSORS, device="cpu"))
    x = tensors.of(rows(2, 128))
    operator.linear_on_gpu(x, weight, scales, *others)
    few = tensors.of(np.ones(7, np.float16))
    with pytest.raises(ProblemError, match="scales must be 128 elements"):
        operator.linear_on_gpu(x, weight, few, *others)


def test_the_operator_of_known_rows_asks_the_driver_about_its_stream_only(gpu, tensors):
    operands = on(tensors, MarlinLinear.from_gptq(TENSORS, device="cpu"))
    x = tensors.of(rows(2, 128))
    operator.linear_on_gpu(x, *operands)
    gpu.host.calls.clear()
    operator.linear_on_gpu(x, *operands)
    # cuMemAlloc is the result's
    assert gpu.host.calls == [
        "cuThreadExchangeStreamCaptureMode", "cuMemAlloc", "cuThreadExchangeStreamCaptureMode",
        "cuStreamIsCapturing", "cuStreamGetId",
    ]  # fmt: skip


def test_the_operator_can_be_captured_once_its_kernel_is_there(gpu, tensors):
    operands = on(tensors, MarlinLinear.from_gptq(TENSORS, device="cpu"))
    x, results = rows(2, 128), []
    given = tensors.of(x)

    def call(stream):
        results.append(operator.linear_on_gpu(given, *operands))

    message = "linear layer 128 x 64: a kernel cannot be loaded while a graph is captured; before"
    with pytest.raises(CaptureError, match=message):
        Graph.capture(gpu.device, [call], STREAM)
    on_gpu.weights(operands[-1], torch.float16, 0).plan(2, STREAM)
    graph = Graph.capture(gpu.device, [call], STREAM)
    assert np.isnan(results[0].numpy()).all()
    graph.launch(0)
    assert_close(results[0].numpy(), reference(TENSORS, x))


def test_what_is_not_contiguous_or_aligned_is_copied(gpu, tensors, monkeypatch):
    operands = on(tensors, MarlinLinear.from_gptq(TENSORS, device="cpu"))
    monkeypatch.setattr(torch.Tensor, "clone", lambda t, **options: tensors.of(t.numpy()))
    x = rows(2, 128)
    wide = tensors.of(np.concatenate([x, x], axis=1))[:, 128:]
    shifted = tensors.of(np.concatenate([[0], x.reshape(-1)]).astype(np.float16))[1:]
    for given in (wide, shifted.reshape(2, 128)):
        y = operator.linear_on_gpu(given, *operands)
        assert_close(y.numpy(), reference(TENSORS, x))


def test_experts_and_one_of_them(gpu, tensors):
    layers = [layer(128, 64, 64, seed=e, name=f"experts.{e}") for e in range(3)]
    operands = on(tensors, ExpertStack.from_gptq(layers, device="cpu"))
    x = rows(5, 128)
    y = operator.experts_on_gpu(tensors.of(x), torch.tensor([2, 0, 3]), *operands)
    assert_close(y.numpy()[:2], reference(layers[0], x[:2]))
    assert_close(y.numpy()[2:], reference(layers[2], x[2:]))
    with pytest.raises(ProblemError, match="counts must be the rows of each expert, 5 in all; got"):
        operator.experts_on_gpu(tensors.of(x), torch.tensor([2, 0, 2]), *operands)


def test_experts_in_a_capture_multiply_all_rows(gpu, tensors, monkeypatch):
    """The host does not know whose rows they are."""
    layers = [layer(128, 64, 64, seed=e, name=f"experts.{e}") for e in range(3)]
    operands = on(tensors, ExpertStack.from_gptq(layers, device="cpu"))
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda t: True))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    x = rows(5, 128)
    for counts in ([2, 0, 3], [0, 5, 0], [1, 3, 1]):
        y = operator.experts_on_gpu(tensors.of(x), torch.tensor(counts), *operands)
        of_row = np.repeat(np.arange(3), counts)
        want = np.stack([reference(layers[e], x[i : i + 1])[0] for i, e in enumerate(of_row)])
        assert_close(y.numpy(), want)


E, H, INNER = 4, 64, 32
UP = [layer(H, 2 * INNER, 32, seed=e, name=f"up.{e}", zeros="gptq") for e in range(E)]
DOWN = [layer(INNER, H, 32, seed=9 + e, name=f"down.{e}") for e in range(E)]


def layer_of_experts(tensors, **options):
    """Return a block on the host, and its operands in the GPU's memory."""
    stacks = (
        ExpertStack.from_gptq(UP, device="cpu", **options),
        ExpertStack.from_gptq(DOWN, device="cpu"),
    )
    block = GatedExperts(*stacks, torch.nn.functional.silu)
    return block, tuple(operand for stack in stacks for operand in on(tensors, stack))


def routed(tokens, top_k, seed=0):
    """Return x, ids and weights."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(E)[:top_k] for _ in range(tokens)]).astype(np.int32)
    return rows(tokens, H, seed=seed) / 4, ids, rng.random((tokens, top_k), np.float32)


@pytest.mark.parametrize("interleave", [True, False])
@pytest.mark.parametrize(("tokens", "top_k"), [(1, 2), (5, 3)])
def test_a_layer_of_experts(gpu, tensors, tokens, top_k, interleave):
    block, operands = layer_of_experts(tensors, interleave=interleave)
    given = routed(tokens, top_k)
    y = operator.moe_on_gpu(*map(tensors.of, given), *operands)
    assert "combine" in gpu.launched
    assert ("silu_mul" in gpu.launched) == (not interleave)
    want = block(*map(torch.from_numpy, given)).numpy()
    np.testing.assert_allclose(y.numpy(), want, rtol=0, atol=2e-3 * np.abs(want).max())


def test_a_layer_of_experts_in_a_capture(gpu, tensors):
    """One graph serves any routing; nothing waits for it."""
    block, operands = layer_of_experts(tensors, interleave=True)
    given, results = [tensors.of(each) for each in routed(3, 2)], []

    def call(stream):
        results.append(operator.moe_on_gpu(*given, *operands))

    words = re.escape("before it, call the experts with 3 tokens, or their prepare([3], 2)")
    with pytest.raises(CaptureError, match=words):
        Graph.capture(gpu.device, [call], STREAM)
    moe.experts(operands[5], operands[11], 2, torch.float16, 0).plan(3, STREAM)
    graph = Graph.capture(gpu.device, [call], STREAM)
    gpu.launched.clear()
    for seed in (5, 6):
        found = routed(3, 2, seed)
        for place, value in zip(given, found, strict=True):
            place.numpy()[...] = value
        graph.launch(0)
        want = block(*map(torch.from_numpy, found)).numpy()
        np.testing.assert_allclose(results[0].numpy(), want, rtol=0, atol=2e-3 * np.abs(want).max())
    assert gpu.launched.count("grouped_decode") == 4


def test_dropped_ids_are_nobody_s_on_a_gpu(gpu, tensors):
    _, operands = layer_of_experts(tensors, interleave=True)
    x, ids, weights = routed(3, 2)
    ids[0], ids[1, 1] = (-1, 9), -5
    y = operator.moe_on_gpu(*map(tensors.of, (x, ids, weights)), *operands).numpy()
    assert (y[0] == 0).all()
    ids[1, 1], weights[1, 1] = 0, 0
    again = operator.moe_on_gpu(*map(tensors.of, (x, ids, weights)), *operands).numpy()
    np.testing.assert_array_equal(y[1:], again[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: np.zeros((3, 32), np.float16)}, "x must be [T, 64]; got [3, 32]"),
        ({1: np.zeros((2, 2), np.int32)}, "ids must be [3, top_k] for x of [3, 64]; got [2, 2]"),
        ({2: np.zeros((3, 1), np.float32)}, "weights must be [3, top_k] for x of"),
        ({1: np.zeros((3, 2), np.int64)}, "ids must be torch.int32; got torch.int64"),
        ({2: np.zeros((3, 2), np.float16)}, "weights must be torch.float32; got torch.float16"),
    ],
)
def test_a_layer_of_experts_is_given_what_fits(gpu, tensors, change, message):
    _, operands = layer_of_experts(tensors)
    given = {**dict(enumerate(routed(3, 2))), **change}
    with pytest.raises(ProblemError, match=re.escape(message)):
        operator.moe_on_gpu(*map(tensors.of, given.values()), *operands)


@pytest.mark.parametrize(
    ("i", "move", "error", "message"),
    [
        (
            0,
            lambda t: torch.zeros_like(t),
            LaunchError,
            "packed must be on cuda:0 like x; it",
        ),
        (
            1,
            lambda t: t[:, :1],
            ProblemError,
            "scales must be 128 elements of torch.float16; got",
        ),
        (
            4,
            lambda t: t.float(),
            ProblemError,
            "perm must be 128 elements of torch.int32; got",
        ),
    ],
)
def test_an_operand_that_is_not_the_layout_s(gpu, tensors, i, move, error, message):
    operands = list(on(tensors, MarlinLinear.from_gptq(TENSORS, device="cpu")))
    operands[i] = move(operands[i])
    with pytest.raises(error, match=f"linear layer 128 x 64: {message}"):
        operator.linear_on_gpu(tensors.of(rows(2, 128)), *operands)


def test_no_more_is_looked_at_than_changed(gpu, tensors):
    """Another type with the same weight is noticed all the same."""
    operands = list(on(tensors, MarlinLinear.from_gptq(TENSORS, device="cpu")))
    x = tensors.of(rows(2, 128))
    operator.linear_on_gpu(x, *operands)
    operands[1] = operands[1].to(torch.bfloat16)
    with pytest.raises(ProblemError, match=r"scales must be 128 elements of torch\.float16; got"):
        operator.linear_on_gpu(x, *operands)


# the layer that is no module, on torch's tensors


def test_a_layer_takes_tensors_as_they_are(gpu, tensors):
    linear = ferrum_numba.MarlinLinear.from_gptq(TENSORS)
    x = rows(6, 128)
    y = linear(tensors.of(x).reshape(2, 3, 128))
    assert (type(y), tuple(y.shape)) == (torch.Tensor, (2, 3, 64))
    assert_close(y.numpy().reshape(6, 64), reference(TENSORS, x))
    out = tensors.empty((6, 64))
    linear.forward(tensors.of(x), out)
    np.testing.assert_array_equal(out.numpy(), y.numpy().reshape(6, 64))


def test_streams_of_tensors_are_honoured(gpu, tensors, monkeypatch):
    streams = []
    monkeypatch.setattr(
        "ferrum_numba.launch.direct.launcher",
        lambda: lambda config, *rest: streams.append(host_driver.stream_of(config)) or 0,
    )
    linear = ferrum_numba.MarlinLinear.from_gptq(replace(TENSORS, g_idx=None), store="raw")
    x, out = tensors.of(rows(2, 128)), tensors.empty((2, 64))
    linear(x)
    linear.forward(x, out)
    linear.forward(x, out, 7)
    assert streams == [STREAM, STREAM, 7]


def wrong(tensors):
    x, out = tensors.of(rows(4, 128)), tensors.empty((4, 64))
    return [
        (x.float(), out, "x must be fp16; got fp32"),
        (x[:, :64].contiguous(), out, "x must be [..., 128]; got [4, 64]"),
        (torch.zeros(4, 128, dtype=torch.float16), out, "x must be on cuda:0 like the weight"),
        (x.T.contiguous().T, out, "x: the tensor has shape (4, 128) and strides (1, 4)"),
        (x, out[:3], "out must be [4, 64] for x of [4, 128]; got [3, 64]"),
        (x, out.reshape(2, 128), "out must be [4, 64] for x of [4, 128]; got [2, 128]"),
        (x, x.reshape(-1)[:256].reshape(4, 64), "out overlaps x: 512 bytes at"),
        (x.reshape(-1)[1:385].reshape(3, 128), out[:3], "x must begin at a multiple of 16 bytes"),
        (x, out.to(torch.bfloat16), "out must be fp16; got bf16"),
    ]  # fmt: skip


@pytest.mark.parametrize("i", range(9))
def test_a_wrong_tensor_gets_one_sentence(gpu, tensors, i):
    linear = ferrum_numba.MarlinLinear.from_gptq(TENSORS)
    x, out, message = wrong(tensors)[i]
    with pytest.raises((ProblemError, LaunchError), match=re.escape(message)):
        linear.forward(x, out, 0)


def test_a_layer_with_no_rows(gpu, tensors):
    linear = ferrum_numba.MarlinLinear.from_gptq(TENSORS)
    assert tuple(linear(tensors.empty((0, 128))).shape) == (0, 64)
