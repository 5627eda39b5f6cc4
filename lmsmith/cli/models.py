"""Commands compare (several models), import and export (other programs' models)."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsmith import api
from lmsmith.cli import tasks
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
        "convert a Hugging Face, GGUF, llm.c, nanoGPT or nanochat model to a run",
        "lmsmith import gpt2 --out demo/gpt2",
        usage="lmsmith import SRC [--out RUN] [--tokenizer FOLDER] [--eos-token TOKEN]",
    )
    imported.add_argument(
        "source",
        metavar="SRC",
        help="a Hugging Face model folder, a name on the Hugging Face Hub, a GGUF file, an llm.c "
        "file, or a checkpoint of nanoGPT (ckpt.pt) or nanochat (model_*.pt)",
    )
    imported.add_argument(
        "--out", type=Path, metavar="RUN", help="the run's new folder (runs/NAME-1)"
    )
    imported.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        help="tokenizer to use, or nanoGPT's meta.pkl; none: import the weights without one (the "
        "tokenizer in SRC)",
    )
    imported.add_argument(
        "--eos-token",
        metavar="TOKEN",
        help="end-of-text token, which separates documents (eos_token of tokenizer_config.json, "
        "or a token with a known name)",
    )


def _add_export(verbs: Verbs) -> None:
    exported = verbs.verb(
        "export",
        _export,
        "convert a run's model for transformers, llama.cpp, onnxruntime, llm.c or PEFT",
        "lmsmith export demo/gpt2 --to hf --out demo/gpt2-hf",
    )
    exported.add_argument(
        "run", type=Path, metavar="RUN", help="folder that `lmsmith train` or `import` wrote"
    )
    exported.add_argument(
        "--to",
        choices=("hf", "gguf", "llmc", "onnx", "peft"),
        required=True,
        help="format; hf: transformers, vLLM and mlx-lm for presets llama, qwen3 and gpt2, "
        "transformers alone for other Transformers and recurrent networks; gguf: llama.cpp and "
        "programs built on it, for these presets; onnx: onnxruntime, for any Transformer; llmc: "
        "llm.c, for preset gpt2; peft: PEFT, for the adapters of a run with LoRA",
    )
    exported.add_argument(
        "--out", type=Path, metavar="DIR", help="the new folder (RUN-hf and so on, next to RUN)"
    )
    exported.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="precision of the weights, except with --to gguf; auto: as in the run (auto)",
    )
    exported.add_argument(
        "--shard-size",
        metavar="SIZE",
        help="with --to hf: maximum size of a weights file, such as 2GB (5GB)",
    )
    exported.add_argument(
        "--type",
        choices=("auto", "f32", "f16", "bf16", "q8_0"),
        default="auto",
        help="with --to gguf: type of the weights; q8_0: 8 bits; auto: as in the run (auto)",
    )


def _add_compare(verbs: Verbs) -> None:
    compared = verbs.verb(
        "compare",
        _compare,
        "compare runs on one text or on tasks, and test which differences are real",
        "lmsmith compare demo/run-1 --text demo/stories.jsonl --out demo/compare.html",
        usage="lmsmith compare RUN... --text FILE [--train SOURCE --minutes M]\n"
        "       lmsmith compare RUN... --tasks NAMES [--limit N]\n"
        "       lmsmith compare --items A.jsonl B.jsonl",
    )
    compared.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="folders that `train` or `import` wrote"
    )
    compared.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="text to compare on (with --train: the held-out part of SOURCE)",
    )
    tasks.add_task_options(
        compared,
        "benchmark tasks to run on all runs, with commas; accuracies are compared item by item",
    )
    compared.add_argument(
        "--items",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="saved results, one file per model, as `eval --per-item` writes them; each line has "
        "item, correct and, with several tasks, task",
    )
    _add_training(compared)
    compared.add_argument(
        "--out", type=Path, metavar="FILE", help="also write an HTML page with a plot (none)"
    )
    compared.add_argument("--json", action="store_true", help="print one JSON array")


def _add_training(compared: argparse.ArgumentParser) -> None:
    compared.add_argument(
        "--train", nargs="+", metavar="SOURCE", help="first train --models on this text"
    )
    compared.add_argument(
        "--minutes",
        type=float,
        default=1.0,
        metavar="M",
        help="with --train: training time per model, in minutes (1)",
    )
    compared.add_argument(
        "--models",
        type=lambda names: [name for name in names.split(",") if name],
        default=["ngram", "rnn", "gru", "lstm", "gpt"],
        metavar="A,B",
        help="with --train: the presets to train; gpt means modern (ngram,rnn,gru,lstm,gpt)",
    )
    compared.add_argument(
        "--runs-out",
        type=Path,
        metavar="DIR",
        help="with --train: the new folder for the runs (runs/comparison-1)",
    )
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
    on_text = options.train or (options.runs and options.text is not None)
    on_items = not options.text and (options.runs if options.tasks else options.items)
    if not on_text and (not on_items or (options.runs and not options.tasks)):
        raise UsageError(
            "nothing to compare: name runs and --text FILE or --tasks NAMES; or --train SOURCE, "
            "which trains models first and compares them on its held-out part; or --items with "
            "one file per model."
        )
    given = settings_given(options)
    config = RunConfig().changed(given, where="the command line")
    comparison = api.compare(
        options.runs,
        text=options.text,
        tasks=options.tasks or (),
        limit=options.limit,
        shots=options.shots,
        task_data=options.task_data,
        items=options.items,
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
        print(to_json(comparison.rows()))
        return 0
    _print_comparison(comparison, console)
    if options.out:
        console.print(f"page     {options.out}")
    return 0


def _print_comparison(comparison: api.Comparison, console: Console) -> None:
    from lmsmith.report.comparison import HEAD, comparison_rows, measure
    from lmsmith.report.differences import (
        ACCURACY_HEAD,
        DIFFERENCE_HEAD,
        accuracy_rows,
        difference_rows,
    )
    from lmsmith.train.log import say

    if comparison.text is not None:
        console.print(f"{comparison.text.name}: {measure(comparison.text)}")
        if comparison.about:
            say(console, comparison.about)
        table(console, HEAD, comparison_rows(comparison.entries))
    if comparison.accuracies:
        table(console, ACCURACY_HEAD, accuracy_rows(comparison.accuracies))
    if comparison.differences:
        console.print()
        table(console, DIFFERENCE_HEAD, difference_rows(comparison.differences))
    for note in comparison.notes:
        say(console, f"note: {note}")


def _import(options: argparse.Namespace, console: Console, started: float) -> int:
    run = api.import_model(
        options.source, out=options.out, tokenizer=options.tokenizer, eos_token=options.eos_token
    )
    summary = run.summary
    tokenizer = f"a {summary['tokenizer']} tokenizer" if summary["tokenizer"] else "no tokenizer"
    console.print(
        f"imported {run.path}: {summary['n_params']:,} parameters in {summary['dtype']}, "
        f"{tokenizer}"
    )
    if summary["tokenizer"]:
        console.print(f'try      lmsmith generate {shlex.quote(str(run.path))} "Once upon a time"')
    return 0


def _export(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.interop.card import FILE_NAME as CARD
    from lmsmith.interop.exporting import RECEIPT
    from lmsmith.interop.formats import presets_for_others
    from lmsmith.train.log import say

    _check_format(options)
    exported = api.export(
        options.run,
        to=options.to,
        out=options.out,
        dtype=options.dtype,
        shard_size=options.shard_size,
        type=options.type,
    )
    receipt = exported.receipt
    console.print(
        f"exported {exported.path}: {receipt['architecture']}, {receipt['n_params']:,} parameters "
        f"in {receipt['dtype']}"
    )
    for reader, found in receipt["checked"].items():
        console.print(f"checked  {_checked(reader, found)}")
    console.print(f"receipt  {exported.path / RECEIPT}")
    if code := receipt.get("code"):
        say(
            console,
            f"note     transformers has no class for this model and runs {code}: load it with "
            "trust_remote_code=True. llama.cpp and vLLM cannot read it: for those, train "
            f"with --preset {presets_for_others()}.",
            indent=9,
        )
    if options.to == "hf":
        console.print(f"card     {exported.path / CARD}: fill in the licence before publishing")
        target = shlex.quote(str(exported.path))
        console.print(f"upload   hf upload YOUR-NAME/{shlex.quote(exported.path.name)} {target}")
    return 0


def _check_format(options: argparse.Namespace) -> None:
    """Raises UsageError for an option that the format does not have. `api.export` checks the same
    and names its arguments.
    """
    to = options.to
    if to == "gguf" and options.dtype != "auto":
        raise UsageError(f"--dtype {options.dtype} is not for --to gguf: use --type instead.")
    if to != "gguf" and options.type != "auto":
        raise UsageError(f"--type {options.type} is for --to gguf: use --dtype with --to {to}.")
    if to != "hf" and options.shard_size is not None:
        raise UsageError(
            f"--shard-size {options.shard_size} is for --to hf: --to {to} writes one file. Leave "
            "it out."
        )


def _checked(reader: str, found: dict[str, Any] | None) -> str:
    """What the receipt says of one program that read the exported model."""
    if found is None:
        install = ": pip install xllamacpp" if reader == "llama.cpp" else ""
        return f"not with {reader}, which is not installed{install}"
    if "max_logit_difference" in found:
        return f"loaded with {reader}: logits differ by at most {found['max_logit_difference']:.2g}"
    if reader == "llama.cpp":
        return (
            f"loaded with {reader}: equal ids on {found['n_lines_with_equal_ids']:,} lines, "
            f"log-probabilities differ by {found['max_log_probability_difference']:.2g}, "
            f"{found['n_equal_greedy_tokens']} of {found['n_greedy_tokens']} greedy tokens equal"
        )
    return f"loaded with {reader}: equal but for rounding ({found['relative_rounding']:.2g})"
