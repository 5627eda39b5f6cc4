"""The tokenizer beside its peers, as tables in Markdown.

    python benchmarks/tokenizer.py ENGLISH.txt [--chinese FILE] [--gpt2 FOLDER] [--write
    docs/performance.md]

ENGLISH is learnt from and encoded; Chinese is repeated to some megabytes; code is Python's own
library. Peers are taken from the package index: pip install tiktoken tokenizers rustbpe gigatoken.
With --write the section "## Tokenizer" of the file is replaced by what is measured.
"""

import argparse
import importlib.metadata
import os
import sys
from pathlib import Path

from lmsmith.tokens.bench import (
    Timing,
    bench_encoding,
    bench_learning,
    learning_memory,
    machine,
    start_up,
)
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.files import load_tokenizer

HEADING = "## Tokenizer"
PEERS = ("gigatoken", "tiktoken", "tokenizers", "rustbpe")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("english", type=Path, help="a large file of English text")
    options.add_argument("--chinese", type=Path, help="a file of Chinese text")
    options.add_argument(
        "--gpt2", default="gpt2", help="folder with vocab.json and merges.txt (downloaded)"
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument(
        "--write", type=Path, help="file whose section on the tokenizer is replaced"
    )
    chosen = options.parse_args()

    vocabulary = load_tokenizer(chosen.gpt2)
    assert isinstance(vocabulary, BpeTokenizer)
    english = chosen.english.read_bytes()
    texts = {"English": english}
    if chosen.chinese:
        chinese = chosen.chinese.read_bytes()
        texts["Chinese"] = chinese * (1 + 2_000_000 // len(chinese))
    library = sorted(Path(os.__file__).parent.glob("*.py"))
    texts["code (Python's library)"] = b"".join(file.read_bytes() for file in library)

    peers = (f"{name} {version}" for name in PEERS if (version := installed(name)))
    parts = [
        f"{HEADING}\n\n`python benchmarks/tokenizer.py`: {machine()}; beside {', '.join(peers)}. "
        f"Medians of "
        f"{chosen.rounds} rounds in which all take turns.\n"
    ]
    parts.append(table("learn", bench_learning(english, rounds=chosen.rounds)))
    for name, text in texts.items():
        parts.append(table("encode", bench_encoding(vocabulary, name, text, chosen.rounds)))
    fresh, cached = start_up()
    parts.append(
        f"From import to the first ids: {fresh.encode:.1f} s when nothing is compiled yet, "
        f"{cached.encode:.2f} s later;"
        f" to a first learnt vocabulary {fresh.learn:.1f} s and {cached.learn:.2f} s."
    )
    if sys.platform != "win32":
        memory = learning_memory(chosen.english)
        parts.append(
            f"Peak memory of learning, read from the file in blocks: {memory / 1e6:.0f} MB."
        )
    text = "\n".join(parts) + "\n"
    print(text)
    if chosen.write:
        replace_section(chosen.write, text)


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def table(kind: str, timings: list[Timing]) -> str:
    """One task. The last column: how many times as long as the first row it takes."""
    first = timings[0]
    lines = [
        f"{first.task}, {first.megabytes:.1f} MB:\n",
        "| | s | MB/s | CPU s | times |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {timing.name} | {timing.seconds:.3f} | {timing.megabytes_per_second:.0f} | "
        f"{timing.cpu_seconds:.3f} |"
        f" {timing.times:.2f} |"
        for timing in timings
    ]
    return "\n".join(lines) + "\n"


def replace_section(path: Path, section: str) -> None:
    text = path.read_text(encoding="utf-8") if path.exists() else "# Performance\n"
    before, found, rest = text.partition(HEADING + "\n")
    after = rest.partition("\n## ")
    text = before.rstrip() + "\n\n" + section + ("\n## " + after[2] if found and after[1] else "")
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
