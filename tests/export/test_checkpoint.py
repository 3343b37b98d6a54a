"""The problems of a checkpoint: its layers as they are stored, and those that engines fuse."""

import json
from dataclasses import replace

import numpy as np
import pytest
from quantised import layer
from safetensors.numpy import save_file

from ferrum_numba.__main__ import main
from ferrum_numba.errors import ProblemError
from ferrum_numba.export.checkpoint import checkpoint_problems
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.perf.problems import SWEEP

ATTENTION = "model.layers.0.self_attn"


def checkpoint(folder, layers, **config):
    """Write layers as a GPTQ checkpoint."""
    tensors = {}
    for one in layers:
        found = {"qweight": one.qweight, "scales": one.scales, "qzeros": one.qzeros,
                 "g_idx": one.g_idx, "bias": one.bias}  # fmt: skip
        tensors |= {f"{one.name}.{n}": array for n, array in found.items() if array is not None}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    settings = {"bits": 4, "group_size": 64, "sym": True, "desc_act": False, "quant_method": "gptq"}
    (folder / "quantize_config.json").write_text(json.dumps({**settings, **config}))
    return folder


def named(name, N, **kind):
    return layer(256, N, name=f"{ATTENTION}.{name}", **kind)


def test_layers_come_as_stored_and_fused(tmp_path):
    parts = [named("q_proj", 256), named("k_proj", 64), named("v_proj", 64), named("o_proj", 256)]
    problems = checkpoint_problems(checkpoint(tmp_path / "model", parts), [1, 16])
    # k and v are alike, and so are q and o
    assert problems == [
        W4A16Problem(M, N, 256, 64) for N in (64, 256, 384) for M in (1, 16)
    ]  # fmt: skip


def test_kinds_are_those_of_the_layers(tmp_path):
    parts = [named("o_proj", 64, bias=True, zeros="gptq")]
    folder = checkpoint(tmp_path / "model", parts, sym=False)
    assert checkpoint_problems(folder, [3]) == [
        W4A16Problem(3, 64, 256, 64, zero_points="gptq", bias=True)
    ]


def test_parts_that_differ_are_not_fused(tmp_path):
    parts = [named("q_proj", 64), named("k_proj", 64), named("v_proj", 64, act_order=True)]
    problems = checkpoint_problems(checkpoint(tmp_path / "model", parts), [1])
    assert [problem.N for problem in problems] == [64, 64]


def test_one_bias_among_parts_is_one_of_the_whole(tmp_path):
    parts = [named("q_proj", 64), named("k_proj", 64), named("v_proj", 64, bias=True)]
    problems = checkpoint_problems(checkpoint(tmp_path / "model", parts), [1])
    assert [(problem.N, problem.bias) for problem in problems][-1] == (192, True)


def test_a_layer_that_cannot_be_loaded_is_an_error(tmp_path):
    broken = named("o_proj", 64)
    folder = checkpoint(tmp_path / "model", [broken], group_size=48)
    with pytest.raises(ProblemError, match=rf"{ATTENTION}\.o_proj: "):
        checkpoint_problems(folder, [1])


def test_groups_of_several_sizes_are_an_error(tmp_path):
    """No problem says so: they would be exported as groups of one size."""
    sliced = replace(named("o_proj", 64), g_idx=np.repeat(np.arange(4, dtype=np.int32), 64))
    sliced.g_idx[:32] = 3
    folder = checkpoint(tmp_path / "model", [sliced], desc_act=True)
    with pytest.raises(ProblemError, match=r"o_proj: what is exported needs groups of one size; "):
        checkpoint_problems(folder, [1])


def test_no_layer_is_an_error(tmp_path):
    folder = checkpoint(tmp_path / "model", [named("o_proj", 64)])
    save_file({"norm.weight": np.zeros(8, np.float16)}, folder / "model.safetensors")
    with pytest.raises(ProblemError, match="has no quantised layer"):
        checkpoint_problems(folder, [1])


@pytest.mark.parametrize(("words", "rows"), [(["--m", "1,16"], {1, 16}), ([], set(SWEEP))])
def test_the_command_takes_a_checkpoint(tmp_path, monkeypatch, words, rows):
    asked = []

    def export(problems, *rest):
        asked.extend(problems)
        return {"entries": [], "gpu": {"name": "a GPU"}, "tuned": True}

    monkeypatch.setattr("ferrum_numba.export.export", export)
    folder = checkpoint(tmp_path / "model", [named("o_proj", 64)])
    command = ["ferrum-numba", "export", str(folder), "--out", str(tmp_path / "out"), *words]
    monkeypatch.setattr("sys.argv", command)
    assert main() == 0
    assert {(problem.N, problem.K) for problem in asked} == {(64, 256)}
    assert {problem.M for problem in asked} == rows
