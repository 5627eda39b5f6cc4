"""Which tests to run for a mutant: those that execute its line, the quickest first."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from core import ROOT, Change

BESIDE: dict[str, tuple[str, ...]] = {
    "lmsmith/loss.py": ("tests/test_loss.py", "tests/train/test_step.py"),
    "lmsmith/optim/": ("tests/optim", "tests/train/test_step.py"),
    "lmsmith/models/": ("tests/models", "tests/test_loss.py", "tests/generate"),
    "lmsmith/data/batches/": ("tests/data/batches", "tests/train/test_document_modes.py"),
    "lmsmith/checkpoint.py": ("tests/test_checkpoint.py", "tests/train"),
    "lmsmith/weights_file.py": ("tests/test_weights_file.py", "tests/test_checkpoint.py"),
    "lmsmith/train/": ("tests/train",),
    "lmsmith/generate/": ("tests/generate", "tests/models"),
    "lmsmith/evaluate/": ("tests/evaluate",),
    "lmsmith/tokens/": ("tests/tokens",),
}
"""Beginning of a file's name -> its tests, where nothing recorded which tests reach a line."""

PROCESSES = {"lmsmith/train/": "tests/distributed/test_two_processes.py"}
"""Beginning of a file's name -> tests that run it in other processes, which nothing records."""

COMPILED = {"njit", "kernel", "intrinsic"}  # decorators


class Reach:
    """What `reach.py` recorded: the tests that execute each line, and their CPU seconds."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.seconds: dict[str, float] = {}
        self.by_line: dict[tuple[str, int], set[str]] = {}
        for path in paths:
            content = json.loads(path.read_text("utf-8"))
            self.seconds |= content["seconds"]
            for file, lines in content["tests"].items():
                for line, tests in lines.items():
                    self.by_line.setdefault((file, int(line)), set()).update(tests)

    def tests(self, change: Change) -> list[str]:
        """The tests that execute the mutant's statement, the quickest first. For compiled functions
        and lines that run during imports: the tests that execute any line of the file, or else all
        tests beside it, those of its own test file first."""
        source, line = (ROOT / change.file).read_text("utf-8"), change.mutant.line
        first, last = _statement(source, line)
        found = self._of(change.file, range(first, last + 1))
        own: tuple[str, ...] = ()
        if not found and not _is_traced(source, line):
            groups = [tuple(group) for group in beside(change.file)]
            own = groups[0]
            found = self._of(change.file) or {
                test for test in self.seconds if test.startswith(sum(groups, ()))
            }
        return sorted(found, key=lambda test: (not test.startswith(own), self.seconds[test], test))

    def _of(self, file: str, lines: range | None = None) -> set[str]:
        return {
            test
            for (name, line), tests in self.by_line.items()
            if name == file and (lines is None or line in lines)
            for test in tests
        }

    def within(self, tests: Sequence[str], seconds: float) -> list[str]:
        """The first of the tests, as many as take this long together."""
        found, total = [], 0.0
        for test in tests:
            total += self.seconds[test]
            if total > seconds and found:
                break
            found.append(test)
        return found


def beside(file: str) -> list[list[str]]:
    """Groups of test files for a file of the core: its own, then those of its package."""
    path = Path(file)
    tests = Path("tests", *path.parts[1:-1])
    own = [str(found.relative_to(ROOT)) for found in (ROOT / tests).glob(f"test_{path.stem}.py")]
    others = next(tests for start, tests in BESIDE.items() if file.startswith(start))
    return [group for group in (own, list(others)) if group]


def in_processes(file: str) -> list[str]:
    """Tests that run a file in processes of their own."""
    return [tests for start, tests in PROCESSES.items() if file.startswith(start)]


def _statement(source: str, line: int) -> tuple[int, int]:
    """First and last line of the innermost statement that contains a line, without the statements
    inside it. For a function's own line, which runs during imports: those of the function."""
    best = (line, line)
    for node in _statements(ast.parse(source)):
        body = getattr(node, "body", None)
        end = body[0].lineno - 1 if isinstance(body, list) and body else node.end_lineno
        if node.lineno <= line <= max(node.lineno, end or 0):
            if isinstance(node, ast.FunctionDef):
                end = node.end_lineno
            best = (node.lineno, max(node.lineno, end or 0))
    return best


def _is_traced(source: str, line: int) -> bool:
    """Whether a line is in a function that Python itself runs."""
    functions = [
        node
        for node in _statements(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.lineno <= line <= (node.end_lineno or 0)
    ]
    compiled = any(
        COMPILED & set(re.findall(r"\w+", ast.unparse(decorator)))
        for node in functions
        for decorator in node.decorator_list
    )
    return bool(functions) and not compiled


def _statements(tree: ast.AST) -> Iterator[ast.stmt]:
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt):
            yield node
