"""Verbs between programs: import, export."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from lmsmith.cli.grammar import Verbs

if TYPE_CHECKING:
    from rich.console import Console


def add(verbs: Verbs) -> None:
    imported = verbs.verb(
        "import",
        _import,
        "make a run of a Hugging Face or llm.c model",
        "lmsmith import gpt2 --out demo/gpt2",
        usage="lmsmith import SRC [--out RUN] [--tokenizer FOLDER]",
    )
    imported.add_argument("source", metavar="SRC", help="a folder, an llm.c file, or a name on the Hugging Face Hub")
    imported.add_argument("--out", type=Path, metavar="RUN", help="the run's folder (runs/NAME-1)")
    imported.add_argument(
        "--tokenizer", metavar="FOLDER", help="instead of the one beside the weights; none: the weights alone"
    )

    exported = verbs.verb(
        "export",
        _export,
        "write a run's model for other programs",
        "lmsmith export demo/gpt2 --to hf --out demo/gpt2-hf",
    )
    exported.add_argument("run", type=Path, metavar="RUN", help="a folder that `lmsmith train` or `import` wrote")
    exported.add_argument(
        "--to", choices=("hf", "llmc"), required=True, help="hf: transformers, vLLM; llmc: llm.c's file"
    )
    exported.add_argument("--out", type=Path, metavar="DIR", required=True, help="a new folder")
    exported.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="precision of the weights; auto: what they have (auto)",
    )


def _import(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.interop.importing import import_model

    run, summary = import_model(options.source, out=options.out, tokenizer=options.tokenizer)
    tokenizer = f"a {summary['tokenizer']} tokenizer" if summary["tokenizer"] else "no tokenizer"
    console.print(f"{run} has {summary['n_params']:,} parameters in {summary['dtype']} and {tokenizer}")
    if summary["tokenizer"]:
        console.print(f"try      lmsmith generate {shlex.quote(str(run))}")
    return 0


def _export(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.interop.exporting import RECEIPT, export_model

    receipt = export_model(options.run, options.out, to=options.to, dtype=options.dtype)
    console.print(
        f"{options.out} has {receipt['architecture']}, {receipt['n_params']:,} parameters in {receipt['dtype']}"
    )
    for reader, found in receipt["checked"].items():
        if found is None:
            console.print(f"checked  not by {reader}, which is not installed")
        else:
            console.print(f"checked  read again by {reader}: logits differ by {found['max_logit_difference']:.2g}")
    console.print(f"receipt  {options.out / RECEIPT}")
    return 0
