"""What a cubin is made of: its instructions by opcode, where nvdisasm is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from functools import cache

from cuda import pathfinder

from ferrum_numba import whole

# "        /*0a30*/              @!P0 LDG.E.128 R4, ..." -> LDG
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", re.MULTILINE)


@cache
def nvdisasm() -> str | None:
    """Return the path of nvdisasm, from a wheel, a toolkit or the PATH, None without one."""
    return pathfinder.find_nvidia_binary_utility("nvdisasm") or shutil.which("nvdisasm")


def instruction_mix(cubin: bytes) -> dict[str, int] | None:
    """Return how often each opcode stands in the code, most frequent first, None without nvdisasm.

    An opcode is counted without its modifiers (LDG.E.128 is LDG); a loop body counts once; NOP,
    which pads the end of the code, does not count.
    """
    code = disassembly(cubin)
    if code is None:
        return None
    opcodes = (opcode for opcode in INSTRUCTION.findall(code) if opcode != "NOP")
    return dict(Counter(opcodes).most_common())


def disassembly(cubin: bytes) -> str | None:
    """Return a cubin's code as text, None where no nvdisasm is installed or it is too old."""
    tool = nvdisasm()
    if tool is None:
        return None
    with whole.scratch() as folder:
        path = folder / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run([tool, "-c", str(path)], capture_output=True, text=True, check=False)
    # an older nvdisasm does not read a newer cubin
    return done.stdout if done.returncode == 0 else None
