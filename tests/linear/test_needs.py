"""What a checkpoint's layers will need is what they ask for when they run."""

from dataclasses import replace

import pytest
import shipped_driver
from host_driver import binary
from quantised import layer, rows

from ferrum_numba.errors import ProblemError
from ferrum_numba.gptq.checkpoint import LayerInfo
from ferrum_numba.gpu import KNOWN
from ferrum_numba.linear import needs
from ferrum_numba.linear.dense import MarlinLinear
from ferrum_numba.linear.select import usual_store
from ferrum_numba.linear.stores import MarlinStore, RawGptqStore
from ferrum_numba.linear.weight import Weight

H200 = KNOWN["h200"]


def silent(done, total):
    pass


def info(name, K=256, N=128, group_size=128, sym=True, act_order=False, bias=False):
    return LayerInfo(name, "gptq", K, N, group_size, sym, act_order, bias, "float16")


def described(weights):
    return [(w.name, w.K, w.N, w.symmetric, w.act_order, w.bias) for w in weights]


def test_a_kind_is_there_once_and_named_after_its_first_layer():
    layers = [info(f"model.layers.{block}.mlp.down_proj") for block in range(3)]
    layers.append(info("model.layers.3.mlp.down_proj", bias=True))
    assert described(needs.kinds(layers, "fp16")) == [
        ("model.layers.0.mlp.down_proj", 256, 128, True, False, False),
        ("model.layers.3.mlp.down_proj", 256, 128, True, False, True),
    ]


def test_projections_that_can_be_fused_are_too():
    parts = [info("a.q_proj"), info("a.k_proj", N=64), info("a.v_proj", N=64, sym=False)]
    assert ("a.qkv_proj", 256, 256, False, False, False) in described(needs.kinds(parts, "fp16"))
    assert len(needs.kinds(parts[:2], "fp16")) == 2
    assert ("gate_up_proj", 256, 256, True, False, False) in described(
        needs.kinds([info("gate_proj"), info("up_proj")], "fp16")
    )


def test_one_bias_among_parts_is_one_of_the_whole():
    parts = [info("a.gate_proj"), info("a.up_proj", bias=True)]
    assert ("a.gate_up_proj", 256, 256, True, False, True) in described(needs.kinds(parts, "fp16"))


@pytest.mark.parametrize("changes", [{"K": 512}, {"group_size": 64}, {"act_order": True}], ids=str)
def test_projections_that_differ_are_not_fused(changes):
    layers = [info("a.gate_proj"), info("a.up_proj", **changes)]
    assert [weight.name for weight in needs.kinds(layers, "fp16")] == ["a.gate_proj", "a.up_proj"]


def test_groups_of_several_sizes_need_the_raw_kernel():
    uneven = replace(info("a.x", act_order=True), uneven="group 0 has 3 rows, not 128")
    (weight,) = needs.kinds([uneven], "fp16")
    jobs = needs.programs([weight], [1, 64], H200, silent)
    assert {job.kernel.name for job in jobs} == {"w4a16_gptq"}


def test_a_layer_that_cannot_be_loaded_is_left_out():
    assert needs.kinds([LayerInfo("a", error="it is damaged")], "fp16") == []


@pytest.mark.parametrize(
    ("kind", "M"),
    [
        ({}, 1), ({}, 16), ({}, 300),
        ({"zeros": "gptq"}, 8), ({"act_order": True}, 8), ({"act_order": True}, 600),
        ({"bias": True}, 4), ({"group_size": 48}, 4),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_layer_asks_for_is_what_was_foreseen(monkeypatch, kind, M):
    asked = []

    def build(kernel, config, arch):
        asked.append((kernel.name, config))
        parameters = kernel.build(config, arch).parameters
        cubin = b".text." + kernel.name.encode() + b"\0"
        return binary(kernel.name, parameters, cubin=cubin, fingerprint=str(asked[-1]))

    shipped_driver.install(monkeypatch)
    monkeypatch.setattr("ferrum_numba.linear.launch_plan.build", build)
    tensors = layer(768, 256, **{"group_size": 128, **kind})
    MarlinLinear.from_gptq(tensors)(rows(M, 768))
    jobs = needs.programs([Weight.of(tensors, "fp16", "fused")], [M], H200, silent)
    assert {(job.kernel.name, job.config) for job in jobs} == set(asked)


def test_a_program_is_named_once():
    weight = Weight("a", 4096, 4096, 128, "fp16", False, "fused", True, False)
    jobs = needs.programs([weight], range(1, 65), H200, silent)
    assert len({(job.kernel.name, job.config) for job in jobs}) == len(jobs)
    assert {"repack", "decode", "prefill"} <= {job.kernel.name for job in jobs}
    assert {job.arch for job in jobs} == {"sm_90a"}


def test_progress_ends_with_all():
    weight = Weight("a", 4096, 4096, 128, "fp16", False, "fused", True, False)
    seen = []
    needs.programs([weight] * 2, [1], H200, lambda done, total: seen.append((done, total)))
    assert seen == [(0, 2), (1, 2), (2, 2)]


def weight(group_size=128, act_order=False):
    return Weight("a", 768, 256, group_size, "fp16", False, "fused", True, act_order)


def test_the_store_is_the_usual_one(monkeypatch):
    assert usual_store(weight()) is MarlinStore
    assert usual_store(weight(act_order=True)) is MarlinStore
    assert usual_store(weight(group_size=48)) is RawGptqStore
    monkeypatch.setenv("FERRUM_TRITON_INT4", "1")
    assert usual_store(weight()) is RawGptqStore


def test_a_weight_that_no_store_holds_is_refused(monkeypatch):
    monkeypatch.setattr("ferrum_numba.linear.choice.refusal", lambda kind, problem: f"no {kind}")
    with pytest.raises(ProblemError, match="a: no store can hold it: no raw"):
        usual_store(weight())
