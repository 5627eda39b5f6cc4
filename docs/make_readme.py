"""Writes what the README shows of a run: printed lines, a story, Python's output, a picture.

    python docs/make_readme.py                  # runs the demo in demo/ first, if it is not there
    python docs/make_readme.py --demo FOLDER

All of it is real. Text goes between `<!-- NAME -->` and `<!-- /NAME -->` in README.md; the picture,
docs/report.png, is the head of the run's report in headless Chromium (`--chromium PROGRAM`).
"""

import argparse
import contextlib
import io
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmsmith

PROJECT = Path(__file__).resolve().parent.parent
README, PICTURE = PROJECT / "README.md", PROJECT / "docs" / "report.png"
PROMPT, N_LINES, WIDTH = "Once upon a time", 8, 100
SHOWN = ("wrote", "text", "model", "training", "machine", "lower", "best", "report", "try")
PYTHON = """\
import lmsmith

run = lmsmith.train("demo/stories.jsonl", steps=300, tokenizer="bpe:2048")
print(run)
lm = lmsmith.load(run)
print(lm.generate("Once upon a time", max_tokens=25))
print(lm.next_token("Once upon a", top=2))
print(lmsmith.evaluate(run).bits_per_byte)  # of the held-out stories
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Writes what the README shows of a run.")
    parser.add_argument("--demo", type=Path, default=Path("demo"), metavar="FOLDER")
    parser.add_argument("--chromium", default="chromium", metavar="PROGRAM")
    options = parser.parse_args(arguments)
    run, printed = options.demo / "run-1", options.demo / "printed.txt"
    if not run.exists():
        command = [sys.executable, "-m", "lmsmith", "demo", "--out", str(options.demo)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        printed.write_text(done.stdout, encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    text = insert(text, "demo", f"```text\n{excerpt(printed.read_text(encoding='utf-8'))}```")
    text = insert(text, "story", f"```text\n{story(run)}```")
    text = insert(text, "python", python(options.demo))
    README.write_text(text, encoding="utf-8", newline="\n")
    picture(run / "report.html", PICTURE, options.chromium)
    sys.stdout.write(f"{README}\n{PICTURE} ({PICTURE.stat().st_size / 1000:.0f} kB)\n")
    return 0


def insert(text: str, name: str, content: str) -> str:
    """The text with the content between the markers of `name`. Raises ValueError without them."""
    marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if len(marked.findall(text)) != 1:
        raise ValueError(f"README.md needs <!-- {name} --> and <!-- /{name} --> once")
    return marked.sub(lambda found: f"{found[1]}\n{content}\n\n{found[2]}", text)


def excerpt(printed: str) -> str:
    """The lines of a run that say what was chosen and what came out, with the first and last losses."""
    lines = printed.splitlines()
    losses = [line for line in lines if re.match(r"step +\d[\d,]* +val loss", line)]
    kept = []
    for line in lines:
        if line.startswith(SHOWN):
            cut = len(line) > WIDTH + 10
            kept.append(line[: WIDTH + 6].rpartition(" ")[0] + " ..." if cut else line)
        if line.startswith("machine"):
            kept += [losses[0], "...", losses[-1]]
    return "\n".join(kept) + "\n"


def story(run: Path) -> str:
    """Lines that the run's model generates; the prompt is their beginning."""
    lm = lmsmith.load(run)
    text = PROMPT + lm.generate(PROMPT, max_tokens=400, temperature=0.7, seed=1)
    lines = [
        line
        for paragraph in text.split("\n")
        if paragraph.strip()
        for line in textwrap.wrap(paragraph, WIDTH)
    ]
    return "\n".join(lines[:N_LINES]) + "\n"


def python(demo: Path) -> str:
    """The six lines with what they print, run beside the demo's stories."""
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "demo").symlink_to(demo.resolve())
        names: dict[str, Any] = {}
        with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
            exec(compile(PYTHON, "README.md", "exec"), names)
    output = "".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines())
    return f"```python\n{PYTHON}```\n\n```text\n{output}```"


def picture(page: Path, out: Path, chromium: str) -> None:
    """A screenshot of the head of a page."""
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--window-size=1000,1080", f"--screenshot={out}", page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
