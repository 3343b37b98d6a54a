"""wgmma in the text of longer instructions, whose twins compute at once: fences and waits.

The twin of an instruction that begins products, and reads their sums, is NumPy and has no
registers. So its text is followed instead, line by line: which registers products in flight work
in, and which were written since the last `wgmma.fence`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

_REGISTER = re.compile(r"<[\w.]+>|%?[A-Za-z_]\w*")
_PRODUCT, _WAIT = "wgmma.mma_async", "wgmma.wait_group"
_BRACES = re.compile(r"\{([^{}]*)\}")
# first operands that are read
_READS_FIRST = ("st.", "stmatrix", "bra", "red.", "bar.")


@cache
def fault_of(text: str) -> str | None:
    """Return what is wrong with the products in the text of an instruction, or None.

    The sums that it is given, `<d...>`, may still be computed when it begins.
    """
    if _WAIT not in text or text.lstrip().startswith(_WAIT):
        # a single product is held against the fence as it is executed, a wait is a wait
        return None
    given = set(re.findall(r"<d\.\d+>", text))
    groups = [given]
    begun: set[str] = set()
    sums = set(given)
    written: set[str] = set()
    fenced = False
    for line in _statements(text):
        if line.startswith("wgmma.fence"):
            fenced, written = True, set()
        elif line.startswith("wgmma.commit_group"):
            groups.append(begun)
            begun = set()
        elif line.startswith(_WAIT):
            pending = int(line.split()[1])
            groups = groups[len(groups) - pending :] if pending else []
        elif line.startswith(_PRODUCT):
            fault = _product(line, fenced, written)
            if fault is not None:
                return fault
            results, fragments = _vectors(line)
            begun |= results | fragments
            sums |= results
        else:
            reads, writes = _registers(line)
            running = begun.union(*groups)
            used = (reads & running & sums) | (writes & running)
            if used:
                return (
                    f"has `{line}`, which uses {sorted(used)[0]} of products that may still run; "
                    "missing: wgmma.wait_group before it"
                )
            written |= writes
    return None


def _product(line: str, fenced: bool, written: set[str]) -> str | None:
    results, fragments = _vectors(line)
    late = sorted((results | fragments) & written)
    if late or not fenced:
        what = f"whose register {late[0]} was written" if late else "that no fence precedes"
        return f"begins a product {what}; missing: wgmma.fence before it"
    return None


def _statements(text: str) -> Iterator[str]:
    for statement in text.replace("\n", " ").split(";"):
        line = statement.strip().lstrip("{").strip().rstrip("}").strip() if statement else ""
        line = re.sub(r"^(\w+:\s*)+", "", line)
        if line and not line.startswith("."):
            # `@p ld.shared ...` may be executed
            yield re.sub(r"^@!?\w+\s+", "", line)


def _vectors(line: str) -> tuple[set[str], set[str]]:
    """Return the registers of the sums, and those of operand A where it is not in memory."""
    found = [set(_REGISTER.findall(part)) for part in _BRACES.findall(line)]
    return found[0] if found else set(), found[1] if len(found) > 1 else set()


def _registers(line: str) -> tuple[set[str], set[str]]:
    """Return the registers that an ordinary instruction reads, and those that it writes."""
    opcode, _, rest = line.partition(" ")
    first, _, others = _first_operand(rest)
    names, more = set(_REGISTER.findall(first)), set(_REGISTER.findall(others))
    if opcode.startswith(_READS_FIRST) or first.lstrip().startswith("["):
        return names | more, set()
    return more, names


def _first_operand(rest: str) -> tuple[str, str, str]:
    rest = rest.strip()
    if rest.startswith("{"):
        first, _, others = rest.partition("}")
        return first, ",", others
    return rest.partition(",")
