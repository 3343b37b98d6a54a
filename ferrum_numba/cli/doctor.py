"""`ferrum-numba doctor`: what is here, what is missing, and the command that brings it."""

from __future__ import annotations

import argparse
from importlib import metadata
from typing import Any

from ferrum_numba import __version__, gpu
from ferrum_numba.cli.output import print_json, print_table
from ferrum_numba.cli.session import Session
from ferrum_numba.errors import BuildError, DeviceError

HELP = "what is here: GPU, driver, versions, what is missing and the command that brings it"
# 13.0 needs it; an older driver runs CUDA 12
DRIVER_COMMAND = "install NVIDIA driver 580 or newer"
DISASSEMBLER = "nvidia-cuda-nvdisasm"
# whose arrays and streams a kernel takes; never needed
NEIGHBOURS = ("torch", "cupy-cuda13x", "cupy-cuda12x")
CANNOT_COMPILE = 1
NO_RUN = (
    "kernels cannot be run here: `check` interprets their source on the CPU, `plan` compiles them "
    "for any GPU"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: it looks at everything."""


def run(session: Session) -> int:
    """Print what is here; the exit status says whether kernels can be compiled."""
    facts = examine()
    if session.args.json:
        print_json(facts)
    else:
        _print(facts)
    return 0 if facts["can_compile"] else CANNOT_COMPILE


def examine() -> dict[str, Any]:
    """Return what is here, as `--json` prints it."""
    from ferrum_numba import results

    found = results.versions()
    beside = {name: _version(name) for name in NEIGHBOURS}
    versions = {"ferrum-numba": __version__, **found, DISASSEMBLER: _version(DISASSEMBLER)}
    versions |= {name: version for name, version in beside.items() if version}
    cache_dir, no_compiler = _compiler()
    board, no_gpu = _gpu()
    return {
        "gpu": board,
        "driver": results.driver_version(),
        "versions": versions,
        "cache_dir": cache_dir,
        "can_compile": not no_compiler,
        "can_run": not no_gpu,
        "notes": _notes(found.get("nvidia-nvvm"), found.get("cuda")),
        "missing": _missing(no_compiler, no_gpu, versions),
    }


def newer(compiler: str | None, driver: str | None) -> bool:
    """Tell whether a compiler's CUDA version is newer than the driver's; unknown is not newer."""
    return bool(compiler and driver) and _minor(compiler or "") > _minor(driver or "")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _compiler() -> tuple[str | None, str]:
    """Return the folder of compiled kernels, and why none can be compiled."""
    try:
        from ferrum_numba.compile import cache, toolchain
    except ModuleNotFoundError as error:
        return None, f"the package {error.name} is missing"
    try:
        toolchain.toolchain()
    except BuildError as error:
        return str(cache.directory()), str(error)
    return str(cache.directory()), ""


def _gpu() -> tuple[dict[str, Any] | None, str]:
    """Return the GPU's facts, and why kernels cannot be run."""
    try:
        board = gpu.live()
    except DeviceError as error:
        return None, str(error)
    return {
        "name": board.name,
        "arch": board.arch,
        "num_sms": board.num_sms,
        "dram_gib": board.dram_bytes / 2**30,
        "uuid": board.uuid,
    }, ""


def _notes(nvvm: str | None, driver: str | None) -> list[str]:
    if not newer(nvvm, driver):
        return []
    if _minor(nvvm or "")[0] > _minor(driver or "")[0]:
        return [
            f"NVVM {nvvm} compiles for a newer CUDA than the driver's {driver}: "
            "pip install 'numba-cuda[cu12]', or a newer driver"
        ]
    return [
        f"NVVM {nvvm} is newer than the driver's CUDA {driver}: cubins, which are what is launched "
        "and exported here, run on it; PTX does not"
    ]


def _missing(
    no_compiler: str, no_gpu: str, versions: dict[str, str | None]
) -> list[dict[str, str]]:
    from ferrum_numba.launch import cublas

    found = []
    if no_compiler:
        found.append({"what": no_compiler, "command": "pip install 'numba-cuda[cu13]'"})
    if no_gpu:
        found.append({"what": no_gpu, "command": DRIVER_COMMAND})
    if not no_gpu and cublas.library() is None:
        what = "cuBLAS, for kernels that leave a dense product to it"
        found.append({"what": what, "command": "pip install nvidia-cublas"})
    if not versions[DISASSEMBLER]:
        what = "nvdisasm, for the mix of machine instructions in a plan"
        found.append({"what": what, "command": f"pip install {DISASSEMBLER}"})
    return found


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _print(facts: dict[str, Any]) -> None:
    board, versions = facts["gpu"], dict(facts["versions"])
    rows = [
        ("GPU", f"{board['name']} ({board['arch']}, {board['num_sms']} SMs)" if board else "none"),
        ("driver", facts["driver"] or "none"),
        ("the driver's CUDA", versions.pop("cuda") or "none"),
        *((name, version or "not installed") for name, version in versions.items()),
        ("compiled kernels in", facts["cache_dir"]),
    ]
    print_table([{"what": what, "here": here} for what, here in rows], ("what", "here"))
    for note in facts["notes"]:
        print(note)
    for lack in facts["missing"]:
        print(f"missing: {lack['what']}; {lack['command']}")
    print(f"kernels can{'' if facts['can_compile'] else 'not'} be compiled here")
    print("kernels can be run here" if facts["can_run"] else NO_RUN)
