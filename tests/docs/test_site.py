"""The site: all links of the HTML lead somewhere, nothing needs a network, and faults are found."""

import importlib.util
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("make_site", PROJECT / "docs" / "make_site.py")
make_site: Any = importlib.util.module_from_spec(spec)
__import__("sys").modules["make_site"] = make_site  # dataclasses look their module up
spec.loader.exec_module(make_site)


class Links(HTMLParser):
    """What a page refers to, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.sources: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            elif name == "href" and tag == "a":
                self.links.append(value or "")
            elif name == "src" or (name == "href" and tag == "link"):
                self.sources.append(value or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Links]:
    out = tmp_path_factory.mktemp("site") / "site"
    problems, n_pages = make_site.build(PROJECT, out)
    assert problems == []
    assert n_pages >= 27
    return {path: Links(path.read_text(encoding="utf-8")) for path in out.rglob("*.html")}


def test_every_link_and_anchor_of_the_html_exists(site: dict[Path, Links]) -> None:
    n_anchors = 0
    for path, page in site.items():
        for link in page.links:
            if link.startswith("http"):
                continue
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            assert target in site or target.suffix == ".ipynb", f"{path}: {link}"
            assert target.is_file(), f"{path}: {link}"
            if anchor:
                n_anchors += 1
                assert anchor in site[target].ids, f"{path}: {link}"
    assert n_anchors > 50


def test_anchors_are_unique(site: dict[Path, Links]) -> None:
    for path, page in site.items():
        assert len(page.ids) == len(set(page.ids)), path


def test_nothing_needs_a_network_or_javascript(site: dict[Path, Links]) -> None:
    for path, page in site.items():
        assert "script" not in page.tags
        for source in page.sources:
            assert (path.parent / source).is_file(), f"{path}: {source}"


def test_faults_are_named_with_file_and_line(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    (docs / "folder").mkdir(parents=True)
    (tmp_path / "README.md").write_text("# Top\n\n[a](docs/a.md#two-words) [b](#nowhere)\n")
    (docs / "README.md").write_text("# Contents\n\n## Pages\n\n- [A](a.md)\n")
    (docs / "a.md").write_text(
        "# A\n\n## Two words\n\n[gone](gone.md)\n\n![dot](dot.svg)\n\n"
        "[folder](folder) [web](https://example.org) [css](style.css)\n"
    )
    (docs / "style.css").write_text("")
    (docs / "lost.md").write_text("# Lost\n")
    problems, _ = make_site.build(tmp_path, tmp_path / "out")
    assert problems == [
        "docs/lost.md: the navigation does not list it; add it to docs/README.md",
        "README.md:3: #nowhere: README.md has no heading for this anchor",
        "docs/a.md:5: gone.md: there is no such file",
        "docs/a.md:7: dot.svg: there is no such file",
        "docs/a.md:9: folder: leads to a folder: name a file",
        "docs/a.md:9: style.css: files of the kind .css are not part of the site",
    ]
    assert make_site.main(["--out", str(tmp_path / "out")]) == 0  # of the real project


@pytest.mark.parametrize(
    ("heading", "anchor"),  # as GitHub makes them
    [
        ("On GPUs", "on-gpus"),
        ("lmsmith tokenizer train", "lmsmith-tokenizer-train"),
        ("What is it, and why?", "what-is-it-and-why"),
        ("lmsmith.extend", "lmsmithextend"),
        ("A, B & C", "a-b--c"),
    ],
)
def test_anchors_are_those_of_a_forge(heading: str, anchor: str) -> None:
    assert make_site.slug(heading) == anchor


def test_old_pages_do_not_stay(tmp_path: Path) -> None:
    out = tmp_path / "site"
    out.mkdir()
    (out / "old.html").write_text("")
    make_site.build(PROJECT, out)
    assert not (out / "old.html").exists()
    shutil.rmtree(out)
