"""Checkpoints that somebody made to do harm: each is refused in one sentence, at once."""

import json
import os
import struct
import time

import gptq_layers as build
import pytest
from safetensors.numpy import save_file

from ferrum_numba.errors import CheckpointError, FerrumError
from ferrum_numba.gptq.checkpoint import GptqCheckpoint
from ferrum_numba.gptq.config import GptqConfig
from ferrum_numba.gptq.files import INDEX, MOST_EXPERTS, TensorFiles
from ferrum_numba.gptq.quantize import quantize_checkpoint
from ferrum_numba.gptq.writing import copy_rest

CONFIG = {"bits": 4, "group_size": 32}
MODEL, QUANT = "model.safetensors", "quantize_config.json"


def refused(path):
    """Return the sentence in which a checkpoint is refused; it took no second."""
    began = time.process_time()
    with pytest.raises(CheckpointError) as error:
        GptqCheckpoint.open(path)
    assert time.process_time() - began < 1
    assert "\n" not in str(error.value)
    return str(error.value).replace(f"{path}/", "")


def with_header(folder, header, data=b""):
    """Write a file of this header beside a config."""
    text = json.dumps(header).encode()
    (folder / MODEL).write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / QUANT).write_text(json.dumps(CONFIG))
    return folder


def entry(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("name", [QUANT, MODEL, INDEX, "config.json"])
@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_named(tmp_path, rng, name, what):
    folder = build.write(tmp_path, {"x": build.make(rng).gptq()}, CONFIG)
    (folder / name).unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(folder / name)
    elif what == "device":
        (folder / name).symlink_to("/dev/zero")
    else:
        (folder / name).mkdir()
    kind = {"pipe": "a named pipe", "device": "a device", "folder": "a folder"}[what]
    assert refused(folder) == f"{name} cannot be read: it is {kind}, no file"


def test_a_shard_that_is_a_pipe_is_named(tmp_path, rng):
    shards = {f"{i}.safetensors": {f"x.{i}": build.make(rng).gptq()} for i in range(2)}
    folder = build.write_sharded(tmp_path, shards, CONFIG)
    (folder / "1.safetensors").unlink()
    os.mkfifo(folder / "1.safetensors")
    assert refused(folder) == "1.safetensors cannot be read: it is a named pipe, no file"


def test_a_config_that_is_too_large_is_not_read(tmp_path, rng):
    folder = build.write(tmp_path, {"x": build.make(rng).gptq()}, CONFIG)
    os.truncate(folder / QUANT, 1 << 40)
    assert "it has 1,099,511,627,776 bytes, and such a file 67,108,864 at most" in refused(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a":' * 65 + "1" + "}" * 65, "nested more than 64 deep"),
        ('{"a":' * 50_000, "nested more than 64 deep"),
        ('{"bits": ' + "9" * 5000 + "}", "a number of 5,000 digits"),
        ('{"bits": ' + "9" * 400 + "}", "a number of 400 digits"),
        ('{"quant_method": "\\ud800"}', "surrogates not allowed"),
        ('{"bits": ["' + "x" * 10**6 + '"]}', "bits must be a whole number; got"),
    ],
    ids=["66 deep", "50,000 deep", "5,000 digits", "400 digits", "half a character", "long"],
)
def test_a_config_of_such_json_is_refused(tmp_path, rng, text, words):
    folder = build.write(tmp_path, {"x": build.make(rng).gptq()}, CONFIG)
    (folder / QUANT).write_text(text)
    found = refused(folder)
    assert words in found
    assert len(found) < 400


def test_numbers_that_others_tools_write_are_read(tmp_path, rng):
    folder = build.write(tmp_path, {"x": build.make(rng).gptq()}, CONFIG)
    (folder / "config.json").write_text('{"time_step_limit": [0.0, Infinity], "eps": NaN}')
    assert GptqCheckpoint.open(folder).names == ["x"]


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (entry([10**300, "x"], [0, 16]), "is damaged: "),
        (entry([10**30, 10**30], [0, 16]), "no dimension of a file's is below 0 or above"),
        (entry([1] * 65, [0, 4]), "tensor a is wrong: shape: expected array of length <= 32"),
        (entry([2**62, 0], [0, 0]), "tensor a is wrong: shape[0]: expected int <= 2814749767106"),
    ],
    ids=["mixed", "huge", "65 dimensions", "none of many"],
)
def test_sizes_that_no_file_has(tmp_path, tensor, words):
    data = bytes(tensor["data_offsets"][1])
    assert words in refused(with_header(tmp_path, {"a": tensor}, data))


def test_the_metadata_may_look_like_a_tensor(tmp_path):
    metadata = {"shape": "a text", "format": "pt"}
    with_header(tmp_path, {"__metadata__": metadata, "a": entry([4], [0, 16])}, bytes(16))
    assert TensorFiles.open(tmp_path).read("a").tolist() == [0, 0, 0, 0]


def test_names_are_of_bounded_length(tmp_path):
    with_header(tmp_path, {"n" * 10_000: entry([4], [0, 16])}, bytes(16))
    assert refused(tmp_path) == f"{MODEL} is damaged: expected str of length <= 8192"


def test_tensors_without_elements_of_any_shape(tmp_path):
    with_header(tmp_path, {"a": entry([2**40, 0, 2**40], [0, 0])})
    files = TensorFiles.open(tmp_path)
    for read in (files.read, files.outline):
        with pytest.raises(CheckpointError, match="tensor a cannot be"):
            read("a")


def test_a_stack_of_more_experts_than_any_model_has_is_refused(tmp_path):
    with_header(tmp_path, {"x.qweight": entry([2**40, 0, 8], [0, 0], "I32")})
    with GptqCheckpoint.open(tmp_path) as checkpoint:
        (info,) = checkpoint.layers()
    assert info.error.endswith(f"1,099,511,627,776 experts; {MOST_EXPERTS:,} are read at most")


def test_a_stack_whose_tensors_are_of_fewer_experts(tmp_path, rng):
    layer = build.make(rng).gptq()
    tensors = {f"x.{part}": array[None].repeat(3, 0) for part, array in layer.items()}
    tensors["x.scales"] = tensors["x.scales"][:2]
    save_file(tensors, tmp_path / MODEL)
    (tmp_path / QUANT).write_text(json.dumps(CONFIG))
    with GptqCheckpoint.open(tmp_path) as checkpoint:
        (info,) = checkpoint.layers()
    assert "tensor x.scales is [2, " in info.error
    assert info.error.endswith("has no expert 2")


def test_numbers_of_experts_are_not_counted_out(tmp_path, rng):
    layer = build.make(rng).gptq()
    names = ("e.0.g", "e.999999999999.g", f"e.{'9' * 900}.g")
    checkpoint = GptqCheckpoint.open(build.write(tmp_path, dict.fromkeys(names, layer), CONFIG))
    with pytest.raises(CheckpointError, match=r"no quantised layers of e\.1$"):
        checkpoint.experts("e.{e}", ["g"])


@pytest.mark.parametrize("where", ["file", "folder", "parent", "name", "long", "nul", "up"])
def test_an_index_does_not_lead_out_of_its_folder(tmp_path, rng, where):
    outside = build.write(tmp_path / "a", {"x": build.make(rng).gptq()}, CONFIG) / MODEL
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / QUANT).write_text(json.dumps(CONFIG))
    name = {"name": str(outside), "up": f"../a/{MODEL}", "long": "n" * 5000, "nul": "a\0b"}.get(
        where, "linked"
    )
    if where == "file":
        (folder / "linked").symlink_to(outside)
    elif where == "folder":
        (folder / "linked").symlink_to(outside.parent)
    elif where == "parent":
        (folder / "linked").symlink_to("..")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x.qweight": name}}))
    assert refused(folder).endswith("which is no file here")


def test_a_folder_of_hugging_faces_cache_has_its_files_elsewhere(tmp_path, rng):
    folder, blobs = tmp_path / "models--a" / "snapshots" / "0f", tmp_path / "models--a" / "blobs"
    shards = {f"{i}.safetensors": {f"x.{i}": build.make(rng).gptq()} for i in range(2)}
    folder.mkdir(parents=True)
    blobs.mkdir()
    build.write_sharded(folder, shards, CONFIG)
    for i, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(i))
        path.symlink_to(f"../../blobs/{i}")
    assert GptqCheckpoint.open(folder).names == ["x.0", "x.1"]


HARD = {
    "again and again": (r"(a|a)*$", "takes too long to match names"),
    "of what may be none": (r"(?:(?:a?){30}){30}a{30}c", "takes too long to match names"),
    "deep": ("(" * 1000 + ")" * 1000, "nested too deep"),
    "many": ("(?:a{1000}){1000}", "repeats more than 100,000 times"),
    "more": (f"a{{{'9' * 4000}}}", "repeats more than 100,000 times"),
    "long": ("a" * 10_000, "has a pattern of 10,00"),
    "mistakes": ("(?:abc){e<=1}", "{e<=1} is no repetition of Python's"),
    "no pattern": ("(", "is no pattern of names"),
}  # fmt: skip


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize(
    "config",
    [
        lambda pattern: {"dynamic": {f"-:{pattern}": {}}},
        lambda pattern: {"extra_config": {f"{pattern}|b": {"bits": 16}}},
        lambda pattern: {"config_groups": {}, "ignore": [f"re:{pattern}"]},
    ],
    ids=["dynamic", "extra_config", "ignore"],
)
def test_a_pattern_is_matched_in_bounded_time(config, case):
    pattern, words = HARD[case]
    began = time.process_time()
    with pytest.raises(CheckpointError) as error:
        GptqConfig.parse(config(pattern)).rule("a" * 64 + "b")
    assert words in str(error.value)
    assert time.process_time() - began < 2


def test_once_too_long_is_enough_for_all_layers():
    config = GptqConfig.parse({"dynamic": {r"-:(a|a)*$": {}}})
    began = time.process_time()
    for _ in range(1000):
        with pytest.raises(CheckpointError, match="takes too long"):
            config.rule("a" * 64 + "b")
    assert time.process_time() - began < 2


def test_patterns_mean_what_they_mean_to_python():
    config = GptqConfig.parse(
        {"dynamic": {r"-:^(?!.*experts).*_proj$": {}, r"\S+\.\d{1,3}\.(?:q|k)$": {"bits": 8}}}
    )
    assert config.rule("model.layers.0.up_proj").changes is None
    assert config.rule("model.experts.0.up_proj") is None
    assert config.rule("model.layers.12.q").changes == {"bits": 8}


def test_rules_by_name_are_found_at_once():
    names = {f"model.layers.{i}.mlp.gate": {"bits": 16} for i in range(10_000)}
    began = time.process_time()
    config = GptqConfig.parse({"extra_config": {**names, r".*up\b": {"bits": 4}}})
    assert all(config.rule(name).changes is None for name in names)
    assert config.rule("a.up").changes == {"bits": 4}
    assert time.process_time() - began < 2


def test_what_else_is_copied_does_not_come_from_elsewhere(tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    target.mkdir()
    (source / "tokenizer.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(CheckpointError, match=r"a/tokenizer\.json leads out of its folder"):
        copy_rest(source, target)
    (source / "tokenizer.json").unlink()
    os.mkfifo(source / "tokenizer.json")
    (source / "vocab.txt").write_text("a")
    copy_rest(source, target)
    assert [path.name for path in target.iterdir()] == ["vocab.txt"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(CheckpointError, match=r"cannot be read: Permission denied$"):
        TensorFiles.open(tmp_path)


def test_an_unreadable_source_is_not_called_an_unwritable_target(tmp_path, rng, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    save_file({"a.weight": rng.standard_normal((64, 64)).astype("f2")}, source / MODEL)

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(FerrumError, match=rf"source/{MODEL} cannot be read: Input/output error$"):
        quantize_checkpoint(source, tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
