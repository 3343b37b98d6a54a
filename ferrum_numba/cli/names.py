"""From what the user typed to kernels, problems and configs, with the nearest name on a slip."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from typing import TYPE_CHECKING, Any, get_type_hints

from ferrum_numba.contract import Kernel, Op, Problem, describe
from ferrum_numba.errors import ConfigError, FerrumError, ProblemError

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu

_BOOLS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a half-sentence that names the closest known name, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(names) or 'none'}"


def import_kernels(module: str) -> tuple[Kernel, ...]:
    """Return KERNELS of a user's own module, such as `my_package.kernels`.

    The module may lie in the current folder: a console script does not look there by itself.
    """
    # last, so that no folder here shadows an installed package
    sys.path.append(os.getcwd())
    try:
        found = importlib.import_module(module)
    # a module is a program of the user's: it may raise anything, and may even exit
    except (Exception, SystemExit) as error:
        raise FerrumError(f"--kernels {module}: {_import_failure(module, error)}") from error
    kernels = getattr(found, "KERNELS", None)
    if not isinstance(kernels, tuple | list):
        raise FerrumError(f"--kernels {module}: it has no KERNELS, a tuple of kernels")
    if not kernels:
        raise FerrumError(f"--kernels {module}: its KERNELS is empty; it needs a kernel or more")
    for kernel in kernels:
        if not isinstance(kernel, Kernel):
            raise FerrumError(
                f"--kernels {module}: KERNELS holds {kernel!r}; it needs instances of Kernel, "
                "such as KERNELS = (MyKernel(),)"
            )
        if not kernel.op.tests:
            raise FerrumError(
                f"--kernels {module}: Op {kernel.op.name} of {kernel.name} has no tests, so "
                "nothing of it would be checked; give it problems: "
                f"tests=({kernel.op.problem.__name__}(...),)"
            )
    return tuple(kernels)


def refuse_twins(module: str, added: Iterable[Kernel], others: Iterable[Kernel]) -> None:
    """Refuse kernels of the user's whose names others have, or that have one name.

    Raises:
        FerrumError: only one of the two could be named
    """
    taken = {kernel.name: "one that ships" for kernel in others}
    for kernel in added:
        if kernel.name in taken:
            raise FerrumError(
                f"--kernels {module}: a kernel of it is named {kernel.name}, as "
                f"{taken[kernel.name]} is; give it another name"
            )
        taken[kernel.name] = "another of it"


def _import_failure(module: str, error: BaseException) -> str:
    """Return in one line what the import raised, and the last line of the module that ran."""
    # the module itself or a package around it; else something that it imports is missing
    if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
        return f"no module is named {error.name}"
    words = " ".join(f"{type(error).__name__}: {error}".split())
    lines = [
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__") == module
    ]
    return f"its import raised {words}" + (f" at {lines[-1]}" if lines else "")


def select_kernels(
    kernels: Sequence[Kernel], names: Sequence[str], tools: Sequence[Kernel] = ()
) -> tuple[Kernel, ...]:
    """Return the kernels and tools of these names, each once, or all kernels if there are none."""
    by_name = {kernel.name: kernel for kernel in (*tools, *kernels)}
    for name in names:
        if name not in by_name:
            raise ConfigError(f"no kernel is named {name}; {nearest(name, by_name)}")
    # named twice is named
    return tuple(by_name[name] for name in dict.fromkeys(names)) if names else tuple(kernels)


def find_problems(
    text: str, problem_sets: Mapping[str, Sequence[Problem]], ops: Iterable[Op]
) -> list[Problem]:
    """Return the problems of a set's name, or of a list of sizes.

    Args:
        text: `llama3-8b`, or `M=16,N=4096,K=4096,group_size=128`
        ops:  whose problems the sizes may be; an Op that has all these fields gets one
    """
    if "=" not in text:
        if text not in problem_sets:
            raise ProblemError(
                f"no problem set is named {text}; {nearest(text, problem_sets)} "
                "(or give sizes, such as M=16,N=4096,K=4096)"
            )
        return list(problem_sets[text])
    given = assignments(text)
    types = {op.problem: op for op in ops}
    fitting = [kind for kind in types if set(given) <= set(_names(kind))]
    if not fitting:
        meant = _meant(given, types)
        if meant:
            raise ProblemError(
                f"no Op has the size {', '.join(meant)}; did you mean {', '.join(meant.values())}?"
            )
        forms = "; ".join(f"{op.name} has {', '.join(_names(kind))}" for kind, op in types.items())
        raise ProblemError(f"no Op has the sizes {', '.join(given)}: {forms}")
    return [_make(kind, given) for kind in fitting]


def with_rows(problems: Sequence[Problem], rows: Sequence[int]) -> list[Problem]:
    """Return every problem once for each M, or tokens, in `rows`, without repetitions."""
    found = []
    for problem in problems:
        named = [name for name in ("M", "tokens") if name in _names(type(problem))]
        if not named:
            raise ProblemError(f"--m has no meaning for {problem}: it has no field M or tokens")
        found += [replace(problem, **{named[0]: m}) for m in rows]
    return list(dict.fromkeys(found))


def changed(config: Any, text: str) -> Any:
    """Return a config with the fields of `num_warps=8,tile_n=64` changed."""
    kind = type(config)
    if "=" not in text:
        words = ("default", "all", *_names(kind))
        raise ConfigError(f"{text!r} is no field with a value; {nearest(text, words)}")
    given = assignments(text)
    for name in given:
        if name not in _names(kind):
            raise ConfigError(f"{kind.__name__} has no field {name}; {nearest(name, _names(kind))}")
    return replace(config, **_typed_all(kind, given))


def in_words(value: Mapping[str, Any]) -> str:
    """Return a stored problem or config as `M=16 N=4096`."""
    return " ".join(f"{name}={item}" for name, item in value.items())


def brief(value: Mapping[str, Any], kind: type) -> str:
    """Return a stored problem in words, without what is at its default."""
    usual = {field.name: field.default for field in fields(kind)}
    return in_words({n: item for n, item in value.items() if usual.get(n, MISSING) != item})


def short(problem: Problem) -> str:
    """Return a problem in words, without what is at its default."""
    return brief(describe(problem), type(problem))


def option(problem: Problem) -> str:
    """Return what `--problem` takes for a problem."""
    return short(problem).replace(" ", ",")


def form(kind: type) -> str:
    """Return how sizes of a problem are named: `M=…,N=…`."""
    needed = [field.name for field in fields(kind) if field.default is MISSING]
    return ",".join(f"{name}=…" for name in needed or _names(kind))


def default_of(kernel: Kernel, problem: Mapping[str, Any], gpu: Gpu) -> dict[str, Any]:
    """Return the config that a kernel runs a stored problem with where it was not tuned.

    Empty where the kernel can no longer run it.
    """
    try:
        maker = kernel.made_by
        return describe(maker.default(kernel.op.problem(**problem), gpu))
    except (AssertionError, TypeError, ValueError):
        return {}


def unlike(config: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """Return in words what of a stored config differs from another."""
    if not config:
        return ""
    return in_words({n: v for n, v in config.items() if usual.get(n, MISSING) != v}) or "default"


def refusals(said: Iterable[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """Return (kernels, reason, count) with those together that refuse as many for one reason.

    A reason in other numbers is the same, and the first of them stands for all.

    said: a kernel's name, its reason, which begins with the name, and how many problems it is of
    """
    counts: dict[tuple[str, str], list[Any]] = {}
    for name, reason, count in said:
        words = reason.removeprefix(f"{name} ")
        found = counts.setdefault((name, re.sub(r"\d+", "#", words)), [words, 0])
        found[1] += count
    groups: dict[tuple[str, int], list[Any]] = {}
    for (name, pattern), (words, count) in counts.items():
        groups.setdefault((pattern, count), [words, []])[1].append(name)
    return [(", ".join(names), words, count) for (_, count), (words, names) in groups.items()]


def assignments(text: str) -> dict[str, str]:
    """Return the names and values of `a=1,b=2`."""
    found = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if not (name.strip() and value.strip()):
            raise ProblemError(f"{part.strip()!r} is no name=value, such as M=16")
        if name.strip() in found:
            raise ProblemError(f"{name.strip()} is given twice in {text}")
        found[name.strip()] = value.strip()
    return found


def _meant(given: Iterable[str], kinds: Iterable[type]) -> dict[str, str]:
    """Return what each size that no problem has may be meant for; nothing where one is unlike all.

    A letter in the other case is meant for its like: `m` for M.
    """
    known = {name.lower(): name for kind in kinds for name in _names(kind)}
    found = {}
    for name in given:
        if name in known.values():
            continue
        close = difflib.get_close_matches(name.lower(), known, n=1)
        if not close:
            return {}
        found[name] = known[close[0]]
    return found


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


def _make(kind: type, given: Mapping[str, str]) -> Any:
    missing = [
        field.name
        for field in fields(kind)
        if field.default is MISSING and field.default_factory is MISSING and field.name not in given
    ]
    if missing:
        raise ProblemError(
            f"a {kind.__name__} needs {', '.join(missing)} too; got {', '.join(given)}"
        )
    return kind(**_typed_all(kind, given))


def _typed_all(kind: type, given: Mapping[str, str]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {name: _typed(name, value, hints[name]) for name, value in given.items()}


def _typed(name: str, value: str, hint: Any) -> Any:
    if hint is bool:
        if value.lower() not in _BOOLS:
            raise ProblemError(f"{name} must be true or false; got {value}")
        return _BOOLS[value.lower()]
    if hint in (int, float):
        try:
            return hint(value)
        except ValueError:
            kind = "a whole number" if hint is int else "a number"
            raise ProblemError(f"{name} must be {kind}; got {value}") from None
    return value
