"""Runs the cells of tutorial.md and writes what they print: into the page, and as tutorial.ipynb.

    python docs/make_notebook.py

The ```python blocks of docs/tutorial.md are the source. They run from top to bottom in a new
folder, as a notebook would run them: what a cell prints, and the value of its last line, becomes
the ```text block behind it and the output of the notebook's cell.
"""

import ast
import contextlib
import io
import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE, NOTEBOOK = HERE / "tutorial.md", HERE / "tutorial.ipynb"
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(\n```text\n(?P<output>.*?)^```\n)?", re.MULTILINE | re.DOTALL
)


@dataclass
class Cell:
    """A piece of the page: Markdown, or code with what it gave."""

    kind: str  # "markdown" or "code"
    source: str
    printed: str = ""
    plain: str = ""  # the value of the last line
    html: str = ""  # the same, if it has a form for notebooks


def main() -> int:
    cells = read_cells(PAGE.read_text(encoding="utf-8"))
    execute(cells)
    PAGE.write_text(as_page(cells), encoding="utf-8", newline="\n")
    NOTEBOOK.write_text(as_notebook(cells), encoding="utf-8", newline="\n")
    sys.stdout.write(f"{PAGE}\n{NOTEBOOK} ({NOTEBOOK.stat().st_size / 1000:.0f} kB)\n")
    return 0


def read_cells(text: str) -> list[Cell]:
    """The page as cells, without outputs."""
    cells, end = [], 0
    for found in BLOCK.finditer(text):
        if before := text[end : found.start()].strip():
            cells.append(Cell("markdown", before))
        cells.append(Cell("code", found["code"].rstrip("\n")))
        end = found.end()
    if after := text[end:].strip():
        cells.append(Cell("markdown", after))
    return cells


def execute(cells: list[Cell]) -> None:
    """Runs the code cells in one namespace, in a folder of their own, and fills in their outputs."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for cell in cells:
            if cell.kind != "code":
                continue
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                value = _run(cell.source, names)
            cell.printed = printed.getvalue()
            if value is not None:
                cell.plain = repr(value)
                cell.html = value._repr_html_() if hasattr(value, "_repr_html_") else ""


def _run(source: str, names: dict[str, Any]) -> Any:
    """Runs a cell; the value of its last line if that is an expression."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, "cell", "exec"), names)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def as_page(cells: list[Cell]) -> str:
    parts = []
    for cell in cells:
        if cell.kind == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        output = (cell.printed + cell.plain).rstrip()
        if output:
            parts.append("```text\n" + "\n".join(map(str.rstrip, output.splitlines())) + "\n```")
    return "\n\n".join(parts) + "\n"


def as_notebook(cells: list[Cell]) -> str:
    """The cells in the format of Jupyter, version 4.5."""
    found, n = [], 0
    for i, cell in enumerate(cells):
        common = {"id": f"cell-{i}", "metadata": {}, "source": _lines(cell.source)}
        if cell.kind == "markdown":
            found.append({"cell_type": "markdown", **common})
            continue
        n += 1
        outputs: list[dict[str, Any]] = []
        if cell.printed:
            outputs.append(
                {"output_type": "stream", "name": "stdout", "text": _lines(cell.printed)}
            )
        if cell.plain:
            data = {"text/plain": _lines(cell.plain)}
            data |= {"text/html": _lines(cell.html)} if cell.html else {}
            outputs.append(
                {
                    "output_type": "execute_result",
                    "execution_count": n,
                    "data": data,
                    "metadata": {},
                }
            )
        found.append({"cell_type": "code", **common, "execution_count": n, "outputs": outputs})
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook = {"cells": found, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    sys.exit(main())
