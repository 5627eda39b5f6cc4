"""Speed of the tokenizer and other tokenizers, as Markdown tables.

    python benchmarks/tokenizer.py ENGLISH.txt [--chinese FILE] [--gpt2 FOLDER]
        [--write docs/performance.md]

Learns from ENGLISH and encodes it; repeats the Chinese text to some megabytes; the code is Python's
standard library. Measures those of the other tokenizers that are installed: pip install tiktoken
tokenizers rustbpe gigatoken. --write replaces the section "## Tokenizer" of a file.
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
    options.add_argument("--write", type=Path, help="file whose tokenizer section is replaced")
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
        f"{HEADING}\n\n`python benchmarks/tokenizer.py`: {machine()}; compared with "
        f"{', '.join(peers)}. Medians of {chosen.rounds} rounds in which all take turns.\n"
    ]
    parts.append(table("learn", bench_learning(english, rounds=chosen.rounds)))
    for name, text in texts.items():
        parts.append(table("encode", bench_encoding(vocabulary, name, text, chosen.rounds)))
    fresh, cached = start_up()
    parts.append(
        f"From import to the first ids: {fresh.encode:.1f} s before anything is compiled, "
        f"{cached.encode:.2f} s later; to the first learned vocabulary, {fresh.learn:.1f} s and "
        f"{cached.learn:.2f} s."
    )
    if sys.platform != "win32":
        memory = learning_memory(chosen.english)
        parts.append(f"Peak memory of learning, reading the file in blocks: {memory / 1e6:.0f} MB.")
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
    """One task. The last column is the time relative to the first row."""
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
