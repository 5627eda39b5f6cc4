"""Builds the documentation as a site of static HTML, and checks it.

    python docs/make_site.py                 # writes build/site; open build/site/index.html
    python docs/make_site.py --out FOLDER

The pages are README.md, CONTRIBUTING.md, CHANGELOG.md and the Markdown files of docs/, which a forge
shows as well. The site has the same folders: docs/quickstart.md becomes docs/quickstart.html, and
README.md becomes index.html, so relative links stay as they are. A link to a source file
(examples/lion.py) leads to a page with its highlighted text. The lists of docs/README.md are the
navigation.

The build fails, and names file and line, if a link has no target, if an anchor (#...) has no heading,
if a picture is missing, or if the navigation does not list a page. Addresses on the web are not
fetched. The site needs no network and no JavaScript.

The parser (markdown-it-py) and the highlighter (Pygments) are dependencies of rich, which lmsmith
needs anyway.
"""

import argparse
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name, get_lexer_for_filename
from pygments.util import ClassNotFound

PROJECT = Path(__file__).resolve().parent.parent
NAVIGATION = Path("docs/README.md")
AT_THE_TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
SOURCES = {".py", ".toml", ".txt", ""}  # "": Makefile, LICENSE
COPIED = {".svg", ".png", ".ipynb"}
STYLE = Path(__file__).with_name("site.css")


@dataclass
class Page:
    """One Markdown file."""

    path: Path  # relative to the project
    tokens: list[Token]
    title: str = ""
    sections: list[tuple[str, str]] = field(default_factory=list)  # anchor, text of each h2
    anchors: set[str] = field(default_factory=set)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Builds the documentation and checks its links.")
    parser.add_argument("--out", type=Path, default=PROJECT / "build" / "site", metavar="FOLDER")
    options = parser.parse_args(arguments)
    problems, n_pages = build(PROJECT, options.out)
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    if not problems:
        sys.stdout.write(f"{n_pages} pages: {options.out / 'index.html'}\n")
    return int(bool(problems))


def build(project: Path, out: Path) -> tuple[list[str], int]:
    """Writes the site into `out`, which is replaced. Returns what is wrong, and the number of pages."""
    pages = {page.path: page for page in read_pages(project)}
    navigation = list(read_navigation(pages[NAVIGATION]))
    listed = {path for _, entries in navigation for path, _ in entries}
    problems = [
        f"{path}: the navigation does not list it; add it to {NAVIGATION}"
        for path in pages
        if path not in listed | {NAVIGATION, Path("README.md")}
    ]
    files: set[Path] = set()
    for page in pages.values():
        problems += resolve_links(project, page, pages, files)
    shutil.rmtree(out, ignore_errors=True)
    for page in pages.values():
        body = MARKDOWN.renderer.render(page.tokens, MARKDOWN.options, {})
        write(out, page.path, page.title, body, navigation, page.sections)
    for path in sorted(files):
        if path.suffix in COPIED:
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(project / path, out / path)
        else:
            text = (project / path).read_text(encoding="utf-8")
            body = f"<h1>{escape(str(path))}</h1>\n{code(text, filename=path.name)}"
            write(out, path, str(path), body, navigation, [])
    light, dark = (
        HtmlFormatter(style=name).get_style_defs("pre") for name in ("default", "github-dark")
    )
    colours = f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
    (out / "site.css").write_text(colours + STYLE.read_text(encoding="utf-8"), encoding="utf-8")
    return problems, len(pages)


def read_pages(project: Path) -> Iterator[Page]:
    """Every page, parsed, with its title and its anchors."""
    top = (project / name for name in AT_THE_TOP)
    for file in [*filter(Path.is_file, top), *sorted((project / "docs").rglob("*.md"))]:
        page = Page(file.relative_to(project), MARKDOWN.parse(file.read_text(encoding="utf-8")))
        for opening, inline in zip(page.tokens, page.tokens[1:], strict=False):
            if opening.type != "heading_open":
                continue
            text = "".join(part.content for part in inline.children or ())
            anchor = unique(slug(text), page.anchors)
            page.anchors.add(anchor)
            opening.attrSet("id", anchor)
            if opening.tag == "h1":
                page.title = page.title or text
            elif opening.tag == "h2":
                page.sections.append((anchor, text))
        yield page


def slug(text: str) -> str:
    """The anchor that GitHub and GitLab give a heading."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def unique(anchor: str, taken: set[str]) -> str:
    numbered, n = anchor, 0
    while numbered in taken:
        n += 1
        numbered = f"{anchor}-{n}"
    return numbered


def read_navigation(page: Page) -> Iterator[tuple[str, list[tuple[Path, str]]]]:
    """Each h2 of the page with the links of its lists: (heading, [(path, text), ...])."""
    heading, entries = "", []
    for before, token in zip(page.tokens, page.tokens[1:], strict=False):
        if before.type == "heading_open" and before.tag == "h2":
            if entries:
                yield heading, entries
            heading, entries = token.content, []
        for i, part in enumerate(token.children or ()):
            if part.type == "link_open" and heading:
                assert token.children is not None
                target = os.path.normpath(page.path.parent / str(part.attrGet("href")))
                entries.append((Path(target), token.children[i + 1].content))
    yield heading, entries


def resolve_links(
    project: Path, page: Page, pages: dict[Path, Page], files: set[Path]
) -> list[str]:
    """Rewrites the links of a page for the site, adds the files they name to `files`, and returns
    what is wrong with them.
    """
    problems = []
    for token in page.tokens:
        for part in token.children or ():
            name = {"link_open": "href", "image": "src"}.get(part.type)
            if name is None:
                continue
            link = str(part.attrGet(name))
            target, problem = resolve(project, page, link, pages)
            if problem:
                line = (token.map or [0])[0] + 1
                problems.append(f"{page.path}:{line}: {link}: {problem}")
            elif target is not None:
                if target not in pages:
                    files.add(target)
                anchor = f"#{link.partition('#')[2]}" if "#" in link else ""
                part.attrSet(name, between(page.path, target) + anchor)
    return problems


def resolve(
    project: Path, page: Page, link: str, pages: dict[Path, Page]
) -> tuple[Path | None, str]:
    """The file a link leads to, relative to the project (None: on the web), and what is wrong."""
    parts = urlsplit(link)
    if parts.scheme in ("http", "https", "mailto"):
        return None, ""
    target = page.path
    if parts.path:
        target = Path(os.path.normpath(page.path.parent / unquote(parts.path)))
    if target in pages:
        missing = parts.fragment and parts.fragment not in pages[target].anchors
        return target, f"{target} has no heading for this anchor" if missing else ""
    if not (project / target).is_file():
        is_folder = (project / target).is_dir()
        return None, "leads to a folder: name a file" if is_folder else "there is no such file"
    if target.suffix not in SOURCES | COPIED:
        return None, f"files of the kind {target.suffix} are not part of the site"
    return target, ""


def on_site(path: Path) -> Path:
    """Where a file of the project is on the site."""
    if path.suffix in COPIED:
        return path
    if path.suffix != ".md":
        return path.with_name(f"{path.name}.html")
    return path.with_name("index.html") if path.name == "README.md" else path.with_suffix(".html")


def between(page: Path, target: Path) -> str:
    """The link from one page to another, or to a copied file."""
    return os.path.relpath(on_site(target), on_site(page).parent)


def write(
    out: Path,
    path: Path,
    title: str,
    body: str,
    navigation: list[tuple[str, list[tuple[Path, str]]]],
    sections: list[tuple[str, str]],
) -> None:
    """Writes one page of the site: navigation, text, and links to its neighbours."""
    home, css = between(path, Path("README.md")), os.path.relpath("site.css", on_site(path).parent)
    menu = [f'<p><a class="home" href="{home}">lmsmith</a></p>']
    for heading, entries in navigation:
        menu.append(f"<p>{escape(heading)}</p>\n<ul>")
        for target, text in entries:
            here = ' aria-current="page"' if target == path else ""
            menu.append(f'<li><a href="{between(path, target)}"{here}>{escape(text)}</a>')
            if here and sections:
                inner = (f'<li><a href="#{anchor}">{escape(s)}</a>' for anchor, s in sections)
                menu.append("<ul>" + "\n".join(inner) + "</ul>")
        menu.append("</ul>")
    order = [entry for _, entries in navigation for entry in entries]
    at = next((i for i, (target, _) in enumerate(order) if target == path), None)
    neighbours = ""
    if at is not None:
        if at > 0:
            target, text = order[at - 1]
            neighbours += f'<a rel="prev" href="{between(path, target)}">← {escape(text)}</a>'
        if at + 1 < len(order):
            target, text = order[at + 1]
            neighbours += f'<a rel="next" href="{between(path, target)}">{escape(text)} →</a>'
    file = out / on_site(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)} · lmsmith</title>
<link rel="stylesheet" href="{css}">
<input type="checkbox" id="menu"><label for="menu">Menu</label>
<nav>
{chr(10).join(menu)}
</nav>
<main>
{body}
<footer>{neighbours}</footer>
</main>
</html>
""",
        encoding="utf-8",
    )


def code(text: str, language: str = "", filename: str = "") -> str:
    """Highlighted code. An unknown language is plain text."""
    try:
        lexer = get_lexer_for_filename(filename) if filename else get_lexer_by_name(language)
        marked = highlight(text, lexer, HtmlFormatter(nowrap=True))
    except ClassNotFound:
        marked = escape(text)
    return f"<pre><code>{marked}</code></pre>\n"


def _fence(self: object, tokens: Sequence[Token], i: int, *_: object) -> str:
    return code(tokens[i].content, language=tokens[i].info.strip())


def _table_open(*_: object) -> str:  # a wide table scrolls by itself, not the page
    return '<div class="table"><table>\n'


def _table_close(*_: object) -> str:
    return "</table></div>\n"


MARKDOWN = MarkdownIt("commonmark").enable("table")
MARKDOWN.add_render_rule("fence", _fence)
MARKDOWN.add_render_rule("table_open", _table_open)
MARKDOWN.add_render_rule("table_close", _table_close)


if __name__ == "__main__":
    sys.exit(main())
