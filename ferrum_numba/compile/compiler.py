"""From a kernel's Python function to PTX and a cubin, with no GPU and no driver.

numba-cuda makes the PTX, and LTO-IR where a program asks for it; nvJitLink makes the cubin. What
numba puts into the PTX that changes from one compilation to the next (mangled names with a counter)
is renamed, so the same input gives the same text.
"""

from __future__ import annotations

import hashlib
import re
import time
import traceback
from contextlib import nullcontext
from dataclasses import replace
from math import prod
from typing import Any

from cuda.bindings.nvvm import nvvmError
from numba import cuda
from numba.core.errors import NumbaError as CoreError
from numba.cuda import compiler, types
from numba.cuda.core.compiler_lock import global_compiler_lock
from numba.cuda.core.errors import NumbaError
from numba.cuda.cudadrv.nvvm import CompilationUnit

from ferrum_numba.arguments import refuses_names
from ferrum_numba.compile import cache, link
from ferrum_numba.compile.binary import Binary
from ferrum_numba.compile.fingerprint import Unknown, function_fingerprint
from ferrum_numba.compile.frontend import front_end, source_lines
from ferrum_numba.compile.refusals import sentence
from ferrum_numba.compile.remarks import of_ptx
from ferrum_numba.compile.toolchain import broken, toolchain
from ferrum_numba.compile.versions import versions
from ferrum_numba.contract import Config, Kernel, Program, pointers
from ferrum_numba.errors import BuildError, ToolchainError

# every toolchain has it
PROBED_ARCH = "sm_80"
NUMBA_TYPES = {"pointer": types.uint64, "uint32": types.uint32, "int32": types.int32}

# what numba's front end is seen to raise for a kernel it cannot compile; RuntimeError includes its
# unsupported architectures and missing libraries
FRONT_END_ERRORS = (
    NumbaError, CoreError, nvvmError, RuntimeError, TypeError, AssertionError, KeyError,
    AttributeError,
)  # fmt: skip


def build(kernel: Kernel, config: Config, arch: str, *, use_cache: bool = True) -> Binary:
    """Compile one config of a kernel, or take it from the disk cache.

    Raises:
        BuildError:     it does not compile; the compiler's words are in the message; or its
                        function has its program's parameters in another order
        ToolchainError: no kernel compiles here
        ConfigError:    from the kernel, for a config that contradicts itself
    """
    program = kernel.build(config, arch)
    entry = entry_name(kernel.name)
    refusal = refuses_names(program)
    if refusal is not None:
        raise BuildError(refusal)
    key = _key(program, arch, entry)
    if key is None:
        # better built again every time than taken for something it is not
        return _built(program, arch, entry)
    if use_cache and (cached := cache.load(key)):
        return cached
    binary = replace(_built(program, arch, entry), fingerprint=cache.digest(key))
    if use_cache:
        cache.store(key, binary)
    return binary


def probe() -> None:
    """Compile a kernel of one line to a cubin, past the cache; needs no GPU.

    Raises:
        ToolchainError: it does not compile: what is wrong with the compilers here
    """
    try:
        toolchain()
        ptx = compile_ptx(Program(_probed, pointers("out"), 32), PROBED_ARCH, "probe")
        link.link(ptx, "probe", PROBED_ARCH)
    except ToolchainError:
        raise
    except Exception as error:
        # packages that do not go together raise whatever comes first
        raise broken(error) from error


def _probed(out: int) -> None:
    cuda.syncthreads()


def program_fingerprint(kernel: Kernel, config: Config, arch: str) -> str | None:
    """Return what a config's binary will be known by, None if its program cannot be known.

    Configs that differ only in how they are launched have the same.
    """
    key = _key(kernel.build(config, arch), arch, entry_name(kernel.name))
    return key and cache.digest(key)


def portable_key(kernel: Kernel, config: Config, arch: str) -> str:
    """Return what decides a config's binary, as it is on every machine: without names of files.

    Raises:
        Unknown: its program cannot be fingerprinted
    """
    inputs = _inputs(kernel.build(config, arch), arch, entry_name(kernel.name))
    return cache.key({**inputs, "toolchain": versions()})


def build_program(program: Program, arch: str, entry: str | None = None) -> Binary:
    """Compile a program, past the cache; the entry is named after its function by default."""
    start = time.perf_counter()
    entry = entry or entry_name(program.function.__name__)
    numbas_ptx, ltoir = _compile(program, arch, entry, program.lto)
    ptx = _rename(numbas_ptx, entry)
    if ltoir is None:
        linked = link.link(ptx, entry, arch)
    else:
        linked = link.link_ltoir(ltoir, entry, arch)
    seen = of_ptx(
        ptx, linked.stack_bytes, lambda: _compile(program, arch, entry, lto=False, lines=True)[0]
    )
    return Binary(
        cubin=linked.cubin,
        ptx=ptx,
        entry=entry,
        arch=arch,
        registers=linked.registers,
        spill_bytes=linked.spill_bytes,
        stack_bytes=linked.stack_bytes,
        static_smem_bytes=linked.static_smem_bytes,
        smem_bytes=program.smem_bytes,
        num_threads=program.num_threads,
        cluster=program.cluster,
        parameters=program.parameters,
        fingerprint=hashlib.sha256(ptx.encode()).hexdigest(),
        build_s=time.perf_counter() - start,
        remarks=(*linked.remarks, *seen),
    )


def _built(program: Program, arch: str, entry: str) -> Binary:
    """Build a program, and say of a failure whether it is the program's or the machine's."""
    try:
        return build_program(program, arch, entry)
    except Exception:
        probe()
        raise


def compile_ptx(program: Program, arch: str, entry: str) -> str:
    """Return the program's PTX for an architecture, with `entry` as its symbol."""
    return _rename(_compile(program, arch, entry, lto=False)[0], entry)


def _compile(
    program: Program, arch: str, entry: str, lto: bool, lines: bool = False
) -> tuple[str, bytes | None]:
    """Return the PTX with numba's symbols, and the LTO-IR where it is asked for.

    lines: whether the PTX says which source line each instruction is of

    Nearly all of the time goes into numba's front end. `cuda.compile` runs it for one of the two;
    what it calls leaves a library that gives both.
    """
    capability = compute_capability(arch)
    if prod(program.cluster) > 1 and capability[0] < 9:
        raise BuildError(f"{entry} runs in clusters of {program.cluster} blocks, {arch} has none")
    signature = types.void(*(NUMBA_TYPES[p.kind] for p in program.parameters))
    known = source_lines() if lines else nullcontext()
    with global_compiler_lock, front_end(capability), known:
        try:
            library, _ = compiler._compile_pyfunc_with_fixup(
                program.function, signature, device=False, abi="numba", cc=capability,
                launch_bounds=_launch_bounds(program), debug=False, opt=True, lineinfo=lines,
            )  # fmt: skip
            (ptx,) = library.get_asm_strs(cc=capability)
            ltoir = library.get_ltoir(cc=capability) if lto else None
        except FRONT_END_ERRORS as error:
            words = f"{sentence(error)} {_nvvm_log(error)}".strip()
            raise BuildError(f"{entry} does not compile for {arch}: {words}") from error
    return ptx, ltoir


def compute_capability(arch: str) -> tuple[int, int] | tuple[int, int, str]:
    """Return numba's form of an architecture: `sm_90a` is (9, 0, "a")."""
    match = re.fullmatch(r"sm_(\d+)(\d)([af]?)", arch)
    if match is None:
        raise BuildError(f"an architecture looks like sm_80, sm_90a or sm_120; got {arch!r}")
    major, minor, suffix = int(match[1]), int(match[2]), match[3]
    return (major, minor, suffix) if suffix else (major, minor)


def entry_name(name: str) -> str:
    """Return a kernel's name as a PTX identifier."""
    return re.sub(r"\W", "_", name)


def _key(program: Program, arch: str, entry: str) -> str | None:
    try:
        return cache.key(_inputs(program, arch, entry))
    except Unknown:
        return None


def _inputs(program: Program, arch: str, entry: str) -> dict[str, Any]:
    """Return everything that decides a program's binary, as plain data."""
    return {
        "function": function_fingerprint(program.function),
        "parameters": [[p.name, p.kind] for p in program.parameters],
        "num_threads": program.num_threads,
        "min_blocks_per_sm": program.min_blocks_per_sm,
        "smem_bytes": program.smem_bytes,
        "cluster": list(program.cluster),
        "entry": entry,
        "arch": arch,
        "link_options": link.LTO_OPTIONS if program.lto else link.OPTIONS,
        "toolchain": toolchain(),
    }


def _launch_bounds(program: Program) -> tuple[int, ...]:
    bounds = (program.num_threads, program.min_blocks_per_sm)
    blocks = prod(program.cluster)
    # the shape of the cluster is a launch attribute; the code only needs its largest size
    return bounds if blocks == 1 else (*bounds, blocks)


def _nvvm_log(error: BaseException) -> str:
    """Return libNVVM's log, which numba drops: its owner is still alive in the traceback."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        unit = frame.f_locals.get("self")
        if isinstance(unit, CompilationUnit):
            return str(unit.get_log())
    return ""


def _rename(ptx: str, entry: str) -> str:
    """Replace numba's symbols, whose names hold a counter, by the entry's name and numbers."""
    # a host-side environment pointer that no GPU code reads
    ptx = re.sub(r"(?m)^\.common .*\b_ZN08NumbaEnv\w+;\n", "", ptx)
    found = re.search(r"\.entry (\w+)", ptx)
    assert found is not None, "a kernel's PTX has an entry"
    mangled = found[1]
    names: dict[str, str] = {}

    def stable(match: re.Match[str]) -> str:
        symbol = match[0]
        if symbol.startswith(mangled):
            return entry + symbol.removeprefix(mangled)
        return names.setdefault(symbol, f"{entry}_{len(names)}")

    return re.sub(r"\b_(?:Z|cudapy_)[\w$]+", stable, ptx)
