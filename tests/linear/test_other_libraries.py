"""Arrays shared by DLPack or `__cuda_array_interface__`: whose stream waits, what is refused."""

import re

import gpu_of_host
import host_driver
import numpy as np
import pytest
from cuda_array import CudaArray
from dlpack_array import DlpackArray
from quantised import NAME, assert_close, layer, reference, rows

from ferrum_numba.errors import LaunchError, ProblemError
from ferrum_numba.launch import Buffer
from ferrum_numba.linear import layer as layers
from ferrum_numba.linear.dense import MarlinLinear

TENSORS = layer(128, 64, 64, zeros="gptq", bias=True)


@pytest.fixture
def gpu(monkeypatch):
    return gpu_of_host.install(monkeypatch)


def on_gpu(gpu, values):
    """Return an array of the library in the GPU's memory."""
    address = gpu.array(values).buffer
    memory = host_driver.view(address.pointer, values.nbytes, np.uint8)
    array = DlpackArray(memory.view(values.dtype).reshape(values.shape), on_gpu=True)
    array.keep = address
    return array


@pytest.mark.parametrize("shape", [(3, 128), (1, 3, 128), (0, 128)])
def test_an_array_of_the_host(shape):
    linear = MarlinLinear.from_gptq(TENSORS, device="cpu")
    x = rows(int(np.prod(shape[:-1])), 128)
    y = linear(DlpackArray(x.reshape(shape)))
    assert (type(y), y.shape) == (DlpackArray, (*shape[:-1], 64))
    if x.size:
        assert_close(y.values.reshape(-1, 64), reference(TENSORS, x))


def test_an_output_of_the_host():
    x, out = rows(3, 128), np.zeros((3, 64), np.float16)
    MarlinLinear.from_gptq(TENSORS, device="cpu").forward(DlpackArray(x), DlpackArray(out))
    assert_close(out, reference(TENSORS, x))


@pytest.mark.parametrize(("stream", "asked"), [(0, 1), (5, 5)])
def test_whoever_shares_is_told_the_stream(gpu, stream, asked):
    linear = MarlinLinear.from_gptq(TENSORS)
    x = rows(3, 128)
    given, out = on_gpu(gpu, x), on_gpu(gpu, np.zeros((3, 64), np.float16))
    linear.forward(given, out, stream)
    assert_close(out.values, reference(TENSORS, x))
    assert (given.asked, out.asked) == ([asked], [asked])


def test_a_result_of_the_library(gpu, monkeypatch):
    linear = MarlinLinear.from_gptq(TENSORS)

    def exported(buffer, shape, dtype):
        assert isinstance(buffer, Buffer)
        assert "synchronize" in gpu.host.log[-1:]
        return buffer.read(shape, dtype)

    monkeypatch.setattr(layers, "exported", exported)
    x = rows(6, 128)
    y = linear(on_gpu(gpu, x.reshape(2, 3, 128)))
    assert (type(y), y.shape) == (DlpackArray, (2, 3, 64))
    assert_close(y.values.reshape(6, 64), reference(TENSORS, x))


class Streamed(CudaArray):
    """An array that says on which stream its library works."""

    stream = None

    @property
    def __cuda_array_interface__(self):
        return {**super().__cuda_array_interface__, "stream": self.stream}


@pytest.mark.parametrize(
    ("producer", "stream", "waited"),
    [(None, 5, None), (5, 5, None), (1, 0, None), (7, 5, (7, 5)), (1, 5, (1, 5)), (7, 0, (7, 0))],
)
def test_the_stream_of_an_interface_is_waited_for(gpu, producer, stream, waited):
    linear = MarlinLinear.from_gptq(TENSORS)
    x = rows(3, 128)
    given, out = Streamed.of(gpu.device, x), gpu.empty((3, 64))
    given.stream = producer
    linear.forward(given, out, stream)
    assert gpu.host.waits == ([] if waited is None else [waited])
    assert gpu.host.events == {}
    assert_close(out.read(), reference(TENSORS, x))


def wrong(gpu):
    x, out = rows(3, 128), np.zeros((3, 64), np.float16)

    class Refusing(DlpackArray):
        def __dlpack__(self, **options):
            raise BufferError("it is lent to another")

    return [
        (DlpackArray(x), gpu.array(out), "x must be on cuda:0 like the weight; it is on the host"),
        (on_gpu(gpu, x.astype(np.float32)), gpu.array(out), "x must be fp16; got fp32"),
        (DlpackArray(np.asfortranarray(x), on_gpu=True), gpu.array(out),
         "x: the array has shape (3, 128) and strides (2, 6) in bytes"),
        (Refusing(x), gpu.array(out), "x: Refusing does not share its memory: it is lent"),
    ]  # fmt: skip


@pytest.mark.parametrize("i", range(4))
def test_a_wrong_array_gets_one_sentence(gpu, i):
    linear = MarlinLinear.from_gptq(TENSORS)
    x, out, message = wrong(gpu)[i]
    with pytest.raises((ProblemError, LaunchError), match=re.escape(f"{NAME}: {message}")):
        linear.forward(x, out, 0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_arrays_of_jax_on_the_host(dtype):
    jax = pytest.importorskip("jax")
    x = rows(6, 128, dtype)
    y = MarlinLinear.from_gptq(TENSORS, device="cpu", dtype=dtype)(
        jax.numpy.asarray(x.reshape(2, 3, 128), device=jax.devices("cpu")[0])
    )
    assert (isinstance(y, jax.Array), y.shape) == (True, (2, 3, 64))
    assert_close(np.asarray(y).reshape(6, 64), reference(TENSORS, x, dtype), dtype)
