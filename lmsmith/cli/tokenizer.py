"""Commands about tokenizers: tokenizer train, import, encode, decode, inspect, compare; bench
tokenizer.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lmsmith import atomic
from lmsmith.cli.console import Progress, table
from lmsmith.cli.grammar import Verbs, add_setting, at_least_one, settings_given
from lmsmith.config import RunConfig, settings
from lmsmith.errors import DataError, UsageError
from lmsmith.strict_json import to_json

if TYPE_CHECKING:
    from lmsmith.tokens.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"
READING = ("data.text_field", "data.encoding", "data.errors")
WHICH = "gpt2, a run, or a tokenizer's folder or file (of lmsmith, Hugging Face, GPT-2, tiktoken)"
PATTERN_RULE = (
    "NAME: gpt2, gpt4, o200k, nanochat, llama3 or qwen2. Any other value is a regular expression "
    r"of Python's module regex: it contains one of \ [ ( | + * ? { ^ $, or has the prefix regex:, "
    "which is removed"
)
BLOCK = 1 << 20  # bytes read at once from standard input


def add(verbs: Verbs) -> None:
    verbs.group("tokenizer", "train, import, use, inspect and compare tokenizers")
    _add_train(verbs)
    _add_import(verbs)
    _add_encode(verbs)
    _add_decode(verbs)
    _add_inspect(verbs)
    _add_compare(verbs)
    verbs.group("bench", "benchmark training and tokenizers on this machine")
    _add_bench(verbs)


def _add_train(verbs: Verbs) -> None:
    train = verbs.verb(
        "tokenizer train",
        _train,
        "train a byte-pair encoding (BPE) tokenizer: learn its merges from text",
        "lmsmith tokenizer train demo/stories.jsonl --vocab-size 2000 --out demo/bpe",
    )
    train.add_argument("source", nargs="+", metavar="SOURCE", help="text files, folders, globs")
    train.add_argument(
        "--vocab-size",
        type=at_least_one,
        required=True,
        metavar="N",
        help="vocabulary size, special tokens included",
    )
    train.add_argument(
        "--special",
        action="append",
        metavar="TOKEN",
        help=f"add a special token; can be repeated ({END_OF_TEXT})",
    )
    train.add_argument("--no-special", action="store_true", help="add no special tokens")
    train.add_argument(
        "--eos-token",
        metavar="TOKEN",
        help="end-of-text token, which separates documents; one of the --special tokens (one with "
        "a known name)",
    )
    train.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the new tokenizer's folder"
    )
    train.add_argument(
        "--pattern",
        default="gpt4",
        metavar="NAME|REGEX",
        help=f"pre-tokenization: how text is split before merging. {PATTERN_RULE} (gpt4)",
    )
    train.add_argument(
        "--ties",
        choices=["bytes", "ids", "huggingface"],
        default="bytes",
        help="which of equally frequent pairs to merge first: greatest byte strings; smallest ids, "
        "as rustbpe; or as Hugging Face tokenizers (bytes)",
    )
    train.add_argument(
        "--threads", type=at_least_one, metavar="N", help="number of threads (one per core)"
    )
    train.add_argument(
        "--max-memory",
        type=_n_bytes,
        metavar="SIZE",
        help="memory limit for counting, such as 500MB or 2GB; above it rare pieces are dropped "
        "(none)",
    )
    _add_reading(train)


def _add_import(verbs: Verbs) -> None:
    imported = verbs.verb(
        "tokenizer import",
        _import,
        "convert another program's tokenizer file to a tokenizer folder",
        "lmsmith tokenizer import demo/bpe --out demo/bpe-again",
    )
    imported.add_argument("which", metavar="TOKENIZER", help=WHICH)
    imported.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the new tokenizer's folder"
    )
    imported.add_argument(
        "--pattern",
        metavar="NAME|REGEX",
        help="pre-tokenization pattern of a tiktoken file, which does not contain it: how text is "
        f"split before merging. {PATTERN_RULE}",
    )
    imported.add_argument(
        "--special",
        action="append",
        type=_special,
        metavar="TOKEN=ID",
        help="special token of a tiktoken file, and its id; can be repeated",
    )
    imported.add_argument(
        "--eos-token",
        metavar="TOKEN",
        help="end-of-text token, which separates documents (eos_token of tokenizer_config.json, "
        "or a token with a known name)",
    )


def _add_encode(verbs: Verbs) -> None:
    encode = verbs.verb(
        "tokenizer encode",
        _encode,
        "convert text to token ids",
        'lmsmith tokenizer encode demo/bpe "Once upon a time"',
    )
    encode.add_argument("which", metavar="TOKENIZER", help=WHICH)
    encode.add_argument(
        "text",
        nargs="?",
        metavar="TEXT",
        help="the text; without it, standard input of any length is read",
    )
    encode.add_argument(
        "--special",
        action="store_true",
        help="encode special tokens in the text as their ids, not as plain text",
    )
    encode.add_argument("--show", action="store_true", help="print one id per line, with its text")


def _add_decode(verbs: Verbs) -> None:
    decode = verbs.verb(
        "tokenizer decode",
        _decode,
        "convert token ids to text",
        "lmsmith tokenizer decode demo/bpe 72 105",
    )
    decode.add_argument("which", metavar="TOKENIZER", help=WHICH)
    decode.add_argument(
        "ids", nargs="*", metavar="ID", help="token ids; without them, standard input is read"
    )


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
    _add_reading(inspect)


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
    _add_reading(compare)


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
    _add_reading(bench)


def _add_reading(made: argparse.ArgumentParser) -> None:
    known = dict(settings())
    for name in READING:
        add_setting(made, known[name])


def _reading(options: argparse.Namespace) -> dict[str, Any]:
    data = RunConfig().changed(settings_given(options), where="the command line").data
    return {"text_field": data.text_field, "encoding": data.encoding, "errors": data.errors}


def _n_bytes(text: str) -> int:
    units = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    number = text.rstrip("KMGTBkmgtb ")
    try:
        n_bytes = float(number) * units[text[len(number) :].strip().upper()]
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a size such as 500MB or 2GB"
        ) from None
    if not 1e6 <= n_bytes < 1e18:
        raise argparse.ArgumentTypeError(f"{text!r}: expected at least 1MB")
    return int(n_bytes)


def _special(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition("=")
    if not name or not number.isdecimal():
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a token and its id, such as <|endoftext|>=50256"
        )
    return name, int(number)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected numbers separated by commas, such as 512,2048"
        ) from None


def _tokenizer(name: str) -> Tokenizer:
    """Loads a tokenizer from a folder, a file, a name or a run."""
    from lmsmith.tokens.tokenizer import Tokenizer

    return Tokenizer.load(name)


def _train(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.tokens.learn import train_tokenizer

    if options.no_special and options.special:
        raise UsageError("--special and --no-special contradict each other: give only one.")
    with Progress(console) as tell:

        def progress(doing: str, done: int, total: int) -> None:
            tell(
                {"count": "reading", "merge": "merging"}[doing],
                done,
                total,
                "B" if doing == "count" else "merges",
            )

        tokenizer, notes = train_tokenizer(
            options.source,
            options.vocab_size,
            options.out,
            pattern=options.pattern,
            special_tokens=[] if options.no_special else options.special or [END_OF_TEXT],
            end_of_text=options.eos_token,
            ties=options.ties,
            threads=options.threads,
            max_memory=options.max_memory,
            progress=progress,
            **_reading(options),
        )
    for note in notes:
        console.print(f"note     {note}")
    console.print(f"wrote {options.out}: {tokenizer.vocab_size:,} tokens")
    console.print(f"try      lmsmith tokenizer inspect {shlex.quote(str(options.out))}")
    return 0


def _import(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.tokens.learn import check_output_folder
    from lmsmith.tokens.tokenizer import Tokenizer

    check_output_folder(options.out)
    tokenizer = Tokenizer.load(
        options.which,
        pattern=options.pattern,
        special=None if options.special is None else dict(options.special),
        eos_token=options.eos_token,
    )
    tokenizer.save(options.out)
    console.print(f"wrote {options.out}: {tokenizer.vocab_size:,} tokens")
    if tokenizer.end_of_text is None:
        console.print("note     there is no end-of-text token: name one with --eos-token")
    console.print(f"try      lmsmith tokenizer inspect {shlex.quote(str(options.out))}")
    return 0


def _encode(options: argparse.Namespace, console: Console, started: float) -> int:
    tokenizer = _tokenizer(options.which)
    if tokenizer.kind in ("bpe", "library", "sentencepiece"):
        from lmsmith.tokens.bpe import BpeTokenizer
        from lmsmith.tokens.library import LibraryTokenizer

        assert isinstance(tokenizer, BpeTokenizer | LibraryTokenizer)
        parts: Iterable[str | bytes] = [options.text] if options.text is not None else _stdin()
        blocks = tokenizer.encode_iter(parts, allowed_special="all" if options.special else ())
    else:
        if options.special:
            raise UsageError(
                f"--special: a tokenizer of kind {tokenizer.kind} reads all text as plain "
                f"text. Remove --special."
            )
        text = options.text if options.text is not None else _text(b"".join(_stdin()))
        blocks = iter([tokenizer.encode(text)])
    between = ""
    for ids in blocks:
        if options.show:
            for number in ids.tolist():
                print(f"{number:8} {tokenizer.decode([number])!r}")
        elif len(ids):
            print(between + " ".join(map(str, ids.tolist())), end="")
            between = " "
    if not options.show:
        print()
    return 0


def _stdin() -> Iterator[bytes]:
    if sys.stdin is None:
        raise UsageError(
            "standard input is closed and no text was given: give one after the tokenizer."
        )
    while block := os.read(sys.stdin.fileno(), BLOCK):  # may return fewer bytes than BLOCK
        yield block


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"standard input is not UTF-8: byte 0x{data[error.start]:02X} at offset "
            f"{error.start}. Convert it to UTF-8, for example with iconv."
        ) from error


def _decode(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.tokens.tokenizer import StreamDecoder

    decoder = StreamDecoder(_tokenizer(options.which))
    for words in [options.ids] if options.ids else map(str.split, sys.stdin):
        for word in words:
            if not word.isdecimal():
                raise UsageError(
                    f"{word!r} is not a token id: expected whole numbers separated by spaces."
                )
        print(decoder.push([int(word) for word in words]), end="", flush=True)
    print(decoder.flush())
    return 0


def _inspect(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.report.tokenizers import HEAD, comparison_rows
    from lmsmith.tokens.measure import inspect_tokenizer

    tokenizer = _tokenizer(options.which)
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

    others = {Path(name).name or name: _tokenizer(name) for name in options.which}
    split = split_documents(Documents(options.text, **_reading(options)))
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
        _tokenizer(options.which)
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

    return "".join(document.text for document in Documents(names, **_reading(options)))


def _python_library() -> str:
    """Returns the source of Python's standard library: text that every machine has."""
    files = sorted(Path(json.__file__).parent.parent.glob("*.py"))
    return "".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
