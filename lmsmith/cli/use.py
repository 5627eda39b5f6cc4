"""Verbs that use a trained model: generate, eval."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lmsmith import api
from lmsmith.cli import tasks
from lmsmith.cli.console import problem
from lmsmith.cli.grammar import Verbs, add_setting, at_least_one, settings_given
from lmsmith.config import settings
from lmsmith.errors import DataError, UsageError
from lmsmith.strict_json import to_json
from lmsmith.train.stop import Stopped

if TYPE_CHECKING:
    from lmsmith.tokens.tokenizer import Tokenizer


def add(verbs: Verbs) -> None:
    _add_generate(verbs)
    _add_eval(verbs)


def _add_generate(verbs: Verbs) -> None:
    generate = verbs.verb(
        "generate", _generate, "continue a text", 'lmsmith generate demo/run-1 "Once upon a time"'
    )
    generate.add_argument(
        "run", type=Path, metavar="RUN", help="the folder that `lmsmith train` wrote"
    )
    generate.add_argument(
        "prompt", nargs="?", help="without one: lines from standard input, one prompt each"
    )
    generate.add_argument(
        "--n", type=at_least_one, default=1, help="continuations of each prompt (1)"
    )
    generate.add_argument(
        "--max-tokens", type=int, default=500, metavar="N", help="tokens of a continuation (500)"
    )
    generate.add_argument(
        "--temperature", type=float, default=0.8, metavar="T", help="0 is greedy (0.8)"
    )
    generate.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="only the K likeliest tokens; 0: all (0)"
    )
    generate.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="only the likeliest tokens that together reach P (1)",
    )
    generate.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="only tokens P times as likely as the likeliest (0)",
    )
    generate.add_argument(
        "--seed", type=int, default=1, help="the same seed gives the same text (1)"
    )
    generate.add_argument(
        "--special-tokens",
        action="store_true",
        help="special tokens written out in the prompt, such as <|im_start|>, are control tokens, "
        "as chat models want "
        "them; without it they are text like other text, as everywhere in lmsmith",
    )
    generate.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this; can be repeated",
    )

    _add_no_bos(generate, "the prompt")


def _add_eval(verbs: Verbs) -> None:
    evaluate = verbs.verb(
        "eval",
        _eval,
        "score a text under a model, or run benchmark tasks",
        "lmsmith eval demo/run-1 --text demo/stories.jsonl",
    )
    evaluate.add_argument(
        "run", type=Path, metavar="RUN", help="the folder that `lmsmith train` wrote"
    )
    evaluate.add_argument(
        "--text", nargs="+", metavar="FILE", help="without: the run's own validation text"
    )
    evaluate.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="a window every N tokens; less than the context: overlap",
    )
    tasks.add_options(evaluate)
    _add_no_bos(evaluate, "the text")
    known = dict(settings())
    meaning = "bytes that are no UTF-8 stop, or (replace) count as they are"
    known["data.errors"] = dataclasses.replace(known["data.errors"], meaning=meaning)
    for name in (
        "data.text_field",
        "data.encoding",
        "data.errors",
        "data.document_separator",
        "data.special_tokens",
    ):
        add_setting(evaluate, known[name])
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")


def _add_no_bos(verb: argparse.ArgumentParser, what: str) -> None:
    """By default a text begins as in training. transformers begins GPT-2's without that token."""
    verb.add_argument(
        "--no-bos",
        action="store_true",
        help=f"put no token before {what}. By default one stands there, as in training: the end "
        f"of text, or what an "
        "imported model begins texts with. transformers puts none before GPT-2's",
    )


def _generate(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.generate.sampling import Sampling
    from lmsmith.tokens.control import check_control

    special_tokens: api.SpecialTokens = "control" if options.special_tokens else "text"
    # A number out of range is said before the model is loaded.
    Sampling(options.temperature, options.top_k, options.top_p, options.min_p)
    lm = api.load(options.run)
    check_control(lm.tokenizer, special_tokens)

    def write(prompt: str) -> None:
        _tell_unknown(lm.tokenizer, prompt)
        for index in range(options.n):
            pieces = lm.stream(
                prompt,
                max_tokens=options.max_tokens,
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                min_p=options.min_p,
                seed=options.seed,
                stop=options.stop,
                special_tokens=special_tokens,
                bos=not options.no_bos,
                index=index,
            )
            if options.n > 1:
                print(f"--- {index + 1}")
            print(prompt, end="", flush=True)
            for piece in pieces:
                print(piece, end="", flush=True)
            print(flush=True)

    if options.prompt is not None:
        write(options.prompt)
    elif sys.stdin.isatty():
        _converse(write, console)
    else:
        n_prompts = 0
        for prompt in _lines_of_stdin():
            n_prompts += 1
            write(prompt)
        if not n_prompts:
            write("")
    return 0


def _converse(write: Any, console: Console) -> None:
    """A prompt, a continuation, and so on, on a terminal."""
    with contextlib.suppress(ImportError):  # not on Windows
        import readline  # noqa: F401 - input() then has a history and can be edited
    console.print("A prompt a line; Ctrl-C ends a text, an empty line or Ctrl-D ends.")
    while True:
        try:
            prompt = input("> ")
        except (EOFError, KeyboardInterrupt) as end:
            if isinstance(end, Stopped):
                raise
            print()
            return
        if not prompt:
            return
        try:
            write(prompt)
        except UsageError as error:
            problem(f"lmsmith: {error}")
        except KeyboardInterrupt as stop:  # of this text, not of the conversation
            if isinstance(stop, Stopped):
                raise
            print()


def _lines_of_stdin() -> Iterator[str]:
    """Lines as they come. Raises DataError for what is not UTF-8."""
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(
                f"line {number} of standard input is not UTF-8: byte 0x{line[error.start]:02X} at "
                f"its offset "
                f"{error.start}. Convert it, with iconv for example."
            ) from error


def _tell_unknown(tokenizer: Tokenizer, prompt: str) -> None:
    n_unknown = tokenizer.count_unknown(prompt)
    if n_unknown and tokenizer.kind == "word":
        problem(
            f"note: {n_unknown} of the prompt's words are unknown to this model; it reads <unk> "
            f"in their place"
        )
    elif n_unknown and tokenizer.kind == "library":
        problem(
            f"note: {n_unknown} of the prompt's words or blanks are changed by this model's "
            f"tokenizer or unknown "
            f"to it; it reads: {tokenizer.decode(tokenizer.encode(prompt))}"
        )
    elif n_unknown:
        unknown = "".join(dict.fromkeys(c for c in prompt if tokenizer.count_unknown(c)))
        problem(
            f"note: {n_unknown} of the prompt's characters are unknown to this model and left "
            f"out: {unknown}"
        )


def _eval(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.config import RunConfig
    from lmsmith.tokens.tokenizer import unused_ids

    if options.tasks or options.harness:
        return tasks.run(options, console)
    data = RunConfig().changed(settings_given(options), where="the command line").data
    tasks.check_for_text(options)
    if settings_given(options) and not options.text:
        raise UsageError(
            f"--{next(iter(settings_given(options)))} says how --text is read, and there is no "
            f"--text."
        )
    if options.no_bos and not options.text:
        raise UsageError("--no-bos says how --text begins, and there is no --text.")
    lm = api.load(options.run)
    model, tokenizer = lm.model, lm.tokenizer
    score = api.evaluate(
        lm,
        text=options.text,
        per_document=options.per_document,
        stride=options.stride,
        bos=not options.no_bos,
        text_field=data.text_field,
        encoding=data.encoding,
        errors=data.errors,
        document_separator=data.document_separator,
        special_tokens=data.special_tokens,
    )
    n_without_token = len(unused_ids(tokenizer, model.vocab_size))
    found = score.as_dict() | {"n_ids_without_token": n_without_token}
    if options.json:
        print(to_json(found))
        return 0
    for name, value in found.items():
        console.print(
            f"{name:20} {value:,.4f}" if isinstance(value, float) else f"{name:20} {value:,}"
        )
    if score.n_invalid:
        console.print(
            f"note: {score.n_invalid:,} bytes of the text are no UTF-8; they count as they are"
        )
    if score.n_unknown:
        units = {"word": "words", "char": "characters"}.get(tokenizer.kind, "units")
        changed = "changed by the tokenizer or " if tokenizer.kind == "library" else ""
        console.print(
            f"note: {score.n_unknown:,} {units} of the text are {changed}unknown to this model; "
            f"for their "
            f"{score.n_unknown_bytes:,} bytes and their places {score.unknown_bits:,.0f} bits are "
            f"charged"
        )
    if n_without_token:
        console.print(
            f"note: no token has {n_without_token:,} of the model's {model.vocab_size:,} ids; the "
            f"probability that the "
            "model gives them counts against it"
        )
    return 0
