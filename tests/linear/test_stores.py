"""Stores hold the checkpoint's weight, bit for bit; which one is chosen, and what is refused."""

import re
from dataclasses import replace

import gpu_of_host
import ml_dtypes
import numpy as np
import pytest
from quantised import NAME, assert_close, layer, reference, words
from quantised import rows as activations

from ferrum_numba.errors import BuildError, DeviceError, ProblemError
from ferrum_numba.gptq import awq
from ferrum_numba.gptq.repack import marlin_weight
from ferrum_numba.gptq.tensors import GptqTensors
from ferrum_numba.kernels import DENSE, PACKED, RAW
from ferrum_numba.kernels.shared.packed import pack_operands
from ferrum_numba.linear import choice
from ferrum_numba.linear.dense import MarlinLinear
from ferrum_numba.linear.select import make_store
from ferrum_numba.linear.stores import MarlinStore, RawGptqStore
from ferrum_numba.reference import gptq

STORES = (MarlinStore, RawGptqStore)


@pytest.fixture
def gpu(monkeypatch):
    return gpu_of_host.install(monkeypatch)


def awq_layer(K=256, N=128):
    rng = np.random.default_rng(3)
    scales = rng.uniform(0.005, 0.015, (K // 64, N)).astype(np.float16)
    return awq.from_awq(
        NAME, words(rng, (K, N // 8)), scales, words(rng, (K // 64, N // 8)), group_size=64
    )


LAYERS = {
    "symmetric": layer(256, 128, 64),
    "v1": layer(256, 128, 64, zeros="gptq"),
    "v2": layer(256, 128, 64, zeros="gptq_v2"),
    "awq": awq_layer(),
    "groups of 32": layer(128, 64, 32, zeros="gptq"),
    "groups of 128": layer(256, 64, 128),
    "one group": layer(128, 64, -1, zeros="gptq", bias=True),
    "K is the group": layer(128, 64, 128, zeros="gptq_v2"),
    "act-order": layer(256, 128, 64, act_order=True, zeros="gptq", bias=True),
    "N = 576": layer(128, 576, 64, bias=True),
    "N = 136, K = 200": layer(200, 136, 64, zeros="gptq", act_order=True, bias=True),
    "small": layer(8, 8, -1),
}


def codes_of(tensors):
    """Return what the reference calls a layer's codes and zero points."""
    zeros = np.full(tensors.scales.shape, 8, np.uint8)
    if tensors.qzeros is not None:
        zeros = gptq.unpack_zero_points(tensors.qzeros, tensors.checkpoint_format)
    return gptq.unpack_codes(tensors.qweight), zeros


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("store", STORES)
def test_a_store_gives_back_the_checkpoint_s_weight(gpu, store, kind, device):
    tensors = LAYERS[kind]
    parts = store.from_gptq(tensors, device=device).parts(0)
    codes, zeros = codes_of(tensors)
    order = parts.get("perm", np.arange(len(codes)))
    np.testing.assert_array_equal(parts["codes"], codes[order])
    np.testing.assert_array_equal(parts.get("zero_points", np.uint8(8)), zeros)
    np.testing.assert_array_equal(parts["scales"], tensors.scales)
    groups = np.arange(len(codes)) // tensors.group_size
    groups = groups if tensors.g_idx is None else tensors.g_idx
    np.testing.assert_array_equal(parts["g_idx"], groups[order])
    if tensors.bias is None:
        assert "bias" not in parts
    else:
        np.testing.assert_array_equal(parts["bias"], tensors.bias)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", LAYERS)
def test_packed_operands_are_those_that_kernels_are_tested_with(gpu, kind, device):
    tensors = LAYERS[kind]
    store = MarlinStore.from_gptq(tensors, device=device)
    codes, zeros = codes_of(tensors)
    inputs = {"codes": codes, "scales": tensors.scales}
    inputs |= {"zero_points": zeros} if tensors.qzeros is not None else {}
    inputs |= {"g_idx": tensors.g_idx} if tensors.act_order else {}
    inputs |= {"bias": tensors.bias} if tensors.bias is not None else {}
    want = pack_operands(store.problem(1), inputs)
    assert set(store.operands) == set(want)
    for name, array in want.items():
        np.testing.assert_array_equal(store.operands.get(name, 0), array, err_msg=name)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("store", STORES)
def test_a_layer_on_the_gpu_costs_its_operands_and_nothing_more(gpu, store, kind):
    tensors = LAYERS[kind]
    held = store.from_gptq(tensors)
    memory = [m.nbytes - 256 for m in gpu.host.memory.values()]
    assert sum(memory) == held.operands.size_bytes
    assert len(memory) == len(list(held.operands))
    if store is RawGptqStore:
        assert held.operands.slab_bytes("qweight") == tensors.qweight.nbytes
    elif tensors.in_features % 64 == tensors.out_features % 64 == 0:
        assert held.operands.slab_bytes("packed") == tensors.qweight.nbytes
    del held
    assert gpu.host.memory == {}


def test_act_order_s_permutation_is_stable(gpu):
    tensors = LAYERS["act-order"]
    perm = MarlinStore.from_gptq(tensors).operands.get("perm", 0)
    by_group = [np.flatnonzero(tensors.g_idx == g) for g in range(tensors.num_groups)]
    np.testing.assert_array_equal(perm, np.concatenate(by_group))


@pytest.mark.parametrize("store", STORES)
def test_scales_and_bias_are_rounded_to_the_layer_s_type_once(store):
    scales = np.array([[1 + 2**-12, 1 + 2**-11, 1 + 3 * 2**-11, 0.1] * 16], np.float32)
    exact = layer(64, 64, -1, bias=True, dtype=np.float32)
    exact = replace(exact, scales=scales, bias=scales[0])
    for dtype, kind in (("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)):
        parts = store.from_gptq(exact, device="cpu", dtype=dtype).parts(0)
        np.testing.assert_array_equal(parts["scales"], scales.astype(kind))
        np.testing.assert_array_equal(parts["bias"], scales[0].astype(kind))
        assert parts["scales"].dtype == kind


def spoilt(tensors, tensor, value):
    array = getattr(tensors, tensor).astype(np.float32)
    array.reshape(-1)[3] = value
    return replace(tensors, **{tensor: array})


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (("scales", np.nan), f"{NAME}: scales must be finite in fp16; got nan at [0, 3]"),
        (("scales", 7e4), f"{NAME}: scales must be finite in fp16; got 70000 at [0, 3]"),
        (("bias", -np.inf), f"{NAME}: bias must be finite in fp16; got -inf at [3]"),
    ],
)
def test_values_that_are_no_weights_are_refused_and_nothing_is_left(
    gpu, store, device, bad, message
):
    with pytest.raises(ProblemError, match=re.escape(message)):
        store.from_gptq(spoilt(LAYERS["act-order"], *bad), device=device)
    assert gpu.host.memory == {}


def test_nothing_is_left_of_a_layer_whose_packing_fails(gpu, monkeypatch):
    def fail(*args):
        raise BuildError("no compiler")

    monkeypatch.setattr("ferrum_numba.linear.launch_plan.build", fail)
    with pytest.raises(BuildError):
        MarlinStore.from_gptq(LAYERS["act-order"])
    assert gpu.host.allocated
    assert gpu.host.memory == {}


def test_a_bf16_scale_that_fp16_lacks_fits_a_bf16_layer():
    tensors = spoilt(LAYERS["v1"], "scales", 7e4)
    assert MarlinStore.from_gptq(tensors, device="cpu", dtype="bf16").problem(1).dtype == "bf16"


def test_the_problem_of_a_store():
    problem = MarlinStore.from_gptq(LAYERS["act-order"], device="cpu").problem(7)
    assert (problem.M, problem.N, problem.K, problem.group_size) == (7, 128, 256, 64)
    assert (problem.zero_points, problem.act_order, problem.bias) == ("gptq", True, True)
    v2 = RawGptqStore.from_gptq(LAYERS["v2"], device="cpu")
    # its words are stored as v1 has them, so one kernel call serves both
    assert v2.problem(1).zero_points == "gptq"
    assert RawGptqStore.from_gptq(LAYERS["symmetric"], device="cpu").problem(1).group_size == 64
    assert MarlinStore.from_gptq(LAYERS["K is the group"], device="cpu").problem(1).group_size == -1


def test_kernels_of_a_store():
    assert choice.readers("marlin") == PACKED
    assert choice.readers("marlin", dense=True) == PACKED + DENSE
    assert choice.readers("raw") == choice.readers("raw", dense=True) == RAW


def choose(tensors, store=None, dtype="fp16"):
    return make_store([tensors], 1, store=store, device="cpu", dtype=dtype).kind


def test_packed_where_it_can_be_else_raw():
    assert choose(LAYERS["v1"]) == "marlin"
    assert choose(layer(120, 64, 24)) == "raw"


def unbalanced():
    g_idx = np.repeat(np.arange(4, dtype=np.int32), 64)
    g_idx[0] = 3
    return replace(layer(256, 64, 64), g_idx=g_idx)


def test_groups_of_unequal_size_are_not_packed():
    """Sorted rows would lie in other groups than `k // group_size` says."""
    assert choose(unbalanced()) == "raw"
    message = f"{NAME}: .* needs groups of one size; by g_idx group 0 has 63 rows, not 64"
    with pytest.raises(ProblemError, match=message):
        choose(unbalanced(), "marlin")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("rows", [slice(0, 128), slice(128, 256), slice(72, 200), slice(64, 128)])
@pytest.mark.parametrize("act_order", [True, False])
def test_rows_of_a_layer_with_all_of_its_scales(gpu, act_order, rows, device):
    """As tensor parallelism cuts them: groups of any size, whose kernels look each row up."""
    whole = layer(256, 64, 64, zeros="gptq", act_order=act_order, bias=True)
    tensors = GptqTensors.make(
        NAME, whole.qweight[rows.start // 8 : rows.stop // 8], whole.scales, whole.qzeros,
        whole.row_groups[rows], whole.bias, group_size=64,
    )  # fmt: skip
    x = activations(3, 256)[:, rows]
    linear = MarlinLinear.from_gptq(tensors, device=device)
    even = not act_order and rows.start % 64 == 0
    assert linear.store.kind == ("marlin" if even else "raw")
    zeroed = np.zeros((3, 256), x.dtype)
    zeroed[:, rows] = x
    assert_close(linear(np.ascontiguousarray(x)), reference(whole, zeroed))


@pytest.mark.parametrize(("value", "kind"), [("1", "raw"), ("true", "marlin"), ("0", "marlin")])
def test_the_environment_says_raw_by_exactly_1(monkeypatch, value, kind):
    monkeypatch.setenv("FERRUM_TRITON_INT4", value)
    assert choose(LAYERS["v1"]) == kind
    assert choose(LAYERS["v1"], "marlin") == "marlin"


def test_an_explicit_store_is_that_store():
    assert (choose(LAYERS["v1"], "raw"), choose(LAYERS["v1"], "marlin")) == ("raw", "marlin")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((layer(120, 64, 24), "marlin"),
         f"{NAME}: no store can hold it: not marlin, because marlin needs group_size in "
         "(128, 64, 32, -1); got 24, the nearest is 32"),
        ((LAYERS["v1"], "triton"), f"{NAME}: store must be \"marlin\" or \"raw\"; got 'triton'"),
        ((LAYERS["v1"], None, "fp8"), f"{NAME}: dtype must be \"fp16\" or \"bf16\"; got 'fp8'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_an_error_when_the_layer_is_made(arguments, message):
    with pytest.raises(ProblemError, match=re.escape(message)):
        choose(*arguments)


def test_what_no_store_can_hold_is_one_error_with_both_reasons(monkeypatch):
    monkeypatch.setattr(type(RAW[0]), "refuses", lambda self, problem: "it is Tuesday")
    message = "not marlin, because marlin needs group_size .*; not raw, because it is Tuesday"
    with pytest.raises(ProblemError, match=message):
        choose(layer(120, 64, 24))


def test_a_weight_of_12_columns_is_no_layer():
    with pytest.raises(ProblemError, match=f"{NAME}: qweight must have a multiple of 8 columns"):
        GptqTensors.make(NAME, np.zeros((8, 12), np.int32), np.ones((1, 12), np.float16), sym=True)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", None, -1])
def test_an_unknown_device_is_refused(device):
    with pytest.raises(DeviceError, match='a device is "cpu", "cuda", "cuda:1" or a number; got'):
        MarlinStore.from_gptq(LAYERS["v1"], device=device)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", 0, "0"])
def test_names_of_the_first_gpu(gpu, device):
    assert MarlinStore.from_gptq(LAYERS["v1"], device=device).runtime.device.index == 0


def test_a_packed_weight_of_the_host_is_made_once(monkeypatch):
    """Beside the checkpoint's words there is one copy, the layer's own."""
    made = []

    def pack(*arguments):
        made.append(marlin_weight(*arguments))
        return made[0]

    monkeypatch.setattr("ferrum_numba.linear.stores.marlin_weight", pack)
    store = MarlinStore.from_gptq(LAYERS["v1"], device="cpu")
    assert np.shares_memory(store.operands.get("packed", 0), made[0])


def test_a_raw_weight_of_the_host_is_a_copy():
    """The checkpoint's file may be gone, or the caller's array written to, while the layer runs."""
    store = RawGptqStore.from_gptq(LAYERS["v1"], device="cpu")
    assert not np.shares_memory(store.operands.get("qweight", 0), LAYERS["v1"].qweight)


def test_the_cpu_needs_no_driver(monkeypatch):
    monkeypatch.setattr("ferrum_numba.launch.device.driver", None)
    monkeypatch.setattr("ferrum_numba.linear.runtime.Device", None)
    for store in STORES:
        assert store.from_gptq(LAYERS["act-order"], device="cpu").runtime is None


def test_without_a_gpu_it_says_what_runs_on_the_cpu(monkeypatch):
    monkeypatch.setattr("ferrum_numba.gpu._driver_gpus", lambda: "there is none")
    monkeypatch.setattr("ferrum_numba.linear.runtime._runtimes", {})
    words = 'no GPU to run on: there is none; device="cpu" runs the reference on the CPU'
    with pytest.raises(DeviceError, match=words):
        MarlinStore.from_gptq(LAYERS["v1"])
