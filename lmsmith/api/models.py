"""Calls about models: evaluate, compare, import_model, export."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from lmsmith.api.generation import SpecialTokens
from lmsmith.api.lm import LM, load
from lmsmith.api.progress import Shown, showing
from lmsmith.api.run import Folder, Metrics, Run, paths
from lmsmith.api.tasks import TaskResults, check_together, run_harness, write_documents
from lmsmith.api.tasks import run as run_tasks
from lmsmith.errors import UsageError

if TYPE_CHECKING:
    from lmsmith.evaluate.comparison import Entry, Text
    from lmsmith.evaluate.differences import Accuracy, Difference, Item
    from lmsmith.evaluate.likelihood import Score

MODELS = ("ngram", "rnn", "gru", "lstm", "gpt")


@overload
def evaluate(model: LM | Folder, *, tasks: str | Sequence[str], **options: Any) -> TaskResults: ...
@overload
def evaluate(
    model: LM | Folder, *, harness: str | Sequence[str], **options: Any
) -> TaskResults: ...
@overload
def evaluate(model: LM | Folder, **options: Any) -> Score: ...
def evaluate(  # type: ignore[misc] # `**options` stands for the arguments below
    model: LM | Folder,
    *,
    text: Folder | Sequence[Folder] | None = None,
    chats: Folder | Sequence[Folder] | None = None,
    tasks: str | Sequence[str] | None = None,
    harness: str | Sequence[str] | None = None,
    limit: int | None = None,
    shots: int = 0,
    task_data: Folder | None = None,
    per_item: Folder | None = None,
    per_document: Folder | None = None,
    stride: int | None = None,
    bos: bool = True,
    text_field: str = "text",
    encoding: str = "auto",
    errors: Literal["strict", "replace"] = "strict",
    document_separator: str = "auto",
    special_tokens: SpecialTokens = "text",
) -> Score | TaskResults:
    """Evaluates a model on text files, or runs benchmark tasks on it.

        lmsmith.evaluate("runs/a-1").bits_per_byte
        lmsmith.evaluate("runs/a-1", tasks=["hellaswag"], limit=500)["hellaswag"].metrics["acc"]

    model   a run, its folder, or an `LM`
    text    files, folders or globs (default: the run's validation text)
    chats   conversations instead of a text: the loss on the assistant's tokens, under the model's
            chat template
    stride  start a window every N tokens (default: the context length); below the context length
            windows overlap, so each token has more context
    per_document  a .jsonl file to write, with the score of each document
    tasks   names of benchmark tasks, as a list or separated by commas
    harness names of tasks that lm-evaluation-harness runs (extra `eval`); `task_data` is then a
            folder of its .yaml files
    limit   only the first N items of each task
    shots   few-shot examples in front of each item, drawn with a fixed seed
    task_data     the folder of the tasks' items (default: downloaded)
    per_item      a .jsonl file to write, with log-likelihoods and grades of each item
    bos     add a beginning-of-text token, as in training
    text_field, encoding, errors, document_separator, special_tokens
            how the files are read: the settings `data.*`

    Raises DataError for files that cannot be read, ConfigError for an unknown task, UsageError for
    a run without validation text and for arguments that do not go together, and the errors of
    `load`.
    """
    from lmsmith.evaluate.texts import score_texts
    from lmsmith.run_folder import score_validation

    if tasks is not None and harness is not None:
        raise UsageError("tasks and harness do not go together: pass one of them.")
    asked = harness if tasks is None else tasks
    if asked is None and text is None and not bos:
        raise UsageError("bos=False applies to `text`, and there is no text: pass text=FILE.")
    check_together(text, asked, limit, shots, task_data, per_item, per_document, stride, bos)
    if chats is not None:
        others = {"text": text, "tasks": tasks, "harness": harness, "stride": stride,
                  "per_document": per_document, "bos": None if bos else False}  # fmt: skip
        if given := [name for name, value in others.items() if value is not None]:
            raise UsageError(f"chats and {given[0]} do not go together: pass one of them.")
    lm = model if isinstance(model, LM) else load(model)
    if chats is not None:
        from lmsmith.chat.held_out import score_conversations
        from lmsmith.chat.prepare import own_speaker

        return score_conversations(lm.model, own_speaker(lm.path), paths(chats))
    if asked is not None:
        runner = run_harness if tasks is None else run_tasks
        return runner(
            lm,
            asked,
            limit=limit,
            shots=shots,
            folder=None if task_data is None else Path(task_data),
            per_item=None if per_item is None else Path(per_item),
            bos=bos,
        )
    if text is None:
        return score_validation(lm.path, lm.model, stride=stride)
    scored: dict[str, Any] = {
        "text_field": text_field,
        "encoding": encoding,
        "errors": errors,
        "document_separator": document_separator,
        "special_tokens": special_tokens,
        "stride": stride,
        "boundaries": lm.boundaries,
        "begin": lm.writer.begin,
        "bos": bos,
    }
    score = score_texts(lm.model, lm.tokenizer, paths(text), **scored)
    if per_document is not None:
        write_documents(lm, paths(text), Path(per_document), scored)
    return score


@dataclass(frozen=True)
class Comparison:
    """A comparison of models, compressors and a uniform guess on one text, best first, or of models
    on task items. `print` it for the table.
    """

    text: Text | None
    """The text; None if only items were compared."""
    entries: tuple[Entry, ...] = ()
    trained: tuple[Run, ...] = ()
    about: str = ""
    """Describes the training of the models; empty if the comparison trained none."""
    differences: tuple[Difference, ...] = ()
    """A test of each pair of models, with its interval and verdict."""
    accuracies: tuple[Accuracy, ...] = ()
    """The accuracy of each model on each task, if items were compared."""
    item_notes: tuple[str, ...] = ()

    def rows(self) -> Metrics:
        """One dict per entry: name, bits_per_byte and so on. `differences` has the tests of the
        entry against the other models. `.frame()` makes a DataFrame.
        """
        from dataclasses import asdict

        rows = [entry.as_dict() for entry in self.entries]
        rows += [asdict(accuracy) for accuracy in self.accuracies]
        for row in rows:
            measure = row.get("task", "bits per byte")
            row["differences"] = [
                difference.as_dict()
                for difference in self.differences
                if difference.measure == measure and row["name"] in (difference.a, difference.b)
            ]
        return Metrics(rows)

    @property
    def notes(self) -> list[str]:
        """Notes on entries that cannot be compared fairly and on how differences were tested, one
        sentence each.
        """
        from lmsmith.report.comparison import comparison_notes
        from lmsmith.report.differences import difference_notes

        tests = difference_notes(self.differences)
        return [*comparison_notes(self.entries), *tests, *self.item_notes]

    def page(self) -> str:
        """Returns the comparison as one HTML file."""
        from lmsmith.report.comparison import comparison_page, items_page

        if self.text is None:
            return items_page(self.accuracies, self.differences, self.item_notes)
        return comparison_page(
            self.entries,
            self.text,
            [run.path for run in self.trained],
            self.about,
            self.differences,
            self.accuracies,
            self.item_notes,
        )

    def __repr__(self) -> str:
        lines = []
        if self.text is not None:
            lines.append(f"bits per byte of {self.text.name}")
        width = max((len(entry.name) for entry in self.entries), default=0)
        lines += [
            f"{entry.name:{width}}  "
            + (f"{entry.bits_per_byte:8.3f}" if math.isfinite(entry.bits_per_byte) else "infinite")
            + f"  {entry.what}"
            for entry in self.entries
        ]
        lines += [f"{row.name}: {row.accuracy:.1%} of {row.task}" for row in self.accuracies]
        lines += [f"{row.a} and {row.b}, {row.measure}: {row.verdict}" for row in self.differences]
        return "\n".join(lines)


def compare(
    runs: Folder | Sequence[Folder] = (),
    *,
    text: Folder | None = None,
    items: Mapping[str, Folder | Sequence[Item]] | Sequence[Folder] = (),
    train: Folder | Sequence[Folder] | None = None,
    minutes: float = 1.0,
    models: Sequence[str] = MODELS,
    runs_out: Folder | None = None,
    out: Folder | None = None,
    tokenizer: str | None = None,
    seed: int | None = None,
    text_field: str = "text",
    encoding: str = "auto",
    document_separator: str = "auto",
    progress: Shown = None,
) -> Comparison:
    """Compares runs on one text, in bits per byte, with gzip, xz and a uniform guess as baselines,
    or models on task items, and tests which differences are real.

        lmsmith.compare(["runs/a-1", "runs/b-1"], text="test.txt")
        lmsmith.compare(train="book.txt", minutes=2)
        lmsmith.compare(items={"a": "a.jsonl", "b": "b.jsonl"})

    runs      runs or their folders
    text      the file to compare on (with `train`: the held-out part of that text)
    items     results on task items, one file or list per model; each item has "item" (its id),
              "correct" (true or false) and, if there are several tasks, "task"
    train     text to train `models` on first
    minutes   with `train`: training time per model
    models    with `train`: the presets to train; gpt means modern
    runs_out  with `train`: the new folder for the runs (default: runs/comparison-1)
    out       also write an HTML page with a plot
    tokenizer, seed
              with `train`: settings of the new runs
    text_field, encoding, document_separator
              how text is read: the settings `data.*`

    Raises UsageError if there is neither `train` nor both runs and text nor items, DataError for
    items that cannot be read, and the errors of `train` and `load`.
    """
    from lmsmith.evaluate.comparison import differences, read_text
    from lmsmith.report.comparison import check_output_path, compare_runs

    folders = [Path(path) for path in paths(runs)]
    sources = [] if train is None else paths(train)
    on_text = _is_on_text(folders, text, sources, items)
    page = None if out is None else Path(out)
    if page and not (runs_out and page.parent == Path(runs_out)):  # training creates runs_out
        check_output_path(page)
    reading = {
        "text_field": text_field,
        "encoding": encoding,
        "document_separator": document_separator,
    }
    of_items = _compared_items(items)
    if not on_text:
        return _written(Comparison(None, **of_items), page)
    on = None if text is None else read_text(Path(text), **reading)
    changes = _training_settings(tokenizer, seed, reading)
    trained, about = _train_models(sources, changes, models, minutes, runs_out, progress)
    compared = [*folders, *trained]
    if on is None:
        on = _held_out_text(compared[-1], sources)
    entries = tuple(compare_runs(compared, on))
    of_items["differences"] = (*differences(entries, on), *of_items["differences"])
    return _written(Comparison(on, entries, tuple(map(Run, trained)), about, **of_items), page)


def _is_on_text(
    folders: Sequence[Path], text: Folder | None, sources: Sequence[str], items: Any
) -> bool:
    """Whether `compare` compares runs on a text. Raises UsageError if nothing can be compared."""
    on_text = bool(sources or folders or text is not None)
    if (on_text or not items) and not sources and (not folders or text is None):
        raise UsageError(
            "nothing to compare: pass runs and text=FILE; or train=SOURCE, which trains models "
            "first and compares them on its held-out part; or items of several models."
        )
    return on_text


def _written(comparison: Comparison, page: Path | None) -> Comparison:
    """Writes the comparison to the file `page`, if there is one, and returns it."""
    from lmsmith import atomic

    if page:
        atomic.write(page, comparison.page())
    return comparison


def _compared_items(
    items: Mapping[str, Folder | Sequence[Item]] | Sequence[Folder],
) -> dict[str, Any]:
    """The fields of `Comparison` about items."""
    from lmsmith.evaluate.differences import accuracies, item_differences, named_items

    named = named_items(items) if items else {}
    rows, notes = item_differences(named)
    return {
        "differences": tuple(rows),
        "accuracies": tuple(accuracies(named)),
        "item_notes": tuple(notes),
    }


def _training_settings(
    tokenizer: str | None, seed: int | None, reading: Mapping[str, str]
) -> dict[str, Any]:
    """Returns the settings, by dotted name, that `compare` passes to training: those that differ
    from the defaults. `reading`: settings of `data` by their short names.
    """
    changes = {
        f"data.{name}": value for name, value in reading.items() if value not in ("text", "auto")
    }
    given = {"tokenizer": tokenizer, "train.seed": seed} | changes
    return {name: value for name, value in given.items() if value is not None}


def _train_models(
    sources: Sequence[str],
    changes: Mapping[str, Any],
    models: Sequence[str],
    minutes: float,
    runs_out: Folder | None,
    progress: Shown,
) -> tuple[list[Path], str]:
    """Trains `models` on `sources`. Returns the run folders, and a sentence that describes the
    training. Without sources it trains nothing.
    """
    from lmsmith.report.comparison import equal_time, train_all

    if not sources:
        return [], ""
    with showing(progress) as console:
        trained = train_all(
            sources,
            changes,
            models,
            minutes=minutes,
            out=None if runs_out is None else Path(runs_out),
            console=console,
        )
    return trained, equal_time(trained, sources, minutes)


def _held_out_text(run: Path, sources: Sequence[str]) -> Text:
    """Returns the validation text of a run that was trained on `sources`."""
    from lmsmith.evaluate.comparison import read_text

    names = ", ".join(Path(source).name for source in sources)
    held_out = run / "tokens" / "validation.txt"
    return replace(read_text(held_out, document_separator="none"), name=f"held-out text of {names}")


def import_model(
    source: Folder,
    *,
    out: Folder | None = None,
    tokenizer: Folder | None = None,
    eos_token: str | None = None,
) -> Run:
    """Converts a Hugging Face, GGUF, llm.c or nanoGPT model to a run.

    source     a Hugging Face model folder, a GGUF, llm.c or nanoGPT file, or a name on the Hub
    out        the run's new folder (default: runs/NAME-1)
    tokenizer  tokenizer to use (default: the one in `source`); "none": import the weights only
    eos_token  the end-of-text token, which separates documents (default: from the model's files)

    Raises UsageError, ConfigError, CheckpointError, TokenizerError or StorageError, and writes
    nothing then.
    """
    from lmsmith.interop.importing import import_model as convert

    folder, _ = convert(
        os.fspath(source),
        out=None if out is None else Path(out),
        tokenizer=None if tokenizer is None else os.fspath(tokenizer),
        eos_token=eos_token,
    )
    return Run(folder)


@dataclass(frozen=True)
class Exported:
    """An exported model: its folder, and a receipt of the checks that it passed."""

    path: Path
    receipt: dict[str, Any]
    """The content of receipt.json: architecture, n_params, dtype, checked, sha256."""

    def __fspath__(self) -> str:
        return os.fspath(self.path)


def export(
    run: Folder,
    *,
    to: Literal["hf", "gguf", "llmc", "onnx", "peft"],
    out: Folder | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    shard_size: int | str | None = None,
    type: Literal["auto", "f32", "f16", "bf16", "q8_0"] = "auto",
) -> Exported:
    """Exports a run's model for other programs, loads the result and compares its logits.

    to          "hf" for transformers, "gguf" for llama.cpp, "llmc" for llm.c, "onnx" for
                onnxruntime, "peft" for the adapters of a run with LoRA
    out         the new folder (default: RUN-hf and so on, next to the run)
    dtype       precision of the exported weights; auto: as in the run
    shard_size  with "hf": the most bytes of a weights file, such as "2GB" (default: 5GB)
    type        with "gguf": type of the weights; auto: as in the run

    Raises ConfigError if the other program has no such architecture, CheckpointError if the
    exported model gives other logits, UsageError for a wrong argument, StorageError if `out` cannot
    be written.
    """
    from lmsmith.interop.exporting import export_model
    from lmsmith.interop.sharding import SHARD_SIZE, bytes_of

    if to not in ("hf", "gguf", "llmc", "onnx", "peft"):
        raise UsageError(f"to = {to!r}: expected 'hf', 'gguf', 'llmc', 'onnx' or 'peft'.")
    if to == "gguf" and dtype != "auto":
        raise UsageError(f"dtype = {dtype!r} is not for to = 'gguf': pass type instead.")
    if to != "gguf" and type != "auto":
        raise UsageError(f"type = {type!r} is for to = 'gguf': with {to!r}, pass dtype.")
    folder = Path(os.path.abspath(run))
    target = folder.with_name(f"{folder.name}-{to}") if out is None else Path(out)
    if shard_size is not None and to != "hf":
        raise UsageError(f"shard_size = {shard_size!r} needs to = 'hf': {to} writes one file.")
    if to == "gguf":
        from lmsmith.interop.gguf_exporting import export_gguf

        return Exported(target, export_gguf(Path(run), target, type=type))
    size = SHARD_SIZE if shard_size is None else bytes_of(shard_size)
    return Exported(target, export_model(Path(run), target, to=to, dtype=dtype, shard_size=size))
