"""Plant faults in copies of the shipped kernels, one a run, and tell which `check` finds.

    python -m ferrum_numba.perf.faults            # all of them, a table in Markdown
    python -m ferrum_numba.perf.faults decode     # of one kernel

A fault is found where a case of perf/fault_cases.py fails that passes without it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ferrum_numba.perf.fault_list import FAULTS, Fault

# folder of the tree -> place below the copied package
FOLDERS = {"ferrum_numba": ".", "kernels": "kernels", "reference": "reference", "perf": "perf"}
ROOT = Path(__file__).resolve().parent.parent
# what the child says of the first case that fails
SAYS = "found: "
_CHILD = (
    "import sys\n"
    "from ferrum_numba.perf import fault_cases\n"
    "for case in fault_cases.cases(sys.argv[1]):\n"
    "    found = fault_cases.run(case, 2)\n"
    f"    if not found.ok: sys.exit({SAYS!r} + found.reason)\n"
)
# where a reason says a line, and what it says of a race
_LINE = re.compile(r"kernels/([\w/]+\.py:\d+)")
_KIND = re.compile(
    r"(read|write)-after-(read|write)|deadlock|may still be computed|which nobody has written"
    r"|asynchronous copy is still writing|the launch before|missing: a barrier|missing: [\w.]+"
    r"|other bits|rel_error"
)


def copy_tree(to: Path) -> Path:
    """Copy the package's sources; return the copied package."""
    package = to / "ferrum_numba"
    for folder, place in FOLDERS.items():
        source = ROOT / folder
        for path in source.rglob("*.py"):
            target = package / place / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return package


def plant(package: Path, fault: Fault) -> tuple[Path, str]:
    """Put a fault into the copied kernels; return the file and what it was."""
    path = package / "kernels" / fault.file
    text = path.read_text()
    path.write_text(planted(text, fault))
    return path, text


def planted(text: str, fault: Fault) -> str:
    """Return the text of a file with a fault in it."""
    place = text.find(fault.after)
    if place < 0 or fault.old not in text[place:]:
        raise SystemExit(f"{fault.file} has no {fault.old!r} any more: {fault.name}")
    return text[:place] + text[place:].replace(fault.old, fault.new, fault.times)


def found(to: Path, kernel: str) -> str | None:
    """Return why the first case of a kernel in a copied tree fails, or None if none does."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, kernel],
        capture_output=True, text=True, check=False, cwd=to, env={"PYTHONPATH": str(to)},
    )  # fmt: skip
    if done.returncode == 0:
        return None
    _, says, reason = done.stderr.partition(SAYS)
    return reason if says else "raised: " + done.stderr.strip().splitlines()[-1]


def row(fault: Fault, reason: str | None) -> str:
    """Return a fault's row of the table."""
    how = f"no fault: {fault.harmless}" if fault.harmless else "**not found**"
    if reason is not None:
        kind = _KIND.search(reason)
        lines = ", ".join(dict.fromkeys(_LINE.findall(reason)))
        how = f"{kind.group(0) if kind else 'refused'}: {lines or 'no line'}"
    return f"| {fault.kernel} | {fault.kind} | {fault.name} | {how} |"


def main(arguments: Sequence[str]) -> int:
    """Run all faults, or those of some kernels; 1 where one is not found."""
    chosen = [fault for fault in FAULTS if not arguments or fault.kernel in arguments]
    missed = 0
    print("| kernel | kind | fault | found |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder)
        package = copy_tree(to)
        for kernel in dict.fromkeys(fault.kernel for fault in chosen):
            reason = found(to, kernel)
            if reason is not None:
                raise SystemExit(f"{kernel} fails without a fault: {reason}")
        for fault in chosen:
            path, text = plant(package, fault)
            reason = found(to, fault.kernel)
            path.write_text(text)
            missed += reason is None and not fault.harmless
            print(row(fault, reason), flush=True)
    faults = sum(not fault.harmless for fault in chosen)
    print(f"\n{faults - missed} of {faults} found")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
