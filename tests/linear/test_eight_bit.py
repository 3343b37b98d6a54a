"""Layers whose many rows are rounded to 8 bits: as the references do it, step by step."""

import gpu_of_host
import numpy as np
import pytest
from quantised import assert_close, layer, reference, rows

from ferrum_numba.errors import ProblemError
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.launch import Graph
from ferrum_numba.linear.dense import MarlinLinear
from ferrum_numba.linear.stages import EIGHT_BIT_ROWS
from ferrum_numba.reference.quantize_rows import quantize_rows

KINDS = {
    "symmetric": layer(256, 128, 128),
    "zero points": layer(256, 128, 64, zeros="gptq", bias=True),
    "act-order": layer(256, 128, 64, zeros="gptq", act_order=True, bias=True),
    "one group": layer(256, 128, -1),
    "N = 136, K = 200": layer(200, 136, 64),
}
MANY = EIGHT_BIT_ROWS + 1


@pytest.fixture
def gpu(monkeypatch):
    return gpu_of_host.install(monkeypatch)


def rounded(x, x_dtype):
    """Return the activations that 8 bits hold of x, whose columns are in no other order."""
    x8, sx = quantize_rows(x, x_dtype)
    return x8.astype(np.float64) * sx


def assert_rounded(got, tensors, x, x_dtype, dtype="fp16"):
    """Compare with the product of the rounded rows: not in act-order, their scales are the same."""
    want = reference(tensors, rounded(x, x_dtype).astype(np.float32), dtype)
    assert_close(got, want, dtype)


@pytest.mark.parametrize(
    ("device", "x_dtype", "kind"),
    [
        *(("cpu", x_dtype, kind) for x_dtype in ("fp8", "int8") for kind in KINDS),
        ("cuda", "fp8", "symmetric"), ("cuda", "int8", "zero points"), ("cuda", "fp8", "act-order"),
        ("cuda", "int8", "one group"), ("cuda", "fp8", "N = 136, K = 200"),
    ],
)  # fmt: skip
def test_many_rows_are_rounded_and_few_are_not(gpu, kind, x_dtype, device):
    tensors = KINDS[kind]
    linear = MarlinLinear.from_gptq(tensors, device=device, activations=x_dtype)
    x = rows(MANY, tensors.in_features)
    got = linear(x)
    assert_rounded(got, tensors, x, x_dtype)
    # not what 16 bits give
    plain = MarlinLinear.from_gptq(tensors, device="cpu")(x)
    assert not np.array_equal(got, plain)
    few = rows(3, tensors.in_features)
    assert_close(linear(few), reference(tensors, few))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_bf16_and_a_bias_in_two_steps(gpu, device):
    tensors = KINDS["zero points"]
    linear = MarlinLinear.from_gptq(
        tensors, device=device, dtype="bf16", bias_mode="two_step", activations="fp8"
    )
    x = rows(MANY, 256, "bf16")
    got = linear(x)
    assert got.dtype == DTYPES["bf16"]
    plain = reference(tensors, rounded(x, "fp8").astype(np.float32), "bf16")
    difference = np.linalg.norm(got.astype(np.float32) - plain.astype(np.float32))
    # two roundings to bf16
    assert difference < 4e-3 * np.linalg.norm(plain.astype(np.float32))


def test_a_row_that_is_not_finite_has_no_result_and_spoils_no_other():
    tensors = KINDS["symmetric"]
    linear = MarlinLinear.from_gptq(tensors, device="cpu", activations="fp8")
    x = rows(MANY, 256)
    want = linear(x)
    x[3, 5], x[7, 1] = np.inf, np.nan
    got = linear(x)
    assert np.isnan(got[[3, 7]]).all()
    others = np.delete(np.arange(MANY), [3, 7])
    np.testing.assert_array_equal(got[others], want[others])


def test_two_layers_of_one_stream_do_not_mix_their_rows(gpu):
    first, second = (MarlinLinear.from_gptq(KINDS[kind], activations="fp8")
                     for kind in ("symmetric", "zero points"))  # fmt: skip
    x, y = rows(MANY, 256), rows(MANY + 30, 256)
    once = first(x), second(y)
    for linear, of, want in ((second, y, once[1]), (first, x, once[0]), (second, y, once[1])):
        np.testing.assert_array_equal(linear(of), want)


def test_what_is_prepared_is_captured_without_memory(gpu):
    tensors = KINDS["act-order"]
    linear = MarlinLinear.from_gptq(tensors, activations="int8")
    linear.prepare(MANY)
    x = rows(MANY, 256)
    source, out = gpu.array(x), gpu.empty((MANY, 128))
    gpu.host.calls.clear()
    allocated = list(gpu.host.allocated)
    graph = Graph.capture(gpu.device, [lambda stream: linear.forward(source, out, stream)])
    assert "cuLibraryLoadData" not in gpu.host.calls
    assert gpu.host.allocated == allocated
    for _ in range(2):
        graph.launch(0)
        assert_rounded(out.read(), tensors, x, "int8")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"activations": "fp4"}, 'activations must be "fp8" or "int8"; got \'fp4\''),
        (
            {"activations": "fp8", "store": "raw"},
            'activations = "fp8" needs a packed weight; it is in store "raw"',
        ),
    ],
)
def test_what_cannot_be_is_refused_by_the_layers_name(options, sentence):
    tensors = KINDS["symmetric"]
    with pytest.raises(ProblemError) as refused:
        MarlinLinear.from_gptq(tensors, device="cpu", **options)
    assert str(refused.value) == f"{tensors.name}: {sentence}"
