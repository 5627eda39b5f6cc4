"""Commands that measure tokenizers: tokenizer inspect, tokenizer compare, bench tokenizer."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from lmsmith import atomic
from lmsmith.cli.console import table
from lmsmith.cli.grammar import Verbs, at_least_one
from lmsmith.cli.tokenizer import WHICH, add_reading, reading, tokenizer_named
from lmsmith.errors import UsageError
from lmsmith.strict_json import to_json


def add(verbs: Verbs) -> None:
    """Adds the commands; the group `tokenizer` must exist."""
    _add_inspect(verbs)
    _add_compare(verbs)
    verbs.group("bench", "benchmark training and tokenizers on this machine")
    _add_bench(verbs)


def _add_inspect(verbs: Verbs) -> None:
    inspect = verbs.verb(
        "tokenizer inspect",
        _inspect,
        "show a tokenizer's vocabulary and how it compresses texts",
        "lmsmith tokenizer inspect demo/bpe --text demo/stories.jsonl",
    )
    inspect.add_argument("which", metavar="TOKENIZER", help=WHICH)
    inspect.add_argument(
        "--text",
        nargs="+",
        default=[],
        metavar="FILE",
        help="texts to encode, for example one per language; the table has a row for each",
    )
    inspect.add_argument(
        "--longest",
        type=at_least_one,
        default=10,
        metavar="N",
        help="number of longest tokens to show (10)",
    )
    inspect.add_argument("--json", action="store_true", help="print one JSON object")
    add_reading(inspect)


def _add_compare(verbs: Verbs) -> None:
    compare = verbs.verb(
        "tokenizer compare",
        _compare,
        "compare byte, character, word and byte-pair tokenizers on one text",
        "lmsmith tokenizer compare --text demo/stories.jsonl --out demo/tokenizers.html",
    )
    compare.add_argument(
        "which", nargs="*", metavar="TOKENIZER", help=f"further tokenizers to compare: {WHICH}"
    )
    compare.add_argument(
        "--text",
        nargs="+",
        required=True,
        metavar="FILE",
        help="tokenizers learn from the training part and are compared on the held-out part",
    )
    compare.add_argument(
        "--sizes",
        type=_sizes,
        default=(512, 2048, 8192),
        metavar="A,B",
        help="vocabulary sizes of the byte-pair tokenizers (512,2048,8192)",
    )
    compare.add_argument(
        "--out", type=Path, metavar="FILE", help="HTML page with a plot (tokenizers.html)"
    )
    compare.add_argument(
        "--json", action="store_true", help="print one JSON array and write no page"
    )
    add_reading(compare)


def _add_bench(verbs: Verbs) -> None:
    bench = verbs.verb(
        "bench tokenizer",
        _bench,
        "time BPE training and encoding, next to other installed tokenizer libraries",
        "lmsmith bench tokenizer demo/stories.jsonl",
    )
    bench.add_argument(
        "text", nargs="*", metavar="FILE", help="text files (the source of Python's library)"
    )
    bench.add_argument(
        "--tokenizer",
        dest="which",
        metavar="TOKENIZER",
        help=f"tokenizer to encode with: {WHICH} (one learned from the text)",
    )
    bench.add_argument(
        "--vocab-size",
        type=at_least_one,
        default=10_000,
        metavar="N",
        help="vocabulary size to train (10000)",
    )
    bench.add_argument(
        "--rounds",
        type=at_least_one,
        default=5,
        metavar="N",
        help="number of timings; the median is shown (5)",
    )
    add_reading(bench)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected numbers separated by commas, such as 512,2048"
        ) from None


def _inspect(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.report.tokenizers import HEAD, comparison_rows
    from lmsmith.tokens.measure import inspect_tokenizer

    tokenizer = tokenizer_named(options.which)
    inspection = inspect_tokenizer(
        tokenizer, {name: _read([name], options) for name in options.text}, options.longest
    )
    if options.json:
        content = {
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "fingerprint": tokenizer.fingerprint,
            "longest": [{"id": number, "text": text} for number, text in inspection.longest],
            "on_texts": [
                asdict(row) | {"bytes_per_token": row.bytes_per_token}
                for row in inspection.on_texts
            ],
            "share_used": inspection.share_used if inspection.on_texts else None,
        }
        print(to_json(content, ensure_ascii=False))
        return 0
    facts = {
        "kind": tokenizer.kind,
        "vocabulary": f"{tokenizer.vocab_size:,}",
        "fingerprint": tokenizer.fingerprint,
    }
    facts |= {"pattern": pattern.name} if (pattern := getattr(tokenizer, "pattern", None)) else {}
    specials = getattr(tokenizer, "special_tokens", {})
    facts |= (
        {"special": ", ".join(f"{text} = {number}" for text, number in specials.items())}
        if specials
        else {}
    )
    added = {
        token.content: token.id for token in getattr(tokenizer, "added", ()) if not token.special
    }
    facts |= (
        {"added": ", ".join(f"{text!r} = {number}" for text, number in added.items())}
        if added
        else {}
    )
    ends = [text for text, number in specials.items() if number == tokenizer.end_of_text]
    facts |= {"end of text": ends[0]} if ends else {}
    for name, fact in facts.items():
        console.print(f"{name:12} {fact}")
    console.print(f"\n{'id':>8}  longest tokens")
    for number, text in inspection.longest:
        console.print(f"{number:>8}  {text!r}")
    if inspection.on_texts:
        console.print()
        rows = [[Path(row[0]).name, *row[1:]] for row in comparison_rows(inspection.on_texts)]
        table(console, ("text", *HEAD[1:]), rows)
        console.print(f"the texts together use {inspection.share_used:.1%} of the vocabulary")
    return 0


def _compare(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.report.tokenizers import HEAD, comparison_page, comparison_rows
    from lmsmith.text.documents import Documents
    from lmsmith.text.held_out import split_documents
    from lmsmith.tokens.measure import compare_tokenizers, course_tokenizers

    others = {Path(name).name or name: tokenizer_named(name) for name in options.which}
    split = split_documents(Documents(options.text, **reading(options)))
    tokenizers = course_tokenizers("".join(split.train), options.sizes) | others
    held_out = "".join(split.validation)
    rows = compare_tokenizers(tokenizers, held_out)
    if options.json:
        print(
            to_json(
                [asdict(row) | {"bytes_per_token": row.bytes_per_token} for row in rows],
                ensure_ascii=False,
            )
        )
        return 0
    name, n_trained_on = (
        ", ".join(Path(name).name for name in options.text),
        sum(map(len, split.train)),
    )
    console.print(
        f"{name}: {n_trained_on:,} characters to learn from, {len(held_out):,} held out to "
        f"compare on"
    )
    table(console, HEAD, comparison_rows(rows))
    out = options.out or Path("tokenizers.html")
    atomic.write(
        out, comparison_page(rows, tokenizers, held_out, name=name, n_trained_on=n_trained_on)
    )
    console.print(f"page     {out}")
    return 0


def _bench(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.tokens.bench import Timing, bench_encoding, bench_learning, machine, start_up
    from lmsmith.tokens.bpe import BpeTokenizer
    from lmsmith.tokens.bpe_train import learn_bpe

    text = _read(options.text, options) if options.text else _python_library()
    console.print(
        f"{machine()}; medians of {options.rounds} rounds; in each round all libraries take turns"
    )

    def show(timings: list[Timing]) -> None:
        first = timings[0]
        console.print(f"\n{first.task}, {first.megabytes:.1f} MB")
        rows = [
            [row.name, f"{row.seconds:.3f}", f"{row.megabytes_per_second:.1f}", f"{row.times:.2f}"]
            for row in timings
        ]
        table(console, ("", "seconds", "MB/s", f"times {first.name}"), rows)

    data = text.encode()
    show(bench_learning(data, options.vocab_size, options.rounds))
    vocabulary = (
        tokenizer_named(options.which)
        if options.which
        else learn_bpe([data], options.vocab_size, pattern="gpt2")
    )
    if not isinstance(vocabulary, BpeTokenizer):
        raise UsageError(
            f"--tokenizer {options.which} is of kind {vocabulary.kind}: expected byte-pair "
            f"encoding (bpe), which other libraries also have."
        )
    show(bench_encoding(vocabulary, "the text", data, options.rounds))
    fresh, cached = start_up()
    console.print(
        f"\nstart-up: {cached.encode:.2f} s from import to the first ids; {fresh.encode:.1f} s the "
        f"first time, with compilation"
    )
    return 0


def _read(names: Iterable[str], options: argparse.Namespace) -> str:
    from lmsmith.text.documents import Documents

    return "".join(document.text for document in Documents(names, **reading(options)))


def _python_library() -> str:
    """Returns the source of Python's standard library: text that every machine has."""
    files = sorted(Path(json.__file__).parent.parent.glob("*.py"))
    return "".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
