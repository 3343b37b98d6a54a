"""`ferrum-numba doctor`: what is here, what is missing, and the command that brings it."""

from __future__ import annotations

import argparse
import sysconfig
from importlib import metadata
from typing import Any

from ferrum_numba import __version__, gpu, shipped
from ferrum_numba.cli.output import print_json
from ferrum_numba.cli.session import Session
from ferrum_numba.cli.tables import print_table
from ferrum_numba.errors import DeviceError, ToolchainError

# what is missing or wrong, and the command that brings it
Lack = dict[str, str]
HELP = "what is here: GPU, driver, versions, what is missing and the command that brings it"
# 13.0 needs it; an older driver runs CUDA 12
DRIVER_COMMAND = "install NVIDIA driver 580 or newer"
DISASSEMBLER = "nvidia-cuda-nvdisasm"
# whose arrays and streams a kernel takes; never needed
NEIGHBOURS = ("torch", "cupy-cuda13x", "cupy-cuda12x")
CANNOT_COMPILE = 1
NO_RUN = "kernels cannot be run here"
ONLY_INTERPRET = f"{NO_RUN}: `check` interprets their source on the CPU"
ONLY_COMPILE = f"{ONLY_INTERPRET}, `plan` compiles them for any GPU"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing but what the exit status means: it looks at everything."""
    parser.epilog = (
        "Exit status 0: what is installed works; without numba that is all but compiling and "
        "interpreting, without a GPU all but running. 1: numba is installed and compiles nothing."
    )


def run(session: Session) -> int:
    """Print what is here; the exit status says whether what is installed works."""
    facts = examine()
    if session.args.json:
        print_json(facts)
    else:
        _print(facts)
    # without the extra `compile` nothing was to be compiled here
    broken = facts["versions"]["numba"] and not facts["can_compile"]
    return CANNOT_COMPILE if broken else 0


def examine() -> dict[str, Any]:
    """Return what is here, as `--json` prints it.

    Where no kernel can be compiled, the first of what is missing says why.
    """
    from ferrum_numba import results

    found = results.versions()
    beside = {name: _version(name) for name in NEIGHBOURS}
    versions = {"ferrum-numba": __version__, **found, DISASSEMBLER: _version(DISASSEMBLER)}
    versions |= {name: version for name, version in beside.items() if version}
    cache_dir, lack = _compiler()
    board, no_gpu = _gpu()
    return {
        "gpu": board,
        "driver": results.driver_version(),
        "versions": versions,
        "cache_dir": cache_dir,
        "shipped": shipped.programs(),
        "can_compile": lack is None,
        "can_run": not no_gpu,
        "notes": _notes(found.get("nvidia-nvvm"), found.get("cuda")),
        "missing": _missing(lack, no_gpu, versions),
    }


def newer(compiler: str | None, driver: str | None) -> bool:
    """Tell whether a compiler's CUDA version is newer than the driver's; unknown is not newer."""
    return bool(compiler and driver) and _minor(compiler or "") > _minor(driver or "")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _compiler() -> tuple[str, Lack | None]:
    """Compile a kernel of one line; return the folder of compiled kernels, and what is wrong."""
    from ferrum_numba.compile import cache

    try:
        from ferrum_numba.compile import probe

        probe()
    except ToolchainError as error:
        return str(cache.directory()), {"what": error.what, "command": error.command}
    return str(cache.directory()), None


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
    return [*_notes_on_python(), *_notes_on_cuda(nvvm, driver)]


def _notes_on_python() -> list[str]:
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        return []
    return [
        "this Python is built without the GIL: numba-cuda and safetensors have no wheels for it; "
        "take the usual build of 3.11 to 3.14"
    ]


def _notes_on_cuda(nvvm: str | None, driver: str | None) -> list[str]:
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


def _missing(no_compiler: Lack | None, no_gpu: str, versions: dict[str, str | None]) -> list[Lack]:
    from ferrum_numba.launch import cublas

    found = [no_compiler] if no_compiler else []
    if no_gpu:
        found.append({"what": no_gpu, "command": DRIVER_COMMAND})
    if not no_gpu and cublas.library() is None:
        what = "cuBLAS, for kernels that leave a dense product to it"
        found.append({"what": what, "command": "pip install nvidia-cublas"})
    if not versions[DISASSEMBLER]:
        what = "nvdisasm, for the mix of a cubin's machine instructions"
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
        ("compiled kernels that ship", _counts(facts["shipped"])),
    ]
    print_table([{"what": what, "here": here} for what, here in rows], ("what", "here"))
    for note in facts["notes"]:
        print(note)
    _print_verdicts(facts)


def _print_verdicts(facts: dict[str, Any]) -> None:
    can_compile, missing = facts["can_compile"], list(facts["missing"])
    broken = {} if can_compile else missing.pop(0)
    for lack in missing:
        print(f"missing: {lack['what']}; {lack['command']}")
    if can_compile:
        print("kernels can be compiled here")
    else:
        print(f"kernels cannot be compiled here: {broken['what']}; {broken['command']}")
    if facts["can_run"]:
        print("kernels can be run here")
    elif can_compile:
        print(ONLY_COMPILE)
    else:
        print(ONLY_INTERPRET if facts["versions"]["numba"] else NO_RUN)


def _counts(shipped: dict[str, int]) -> str:
    return ", ".join(f"{count} for {arch}" for arch, count in shipped.items()) or "none"
