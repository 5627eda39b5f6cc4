"""Patterns with `**`: the same matches as Python's glob, and no endless recursion in cyclic
links.
"""

import glob
from pathlib import Path

import pytest

from lmsmith.errors import DataError
from lmsmith.text.documents import Documents
from lmsmith.text.patterns import matches


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a/b/c.txt", "a/d.txt", "e.txt", "a/.hidden/f.txt", "a/b/[x]/g.txt", ".h.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


@pytest.mark.parametrize(
    "pattern",
    ["**/*.txt", "a/**/*.txt", "**/b/**/*.txt", "**", "a/**", "*/b/*", "**/[[]x]/*", "no/**/x"],
)
def test_without_links_the_matches_are_those_of_glob(tree: Path, pattern: str) -> None:
    wanted = {Path(found) for found in glob.glob(str(tree / pattern), recursive=True)}
    found = set(matches(tree / pattern))
    base = (
        {tree, tree / "a"} if pattern.endswith("**") else set()
    )  # glob includes the folder itself
    assert found - base == wanted - base


def test_two_cyclic_links(tree: Path) -> None:
    (tree / "a" / "up").symlink_to(tree)
    (tree / "a" / "b" / "top").symlink_to(tree / "a")
    (tree / "elsewhere").symlink_to(tree / "a" / "b")
    found = Documents([tree / "**" / "*.txt"])
    assert sorted(document.text for document in found) == sorted(
        ["a/b/c.txt", "a/d.txt", "e.txt", "a/b/[x]/g.txt"]
    )
    assert [document.text for document in Documents([tree / "elsewhere" / "**" / "c.txt"])] == [
        "a/b/c.txt"
    ]


def test_dangling_links_are_reported(tree: Path) -> None:
    (tree / "a" / "z.txt").symlink_to("nowhere")
    for source in (tree, tree / "**" / "*.txt"):
        with pytest.raises(DataError, match=r"z\.txt is a link to a missing file, nowhere"):
            list(Documents([source]))
        documents = Documents([source], skip_bad=True)
        assert len(list(documents)) == 4
        assert documents.notes()[-1].startswith("1 bad item skipped: cannot read ")
    with pytest.raises(DataError, match=r"z\.txt is a link to a missing file, nowhere"):
        Documents([tree / "a" / "z.txt"])
