"""The tutorial: page and notebook have the same cells, and the cells run."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
spec = importlib.util.spec_from_file_location("make_notebook", DOCS / "make_notebook.py")
make: Any = importlib.util.module_from_spec(spec)
sys.modules["make_notebook"] = make  # dataclasses look their module up
spec.loader.exec_module(make)


def cells() -> list[Any]:
    return make.read_cells((DOCS / "tutorial.md").read_text(encoding="utf-8"))


def test_notebook_and_page_have_the_same_cells() -> None:
    notebook = json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    found = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert found == [(cell.kind, cell.source) for cell in cells()], (
        "tutorial.ipynb is stale: run python docs/make_notebook.py"
    )
    assert len({cell["id"] for cell in notebook["cells"]}) == len(found)


def test_the_notebook_is_small_and_has_outputs() -> None:
    path = DOCS / "tutorial.ipynb"
    assert path.stat().st_size < 300_000
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in code)
    assert not any(out["output_type"] == "error" for cell in code for out in cell["outputs"])


def test_cells_share_names_and_show_the_value_of_their_last_line() -> None:
    found = make.read_cells("# T\n\n```python\nx = 3\n```\n\n```python\nprint(x)\nx + 1\n```\n")
    make.execute(found)
    assert [cell.kind for cell in found] == ["markdown", "code", "code"]
    assert (found[2].printed, found[2].plain) == ("3\n", "4")
    assert make.as_page(found) == (
        "# T\n\n```python\nx = 3\n```\n\n```python\nprint(x)\nx + 1\n```\n\n```text\n3\n4\n```\n"
    )
    assert [cell.source for cell in make.read_cells(make.as_page(found))] == [
        cell.source for cell in found
    ]


@pytest.mark.slow
def test_the_cells_run(unchanged: None) -> None:
    found = cells()
    make.execute(found)
    assert all(cell.printed or cell.plain for cell in found if cell.kind == "code")
