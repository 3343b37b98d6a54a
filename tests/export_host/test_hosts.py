"""The hosts in C and Python on an export, with a driver of host memory in the driver's place.

What a launch would compute, the fake driver takes from the vector's `expected`; that the kernels
themselves give it, the interpreter shows in tests/export/test_vectors.py, and a GPU below.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from small_export import TYPES, tensors_of

from ferrum_numba.export.formula import evaluate

HERE = Path(__file__).parent
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
FLAGS = ("-std=gnu11", "-O1", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler on this machine")


def headers():
    """Return the folder of cuda.h: of a pip package, or of a toolkit."""
    found = [p for p in find_spec("nvidia").submodule_search_locations or () if Path(p).is_dir()]
    places = [path.parent for root in found for path in Path(root).rglob("cuda.h")]
    return next(iter(places), Path("/usr/local/cuda/include"))


def compiled(source, target, *flags):
    sources = ["-I", headers(), HERE / source, "-o", target]
    command = [COMPILER, *FLAGS, *sources, *flags, "-ldl", "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Return the folder of the C host and the driver of host memory."""
    if COMPILER is None:
        pytest.skip("no C compiler on this machine")
    folder = tmp_path_factory.mktemp("hosts")
    compiled("host.c", folder / "host")
    compiled("fake_driver.c", folder / "libcuda.so.1", "-shared", "-fPIC")
    return folder


@pytest.fixture(params=["c", "python"])
def host(request, built):
    """Return the command of a host."""
    return [built / "host"] if request.param == "c" else [sys.executable, HERE / "host.py"]


@pytest.fixture
def copied(exported, tmp_path):
    """Return a copy of the export, to be changed."""
    return shutil.copytree(exported, tmp_path / "copy")


def entries_of(folder):
    return json.loads((folder / "manifest.json").read_text())["entries"]


def write_results(folder, target):
    """Write what each launch of an export is to give, as fake_driver.c reads it."""
    target.mkdir(exist_ok=True)
    for entry in entries_of(folder):
        (record,) = entry["vectors"]
        result = tensors_of((folder / record["file"]).read_bytes())["expected"]
        data = result.astype(TYPES[record["out"]]).tobytes()
        (target / f"{entry['symbol']}.bin").write_bytes(data)
        kinds, zero = "", []
        for index, parameter in enumerate(entry["parameters"]):
            kinds += "P" if parameter["type"] == "pointer" else "U"
            if parameter.get("before") == "zero":
                zero += [index, evaluate(record["workspace"][parameter["name"]], record["M"])]
            if parameter.get("access") == "write":
                out = index
        words = [kinds, out, len(data), len(zero) // 2, *zero]
        (target / f"{entry['symbol']}.txt").write_text(" ".join(map(str, words)))
    return target


def run(host, built, folder, results, *options, **environment):
    """Run a host on an export with the fake driver."""
    paths = f"{built}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    return subprocess.run(
        [*host, folder, *options],
        env={**os.environ, "LD_LIBRARY_PATH": paths, "FAKE_CUDA": str(results), **environment},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.fixture
def results(exported, tmp_path):
    return write_results(exported, tmp_path / "results")


def test_all_entries_agree(host, built, exported, results):
    done = run(host, built, exported, results)
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    entries = entries_of(exported)
    # each runs twice: the second finds what the first left
    assert [line.split()[:2] for line in lines] == [
        ["ok", entry["symbol"]] for entry in entries for _ in range(2)
    ]
    assert last == f"{len(entries)} of {len(entries)} vectors agree on fake GPU 0"


def test_launches_are_as_the_manifest_says(host, built, exported, results):
    run(host, built, exported, results)
    lines = [line.split() for line in (results / "log").read_text().splitlines()]
    launches = {words[0]: words[1:] for words in lines if words[1] == "grid"}
    allowed = {(words[0], int(words[4])) for words in lines if words[1] == "attribute"}
    for entry in entries_of(exported):
        (record,) = entry["vectors"]
        M = record["M"]
        scalars = [p["name"] for p in entry["parameters"] if p["type"] != "pointer"]
        assert launches[entry["symbol"]] == [
            "grid", *(str(evaluate(formula, M)) for formula in record["grid"]),
            "block", *map(str, entry["block"]),
            "smem", str(entry["smem_bytes"]),
            "cluster", str(entry["cluster"][0]),
            "programmatic", str(int(entry["programmatic"])),
            "scalars", *(str(evaluate(record["scalars"][name], M)) for name in scalars),
        ]  # fmt: skip
        if entry["raise_smem_limit"]:
            assert (entry["symbol"], entry["smem_bytes"]) in allowed


def test_a_missing_reset_shows(host, built, exported, results):
    done = run(host, built, exported, results, "--no-reset")
    assert done.returncode == 1
    wrong = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("MISMATCH")}
    counted_on = {
        entry["symbol"]
        for entry in entries_of(exported)
        if any(parameter.get("before") == "zero" for parameter in entry["parameters"])
    }
    assert wrong == counted_on
    assert len(wrong) == 2


def test_a_wrong_result_shows(host, built, exported, results):
    symbol = entries_of(exported)[0]["symbol"]
    path = results / f"{symbol}.bin"
    values = np.frombuffer(path.read_bytes(), np.float16).copy()
    values[-1] += np.abs(values).max() / 100
    path.write_bytes(values.tobytes())
    done = run(host, built, exported, results)
    assert done.returncode == 1
    assert f"MISMATCH  {symbol}" in done.stdout
    values[-1] = np.nan
    path.write_bytes(values.tobytes())
    assert f"MISMATCH  {symbol}" in run(host, built, exported, results).stdout


def refused(done, sentence):
    """Assert that a host ended with one sentence before it launched anything."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    assert sentence in done.stderr
    assert done.stderr.startswith("host: ")
    assert done.stderr.count("\n") == 1


def test_another_schema_is_refused_with_both_versions(host, built, copied, results):
    path = copied / "manifest.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 7', 1))
    done = run(host, built, copied, results)
    refused(done, "this reads schema 1; the manifest has schema 7")


def test_another_architecture_is_refused(host, built, exported, results):
    done = run(host, built, exported, results, FAKE_CC="80")
    refused(done, "the cubins are for sm_90a")
    assert "sm_80" in done.stderr
    refused(run(host, built, exported, results, FAKE_CC="100"), "the cubins are for sm_90a")


def test_what_the_driver_does_not_load_is_refused(host, built, exported, results):
    done = run(host, built, exported, results, FAKE_LOAD="209")
    symbol = entries_of(exported)[0]["symbol"]
    refused(done, f"cubin/{symbol}.cubin: CUDA_ERROR_NO_BINARY_FOR_GPU")


def test_a_cubin_that_is_cut_off_is_refused(host, built, copied, results):
    path = copied / entries_of(copied)[0]["file"]
    path.write_bytes(path.read_bytes()[:-1000])
    refused(run(host, built, copied, results), f"{path.name} is damaged")


def test_a_changed_byte_is_refused_where_hashes_are_read(built, copied, results):
    path = copied / entries_of(copied)[0]["file"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = run([sys.executable, HERE / "host.py"], built, copied, results)
    refused(done, f"{path.name} is damaged: its sha256 is not the manifest's")


def test_an_export_without_vectors_is_refused(host, built, copied, results):
    manifest = json.loads((copied / "manifest.json").read_text())
    for entry in manifest["entries"]:
        del entry["vectors"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    refused(run(host, built, copied, results), "has no vectors: export with --vectors")


def test_the_c_host_is_small():
    assert len((HERE / "host.c").read_text().splitlines()) <= 300


def test_the_python_host_needs_cuda_bindings_and_numpy_alone():
    source = (HERE / "host.py").read_text()
    names = {line.split()[1].split(".")[0] for line in source.splitlines()
             if line.startswith(("import ", "from "))}  # fmt: skip
    assert names - set(sys.stdlib_module_names) == {"numpy", "cuda"}


@needs_compiler
@pytest.mark.gpu
def test_on_the_gpu(exported, built, tmp_path):
    """Both hosts on the driver of this machine; a reset that is missing shows there too."""
    for host in ([built / "host"], [sys.executable, HERE / "host.py"]):
        done = subprocess.run([*host, exported], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        done = subprocess.run([*host, exported, "--no-reset"], capture_output=True, check=False)
        assert done.returncode == 1
