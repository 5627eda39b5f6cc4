"""Commands that make and use tokenizers: tokenizer train, import, encode, decode."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lmsmith.cli.console import Progress
from lmsmith.cli.grammar import Verbs, add_setting, at_least_one, settings_given
from lmsmith.config import RunConfig, settings
from lmsmith.errors import DataError, UsageError

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
    add_reading(train)


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


def add_reading(made: argparse.ArgumentParser) -> None:
    known = dict(settings())
    for name in READING:
        add_setting(made, known[name])


def reading(options: argparse.Namespace) -> dict[str, Any]:
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


def tokenizer_named(name: str) -> Tokenizer:
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
            **reading(options),
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
    tokenizer = tokenizer_named(options.which)
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
    from lmsmith.tokens.stream_decoder import StreamDecoder

    decoder = StreamDecoder(tokenizer_named(options.which))
    for words in [options.ids] if options.ids else map(str.split, sys.stdin):
        for word in words:
            if not word.isdecimal():
                raise UsageError(
                    f"{word!r} is not a token id: expected whole numbers separated by spaces."
                )
        print(decoder.push([int(word) for word in words]), end="", flush=True)
    print(decoder.flush())
    return 0
