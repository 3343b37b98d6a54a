"""`inspect` and `quantize`: what they print, and mistakes in one sentence."""

import json
import os
import signal
from dataclasses import dataclass
from types import SimpleNamespace

import gptq_layers as build
import numpy as np
import pytest
from safetensors.numpy import save_file
from toy_kernel import Toy

from ferrum_numba import GptqCheckpoint, cli
from ferrum_numba.cli import convert
from ferrum_numba.cli.inspect import answers
from ferrum_numba.gptq import quantize
from ferrum_numba.gptq.checkpoint import LayerInfo
from ferrum_numba.gptq.overflow import READINGS
from ferrum_numba.gptq.targets import TARGETS
from ferrum_numba.kernels import DENSE, KERNELS, LINEAR, PACKED


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder; return (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        status = cli.main((*KERNELS, Toy()), {}, argv)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def model(tmp_path, rng):
    """Write a checkpoint of 32 blocks that differ in nothing but their numbers."""
    kinds = {
        "self_attn.q_proj": build.make(rng, bias=True, sym=True),
        "mlp.up_proj": build.make(rng, N=72, group_size=16, sym=True),
        "mlp.down_proj": build.make(rng, act_order=True),
    }
    layers = {
        f"model.layers.{block}.{name}": layer.gptq()
        for block in range(32)
        for name, layer in kinds.items()
    }
    dynamic = {r".*\.31\.mlp\.up": {"bits": 8}, r".*\.up_proj": {"group_size": 16}}
    config = {"group_size": 32, "dynamic": dynamic}
    return build.write(tmp_path / "model", layers, config)


def test_inspect_prints_a_line_for_layers_of_a_kind(run, model):
    status, out, err = run("inspect", "model")
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if " model.layers.*." in line]
    assert [row[:10] for row in rows[:4]] == [
        ["32", "model.layers.*.mlp.down_proj", "gptq", "64", "64", "32", "no", "yes", "no",
         "float16"],
        ["31", "model.layers.*.mlp.up_proj", "gptq", "64", "72", "16", "yes", "no", "no",
         "float16"],
        ["32", "model.layers.*.self_attn.q_proj", "gptq", "64", "64", "32", "yes", "no", "yes",
         "float16"],
        ["1", "model.layers.*.mlp.up_proj", *["no"] * len(LINEAR)],
    ]  # fmt: skip
    # a column a kernel, in their order: the raw one first, then marlin
    assert rows[2][10:12] == ["yes", "yes"]
    assert len(rows[2]) == 10 + len(LINEAR)
    assert "96 quantised layers" in out
    # in act-order, another kernel first brings x into the order of the packed rows
    assert rows[0][10:12] == ["yes", "yes"]
    packed = ", ".join(kernel.name for kernel in PACKED if kernel.name != "prefill")
    assert f"  32 of them by {packed}" in out
    assert "on x whose columns are gathered first" in out
    assert "toy" not in out
    assert len(out.splitlines()) < 25
    # those that refuse the same layers for the same reason, together
    packed = ", ".join(kernel.name for kernel in (*PACKED, *DENSE))
    assert f"  31 of them not by {packed}: needs group_size in" in out
    assert "dynamic '.*\\\\.31\\\\.mlp\\\\.up': bits must be 4; got 8" in out


def test_inspect_prints_every_layer_for_programs(run, model):
    status, out, _ = run("inspect", str(model / "model.safetensors"), "--json")
    rows = json.loads(out)
    assert (status, len(rows)) == (0, 96)
    by_name = {row["name"]: row for row in rows}
    row = by_name["model.layers.7.mlp.down_proj"]
    said = row.pop("kernels")
    assert row == {
        "name": "model.layers.7.mlp.down_proj", "format": "gptq", "K": 64, "N": 64,
        "group_size": 32, "sym": False, "act_order": True, "bias": False, "dtype": "float16",
        "error": None, "experts": None, "uneven": None,
    }  # fmt: skip
    assert (said["w4a16_gptq"], said["marlin"]) == ("yes", "yes, on gathered x")
    assert {*said} == {kernel.name for kernel in LINEAR}
    assert "bits must be 4" in by_name["model.layers.31.mlp.up_proj"]["error"]


@pytest.mark.parametrize("sym", [True, False])
def test_the_kernel_is_asked_for_the_layer_as_it_is(sym):
    @dataclass(frozen=True)
    class Problem:
        M: int
        N: int
        K: int
        group_size: int
        zero_points: str
        act_order: bool
        bias: bool
        dtype: str = "fp16"

    asked = []
    kernel = SimpleNamespace(
        name="k", op=SimpleNamespace(problem=Problem), refuses=lambda p: asked.append(p) or "no"
    )
    layers = [
        LayerInfo("x", stored_as, 64, 72, 32, sym, False, True, dtype)
        for stored_as in ("gptq", "gptq_v2", "gemm")
        for dtype in ("float16", "bfloat16", "float32")
    ]
    assert [answers(layer, [kernel]) for layer in layers] == [{"k": "no"}] * 9
    v1, v2 = ("none", "none") if sym else ("gptq", "gptq_v2")
    assert asked == [
        Problem(1, 72, 64, 32, zero_points, False, True, dtype)
        for zero_points in (v1, v2, v2)
        for dtype in ("fp16", "bf16", "fp16")
    ]


def test_a_problem_that_cannot_be_is_the_kernels_answer():
    layer = LayerInfo("x", "gptq", 64, 12, 32, True, False, False, "float16")
    said = answers(layer, LINEAR)
    assert all(reason.startswith("N must be a multiple of 8") for reason in said.values())


def test_groups_of_several_sizes_are_the_raw_kernel_s(run, tmp_path, rng):
    layer = build.make(rng, act_order=True, sym=True)
    layer.group[layer.group.argmax()] = 0
    build.write(tmp_path / "model", {"x": layer.gptq()}, {"group_size": 32})
    (row,) = json.loads(run("inspect", "model", "--json")[1])
    said = "group 0 has 33 rows, not 32"
    assert row["uneven"] == said
    refusal = f"needs groups of one size; by g_idx {said}"
    others = dict.fromkeys((kernel.name for kernel in (*PACKED, *DENSE)), refusal)
    assert row["kernels"] == {"w4a16_gptq": "yes"} | others


def test_inspect_without_a_quantised_layer(run, tmp_path):
    (tmp_path / "quantize_config.json").write_text('{"bits": 4}')
    save_file({"x.weight": np.zeros((8, 8), np.float16)}, tmp_path / "model.safetensors")
    assert run("inspect", ".")[:2] == (0, ". has no quantised layer\n")
    assert json.loads(run("inspect", ".", "--json")[1]) == []


@pytest.fixture
def source(tmp_path, rng):
    """Write a model of two layers and a head."""
    names = ("model.layers.0.q_proj", "model.layers.1.q_proj", "lm_head")
    tensors = {f"{n}.weight": rng.standard_normal((64, 128), np.float32) for n in names}
    (tmp_path / "source").mkdir()
    save_file(tensors, tmp_path / "source/model.safetensors")
    return tmp_path / "source"


def test_quantize_says_what_it_did(run, source, tmp_path):
    status, out, err = run("quantize", "source", "target")
    assert (status, err) == (0, "")
    assert out == "target has 2 quantised layers\n  kept 1: the head, such as lm_head\n"
    with GptqCheckpoint.open(tmp_path / "target") as checkpoint:
        (first, _) = checkpoint.layers()
    assert (first.format, first.group_size, first.sym) == ("gptq", 128, True)


def test_every_option_of_quantize_counts(run, source, tmp_path):
    options = ("--group-size", "-1", "--asym", "--format", "gptq_v2", "--include-lm-head", "--json")
    status, out, _ = run("quantize", "source/model.safetensors", "target", *options)
    made = json.loads(out)
    assert status == 0
    assert (len(made["layers"]), made["kept"], made["target"]) == (3, {}, "target")
    with GptqCheckpoint.open(tmp_path / "target") as checkpoint:
        infos = checkpoint.layers()
    assert {(i.format, i.group_size, i.sym) for i in infos} == {("gptq_v2", 128, False)}
    assert run("inspect", "target")[0] == 0


def test_quantize_keeps_what_it_is_told_to(run, source, tmp_path):
    options = ("--include", "^lm", "--exclude", r"\.0\.", "--exclude", "head")
    status, out, _ = run("quantize", "source", "target", *options)
    assert status == 0
    assert out == (
        "target has 1 quantised layer\n"
        "  kept 1: excluded by 'head', such as lm_head\n"
        "  kept 1: excluded by '\\\\.0\\\\.', such as model.layers.0.q_proj\n"
    )
    with GptqCheckpoint.open(tmp_path / "target") as checkpoint:
        assert checkpoint.names == ["model.layers.1.q_proj"]
        assert checkpoint.config.for_layer("model.layers.0.q_proj") is None
    status, out, err = run("quantize", "source", "again", "--exclude", "mlp")
    assert (status, out) == (2, "")
    assert err == "ferrum-numba: exclude 'mlp' is found in no name of a matrix\n"


def test_convert_says_what_it_did(run, source, tmp_path):
    run("quantize", "source", "quantised")
    status, out, err = run("convert", "quantised", "awq", "--to", "awq")
    assert (status, err) == (0, "")
    assert out == "awq has 2 layers as awq, and 1 other tensor unchanged\n"
    status, out, _ = run("convert", "awq", "again", "--to", "compressed-tensors", "--json")
    made = {"target": "again", "format": "compressed-tensors", "layers": 2, "others": 1}
    assert (status, json.loads(out)) == (0, made)
    with GptqCheckpoint.open(tmp_path / "again") as checkpoint:
        assert [info.format for info in checkpoint.layers()] == ["pack-quantized"] * 2
    assert {*convert.FORMATS} == {*TARGETS}
    assert {*convert.READINGS} == {*READINGS}


def test_convert_asks_what_a_15_means(run, tmp_path, rng):
    layer = build.make(rng, sym=True)
    layer.zeros[0, 5] = 0
    build.write(tmp_path / "model", {"x": layer.gptq()}, {"group_size": 32})
    status, out, err = run("convert", "model", "v2", "--to", "gptq_v2")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("ferrum-numba: x: 1 of 128 stored zero points are 15, which is read as")
    assert err.endswith('say so, or "wrap" or "sixteen" (--zero-overflow)\n')
    assert run("convert", "model", "v2", "--to", "gptq_v2", "--zero-overflow", "wrap")[0] == 0
    assert run("convert", "model", "v1", "--to", "awq", "--zero-overflow", "carry")[0] == 0
    status, _, err = run("convert", "v1", "marlin", "--to", "marlin")
    assert status == 2
    assert err == (
        "ferrum-numba: x: a Marlin checkpoint holds zero points of 8; this layer has others\n"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"model", "v2", "v1"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["inspect", "nowhere"],
            "nowhere is not there; it must be a folder or a .safetensors file",
        ),
        (["inspect", "source"], "source has no quantize_config.json and no config.json with a"),
        (["inspect", "cut.safetensors"], "cut.safetensors is damaged: "),
        (["quantize", "nowhere", "target"], "nowhere is not there; it must be a folder or"),
        (["quantize", "source", "source"], "source is there already; the target must be a new"),
        (["quantize", "source", "no/target"], "no/target cannot be written: No such file"),
        (["quantize", "cut.safetensors", "target"], "cut.safetensors is damaged: "),
        (["convert", "nowhere", "target", "--to", "awq"], "nowhere is not there; it must be a"),
        (["convert", "source", "target", "--to", "awq"], "source has no quantize_config.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_and_status_2(run, source, tmp_path, argv, words):
    content = (source / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:-1])
    status, out, err = run(*argv)
    assert (status, out) == (2, "")
    assert err.startswith(f"ferrum-numba: {words}")
    assert err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"source", "cut.safetensors"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_quantize_leaves_nothing(run, source, tmp_path, monkeypatch, number):
    def stopped(*args):
        os.kill(os.getpid(), number)
        raise AssertionError("the signal is handled before the next line")

    monkeypatch.setattr(quantize, "quantize_weight", stopped)
    status, out, err = run("quantize", "source", "target")
    assert (status, out) == (130, "")
    assert err == "ferrum-numba: stopped; nothing half-written is kept\n"
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_stopped_convert_leaves_nothing(run, source, tmp_path, monkeypatch):
    run("quantize", "source", "quantised")

    def stopped(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal is handled before the next line")

    monkeypatch.setattr(GptqCheckpoint, "linear", stopped)
    status, out, err = run("convert", "quantised", "target", "--to", "gptq_v2")
    assert (status, out) == (130, "")
    assert err == "ferrum-numba: stopped; nothing half-written is kept\n"
    assert {path.name for path in tmp_path.iterdir()} == {"source", "quantised"}


def test_who_handles_sigterm_keeps_it(run, source, monkeypatch):
    ours = []
    before = signal.signal(signal.SIGTERM, lambda *args: ours.append(args))
    try:
        monkeypatch.setattr(
            quantize, "copy_rest", lambda *args: os.kill(os.getpid(), signal.SIGTERM)
        )
        assert run("quantize", "source", "target")[0] == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(ours) == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["quantize", "a", "b", "--group-size", "0"], "must be -1 or a whole number of at least 1"),
        (["quantize", "a", "b", "--group-size", "-2"], "at least 1; got '-2'"),
        (["quantize", "a", "b", "--group-size", "--1"], "--group-size: expected one argument"),
        (["quantize", "a", "b", "--group-size", "x"], "of at least 1; got 'x'"),
        (["quantize", "a", "b", "--format", "awq"], "--format: invalid choice: 'awq'"),
        (["quantize", "a"], "the following arguments are required: TARGET"),
        (["convert", "a", "b"], "the following arguments are required: --to"),
        (["convert", "a", "b", "--to", "gguf"], "--to: invalid choice: 'gguf'"),
        (["quantize", "", "b"], "SOURCE: must not be empty"),
        (["inspect", ""], "FILE|FOLDER: must not be empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_value_is_refused_before_anything_runs(argv, words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(KERNELS, {}, argv)
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
