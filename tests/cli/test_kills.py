"""Commands that cannot print, and commands that are killed at any time."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from result_rows import make_environment, make_row
from safetensors.numpy import save_file

from ferrum_numba import whole
from ferrum_numba.gptq.checkpoint import GptqCheckpoint
from ferrum_numba.report.sources import Sources
from ferrum_numba.report.writer import write
from ferrum_numba.results import ResultFile

COMMAND = (sys.executable, "-m", "ferrum_numba")
SUPPORT = Path(__file__).parent.parent / "support"


def started(argv, folder, **options):
    """Start a command whose caches, locks and temporary files are in a folder."""
    environment = {
        **os.environ, "TMPDIR": str(folder / "tmp"),
        "FERRUM_NUMBA_CACHE_DIR": str(folder / "cache"),
        "PYTHONPATH": str(SUPPORT),
    }  # fmt: skip
    (folder / "tmp").mkdir(exist_ok=True)
    return subprocess.Popen([*COMMAND, *argv], cwd=folder, env=environment, **options)


@pytest.mark.parametrize("where", ["full", "closed", "closed stderr", "full --json"])
def test_what_cannot_be_printed_is_one_sentence(tmp_path, where):
    redirect = {"full": "> /dev/full", "closed": ">&-", "closed stderr": ">&- 2>&-"}
    words = "list" if "json" not in where else "list --json"
    command = f"'{sys.executable}' -m ferrum_numba {words} {redirect.get(where, '> /dev/full')}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    said = {
        "closed": "ferrum-numba: nothing can be printed: stdout is closed\n", "closed stderr": "",
    }.get(where, "ferrum-numba: stdout cannot be written: No space left on device\n")  # fmt: skip
    assert (done.stdout, done.stderr) == ("", said)


def source_of(folder):
    rng = np.random.default_rng(0)
    (folder / "source").mkdir()
    tensors = {f"layers.{i}.up_proj.weight": rng.standard_normal((256, 256)) for i in range(8)}
    save_file({n: t.astype("f2") for n, t in tensors.items()}, folder / "source/model.safetensors")


def report_of(folder):
    rows = [make_row(M=m, us=10.0 + m) for m in (1, 16)]
    write(folder / "first", Sources(files=[ResultFile(make_environment(), rows)]))


def quantised(folder):
    with GptqCheckpoint.open(folder / "target") as checkpoint:
        assert len(checkpoint.layers()) == 8


def reported(folder):
    """The pages that people read are replaced last: all that they name is there."""
    assert (folder / "out/report.html").read_text().rstrip().endswith("</html>")
    for path in (folder / "out").glob("*.json"):
        json.loads(path.read_text())
    for path in (folder / "out").glob("*.svg"):
        assert path.read_text().rstrip().endswith("</svg>")


def exported(folder):
    from ferrum_numba.export.folder import load

    load(folder / "out")


def planned(folder):
    from ferrum_numba.results.file import load_json

    load_json(folder / "out/manifest.json", 1)


AXPY = ("--kernels", "faulty", "--problem", "n=64")
SMALL = ("--problem", "M=1,N=64,K=128", "--store", "raw", "--out", "out")
# a command -> what makes its inputs, its result, and what says that this is whole
KILLED = {
    "quantize": (("quantize", "source", "target"), source_of, "target", quantised),
    "report": (
        ("report", "--from", "first/report.json", "--out", "out"),
        report_of,
        "out/report.html",
        reported,
    ),
    "check": (("check", "faulty", *AXPY), lambda folder: None, None, lambda folder: None),
    "plan": (("plan", "faulty", *AXPY, "--out", "out"), lambda folder: None, "out", planned),
    "export": (("export", *SMALL), lambda folder: None, "out", exported),
}


def ends(argv, folder):
    """Run a command to its end; return its seconds."""
    began = time.monotonic()
    process = started(argv, folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said, _ = process.communicate()
    assert process.returncode in (0, 1), said
    return time.monotonic() - began


def litter(folder):
    """Return what no command should leave: names of what was not whole, and temporary folders."""
    parts = [str(path) for path in folder.rglob("*") if whole.ENDING in path.name]
    return parts + [str(path) for path in (folder / "tmp").iterdir()]


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("quantize", 3),
        *(
            pytest.param(name, int(os.environ.get("KILLS", "200")), marks=pytest.mark.slow)
            for name in KILLED
        ),
    ],
)
def test_a_command_may_be_killed_at_any_time(tmp_path, name, kills):
    argv, make, result, check = KILLED[name]
    make(tmp_path)
    takes_s = ends(argv, tmp_path)
    check(tmp_path)
    if name != "quantize":
        # what is compiled once is there then
        takes_s = ends(argv, tmp_path)
    rng, killed = random.Random(7), 0
    for i in range(kills):
        # a folder that is new, or that is there
        if result and (i % 2 or name == "quantize"):
            shutil.rmtree(tmp_path / Path(result).parts[0], ignore_errors=True)
        process = started(argv, tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # most of the time goes into imports; what is written comes last
        time.sleep(takes_s * rng.triangular(0.2, 1.1, 0.95))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        if result and (tmp_path / result).exists() and name != "plan":
            check(tmp_path)
    if name == "quantize":
        shutil.rmtree(tmp_path / result, ignore_errors=True)
    ends(argv, tmp_path)
    check(tmp_path)
    assert litter(tmp_path) == []
    assert killed > kills / 4
