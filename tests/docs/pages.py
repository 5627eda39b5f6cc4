"""The code blocks of the documentation, and a folder in which they can be run.

A command that cannot run in a test carries a visible reason as a comment at its end: `# needs a
GPU`, `# downloads 21 GB`. It is parsed, not run, unless the tests' own server has what it downloads.
"""

import itertools
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hub import SERVED

from lmsmith.text.stories import generate_stories

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [
    PROJECT / "README.md",
    PROJECT / "docs" / "quickstart.md",
    *sorted((PROJECT / "docs" / "guides").glob("*.md")),
    PROJECT / "docs" / "scale.md",
]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"What follows {n}?"},
            {"role": "assistant", "content": f"{n + 1}."},
        ]
    }
    for n in range(40)
]
PAIRS = [
    {"prompt": f"Is it {letter}?", "chosen": f"It is {letter}.", "rejected": "No."}
    for letter in "abcdefghijklmnop"
]
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
REASON = re.compile(r"#.*?\b(needs|downloads)\b")
OTHER_PROGRAMS = {"git", "ray", "cd", "make", "source", "pip", "export"}


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    code: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(PROJECT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of a sh block. `words`: without `lmsmith`; of torchrun, those behind it."""

    where: str
    program: str
    words: tuple[str, ...]
    runs: bool
    launcher: tuple[str, ...] = ()


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found["language"], found["code"])
        for found in FENCE.finditer(text)
    ]


def commands(block: Block) -> Iterator[Command]:
    """The commands of a sh block, in order."""
    assert block.language == "sh", block.where
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        reason = REASON.search(line)
        served = reason and reason[1] == "downloads" and not set(SERVED).isdisjoint(words)
        runs = not reason or bool(served)
        if words[0] == "torchrun":
            at = words.index("-m")
            assert words[at + 1] == "lmsmith", block.where
            launcher = tuple(words[1:at])
            yield Command(block.where, "lmsmith", tuple(words[at + 2 :]), runs, launcher)
        else:
            yield Command(block.where, words[0], tuple(words[1:]), runs)


def table_commands(page: Path) -> Iterator[Command]:
    """The commands in the README's tables. Those that would download GPT-2 or task items, and those
    that wait for a user, are not run.
    """
    if page.name != "README.md":
        return
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        for code in re.findall(r"`((?:lmsmith|torchrun) [^`]+)`", line) if line[0:1] == "|" else ():
            for command in commands(Block(page, number, "sh", code)):
                downloads = any(word.endswith("gpt2") for word in command.words)
                downloads |= "--tasks" in command.words
                waits = command.words[0] in ("serve", "chat")
                yield replace(command, runs=not downloads and not waits)


def write_texts(folder: Path) -> None:
    """The files that the pages name: stories, so that models and merges have something to learn."""
    stories = [story.text for story in itertools.islice(generate_stories(5), 120)]

    def write(name: str, text: str, encoding: str = "utf-8") -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding=encoding)

    write("book.txt", "\n\n".join(stories[:40]))
    write("other.txt", "\n\n".join(stories[40:50]))
    write("held-out.txt", "\n\n".join(stories[50:60]))
    write("books/a.txt", "\n\n".join(stories[60:80]))
    write("books/b.txt", "\n\n".join(stories[80:100]))
    write("latin.txt", "\n".join(stories[60:70]) + "Café.", "latin-1")
    write("chapters.txt", "\n***\n".join(stories[70:80]))
    write("web.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in stories[60:]))
    write("chats.jsonl", "".join(json.dumps(chat) + "\n" for chat in CHATS))
    write("pairs.jsonl", "".join(json.dumps(pair) + "\n" for pair in PAIRS))
    write("broken.jsonl", json.dumps({"text": stories[0]}) + "\nno JSON\n")
    (folder / "examples").symlink_to(PROJECT / "examples")
    (folder / "recipes").symlink_to(PROJECT / "recipes")
