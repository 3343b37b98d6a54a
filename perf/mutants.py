"""Mutants of the kernels' device code: one change each, of a kind that people make.

Mutated are the functions that run on the GPU and the assignments of the factories around them: the
terms of their addresses. Longer instructions, which have a text and a twin in NumPy, are not; tests
hold the one against the other.
"""

from __future__ import annotations

import ast
import copy
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

KINDS = (
    "operator", "constant", "comparison", "dropped", "swapped", "predicate", "width", "stage",
)  # fmt: skip
# an operator of an address, and what is written for it by mistake
_OTHER: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr,
}  # fmt: skip
_NEXT: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}  # fmt: skip
_ORDERED = (ast.Sub, ast.FloorDiv, ast.Mod, ast.LShift, ast.RShift)
# which place of a ring is meant, and whose turn it is
_PLACES, _PARITIES = (
    frozenset(("stage", "slot", "x_slot", "slot_id")),
    frozenset(("phase", "parity")),
)
BARRIER, HINT = "cuda.syncthreads()", "griddepcontrol_launch_dependents()"
# a change: its kind, the node it replaces, and by what
_Change = tuple[str, ast.expr | ast.stmt, str]


class Mutant(NamedTuple):
    """A change of a file below kernels/: `new` for `old`, which stands between two bytes.

    number:   among the mutants of the file, in their order
    function: at the top of the file, within which it is
    """

    file: str
    number: int
    function: str
    kind: str
    line: int
    begin: int
    end: int
    old: str
    new: str

    def apply(self, text: str) -> str:
        """Return the file's text with the change."""
        data = text.encode()
        return (data[: self.begin] + self.new.encode() + data[self.end :]).decode()


def mutants_of(file: str, text: str) -> list[Mutant]:
    """Return all mutants of a file's device code, in the order of their places."""
    data, starts = text.encode(), [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = set()
    tops = [top for top in ast.parse(text).body if isinstance(top, ast.FunctionDef)]
    for top in tops:
        for kind, node, new in _changes(top):
            assert node.end_lineno is not None
            assert node.end_col_offset is not None
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            found.add((begin, end, KINDS.index(kind), node.lineno, new, top.name))
    return [
        Mutant(file, number, name, KINDS[kind], line, begin, end, data[begin:end].decode(), new)
        for number, (begin, end, kind, line, new, name) in enumerate(sorted(found))
    ]


def sample(mutants: Sequence[Mutant], count: int, seed: str) -> list[Mutant]:
    """Return so many of them, of all kinds in turn; the same for the same arguments."""
    numbers, by_kind = random.Random(seed), defaultdict(list)
    for mutant in mutants:
        by_kind[mutant.kind].append(mutant)
    for one in by_kind.values():
        numbers.shuffle(one)
    chosen: list[Mutant] = []
    while len(chosen) < min(count, len(mutants)):
        chosen += [by_kind[kind].pop() for kind in KINDS if by_kind[kind]]
    return chosen[:count]


def _changes(top: ast.FunctionDef) -> Iterator[_Change]:
    """Yield the changes of the device code in a function of a file, in no order."""
    for node in ast.walk(top):
        if not isinstance(node, ast.FunctionDef):
            continue
        if _on_device(node) or node.name in _returned(top):
            for statement in node.body:
                yield from _of_statement(statement)
        elif any(isinstance(n, ast.FunctionDef) and _on_device(n) for n in node.body):
            for statement in node.body:
                if isinstance(statement, ast.Assign):
                    yield from _of_expressions(statement.value)


def _on_device(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(one).startswith("cuda.jit") for one in function.decorator_list)


def _returned(top: ast.FunctionDef) -> set[str]:
    """Return the name of what `build` returns: the kernel, which has no decorator."""
    last = top.body[-1]
    if top.name.startswith("build") and isinstance(last, ast.Return):
        return {node.id for node in ast.walk(last) if isinstance(node, ast.Name)}
    return set()


def _of_statement(statement: ast.stmt) -> Iterator[_Change]:
    for node in _without_hints(statement):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            # a launch that may begin early need not
            if ast.unparse(node) != HINT:
                yield "dropped", node, "pass"
        elif isinstance(node, ast.If | ast.IfExp):
            yield "predicate", node.test, "False"
            # a barrier too many is no fault
            if not (isinstance(node, ast.If) and all(_is(one, BARRIER) for one in node.body)):
                yield "predicate", node.test, "True"
        elif isinstance(node, ast.While):
            yield "predicate", node.test, "False"
    yield from _of_expressions(statement)


def _without_hints(root: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and those below it, but nothing of an `if` that only gives a hint."""
    if not (isinstance(root, ast.If) and all(_is(one, HINT) for one in root.body)):
        yield root
        for node in ast.iter_child_nodes(root):
            yield from _without_hints(node)


def _of_expressions(root: ast.AST) -> Iterator[_Change]:
    for node in _without_hints(root):
        if isinstance(node, ast.BinOp):
            yield from _of_operator(node)
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            yield "constant", node, str(node.value + 1)
            if node.value > 0:
                yield "constant", node, str(node.value - 1)
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in _NEXT:
            yield (
                "comparison",
                node,
                _changed(node, ops=[_NEXT[type(node.ops[0])](), *node.ops[1:]]),
            )
        elif isinstance(node, ast.Call):
            yield from _of_call(node)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            if node.id in _PLACES:
                yield "stage", node, f"uint32({node.id} + 1)"
            elif node.id in _PARITIES:
                yield "stage", node, f"uint32({node.id} ^ 1)"


def _of_operator(node: ast.BinOp) -> Iterator[_Change]:
    if type(node.op) in _OTHER:
        yield "operator", node, _changed(node, op=_OTHER[type(node.op)]())
    if isinstance(node.op, _ORDERED):
        yield "swapped", node, _changed(node, left=node.right, right=node.left)
    wide = any(_calls(side, "uint64") for side in (node.left, node.right))
    if wide and isinstance(node.op, ast.Mult | ast.LShift):
        yield "width", node, f"uint64(uint32({ast.unparse(node)}))"


def _of_call(node: ast.Call) -> Iterator[_Change]:
    for i, (one, other) in enumerate(zip(node.args, node.args[1:], strict=False)):
        if isinstance(one, ast.Name) and isinstance(other, ast.Name) and one.id != other.id:
            yield (
                "swapped",
                node,
                _changed(node, args=[*node.args[:i], other, one, *node.args[i + 2 :]]),
            )


def _is(statement: ast.stmt, text: str) -> bool:
    return isinstance(statement, ast.Expr) and ast.unparse(statement) == text


def _calls(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def _changed(node: ast.expr, **fields: Any) -> str:
    """Return the text of a node with other fields."""
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return f"({ast.unparse(other)})"
