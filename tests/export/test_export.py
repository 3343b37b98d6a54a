"""An export as a whole: its files, what they say, and what is refused."""

import errno
import json
import shutil
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from ferrum_numba import whole
from ferrum_numba.__main__ import main
from ferrum_numba.compile.link import section_bytes
from ferrum_numba.errors import BuildError, DeviceError, ProblemError, StoreError
from ferrum_numba.export import Options, export, load, make
from ferrum_numba.export.folder import new_folder
from ferrum_numba.export.layer import Layer
from ferrum_numba.export.operands import LAYOUTS
from ferrum_numba.export.programs import Programs
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.tools.add_bias import AddBias, AddBiasProblem
from ferrum_numba.kernels.w4a8 import W4A8Problem
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.linear.stages import Stage, default

GPU = KNOWN["h200"]
SMALL = W4A16Problem(2, 72, 120, 24, "gptq")


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def schema(name):
    return json.loads((files("ferrum_numba.export") / "schema" / f"{name}.json").read_text())


@pytest.fixture
def copied(exported, tmp_path):
    """Return a copy of the export, to be damaged."""
    return shutil.copytree(exported, tmp_path / "copy")


@pytest.fixture
def helpers_only(monkeypatch):
    """Let an export hold a helper that compiles in no time instead of what layers launch."""

    def dispatch(problems, decisions, programs, options):
        problem = AddBiasProblem(4, 64)
        programs.add(default(AddBias(), problem, programs.gpu))
        return {"rows": [], "repack": []}

    monkeypatch.setattr(make, "_dispatch", dispatch)


@pytest.mark.parametrize("name", ["manifest", "dispatch"])
def test_files_are_of_their_schema(exported, name):
    validator = jsonschema.Draft202012Validator
    validator.check_schema(schema(name))
    validator(schema(name)).validate(read(exported, name))


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("manifest", lambda m: m.update(schema=2)),
        ("manifest", lambda m: m["entries"][0].pop("sha256")),
        ("manifest", lambda m: m["entries"][0].update(arch="9.0")),
        ("manifest", lambda m: m["entries"][0]["parameters"][0].update(access="workspace")),
        ("manifest", lambda m: m["entries"][0].update(file="/etc/passwd")),
        ("dispatch", lambda d: d["rows"][0]["launches"][0].update(grid=["N", 1, 1])),
        ("dispatch", lambda d: d["rows"][0]["launches"][0].update(grid=[["-", 1, 2], 1, 1])),
        ("dispatch", lambda d: d["rows"][0].pop("m_last")),
        ("dispatch", lambda d: d["rows"][0]["problem"].update(store="awq")),
    ],
)
def test_a_schema_finds_what_is_wrong(exported, name, spoil):
    found = read(exported, name)
    spoil(found)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, schema(name))


def test_every_launch_names_an_entry_and_gives_it_all_it_takes(exported):
    entries = {entry["symbol"]: entry for entry in read(exported, "manifest")["entries"]}
    dispatch = read(exported, "dispatch")
    used = set()
    for row in [*dispatch["rows"], *dispatch["repack"]]:
        for launch in row["launches"]:
            entry = entries[launch["symbol"]]
            used.add(entry["symbol"])
            given = [*launch["scalars"], *launch["workspace"], *launch["buffers"]]
            assert sorted(given) == sorted(p["name"] for p in entry["parameters"])
    assert used == set(entries)


def test_an_entry_is_in_its_cubin(exported):
    for entry in read(exported, "manifest")["entries"]:
        cubin = (exported / entry["file"]).read_bytes()
        assert section_bytes(cubin, f".text.{entry['symbol']}") > 0


def test_entries_say_how_they_are_launched(exported):
    entries = {entry["kernel"]: entry for entry in read(exported, "manifest")["entries"]}
    decode = entries["decode"]
    assert decode["arch"] == "sm_90a"
    assert decode["block"] == [256, 1, 1]
    assert decode["cluster"] == [2, 1, 1]
    assert decode["programmatic"]
    assert not decode["cooperative"]
    assert decode["raise_smem_limit"]
    assert decode["smem_bytes"] > 48 << 10
    assert decode["config"]["tile_m"] == 8
    names = [parameter["name"] for parameter in decode["parameters"]]
    assert names[:7] == ["x", "packed", "scales", "zero_points", "bias", "out", "slots"]
    assert decode["parameters"][6]["before"] == decode["parameters"][6]["after"] == "zero"
    assert entries["add_bias"]["programmatic"] is False
    assert entries["add_bias"]["raise_smem_limit"] is False


def test_parameters_name_layouts_that_there_are(exported):
    manifest = read(exported, "manifest")
    assert manifest["layouts"] == dict(LAYOUTS)
    named = {p["layout"] for e in manifest["entries"] for p in e["parameters"] if "layout" in p}
    assert named <= set(LAYOUTS)


def test_an_export_holds_no_path_of_this_machine(exported):
    text = (exported / "manifest.json").read_text() + (exported / "dispatch.json").read_text()
    assert str(exported.parent) not in text
    assert "site-packages" not in text


def test_an_export_is_read_again(exported):
    manifest, dispatch = load(exported)
    assert manifest["gpu"] == {
        "key": "h200", "name": "NVIDIA H200", "arch": "sm_90a", "num_sms": 132,
    }  # fmt: skip
    assert dispatch["gpu"] == manifest["gpu"]


@pytest.mark.parametrize("name", ["manifest", "dispatch"])
def test_another_schema_is_refused_with_both_versions(copied, name):
    path = copied / f"{name}.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 7', 1))
    with pytest.raises(StoreError, match="needs schema 1, got 7"):
        load(copied)


def test_a_damaged_file_is_refused(copied):
    entry = read(copied, "manifest")["entries"][0]
    path = copied / entry["file"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=rf"{entry['symbol']}\.cubin is damaged"):
        load(copied)
    path.unlink()
    with pytest.raises(StoreError, match="cannot be read: No such file"):
        load(copied)


def test_a_gpu_that_was_never_tuned_says_so(tmp_path):
    with pytest.raises(DeviceError, match=r"A100-SXM4-80GB was never tuned.*--untuned exports"):
        export([SMALL], KNOWN["a100"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_untuned_export_is_marked(helpers_only, tmp_path):
    made = export([SMALL], KNOWN["a100"], tmp_path / "out", Options(untuned=True))
    assert made["tuned"] is False
    assert [(entry["arch"], entry["tuned"]) for entry in made["entries"]] == [("sm_80", False)]


def test_what_fails_leaves_nothing(helpers_only, monkeypatch, tmp_path):
    def fail(self, progress):
        raise BuildError("no")

    target = tmp_path / "out"
    export([SMALL], GPU, target)
    before = (target / "manifest.json").read_bytes()
    monkeypatch.setattr(Programs, "build", fail)
    with pytest.raises(BuildError):
        export([SMALL], GPU, target)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (target / "manifest.json").read_bytes() == before


def test_an_earlier_export_is_replaced(helpers_only, tmp_path):
    target = tmp_path / "out"
    export([SMALL], GPU, target, Options(vectors=True))
    export([SMALL], GPU, target)
    assert sorted(path.name for path in target.iterdir()) == [
        "cubin", "dispatch.json", "manifest.json",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (["notes.txt"], "is no earlier export: it holds notes.txt"),
        (["manifest.json", "mine"], "it holds manifest.json"),
        (["vectors"], "it holds vectors"),
    ],
)
def test_a_folder_of_somebodys_own_is_refused(tmp_path, contents, words):
    for name in contents:
        (tmp_path / name).touch()
    with pytest.raises(StoreError, match=words), new_folder(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(contents)


@pytest.mark.parametrize("text", ['{"name": "mine"}', '{"made_by": "me", "entries": []}', "[1]"])
def test_a_manifest_of_somebody_else_is_no_export(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=r"it holds manifest\.json"), new_folder(tmp_path):
        pass
    assert (tmp_path / "manifest.json").read_text() == text


def test_what_somebody_put_into_an_export_is_not_taken_away(tmp_path):
    out = tmp_path / "out"
    export([SMALL], GPU, out)
    (out / "cubin" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"it holds cubin/notes\.txt"):
        export([SMALL], GPU, out)
    assert (out / "cubin" / "notes.txt").read_text() == "mine"


def test_ctrl_c_in_the_last_moment_leaves_the_earlier_export(tmp_path, monkeypatch):
    out = tmp_path / "out"
    export([SMALL], GPU, out)
    rename = Path.rename

    def interrupted(self, target):
        rename(self, target)
        if self == out:
            raise KeyboardInterrupt

    def cannot(*names):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(Path, "rename", interrupted)
    monkeypatch.setattr(whole, "_exchange", cannot)
    with pytest.raises(KeyboardInterrupt), new_folder(out):
        pass
    monkeypatch.undo()
    load(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with new_folder(tmp_path / "link") as folder:
        (folder / "made").touch()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "made").exists()


@pytest.mark.parametrize("text", ['{"schema": 1}', '{"schema": 1, "entries": [{}]}'])
def test_a_manifest_that_lacks_something_is_damaged(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    (tmp_path / "dispatch.json").write_text('{"schema": 1}')
    with pytest.raises(StoreError, match=r"manifest\.json is damaged"):
        load(tmp_path)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(StoreError, match="out is a file; an export is a folder"):
        export([SMALL], GPU, tmp_path / "out")


def test_ptx_of_a_plain_program_is_for_later_gpus_too(helpers_only, tmp_path):
    made = export([SMALL], GPU, tmp_path / "out", Options(ptx=True))
    (entry,) = made["entries"]
    assert entry["ptx"]["later_gpus"]
    assert entry["ptx"]["arch"] == "sm_90"
    text = (tmp_path / "out" / entry["ptx"]["file"]).read_text()
    assert ".target sm_90\n" in text.replace(", ", "\n")
    assert f".entry {entry['symbol']}" in text


def test_ptx_of_one_architecture_says_so(helpers_only, monkeypatch, tmp_path):
    """As of a program with wgmma, which does not compile for sm_90."""
    monkeypatch.setattr(Programs, "build_for_later", lambda self: {})
    (entry,) = export([SMALL], GPU, tmp_path / "out", Options(ptx=True))["entries"]
    assert (entry["ptx"]["arch"], entry["ptx"]["later_gpus"]) == ("sm_90a", False)


def test_what_does_not_compile_for_later_gpus_is_left_out(monkeypatch):
    programs = Programs(GPU)
    programs.add(Stage(AddBias(), AddBiasProblem(4, 64), AddBias().configs(GPU)[0]))
    asked = []

    def build_many(jobs):
        asked.extend(job.arch for job in jobs)
        return [(job, BuildError("no")) for job in jobs]

    monkeypatch.setattr("ferrum_numba.export.programs.build_many", build_many)
    assert programs.build_for_later() == {}
    assert asked == ["sm_90"]


def test_the_same_input_gives_the_same_export(helpers_only, tmp_path):
    for name in ("a", "b"):
        export([SMALL], GPU, tmp_path / name, Options(vectors=True))
    for path in (tmp_path / "a").rglob("*.*"):
        assert (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes() == path.read_bytes()


def run(*words):
    """Return the exit status of `ferrum-numba export`."""
    import sys

    before, sys.argv = sys.argv, ["ferrum-numba", "export", *map(str, words)]
    try:
        return main()
    finally:
        sys.argv = before


def test_the_command_writes_an_export(helpers_only, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--gpu", "h200", "--problem", "h200-peers", "--m", "1,16", "--out", out) == 0
    assert capsys.readouterr().out.startswith(f"1 programs for NVIDIA H200 in {out}")
    (entry,) = read(out, "manifest")["entries"]
    assert {"symbol", "file", "arch", "parameters"} <= entry.keys()


def test_the_command_prints_json(helpers_only, tmp_path, capsys):
    assert run("--gpu", "h200", "--out", tmp_path / "out", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["out"] == str(tmp_path / "out")
    assert found["entries"][0]["kernel"] == "add_bias"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--gpu", "a100"], "was never tuned"),
        (["--gpu", "h200", "--problem", "nothing"], "no problem set is named nothing"),
        (["--gpu", "h200", "MODEL", "--problem", "llama3-8b"], "give a checkpoint or --problem"),
        (["--gpu", "h200", "MODEL"], "MODEL"),
    ],
)
def test_a_mistake_is_one_sentence(words, sentence, tmp_path, capsys):
    assert run(*words, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.startswith("ferrum-numba: ")
    assert sentence in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_layers_of_one_group_are_alike():
    whole = Layer.of(W4A16Problem(1, 64, 128, 128), None, "fused")
    assert whole == Layer.of(W4A16Problem(1, 64, 128, -1), None, "fused")


def test_problems_that_no_layer_has_are_refused_before_anything_is_written(tmp_path):
    wanted = r"layers are exported of w4a16_gemm and grouped_gemm; got W4A8Problem\(M=1, N=128"
    with pytest.raises(ProblemError, match=wanted):
        export([W4A8Problem(1, 128, 128)], KNOWN["h200"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
