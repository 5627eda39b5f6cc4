"""Command eval: a model on a text; `tasks.py` has eval --tasks."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lmsmith import api
from lmsmith.cli import tasks
from lmsmith.cli.grammar import Verbs, add_setting, settings_given
from lmsmith.config import settings
from lmsmith.errors import UsageError
from lmsmith.strict_json import to_json

if TYPE_CHECKING:
    from lmsmith.evaluate.likelihood import Score


# Numbers that `eval` always prints; the other ones are counts, for which it prints a note unless 0.
ALWAYS_SHOWN = ("nats_per_token", "perplexity", "bits_per_byte", "n_tokens", "n_bytes")


def add(verbs: Verbs) -> None:
    evaluate = verbs.verb(
        "eval",
        _eval,
        "evaluate a model on a text (loss, perplexity, bits per byte) or on tasks",
        "lmsmith eval demo/run-1 --text demo/stories.jsonl",
        usage="lmsmith eval RUN [--text|--chats FILE...] [--tasks NAMES] [OPTION]...",
    )
    evaluate.add_argument(
        "run", type=Path, metavar="RUN", help="folder that `lmsmith train` or `import` wrote"
    )
    evaluate.add_argument(
        "--text",
        nargs="+",
        metavar="FILE",
        help="text files to evaluate on (the run's validation text)",
    )
    evaluate.add_argument(
        "--chats",
        nargs="+",
        metavar="FILE",
        help="conversations instead of a text: loss on the assistant's tokens",
    )
    evaluate.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="start a window every N tokens; below the context length windows overlap, so each "
        "token has more context (the context length)",
    )
    evaluate.add_argument(
        "--weights",
        default="fp32",
        choices=("fp32", "bf16", "int8"),
        metavar="FORMAT",
        help="fp32, bf16 or int8: evaluate with the weights in this format, as in `generate`; with "
        "a text, also print the change in bits per byte (fp32)",
    )
    tasks.add_options(evaluate)
    add_no_bos(evaluate, "the text")
    known = dict(settings())
    meaning = "bytes that are not UTF-8: strict stops, replace scores them as raw bytes"
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


def add_no_bos(verb: argparse.ArgumentParser, what: str) -> None:
    """Adds `--no-bos`. By default a text begins as in training; transformers begins GPT-2's texts
    without that token.
    """
    verb.add_argument(
        "--no-bos",
        action="store_true",
        help=f"add no beginning-of-text token before {what}. By default one is added, as in "
        "training; transformers adds none for GPT-2",
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
            f"--{next(iter(settings_given(options)))} applies to --text, and there is no --text: "
            f"add --text FILE."
        )
    for name in ("text", "stride", "per_document"):
        if options.chats and getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')} does not go together with --chats.")
    if options.no_bos and not options.text:
        raise UsageError("--no-bos applies to --text, and there is no --text: add --text FILE.")
    asked: dict[str, Any] = {
        "chats": options.chats,
        "text": options.text,
        "stride": options.stride,
        "bos": not options.no_bos,
        "text_field": data.text_field,
        "encoding": data.encoding,
        "errors": data.errors,
        "document_separator": data.document_separator,
        "special_tokens": data.special_tokens,
    }
    lm = api.load(options.run, weights=options.weights)
    model, tokenizer = lm.model, lm.tokenizer
    score = api.evaluate(lm, per_document=options.per_document, **asked)
    n_without_token = len(unused_ids(tokenizer, model.vocab_size))
    numbers: dict[str, Any] = score.as_dict() | {"n_ids_without_token": n_without_token}
    if options.weights != "fp32":
        full = api.evaluate(options.run, **asked).bits_per_byte
        numbers |= {
            "weights": options.weights,
            "fp32_bits_per_byte": full,
            "bits_per_byte_change": score.bits_per_byte - full,
        }
    if options.json:
        print(to_json(numbers))
        return 0
    _print_score(lm, score, numbers, console)
    return 0


def _print_score(lm: api.LM, score: Score, numbers: dict[str, Any], console: Console) -> None:
    """Prints the numbers, and a note for each count that needs an explanation."""
    kind = lm.tokenizer.kind
    for name, value in numbers.items():
        if name in ALWAYS_SHOWN:
            console.print(
                f"{name:20} {value:,.4f}" if isinstance(value, float) else f"{name:20} {value:,}"
            )
    if weights := numbers.get("weights"):
        console.print(
            f"note: these numbers are with {weights} weights; with fp32 weights bits_per_byte is "
            f"{numbers['fp32_bits_per_byte']:,.4f}, so {weights} changes it by "
            f"{numbers['bits_per_byte_change']:+.2g}"
        )
    if score.n_impossible:
        console.print(
            f"note: {score.n_impossible:,} tokens of the text have probability 0 under this model, "
            "so its loss is infinite"
        )
    if score.n_invalid:
        console.print(
            f"note: {score.n_invalid:,} bytes of the text are not UTF-8; they are scored as raw "
            f"bytes"
        )
    if score.n_unknown:
        units = {"word": "words", "char": "characters"}.get(kind, "units")
        changes = kind in ("library", "sentencepiece")
        changed = "changed by the tokenizer or " if changes else ""
        console.print(
            f"note: {score.n_unknown:,} {units} of the text are {changed}not in the vocabulary; "
            f"their {score.n_unknown_bytes:,} bytes and their positions add "
            f"{score.unknown_bits:,.0f} bits to the score"
        )
    if n_without_token := numbers["n_ids_without_token"]:
        console.print(
            f"note: {n_without_token:,} of the model's {lm.model.vocab_size:,} ids belong to no "
            "token; the probability that the model gives them makes its score worse"
        )
