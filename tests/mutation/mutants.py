"""Single-line mutations of Python source, such as a programmer's slip would make.

    <  <->  <=      +  <->  -      and  <->  or      True  <->  False      min  <->  max
    >  <->  >=      *  <->  /      not x  ->  x      n  ->  n + 1          x.clear()  ->  pass
    ==  <->  !=     // ->  *       x  ->  2 * x (floats)                   a += b  ->  pass

Not mutated: docstrings, messages (raise, assert, logging, f-strings), annotations, imports,
decorators and `zip(strict=)`, because tests of the numbers need not notice a change there; operators
beside a string, because any test would notice.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
}
OPERATIONS = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*"}
CHECKS_AND_HINTS = {"strict", "non_blocking", "pin_memory", "daemon"}  # keywords of calls
SKIPPED_CALLS = {"warning", "info", "say", "event", "cast", "print", "debug", "shape_of"}


@dataclass(frozen=True)
class Mutant:
    """One change: `old` becomes `new` in line `line` (from 1), from column `start` (in bytes)."""

    line: int
    start: int
    old: str
    new: str

    def applied(self, source: str) -> str:
        """The source with the change."""
        lines = source.encode().split(b"\n")
        text = lines[self.line - 1]
        old, new = self.old.encode(), self.new.encode()
        assert text[self.start : self.start + len(old)] == old, (self, text)
        lines[self.line - 1] = text[: self.start] + new + text[self.start + len(old) :]
        return b"\n".join(lines).decode()


def mutants(source: str) -> list[Mutant]:
    """All mutations of a module, in order of their lines, without repeats."""
    found = dict.fromkeys(_of(ast.parse(source), source))
    return sorted(found, key=lambda one: (one.line, one.start, one.new))


def _of(node: ast.AST, source: str) -> Iterator[Mutant]:
    if _is_skipped(node):
        return
    yield from _changes(node, source)
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _of(child, source)


def _is_skipped(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring
    if isinstance(node, ast.Call) and _called(node) in SKIPPED_CALLS:
        return True
    if isinstance(node, ast.keyword) and node.arg in CHECKS_AND_HINTS:
        return True
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        return True
    return isinstance(
        node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.AnnAssign
    ) and not (isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.BinOp))


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _changes(node: ast.AST, source: str) -> Iterator[Mutant]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield from _operator(
            node.left, node.comparators[0], COMPARISONS.get(type(node.ops[0])), source
        )
    elif isinstance(node, ast.BinOp):
        yield from _operator(node.left, node.right, OPERATIONS.get(type(node.op)), source)
    elif isinstance(node, ast.BoolOp):
        new = " or " if isinstance(node.op, ast.And) else " and "
        yield from _operator(node.values[0], node.values[1], new.strip(), source)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield from _whole(node, ast.get_source_segment(source, node.operand), source)
    elif isinstance(node, ast.Constant):
        yield from _constant(node, source)
    elif isinstance(node, ast.Name) and node.id in ("min", "max"):
        yield from _whole(node, "max" if node.id == "min" else "min", source)
    elif isinstance(node, ast.AugAssign) or (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and _called(node.value) not in SKIPPED_CALLS
    ):
        yield from _whole(node, "pass", source)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _constant(node: ast.Constant, source: str) -> Iterator[Mutant]:
    value = node.value
    if isinstance(value, bool):
        yield from _whole(node, str(not value), source)
    elif isinstance(value, int):
        yield from _whole(node, str(value + 1), source)
    elif isinstance(value, float) and value:
        yield from _whole(node, repr(2 * value), source)


def _whole(node: ast.AST, new: str | None, source: str) -> Iterator[Mutant]:
    """Replaces a node that lies on one line."""
    old = ast.get_source_segment(source, node)
    if old and new and "\n" not in old + new and old != new:
        yield Mutant(node.lineno, node.col_offset, old, new)  # type: ignore[attr-defined]


def _operator(left: ast.expr, right: ast.expr, new: str | None, source: str) -> Iterator[Mutant]:
    """Replaces the operator between two operands on one line."""
    if new is None or left.end_lineno != right.lineno or left.end_col_offset is None:
        return
    if new in OPERATIONS.values() and (_is_text(left) or _is_text(right)):
        return
    line = source.encode().split(b"\n")[right.lineno - 1]
    between = line[left.end_col_offset : right.col_offset].decode()
    operator = between.strip("() ")
    if not operator or operator.count(" ") or "#" in between:
        return
    start = left.end_col_offset + len(between[: between.index(operator)].encode())
    yield Mutant(right.lineno, start, operator, new)
