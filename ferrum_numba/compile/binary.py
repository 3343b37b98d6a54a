"""A compiled kernel and what the linker said about it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ferrum_numba.compile.sass import instruction_mix
from ferrum_numba.contract import Parameter


@dataclass(frozen=True)
class Binary:
    """A cubin, the PTX it came from, and what it needs of a GPU.

    entry:             the kernel's symbol in cubin and PTX
    registers:         a thread, before the allocation granularity
    spill_bytes:       spill stores + spill loads in the code, bytes a thread
    static_smem_bytes: declared in the kernel, without what the system reserves
    smem_bytes:        dynamic shared memory a block, asked for at launch
    fingerprint:       sha256 of everything that decided the code (of the PTX, where the function
                       refers to something that cannot be fingerprinted)
    build_s:           seconds the build took when it was made
    remarks:           what is likely not meant, a sentence each: of the linker, doubles, stack
    """

    cubin: bytes
    ptx: str
    entry: str
    arch: str
    registers: int
    spill_bytes: int
    stack_bytes: int
    static_smem_bytes: int
    smem_bytes: int
    num_threads: int
    cluster: tuple[int, int, int]
    parameters: tuple[Parameter, ...]
    fingerprint: str
    build_s: float
    remarks: tuple[str, ...] = ()

    @cached_property
    def sass(self) -> dict[str, int] | None:
        """Instructions by opcode (HMMA, LDG ...), None without nvdisasm; counted when asked for.

        nvdisasm takes a third of a second, as long as a small kernel's whole build.
        """
        return instruction_mix(self.cubin)
