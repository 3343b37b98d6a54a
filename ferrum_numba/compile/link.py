"""PTX or LTO-IR to cubin with nvJitLink, and what its log says of the result."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from cuda.bindings import nvjitlink

from ferrum_numba.compile.remarks import of_linker
from ferrum_numba.errors import BuildError

OPTIONS = ["-O3", "-verbose"]
LTO_OPTIONS = [*OPTIONS, "-lto"]

_UNDEFINED = (
    "it calls a function that is not linked, as numba does for arithmetic of float16; use float32, "
    "or the f16x2 instructions of ferrum_numba.ptx"
)

# what the system keeps of a block's shared memory since sm_90; the linker counts it as the kernel's
RESERVED_SMEM_BYTES = 1024

# what a cubin's .nv.info tells of a function: 4-byte words behind 4 bytes of form, kind and size
_SIZED, _REGISTERS, _FRAME = 4, 0x2F, 0x11


@dataclass(frozen=True)
class Linked:
    """A cubin and its resources a thread (registers, spills, stack) and a block (shared memory).

    remarks: what the linker says of the code besides
    """

    cubin: bytes
    registers: int
    spill_bytes: int
    stack_bytes: int
    static_smem_bytes: int
    remarks: tuple[str, ...] = ()


def link(ptx: str, entry: str, arch: str) -> Linked:
    """Link PTX into a cubin for an architecture.

    Raises:
        BuildError: nvJitLink refuses the PTX; its words are in the message
    """
    cubin, log = _link(nvjitlink.InputType.PTX, ptx.encode(), entry, arch)
    return _linked(cubin, log, entry, entry, arch)


def link_ltoir(ltoir: bytes, entry: str, arch: str) -> Linked:
    """Link LTO-IR into a cubin, whose only kernel is then called `entry`.

    Raises:
        BuildError: nvJitLink refuses the LTO-IR; its words are in the message
    """
    cubin, log = _link(nvjitlink.InputType.LTOIR, ltoir, entry, arch)
    found = re.search(rb"\.text\.(\w+)\0", cubin)
    assert found is not None, "a kernel's cubin has a section of its code"
    # LTO-IR is no text that could be renamed before; names end at their first zero
    cubin = cubin.replace(found[1], entry.encode().ljust(len(found[1]), b"\0"))
    return _linked(cubin, log, entry, found[1].decode(), arch)


def _linked(cubin: bytes, log: str, entry: str, logged_as: str, arch: str) -> Linked:
    # nvJitLink 13.0 was seen to leave none, then and ever after in that process, of sixteen at once
    if log:
        registers, spill_bytes, stack_bytes = read_log(log, logged_as, arch)
    else:
        registers, stack_bytes = read_info(cubin)
        spill_bytes = stack_bytes
    smem_bytes = _static_smem_bytes(cubin, entry, arch)
    remarks = tuple(of_linker(log))
    return Linked(cubin, registers, spill_bytes, stack_bytes, smem_bytes, remarks)


def read_log(log: str, entry: str, arch: str) -> tuple[int, int, int]:
    """Return registers, spill bytes and stack bytes, in either of the linker's two wordings.

    The short one, which nvJitLink 13.0 uses from its second link on in a process that holds a CUDA
    context, gives local memory in place of spills. The kernels here index no local array at run
    time, so local memory is spills.
    """
    registers = re.search(r"[Uu]sed (\d+) registers", log)
    long = re.search(rf"properties for {entry}\n\D*(\d+) bytes stack frame", log)
    short = re.search(r"(\d+) stack, .*\b(\d+) bytes lmem", log)
    if registers is None or (long is None and short is None):
        raise BuildError(f"{entry}: nvJitLink's log for {arch} tells no registers: {log!r}")
    if long is None:
        assert short is not None
        return int(registers[1]), int(short[2]), int(short[1])
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    return int(registers[1]), sum(int(s) + int(l) for s, l in spills), int(long[1])


def _link(kind: nvjitlink.InputType, source: bytes, entry: str, arch: str) -> tuple[bytes, str]:
    """Return nvJitLink's cubin and log; a link that ends well may leave none."""
    options = LTO_OPTIONS if kind == nvjitlink.InputType.LTOIR else OPTIONS
    handle = nvjitlink.create(1 + len(options), [f"-arch={arch}", *options])
    try:
        nvjitlink.add_data(handle, kind, source, len(source), entry)
        nvjitlink.complete(handle)
        cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
        log = _text(nvjitlink.get_info_log_size, nvjitlink.get_info_log, handle)
    except nvjitlink.nvJitLinkError as error:
        words = _text(nvjitlink.get_error_log_size, nvjitlink.get_error_log, handle) or str(error)
        if "Undefined reference" in words:
            words = f"{_UNDEFINED} ({' '.join(words.split())})"
        if kind == nvjitlink.InputType.PTX:
            words += _refused_line(source.decode(), words)
        raise BuildError(f"{entry} does not link for {arch}: {words}") from error
    finally:
        nvjitlink.destroy(handle)
    return bytes(cubin), log


def _refused_line(ptx: str, words: str) -> str:
    """Return the text of the first line that ptxas names, by whose template it is known."""
    found = re.search(r"\bline (\d+)", words)
    lines = ptx.splitlines()
    if found is None or not 1 <= int(found[1]) <= len(lines):
        return ""
    return f" (line {found[1]} is `{lines[int(found[1]) - 1].strip()}`)"


def _text(size: Callable[[int], int], read: Callable[[int, bytearray], None], handle: int) -> str:
    buffer = bytearray(size(handle))
    read(handle, buffer)
    return buffer.decode(errors="replace").replace("\0", "").strip()


def _static_smem_bytes(cubin: bytes, entry: str, arch: str) -> int:
    """Return the shared memory a kernel declares, from the cubin: logs disagree on what it is."""
    size = section_bytes(cubin, f".nv.shared.{entry}")
    hopper_or_later = int(re.sub(r"\D", "", arch)) >= 90
    return max(0, size - RESERVED_SMEM_BYTES) if hopper_or_later else size


def read_info(cubin: bytes) -> tuple[int, int]:
    """Return the registers and the local memory that a cubin's functions need at most.

    Local memory is spills, as in the linker's short log.
    """
    offset, size = _section(cubin, ".nv.info")
    end, found = offset + size, {_REGISTERS: 0, _FRAME: 0}
    while offset < end:
        form, kind, length = struct.unpack_from("<BBH", cubin, offset)
        offset += 4
        if form == _SIZED:
            if kind in found:
                _, value = struct.unpack_from("<II", cubin, offset)
                found[kind] = max(found[kind], value)
            offset += length
    return found[_REGISTERS], found[_FRAME]


def section_bytes(elf: bytes, name: str) -> int:
    """Return the size of a section of a 64-bit ELF file, 0 if it has none of that name."""
    return _section(elf, name)[1]


def _section(elf: bytes, name: str) -> tuple[int, int]:
    """Return where a section begins and its size, (0, 0) if there is none of that name."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry_size, count, names = struct.unpack_from("<HHH", elf, 0x3A)

    # name, type, flags, address, offset, size
    sections = [struct.unpack_from("<IIQQQQ", elf, table + i * entry_size) for i in range(count)]
    strings = sections[names][4]
    wanted = name.encode() + b"\0"
    for name_offset, _, _, _, offset, size in sections:
        if elf.startswith(wanted, strings + name_offset):
            return offset, size
    return 0, 0
