"""The modules on a real GPU: against the reference, compiled, in graphs, on streams."""

import numpy as np
import pytest
from cuda.bindings import driver

torch = pytest.importorskip("torch")

from quantised import layer, reference, rows  # noqa: E402
from test_linear_gpu import assert_both_norms  # noqa: E402

import ferrum_numba  # noqa: E402
from ferrum_numba.torch import ExpertStack, GatedExperts, MarlinLinear  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
STORES = ("marlin", "raw")
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
TENSORS = layer(512, 576, 128, zeros="gptq", act_order=True, bias=True)
NUM_EXPERTS = 4
UP = [layer(256, 256, 128, seed=e, name=f"up.{e}") for e in range(NUM_EXPERTS)]
DOWN = [layer(128, 256, 128, seed=9 + e, name=f"down.{e}") for e in range(NUM_EXPERTS)]


def x_of(M, dtype="fp16", K=512, seed=1):
    values = rows(M, K, dtype, seed).astype(np.float32)
    return torch.from_numpy(values).to("cuda", TYPES[dtype])


def check(y, x, tensors=TENSORS, dtype="fp16"):
    want = reference(tensors, x.float().cpu().numpy(), dtype)
    assert_both_norms(y.float().cpu().numpy(), want, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("M", [1, 16, 70])
def test_a_module(store, dtype, M):
    module = MarlinLinear.from_gptq(TENSORS, store=store, dtype=dtype)
    x = x_of(M, dtype)
    check(module(x), x, dtype=dtype)
    assert torch.equal(module(x.T.contiguous().T), module(x))
    assert torch.equal(module(x.reshape(1, M, 512))[0], module(x))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("store", STORES)
def test_the_gpu_fills_the_buffers_that_the_host_does(store, dtype):
    got, want = (
        MarlinLinear.from_gptq(TENSORS, store=store, dtype=dtype, device=device)
        for device in ("cuda", "cpu")
    )
    assert dict(got.named_buffers()).keys() == dict(want.named_buffers()).keys()
    for name, buffer in want.named_buffers():
        assert torch.equal(got.get_buffer(name).cpu(), buffer)
    x = x_of(3, dtype)
    assert torch.equal(want.to("cuda")(x), got(x))
    y = got.to("cpu")(x.cpu())
    check(y, x, dtype=dtype)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_whole(mode):
    module = torch.nn.Sequential(MarlinLinear.from_gptq(TENSORS), torch.nn.ReLU())
    compiled = torch.compile(module, fullgraph=True, mode=mode)
    with torch.inference_mode():
        for _ in range(4):
            for M in (2, 16):
                x = x_of(M)
                assert torch.equal(compiled(x), module(x))


def test_the_layer_that_is_no_module_compiled_whole():
    linear = ferrum_numba.MarlinLinear.from_gptq(TENSORS)
    compiled = torch.compile(lambda x: linear(x * 2).relu(), fullgraph=True)
    x = x_of(3)
    assert torch.equal(compiled(x), linear(x * 2).relu())


def test_a_graph_of_torch_s_needs_no_more_than_a_call_before():
    module, x = MarlinLinear.from_gptq(TENSORS), x_of(4)
    module(x)
    # more launches than one capture's allocations of scratch, and two graphs on their own
    graphs, outs = [torch.cuda.CUDAGraph() for _ in range(2)], []
    for graph in graphs:
        with torch.cuda.graph(graph):
            outs.append([module(x) for _ in range(3)])
    for seed in (3, 4):
        x.copy_(x_of(4, seed=seed))
        want = module(x)
        for graph, results in zip(graphs, outs, strict=True):
            graph.replay()
            assert all(torch.equal(result, want) for result in results)


def test_graphs_run_at_once():
    module, x = MarlinLinear.from_gptq(TENSORS), x_of(4)
    want = module(x)
    graphs, outs = [torch.cuda.CUDAGraph() for _ in range(4)], []
    for graph in graphs:
        with torch.cuda.graph(graph):
            outs.append([module(x) for _ in range(50)])
    streams = [torch.cuda.Stream() for _ in graphs]
    for _ in range(5):
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(y, want) for results in outs for y in results)


def test_an_unprepared_graph_says_what_to_call():
    module = MarlinLinear.from_gptq(layer(640, 448, 64))
    x = x_of(5, K=640)
    with (
        pytest.raises(ferrum_numba.FerrumError, match=r"its prepare\(\[5\]\)"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        module(x)
    module.prepare([5])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = module(x)
    graph.replay()
    assert torch.equal(y, module(x))


def test_streams():
    module, x = MarlinLinear.from_gptq(TENSORS), x_of(4)
    want, stream = module(x), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results = [module(x) for _ in range(20)]
    stream.synchronize()
    assert all(torch.equal(y, want) for y in results)


def test_exported(tmp_path):
    module = MarlinLinear.from_gptq(TENSORS)
    program = torch.export.export(module, (x_of(3),))
    torch.export.save(program, tmp_path / "layer.pt2")
    assert torch.equal(torch.export.load(tmp_path / "layer.pt2").module()(x_of(3)), module(x_of(3)))


def test_another_context_is_current(device):
    """A launch in a context that is not the layer's is refused by the driver, and made again."""
    linear, x = ferrum_numba.MarlinLinear.from_gptq(TENSORS), x_of(4)
    want, out = linear(x), x.new_empty((4, 576))
    status, other = driver.cuCtxCreate(None, 0, device.index)
    assert status == driver.CUresult.CUDA_SUCCESS
    try:
        linear.forward(x, out, 0)
        _, current = driver.cuCtxGetCurrent()
        assert current == other
    finally:
        driver.cuCtxDestroy(other)
    device.make_current()
    torch.cuda.synchronize()
    assert torch.equal(out, want)


def block(act=torch.nn.functional.silu, interleave=True):
    gate_up = ExpertStack.from_gptq(UP, interleave=interleave)
    return GatedExperts(gate_up, ExpertStack.from_gptq(DOWN), act)


def routed(tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights, experts = torch.rand(tokens, NUM_EXPERTS, generator=generator).topk(2, dim=-1)
    return x_of(tokens, K=256, seed=seed) / 8, experts.cuda(), weights.half().cuda()


@pytest.mark.parametrize("interleave", [True, False])
@pytest.mark.parametrize("act", [torch.nn.functional.silu, torch.nn.functional.gelu])
def test_experts_eager_captured_and_compiled(act, interleave):
    """Grouped with a SiLU, else one by one."""
    module, given = block(act, interleave), routed(5)
    assert module.grouped == (act is torch.nn.functional.silu)
    want = module(*given)
    cpu = block(act, interleave).to("cpu")(*(each.cpu() for each in given))
    torch.testing.assert_close(want.cpu(), cpu, rtol=0, atol=4e-3 * float(cpu.abs().max()))
    module.prepare([5], 2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = module(*given)
    for seed in (0, 1, 2):
        for place, value in zip(given, routed(5, seed), strict=True):
            place.copy_(value)
        graph.replay()
        tolerance = {"rtol": 0, "atol": 2e-3 * float(want.abs().max())}
        torch.testing.assert_close(captured, module(*given), **tolerance)
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(compiled(*given), module(*given), **tolerance)


def test_arrays_of_jax(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax = pytest.importorskip("jax")
    gpus = [d for d in jax.devices() if d.platform == "gpu"]
    if not gpus:
        pytest.skip("this JAX has no GPU")
    linear = ferrum_numba.MarlinLinear.from_gptq(TENSORS)
    x = rows(6, 512)
    y = linear(jax.device_put(x.reshape(2, 3, 512), gpus[0]))
    assert (isinstance(y, jax.Array), y.shape) == (True, (2, 3, 576))
    assert_both_norms(np.asarray(y).reshape(6, 576), reference(TENSORS, x))
