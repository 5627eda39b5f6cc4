"""Verbs of several models: compare; between programs: import, export."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsmith import api
from lmsmith.cli.console import Printer, table
from lmsmith.cli.grammar import Verbs, add_setting, settings_given
from lmsmith.config import RunConfig, settings
from lmsmith.errors import UsageError
from lmsmith.strict_json import to_json

if TYPE_CHECKING:
    from rich.console import Console


def add(verbs: Verbs) -> None:
    _add_import(verbs)
    _add_export(verbs)
    _add_compare(verbs)


def _add_import(verbs: Verbs) -> None:
    imported = verbs.verb(
        "import",
        _import,
        "make a run of a Hugging Face, GGUF or llm.c model",
        "lmsmith import gpt2 --out demo/gpt2",
        usage="lmsmith import SRC [--out RUN] [--tokenizer FOLDER] [--eos-token TOKEN]",
    )
    imported.add_argument(
        "source",
        metavar="SRC",
        help="a folder, a GGUF or llm.c file, or a name on the Hugging Face Hub",
    )
    imported.add_argument("--out", type=Path, metavar="RUN", help="the run's folder (runs/NAME-1)")
    imported.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        help="instead of the one beside the weights; none: the weights alone",
    )
    imported.add_argument(
        "--eos-token",
        metavar="TOKEN",
        help="which token stands between documents (eos_token of tokenizer_config.json, else by "
        "its name)",
    )


def _add_export(verbs: Verbs) -> None:
    exported = verbs.verb(
        "export",
        _export,
        "write a run's model for other programs",
        "lmsmith export demo/gpt2 --to hf --out demo/gpt2-hf",
    )
    exported.add_argument(
        "run", type=Path, metavar="RUN", help="a folder that `lmsmith train` or `import` wrote"
    )
    exported.add_argument(
        "--to",
        choices=("hf", "gguf", "llmc"),
        required=True,
        help="hf: transformers, vLLM; gguf: llama.cpp; llmc: llm.c's file",
    )
    exported.add_argument(
        "--out", type=Path, metavar="DIR", help="a new folder (RUN-hf, RUN-gguf ..., beside RUN)"
    )
    exported.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="precision of the weights; auto: what they have (auto)",
    )
    exported.add_argument(
        "--type",
        choices=("auto", "f32", "f16", "bf16", "q8_0"),
        default="auto",
        help="with --to gguf: type of the weights; auto: what they have (auto)",
    )


def _add_compare(verbs: Verbs) -> None:
    compared = verbs.verb(
        "compare",
        _compare,
        "compare runs, compressors and a uniform guess on one text",
        "lmsmith compare demo/run-1 --text demo/stories.jsonl --out demo/compare.html",
        usage="lmsmith compare RUN... --text FILE [--train SOURCE --minutes M]",
    )
    compared.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="folders that `train` or `import` wrote"
    )
    compared.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="with --train: its held-out text, if none is named",
    )
    compared.add_argument(
        "--train", nargs="+", metavar="SOURCE", help="train --models on this first"
    )
    compared.add_argument(
        "--minutes", type=float, default=1.0, metavar="M", help="that each of them trains (1)"
    )
    compared.add_argument(
        "--models",
        type=lambda names: [name for name in names.split(",") if name],
        default=["ngram", "rnn", "gru", "lstm", "gpt"],
        metavar="A,B",
        help="presets, or gpt for modern (ngram,rnn,gru,lstm,gpt)",
    )
    compared.add_argument(
        "--runs-out", type=Path, metavar="DIR", help="where they go (runs/comparison-1)"
    )
    compared.add_argument("--out", type=Path, metavar="FILE", help="an HTML page with the plot")
    compared.add_argument("--json", action="store_true", help="print one JSON array")
    known = dict(settings())
    for name in (
        "tokenizer",
        "train.seed",
        "data.text_field",
        "data.encoding",
        "data.document_separator",
    ):
        add_setting(compared, known[name])


def _compare(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.report.comparison import HEAD, comparison_rows, measure
    from lmsmith.train.log import say

    if not options.train and (not options.runs or options.text is None):
        raise UsageError(
            "name runs and --text FILE; or --train SOURCE, to train models first and compare them "
            "on what is held out."
        )
    given = settings_given(options)
    config = RunConfig().changed(given, where="the command line")
    found = api.compare(
        options.runs,
        text=options.text,
        train=options.train,
        minutes=options.minutes,
        models=options.models,
        runs_out=options.runs_out,
        out=options.out,
        tokenizer=given.get("tokenizer"),
        seed=config.train.seed if "train.seed" in given else None,
        text_field=config.data.text_field,
        encoding=config.data.encoding,
        document_separator=config.data.document_separator,
        progress=Printer(stderr=True) if options.json else console,
    )
    if options.json:
        print(to_json([asdict(entry) for entry in found.entries]))
        return 0
    console.print(f"{found.text.name}: {measure(found.text)}")
    if found.about:
        say(console, found.about)
    table(console, HEAD, comparison_rows(found.entries))
    for note in found.notes:
        say(console, f"note: {note}")
    if options.out:
        console.print(f"page     {options.out}")
    return 0


def _import(options: argparse.Namespace, console: Console, started: float) -> int:
    run = api.import_model(
        options.source, out=options.out, tokenizer=options.tokenizer, eos_token=options.eos_token
    )
    summary = run.summary
    tokenizer = f"a {summary['tokenizer']} tokenizer" if summary["tokenizer"] else "no tokenizer"
    console.print(
        f"{run.path} has {summary['n_params']:,} parameters in {summary['dtype']} and {tokenizer}"
    )
    if summary["tokenizer"]:
        console.print(f'try      lmsmith generate {shlex.quote(str(run.path))} "Once upon a time"')
    return 0


def _export(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.interop.exporting import RECEIPT

    exported = api.export(
        options.run, to=options.to, out=options.out, dtype=options.dtype, type=options.type
    )
    receipt = exported.receipt
    console.print(
        f"{exported.path} has {receipt['architecture']}, {receipt['n_params']:,} parameters in "
        f"{receipt['dtype']}"
    )
    for reader, found in receipt["checked"].items():
        console.print(f"checked  {_checked(reader, found)}")
    console.print(f"receipt  {exported.path / RECEIPT}")
    return 0


def _checked(reader: str, found: dict[str, Any] | None) -> str:
    """What the receipt says of one program that read the exported model."""
    if found is None:
        install = ": pip install xllamacpp" if reader == "llama.cpp" else ""
        return f"not by {reader}, which is not installed{install}"
    if "max_logit_difference" in found:
        return f"read again by {reader}: logits differ by {found['max_logit_difference']:.2g}"
    if reader == "llama.cpp":
        return (
            f"read again by {reader}: equal ids on {found['n_lines_with_equal_ids']:,} lines, "
            f"log-probabilities differ by {found['max_log_probability_difference']:.2g}, "
            f"{found['n_equal_greedy_tokens']} of {found['n_greedy_tokens']} greedy tokens equal"
        )
    return f"read again by {reader}: equal but for rounding ({found['relative_rounding']:.2g})"
