"""`lmsmith eval --tasks`: benchmark tasks."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from lmsmith import api
from lmsmith.cli.grammar import at_least_one, settings_given
from lmsmith.errors import UsageError
from lmsmith.strict_json import to_json


def add_task_options(verb: argparse.ArgumentParser, what: str) -> None:
    """The options that name tasks and their items; `what` describes --tasks."""
    verb.add_argument(
        "--tasks",
        metavar="NAMES",
        help=f"{what}: hellaswag, arc_easy, arc_challenge, piqa, winogrande, lambada, mmlu, gsm8k, "
        "core, story_character, story_object",
    )
    verb.add_argument(
        "--limit", type=at_least_one, metavar="N", help="only the first N items of each task"
    )
    verb.add_argument(
        "--shots", type=int, default=0, metavar="N", help="few-shot examples before each item (0)"
    )
    verb.add_argument(
        "--task-data",
        type=Path,
        metavar="DIR",
        help="folder with the items (.jsonl, .csv, .parquet), or with the harness's .yaml files; "
        "without: they are downloaded",
    )


def add_options(verb: argparse.ArgumentParser) -> None:
    """The options of `eval` about tasks, and the files for scores of items and documents."""
    add_task_options(verb, "benchmark tasks instead of a text, with commas")
    verb.add_argument(
        "--harness",
        metavar="NAMES",
        help="tasks that EleutherAI's lm-evaluation-harness runs (pip install 'lmsmith[eval]')",
    )
    verb.add_argument(
        "--per-item", type=Path, metavar="FILE", help="write the scores of each item as .jsonl"
    )
    verb.add_argument(
        "--per-document",
        type=Path,
        metavar="FILE",
        help="with --text: write the score of each document as .jsonl; nats, tokens and bytes add "
        "up to those of the text, which is scored once",
    )


def check_for_text(options: argparse.Namespace) -> None:
    """Raises UsageError for options of tasks where no task is named, and the other way round."""
    for name in ("limit", "shots", "task_data", "per_item"):
        if getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')} is for tasks, and there is no --tasks.")
    if options.per_document and not options.text:
        raise UsageError("--per-document lists the documents of --text, and there is no --text.")


def run(options: argparse.Namespace, console: Console) -> int:
    """Runs the tasks and prints their table, or one JSON object."""
    for name in ("text", "stride", "per_document"):
        if getattr(options, name):
            raise UsageError(
                f"--{name.replace('_', '-')} is for texts: leave it out, or name no tasks."
            )
    if given := next(iter(settings_given(options)), None):
        raise UsageError(f"--{given} says how --text is read, and there is no --text.")
    found = api.evaluate(
        options.run,
        tasks=options.tasks,
        harness=options.harness,
        limit=options.limit,
        shots=options.shots,
        task_data=options.task_data,
        per_item=options.per_item,
        bos=not options.no_bos,
        weights=options.weights,
    )
    if options.json:
        print(to_json({"tasks": found.as_dict()}))
        return 0
    print(found)
    for note in found.notes:
        console.print(f"note: {note}")
    return 0
