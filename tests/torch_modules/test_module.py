"""MarlinLinear as a module: the reference on the host, and all that torch does with modules."""

import copy
import io
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from quantised import assert_close, layer, reference, rows  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from test_stores import LAYERS  # noqa: E402

import ferrum_numba  # noqa: E402
from ferrum_numba.errors import LaunchError, ProblemError  # noqa: E402
from ferrum_numba.linear import traced  # noqa: E402
from ferrum_numba.torch import Layout, MarlinLinear  # noqa: E402
from ferrum_numba.torch.operator import linear as operator  # noqa: E402

# what torch warns of is its own
pytestmark = pytest.mark.filterwarnings("ignore")
STORES = ("marlin", "raw")
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
TENSORS = layer(128, 64, 64, zeros="gptq", act_order=True, bias=True)


def make(tensors=TENSORS, **options):
    return MarlinLinear.from_gptq(tensors, device="cpu", **options)


def x_of(M=3, K=128, dtype="fp16"):
    return torch.from_numpy(rows(M, K, dtype).astype(np.float32)).to(TYPES[dtype])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_weight(kind, store, dtype):
    tensors = LAYERS[kind]
    module = make(tensors, store=store, dtype=dtype)
    x = x_of(3, tensors.in_features, dtype)
    y = module(x)
    assert (y.dtype, tuple(y.shape)) == (TYPES[dtype], (3, tensors.out_features))
    assert_close(y.float().numpy(), reference(tensors, x.float().numpy(), dtype), dtype)
    # as an empty one is made
    shapes = {
        name: ((1, *shape), kind) for name, (shape, kind) in module.layout.buffers(x.dtype).items()
    }
    assert {name: (tuple(b.shape), b.dtype) for name, b in module.named_buffers()} == shapes
    assert Layout.parse(str(module.layout)) == module.layout


@pytest.mark.parametrize("shape", [(128,), (2, 3, 128), (0, 128), (2, 0, 128)])
def test_any_leading_dimensions(shape):
    x = x_of(int(np.prod(shape[:-1]))).reshape(shape)
    y = make()(x)
    assert tuple(y.shape) == (*shape[:-1], 64)
    assert torch.equal(y.reshape(-1, 64), make()(x.reshape(-1, 128)))


def test_what_is_not_contiguous_is_copied():
    module, x = make(), x_of(4)
    assert torch.equal(module(x.T.contiguous().T), module(x))


def copies():
    """Return ways of making a module again."""

    def of_state(module):
        empty = MarlinLinear(module.layout)
        empty.load_state_dict(module.state_dict())
        return empty

    def assigned(module):
        empty = MarlinLinear(module.layout, device="meta")
        empty.load_state_dict(module.state_dict(), assign=True)
        return empty

    def saved(module):
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=False)

    return {
        "deepcopy": copy.deepcopy,
        "pickle": lambda module: pickle.loads(pickle.dumps(module)),
        "state": of_state,
        "assigned state": assigned,
        "torch.save": saved,
    }


@pytest.mark.parametrize("way", copies())
def test_a_copy_gives_the_same_bits(way):
    module, x = make(), x_of()
    again = copies()[way](module)
    assert again is not module
    assert torch.equal(again(x), module(x))


def test_safetensors(tmp_path):
    module = make()
    save_file(module.state_dict(), tmp_path / "layer.safetensors")
    again = MarlinLinear(module.layout)
    again.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    assert torch.equal(again(x_of()), module(x_of()))


def test_a_state_of_another_layout_is_not_loaded():
    with pytest.raises(RuntimeError, match="size mismatch for packed"):
        make().load_state_dict(make(layer(256, 64, 64, zeros="gptq", act_order=True, bias=True))
                               .state_dict())  # fmt: skip
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "perm"'):
        make().load_state_dict(make(replace(TENSORS, g_idx=None)).state_dict())


def test_another_type():
    module = make().to(torch.bfloat16)
    x = x_of(dtype="bf16")
    assert_close(module(x).float().numpy(), reference(TENSORS, x.float().numpy(), "bf16"), "bf16")
    with pytest.raises(ProblemError, match=r"scales must be 128 elements of torch\.float16; got"):
        module(x_of())


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_whole(backend):
    module = torch.nn.Sequential(make(), torch.nn.ReLU())
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend, dynamic=True)
    for M in (2, 3):
        assert torch.equal(compiled(x_of(M)), module(x_of(M)))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_layer_that_is_no_module_compiled_whole(backend):
    linear = ferrum_numba.MarlinLinear.from_gptq(TENSORS, device="cpu")
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: linear(x * 2).relu(), fullgraph=True, backend=backend)
    for M in (2, 3):
        assert torch.equal(compiled(x_of(M)), linear(x_of(M) * 2).relu())


def test_a_layer_that_is_gone_is_not_called():
    linear = ferrum_numba.MarlinLinear.from_gptq(TENSORS, device="cpu")
    assert torch.equal(traced.call(linear, x_of()), linear(x_of()))
    call, number = torch.ops.ferrum_numba_layer.call, linear.number
    del linear
    with pytest.raises(LaunchError, match="the layer that was compiled is gone; keep it as long"):
        call(x_of(), number, 64)


def test_exported_and_loaded(tmp_path):
    module = make()
    sizes = ({0: torch.export.Dim("M", min=1, max=64)},)
    program = torch.export.export(module, (x_of(),), dynamic_shapes=sizes)
    torch.export.save(program, tmp_path / "layer.pt2")
    again = torch.export.load(tmp_path / "layer.pt2").module()
    assert torch.equal(again(x_of(5)), module(x_of(5)))


def test_inference_mode_and_what_needs_gradients():
    module = make()
    with torch.inference_mode():
        assert torch.equal(module(x_of()), module(x_of()))
    y = module(x_of().requires_grad_())
    assert torch.equal(y, module(x_of()))


def test_what_the_operator_promises_to_torch():
    module = make()
    torch.library.opcheck(
        operator, (x_of(), *module.operands(), module.layout_text),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": x_of(3, 64)}, "x must be [..., 128]; got [3, 64]"),
        ({"x": x_of().float()}, "a layer is in float16 or bfloat16; got torch.float32"),
        ({"x": torch.tensor(1.0, dtype=torch.float16)}, "x must be [..., 128]; got []"),
        ({"scales": torch.ones(3)}, "scales must be 128 elements of torch.float16; got 3 of torch"),
        ({"zero_points": None}, "linear layer 128 x 64: zero_points must be given"),
        (
            {"layout": "marlin 1x128x64/64 symmetric act_order bias"},
            "zero_points must not be",
        ),
        (
            {"bias": torch.ones(128, dtype=torch.float16)[::2]},
            "bias must be contiguous; its",
        ),
        (
            {"layout": "marlin 128x64"},
            "a layout is such as 'marlin 1x4096x4096/128 symmetric'",
        ),
        ({"layout": "other 1x128x64/64"}, "a layout is such as"),
    ],
)
def test_a_wrong_call_gets_one_sentence(change, message):
    module = make()
    names = ("weight", "scales", "zero_points", "bias", "order")
    given = {"x": x_of(), **dict(zip(names, module.operands(), strict=True))}
    given |= {"layout": module.layout_text}
    with pytest.raises((ProblemError, LaunchError), match=re.escape(message)):
        operator(*(given | change).values())


def test_a_device_that_is_neither():
    with pytest.raises(ProblemError, match="a layer runs on cuda or cpu; got meta"):
        MarlinLinear.from_gptq(TENSORS, device="meta")
