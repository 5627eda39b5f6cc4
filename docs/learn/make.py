"""Runs the code of the pages in this folder and writes its output and its plots into them.

    python docs/learn/make.py             # all pages, or only those named
    python docs/learn/make.py --check     # changes nothing; fails if a page or a plot is stale

A page is Markdown. Its ```python blocks run from top to bottom as one program, in a new temporary
folder. The ```text block behind a block holds what it printed, and each .svg file that it writes is
copied to this folder. So readers can copy the blocks of a page and run them, and a page cannot show
anything but real output. Pages print only as many digits as are identical on every machine.
"""

import argparse
import contextlib
import io
import re
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(\n```text\n(?P<printed>.*?)^```\n)?", re.MULTILINE | re.DOTALL
)
PICTURE = re.compile(r"!\[[^\]]*\]\((?P<name>[^)]+\.svg)\)")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Runs the code of the pages and writes its output into them."
    )
    parser.add_argument("pages", nargs="*", type=Path, help="default: all pages of this folder")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail if anything would change"
    )
    options = parser.parse_args(arguments)
    n_stale = 0
    for page in options.pages or sorted(HERE.glob("*.md")):
        for path, text in made(page).items():
            if path.is_file() and path.read_text(encoding="utf-8") == text:
                continue
            n_stale += 1
            sys.stdout.write(
                f"{path}: {'stale; run python docs/learn/make.py' if options.check else 'written'}\n"
            )
            if not options.check:
                path.write_text(text, encoding="utf-8", newline="\n")
    return int(options.check and n_stale > 0)


def made(page: Path) -> dict[Path, str]:
    """Runs a page; returns the new text of the page and of its plots, by path."""
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": page.stem}
    sys.path.insert(0, str(HERE))  # for plots.py
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            fresh = BLOCK.sub(lambda block: _run(block, page, namespace), text)
            drawn = {
                file.name: file.read_text(encoding="utf-8") for file in sorted(Path().glob("*.svg"))
            }
    finally:
        sys.path.remove(str(HERE))
    shown = {match["name"] for match in PICTURE.finditer(text)}
    if shown != drawn.keys():
        raise ValueError(
            f"{page} shows the pictures {sorted(shown)}, its code draws {sorted(drawn)}"
        )
    return {page: fresh} | {page.parent / name: svg for name, svg in drawn.items()}


def _run(block: re.Match[str], page: Path, namespace: dict[str, object]) -> str:
    """Runs a block and returns it, followed by what it printed."""
    line = block.string.count("\n", 0, block.start("code"))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(
            compile("\n" * line + block["code"], str(page), "exec"), namespace
        )  # tracebacks have the line numbers of the page
    output = "".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines())
    return f"```python\n{block['code']}```\n" + (f"\n```text\n{output}```\n" if output else "")


if __name__ == "__main__":
    sys.exit(main())
