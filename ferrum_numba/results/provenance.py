"""Where a result comes from: machine, versions, source, date and policy."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferrum_numba.gpu import driver_cuda

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu

PACKAGES = (
    "numpy", "numba", "numba-cuda", "cuda-core", "cuda-bindings", "nvidia-nvvm",
    "nvidia-nvjitlink",
)  # fmt: skip


def environment(
    gpu: Gpu, policy: Any, command: Sequence[str], *, clocks: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what a result needs to be believed: machine, versions, source, date and policy.

    Args:
        gpu:     facts of the GPU
        policy:  dataclass of how it was measured
        command: command line, as `sys.argv`
        clocks:  MHz at the start of the run, by name
    """
    commit, dirty = source_state()
    return {
        "gpu": gpu.name,
        "uuid": gpu.uuid,
        "driver": driver_version(),
        "versions": versions(),
        "commit": commit,
        "dirty": dirty,
        "date": datetime.now(UTC).isoformat(timespec="milliseconds"),
        # by what it is called, wherever it is installed
        "command": " ".join(("ferrum-numba", *command[1:])),
        "clocks": dict(clocks or {}),
        "policy": asdict(policy),
        "gpu_facts": asdict(gpu),
    }


def versions() -> dict[str, str | None]:
    """Return the versions of everything between the source and the cubin; None: not installed."""
    cuda = driver_cuda()
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "cuda": f"{cuda[0]}.{cuda[1]}" if cuda else None,
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def driver_version() -> str | None:
    """Return the driver's version, such as 580.82.07; None where there is no driver."""
    text = ctypes.create_string_buffer(80)
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if nvml.nvmlInit_v2():
        return None
    failed = nvml.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text)))
    nvml.nvmlShutdown()
    return None if failed else text.value.decode()


def source_state() -> tuple[str | None, bool | None]:
    """Return (commit, dirty) of the checkout this file belongs to, else of FERRUM_NUMBA_COMMIT."""
    here = Path(__file__).parent
    # an installation inside somebody else's checkout must not report that one's commit
    if _git(here, "ls-files", "--error-unmatch", "provenance.py") is not None:
        commit, changes = _git(here, "rev-parse", "HEAD"), _git(here, "status", "--porcelain")
        return commit, None if changes is None else bool(changes)
    given = os.environ.get("FERRUM_NUMBA_COMMIT")
    if not given:
        return None, None
    return given.removesuffix("-dirty"), given.endswith("-dirty")


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
