"""`warm`: a checkpoint's programs are compiled beforehand, those that are there are counted."""

import json

import numpy as np
import pytest
from host_driver import binary
from safetensors.numpy import save_file

from ferrum_numba import cli, shipped
from ferrum_numba.compile import cache
from ferrum_numba.errors import BuildError
from ferrum_numba.kernels import KERNELS

K, N = 4096, 4096
M = ("--m", "1,16")


@pytest.fixture
def model(tmp_path):
    """Write a checkpoint of two layers of a kind that was tuned for, and one that differs."""
    tensors = {}
    for name, columns in (("0.a.o_proj", N), ("1.a.o_proj", N), ("1.a.other", 1024)):
        layer = {
            "qweight": np.zeros((K // 8, columns), np.int32),
            "scales": np.ones((K // 128, columns), np.float16),
            "qzeros": np.full((K // 128, columns // 8), 0x77777777, np.int32),
        }
        tensors |= {f"{name}.{part}": values for part, values in layer.items()}
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return str(folder)


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run a command with an empty cache; return (status, stdout, stderr)."""
    monkeypatch.setenv("FERRUM_NUMBA_CACHE_DIR", str(tmp_path / "cache"))

    def run(*argv):
        status = cli.main(KERNELS, {}, argv)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def compiled(monkeypatch):
    """Return the programs that were compiled, one after the other in this process."""
    from ferrum_numba.compile import compiler

    built = []

    def build_program(program, arch, entry):
        built.append((entry, arch))
        return binary(entry, program.parameters, arch=arch)

    monkeypatch.setattr(compiler, "build_program", build_program)
    monkeypatch.setattr("ferrum_numba.compile.pool.os.cpu_count", lambda: 1)
    return built


def test_what_is_missing_is_compiled_once(run, model, compiled):
    status, out, err = run("warm", model, *M, "--gpu", "a100", "--json")
    first = json.loads(out)
    assert (status, err, first["gpu"], first["layers"]) == (0, "", "a100", 2)
    assert first["compiled"] == first["programs"] > 0
    assert first["shipped"] == first["compiled_before"] == 0
    assert len(set(compiled)) <= len(compiled) <= first["programs"]
    assert {arch for _, arch in compiled} == {"sm_80"}
    before = len(compiled)
    status, out, _ = run("warm", model, *M, "--gpu", "a100", "--json")
    again = json.loads(out)
    assert (again["compiled_before"], again["compiled"]) == (first["programs"], 0)
    assert len(compiled) == before


def test_what_ships_is_counted_and_not_compiled(run, model, compiled, monkeypatch):
    monkeypatch.delenv(shipped.ENVIRONMENT_VARIABLE)
    status, out, _ = run("warm", model, *M, "--gpu", "h200", "--json")
    facts = json.loads(out)
    assert status == 0
    assert facts["shipped"] + facts["compiled"] == facts["programs"]
    assert facts["shipped"] >= 3
    assert len(compiled) == facts["compiled"]


def test_it_says_so_in_a_line(run, model, compiled):
    _, out, _ = run("warm", model, *M, "--gpu", "a100")
    assert out.startswith("2 kinds of layers need ")
    assert "programs on NVIDIA A100-SXM4-80GB: 0 ship, 0 were compiled before, " in out


def test_it_goes_on_where_it_was_stopped(run, model, compiled, monkeypatch):
    from ferrum_numba.compile import compiler

    build = compiler.build_program

    def stop_at_the_second(*args):
        if compiled:
            raise KeyboardInterrupt
        return build(*args)

    with monkeypatch.context() as patch:
        patch.setattr(compiler, "build_program", stop_at_the_second)
        status, out, err = run("warm", model, *M, "--gpu", "a100")
    assert (status, err) == (130, "ferrum-numba: stopped; 1 program kept\n")
    assert len(list(cache.directory().glob("*.cubin"))) == 1
    _, out, _ = run("warm", model, *M, "--gpu", "a100", "--json")
    facts = json.loads(out)
    assert facts["compiled_before"] >= 1
    assert facts["compiled_before"] + facts["compiled"] == facts["programs"]


def test_one_that_does_not_compile_does_not_end_the_others(run, model, compiled, monkeypatch):
    from ferrum_numba.compile import compiler

    build = compiler.build_program

    def fail_repack(program, arch, entry):
        if entry == "repack":
            raise BuildError("repack does not compile")
        return build(program, arch, entry)

    monkeypatch.setattr(compiler, "build_program", fail_repack)
    monkeypatch.setattr(compiler, "probe", lambda: None)
    status, out, _ = run("warm", model, *M, "--gpu", "a100")
    assert status == 1
    assert out.startswith("repack: repack does not compile\n")
    assert len(compiled) >= 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nowhere"], "nowhere is not there"),
        (["MODEL", "--gpu", "h300"], "no GPU is known as 'h300'"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(run, model, argv, words):
    argv = [model if word == "MODEL" else word for word in argv]
    if "--gpu" not in argv:
        argv += ["--gpu", "a100"]
    status, out, err = run("warm", *argv)
    assert (status, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(("rows", "got"), [("70000", "70000"), ("1-99999999999", "99999999999")])
def test_more_rows_than_any_kernel_takes_are_a_mistake(run, capsys, rows, got):
    with pytest.raises(SystemExit) as ended:
        run("warm", "anywhere", "--m", rows)
    assert ended.value.code == 2
    assert f"must be at most 65536; got {got}" in capsys.readouterr().err


def test_a_checkpoint_that_is_not_quantised_is_a_mistake(run, tmp_path):
    folder = tmp_path / "plain"
    folder.mkdir()
    save_file({"a.weight": np.zeros((8, 8), np.float16)}, folder / "model.safetensors")
    config = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    status, _, err = run("warm", str(folder), "--gpu", "a100")
    assert status == 2
    assert err == f"ferrum-numba: {folder} has no quantised layer that can be loaded\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [("5-1", "5-1 ends before it begins"), ("1-", "got ''"), ("-4", "got ''"), ("1-x", "got 'x'")],
)
def test_a_range_that_is_none_is_refused(text, words, capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(KERNELS, {}, ["warm", "model", f"--m={text}"])
    assert raised.value.code == 2
    assert words in capsys.readouterr().err


@pytest.fixture
def experts_of(tmp_path):
    """Return what writes a checkpoint of a block of experts, of a model that says `model`."""

    def write(num_experts=4, **model):
        tensors = {}
        shapes = {"gate_proj": (128, 64), "up_proj": (128, 64), "down_proj": (64, 128)}
        for e in range(num_experts):
            for projection, (rows, columns) in shapes.items():
                name = f"model.layers.0.mlp.experts.{e}.{projection}"
                tensors |= {
                    f"{name}.qweight": np.zeros((rows // 8, columns), np.int32),
                    f"{name}.scales": np.ones((rows // 64, columns), np.float16),
                    f"{name}.qzeros": np.full((rows // 64, columns // 8), 0x77777777, np.int32),
                }
        folder = tmp_path / "experts"
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        config = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True}
        (folder / "config.json").write_text(json.dumps({"quantization_config": config, **model}))
        return str(folder)

    return write


AROUND = {"route_topk", "align_tokens", "grouped_decode", "combine"}


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ({"num_experts_per_tok": 2}, ()), ({"text_config": {"num_experts_per_tok": 2}}, ()),
        ({}, ("--top-k", "2")), ({"num_experts_per_tok": 9}, ("--top-k", "2")),
    ],
)  # fmt: skip
def test_experts_are_a_layer_too(run, experts_of, compiled, model, options):
    folder = experts_of(**model)
    status, out, err = run("warm", folder, *M, *options, "--gpu", "h200", "--json")
    facts = json.loads(out)
    # gate and up alike, down, both fused, and the layer
    assert (status, err, facts["layers"]) == (0, "", 4)
    assert {entry for entry, _ in compiled} >= AROUND
    assert facts["compiled"] == facts["programs"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({}, "layers of experts; config.json does not say how many a token has, --top-k does"),
        ({"num_experts_per_tok": None}, "layers of experts; config.json does not say how many"),
        ({"num_experts_per_tok": 5}, "the layer of experts of model.layers.0.mlp.experts.0."
                                     "gate_up_proj: top_k must be 1 to 4, of 4 experts; got 5"),
    ],
)  # fmt: skip
def test_experts_that_form_no_layer_are_left_out(run, experts_of, compiled, model, words):
    status, out, err = run("warm", experts_of(**model), *M, "--gpu", "h200", "--json")
    assert (status, json.loads(out)["layers"]) == (0, 3)
    assert err.startswith(f"left out: {words}")
    assert len(err.splitlines()) == 1
    assert compiled
    assert not AROUND & {entry for entry, _ in compiled}


def test_rows_are_numbers_and_ranges(run, model, monkeypatch):
    seen = {}

    def programs(weights, rows, gpu, progress, experts):
        seen["rows"] = rows
        return []

    monkeypatch.setattr("ferrum_numba.linear.needs.programs", programs)
    run("warm", model, "--m", "1, 4-6,5,9-9", "--gpu", "a100")
    assert seen["rows"] == [1, 4, 5, 6, 9]
    run("warm", model, "--gpu", "a100")
    assert seen["rows"] == list(range(1, 513))
