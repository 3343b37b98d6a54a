"""What numba says of a kernel that it does not compile, in a sentence with the line and a remedy.

All of its words, mostly more than 45 lines, stay in the error that caused the sentence.
"""

from __future__ import annotations

import linecache
import os
import re
import traceback

import numpy as np
from numba.cuda.core import ir

from ferrum_numba.errors import DECORATE

# numba's own words -> what is wrong, with groups of the first, and what to do
_KNOWN = (
    # what instructions of ferrum_numba say themselves
    (r"(?:TypingError|RequireLiteralValue): (\w+: \w+ must be .*?)(?:\n|$)", "{0}", ""),
    (
        r">>> array\((.*?)\)\n",
        "an array's shape is no constant of the kernel",
        "compute it, and give it a name, outside of the kernel",
    ),
    (
        r"Untyped global name '(\w+)':.*?class 'function'",
        "{0} is a plain Python function, which a kernel cannot call",
        DECORATE,
    ),
    (
        r"Untyped global name '(\w+)': [Cc]annot determine Numba type of (.*?)(?:\n|$)",
        "{0} is of {1}, which a kernel cannot use",
        "give kernels numbers, tuples of numbers, device functions and instructions",
    ),
    (
        r"NameError: name '(\w+)' is not defined|global name '(\w+)' is not defined",
        "{0} is not defined",
        "import it, or correct its name",
    ),
    (
        r"Unknown attribute '(\w+)' of type Module\(<module 'numpy'|"
        r"Use of unsupported NumPy function 'numpy\.(\w+)'",
        "np.{0} is no function of a kernel",
        "use math.{0}, or an instruction of ferrum_numba.ptx",
    ),
    (
        r"Unknown attribute '(\w+)' of type Module\(<module '([\w.]+)'",
        "{1} has no {0} for kernels",
        "correct its name, or use an instruction of ferrum_numba.ptx",
    ),
    (
        r"Cannot unify (.*?) and (.*?) for '([\w.]+?)(?:\.\d+)*'",
        "{2} is {0} here and {1} there",
        "give it one type, by a cast such as uint32(...)",
    ),
    (
        r"No implementation of function Function\((.*?)\) found for signature:\s*>>> (.*?)\n",
        "numba has no {1}",
        "cast its arguments to types that it takes",
    ),
    (
        r"No matching definition for argument type\(s\) (.*?)\n",
        "no call takes the types {0}",
        "cast the arguments to types that it takes",
    ),
)
_PLACE = re.compile(r'File "([^"]+)", line (\d+)')
_NOISE = re.compile(r"^(Failed in \w+ mode pipeline.*|During: .*|\s*|\x1b\[\d+m)$")
_COLOURS = re.compile(r"\x1b\[[\d;]*m")


def sentence(error: BaseException) -> str:
    """Return numba's words as one sentence: where, what, and what to do if that is known."""
    words = _COLOURS.sub("", str(error))
    if isinstance(error, KeyError) and error.args and isinstance(error.args[0], np.ufunc):
        words = f"Use of unsupported NumPy function 'numpy.{error.args[0].__name__}'"
    own = [place for place in _places(error, words) if "/numba" not in place[0]]
    where = "{}:{}: ".format(*own[-1]) if own else ""
    for pattern, what, remedy in _KNOWN:
        found = re.search(pattern, words, re.DOTALL)
        if found is not None:
            groups = [group.strip() for group in found.groups() if group is not None]
            said = f"{where}{what.format(*groups)}"
            return f"{said}; {remedy.format(*groups)}" if remedy else said
    lines = [line.strip() for line in words.splitlines() if not _NOISE.match(line.strip())]
    first = lines[0] if lines else words.strip()
    code = linecache.getline(*own[-1]).strip() if own else ""
    return f"{where}{first.rstrip('.')}" + (f" (at `{code}`)" if code and code not in first else "")


def _places(error: BaseException, words: str) -> list[tuple[str, int]]:
    """Return file and line of the places named, or else of what numba was at; the innermost last.

    numba names files from the current folder.
    """
    named = [(os.path.abspath(file), int(line)) for file, line in _PLACE.findall(words)]
    if named:
        return named
    found = []
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for name in ("inst", "loc", "self", "e"):
            at = frame.f_locals.get(name)
            at = getattr(at, "loc", at)
            if isinstance(at, ir.Loc):
                found.append((os.path.abspath(at.filename), at.line))
    return found
