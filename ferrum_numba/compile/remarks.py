"""What is likely not meant in a program that compiles: each a sentence, with its line where it can.

The linker says some of it. The rest is seen in the PTX: doubles, which no kernel of int4 weights
needs and a GPU computes slowly, and arrays that a run-time index keeps out of registers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import chain

from ferrum_numba.errors import AGAINST_DOUBLES

_WARNING = re.compile(r"^(?:ptxas )?warning *: *(?:\(C\d+\) *)?(.*)$", re.MULTILINE)
_LOSS = re.compile(r"Potential Performance Loss: (.*)$", re.MULTILINE)
_REMEDIES = {"setmaxnreg": "give the Program lto=True"}
_STACK = re.compile(r"__local_depot\d+\[(\d+)\]")
_FILE = re.compile(r'\.file\s+(\d+)\s+"([^"]+)"')
_PLACE = re.compile(r"\.loc\s+(\d+)\s+(\d+)")
_INSTRUCTION = re.compile(r"\s*(?:@!?%\w+\s+)?([a-z]\w*(?:\.\w+)+)\s")
# lines that a remark names; the others are counted
_NAMED = 4


def of_linker(log: str) -> list[str]:
    """Return what the linker remarks on a program, in its words and with the remedy known here."""
    words = dict.fromkeys(chain(_LOSS.findall(log), _WARNING.findall(log)))
    found = []
    for text in words:
        text = text.removeprefix("Potential Performance Loss: ").strip().rstrip(".")
        remedy = next((f"; {r}" for name, r in _REMEDIES.items() if name in text), "")
        found.append(f"the linker: {text}{remedy}")
    return found


def of_ptx(ptx: str, stack_bytes: int, with_lines: Callable[[], str]) -> list[str]:
    """Return what the PTX shows.

    Args:
        stack_bytes: of a thread, as the linker counts them
        with_lines:  compiles the program again, to PTX that says which source lines it is of
    """
    doubles = count_doubles(ptx)
    array = _STACK.search(ptx) if stack_bytes else None
    if not doubles and array is None:
        return []
    places = _places(with_lines())
    found = []
    if doubles:
        lines: dict[str, Counter[str]] = {}
        for place, opcode in places:
            if _is_double(opcode):
                lines.setdefault(place, Counter())[opcode] += 1
        found += [
            f"{place}: {_listed(opcodes)} in fp64; {AGAINST_DOUBLES}"
            for place, opcodes in sorted(lines.items(), key=lambda item: _order(item[0]))
        ]
    if array is not None:
        touched = dict.fromkeys(
            place for place, opcode in places if opcode.startswith(("ld.local", "st.local"))
        )
        found.append(
            f"{_some(list(touched))}: a local array lies in memory, {stack_bytes} bytes a thread, "
            "because its index is known only at run time; index it by constants, or by the "
            "counter of a loop with constant bounds"
        )
    return found


def count_doubles(ptx: str) -> int:
    """Return how many instructions of a program's PTX compute in fp64."""
    return sum(map(_is_double, _INSTRUCTION.findall(ptx)))


def _is_double(opcode: str) -> bool:
    return "f64" in opcode.split(".")[1:] and not opcode.startswith(("ld.", "st."))


def _places(ptx: str) -> list[tuple[str, str]]:
    """Return file:line and opcode of every instruction."""
    files = dict(_FILE.findall(ptx))
    found, place = [], "?"
    for line in ptx.splitlines():
        where = _PLACE.search(line)
        if where is not None:
            place = f"{files.get(where[1], '?')}:{where[2]}"
        elif (instruction := _INSTRUCTION.match(line)) is not None:
            found.append((place, instruction[1]))
    return found


def _order(place: str) -> tuple[str, int]:
    file, _, line = place.rpartition(":")
    return file, int(line) if line.isdigit() else 0


def _listed(opcodes: Counter[str]) -> str:
    count = opcodes.total()
    return f"{count} instruction{'s' * (count > 1)} ({', '.join(opcodes)})"


def _some(places: list[str]) -> str:
    more = len(places) - _NAMED
    return ", ".join(places[:_NAMED]) + (f" and {more} more lines" if more > 0 else "")
