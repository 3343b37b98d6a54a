"""A function's syntax tree, from the file it was compiled from."""

from __future__ import annotations

import ast
import linecache
from functools import cache
from types import CodeType, FunctionType

from ferrum_numba.interpreter.functions import Unsupported


def definition(function: FunctionType) -> ast.FunctionDef:
    """Return the syntax tree of a function, with its lines as in the file.

    Raises:
        Unsupported: it has no source, or not the one it was compiled from
    """
    code = function.__code__
    found = _definitions(code.co_filename).get((code.co_firstlineno, code.co_name))
    if found is None:
        raise Unsupported
    node, compiled = found
    # pytest compiles an assert into something of its own
    asserts = any(isinstance(inner, ast.Assert) for inner in ast.walk(node))
    if compiled != code.co_code and not asserts:
        raise Unsupported
    return node


@cache
def _definitions(filename: str) -> dict[tuple[int, str], tuple[ast.FunctionDef, bytes]]:
    text = "".join(linecache.getlines(filename))
    try:
        tree = ast.parse(text, filename)
        whole = compile(text, filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return {}
    compiled = {(code.co_firstlineno, code.co_name): code.co_code for code in _codes(whole)}
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            if (first, node.name) in compiled:
                found[first, node.name] = node, compiled[first, node.name]
    return found


def _codes(code: CodeType) -> list[CodeType]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return [code, *(one for part in inner for one in _codes(part))]


def recompiled(
    node: ast.FunctionDef, body: list[ast.stmt], filename: str, namespace: dict[str, object]
) -> FunctionType:
    """Return a function of this body, whose free names are found in the namespace."""
    arguments = node.args
    bare = ast.arguments(
        posonlyargs=[ast.arg(a.arg) for a in arguments.posonlyargs],
        args=[ast.arg(a.arg) for a in arguments.args],
        vararg=arguments.vararg and ast.arg(arguments.vararg.arg),
        kwonlyargs=[ast.arg(a.arg) for a in arguments.kwonlyargs],
        kw_defaults=[None] * len(arguments.kwonlyargs),
        kwarg=arguments.kwarg and ast.arg(arguments.kwarg.arg),
        defaults=[],
    )
    made = ast.FunctionDef(node.name, bare, body, [])
    made.type_params = []  # type: ignore[attr-defined]
    tree = ast.fix_missing_locations(ast.Module([ast.copy_location(made, node)], []))
    exec(compile(tree, filename, "exec", dont_inherit=True), namespace)
    found = namespace[node.name]
    assert isinstance(found, FunctionType)
    return found
