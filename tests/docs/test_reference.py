"""The generated reference pages are fresh, complete and well-formed."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

import lmsmith
from lmsmith import cli
from lmsmith.config import MODEL_KINDS, settings
from lmsmith.config.presets import PRESETS

DOCS = Path(__file__).resolve().parents[2] / "docs"
spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
make: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)


@pytest.mark.parametrize("name", ["cli.md", "settings.md", "api.md"])
def test_page_is_fresh(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == make.pages()[DOCS / name], (
        f"docs/{name} is stale: run python docs/make_reference.py"
    )


def test_everything_is_on_a_page() -> None:
    commands, values, names = (make.pages()[DOCS / f"{n}.md"] for n in ("cli", "settings", "api"))
    for words in cli.verbs().found:
        assert f"\n## lmsmith {words}\n" in commands
    for kind in ("gpt", "rnn", "ngram"):
        for name, leaf in settings(MODEL_KINDS.get(kind)):
            assert f"| `{name}`" in values
            assert leaf.meaning.split()[0] in values
    for name in PRESETS.names():
        assert f"| `{name}` |" in values
    for name in {*lmsmith.__all__, "LM", "Run"}:
        assert f"\n### lmsmith.{name}\n" in names
    for name in lmsmith.extend.__all__:
        assert f"\n### lmsmith.extend.{name}\n" in names


def test_rows_of_a_table_have_as_many_cells_as_its_head() -> None:
    for path, text in make.pages().items():
        for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(counts) == 1, (path, block)


def test_check_changes_nothing_and_fails_for_a_stale_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "cli.md"
    page.write_text("old")
    monkeypatch.setattr(make, "pages", lambda: {page: "new"})
    assert make.main(["--check"]) == 1
    assert page.read_text() == "old"
    assert "stale" in capsys.readouterr().out
    assert make.main([]) == 0
    assert page.read_text() == "new"
    assert make.main(["--check"]) == 0


def test_docstrings_become_markdown() -> None:
    def documented() -> None:
        """Says something.

            x = 1

        name    what it is
        other   <what> else
        """

    assert make.docstring(documented) == (
        "Says something.\n\n```python\nx = 1\n```\n\n"
        "|  |  |\n| --- | --- |\n| `name` | what it is |\n| `other` | \\<what\\> else |\n\n"
    )
