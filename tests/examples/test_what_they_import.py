"""Each example is short and uses only public names."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lmsmith.extend

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))


def imported(tree: ast.Module) -> Iterator[tuple[str, list[str]]]:
    """Every import: the module, and the names imported from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), [alias.name for alias in node.names]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_public_names_only(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 100
    for module, names in imported(ast.parse(text)):
        if module == "lmsmith.extend":
            assert set(names) <= set(lmsmith.extend.__all__)
        elif module.split(".")[0] == "lmsmith":
            assert module == "lmsmith"
        else:
            assert module.split(".")[0] in {"torch", "numpy", *sys.stdlib_module_names}, module


def test_there_is_one_example_of_each_kind() -> None:
    assert {path.stem for path in EXAMPLES} == {
        "backwards",
        "lion",
        "neural_probabilistic_lm",
        "rhymes",
        "shared_corpus",
        "weight_average",
    }
