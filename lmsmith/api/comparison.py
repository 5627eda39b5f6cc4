"""`lmsmith.compare`: models on one text, on benchmark tasks, or on saved results of items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsmith.api.progress import Shown, showing
from lmsmith.api.run import Folder, Metrics, Run, paths
from lmsmith.errors import UsageError

if TYPE_CHECKING:
    from lmsmith.evaluate.comparison import Entry, Text
    from lmsmith.evaluate.differences import Accuracy, Difference, Item

MODELS = ("ngram", "rnn", "gru", "lstm", "gpt")


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
    tasks: str | Sequence[str] = (),
    limit: int | None = None,
    shots: int = 0,
    task_data: Folder | None = None,
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
    or on benchmark tasks, and tests which differences are real.

        lmsmith.compare(["runs/a-1", "runs/b-1"], text="test.txt")
        lmsmith.compare(["runs/a-1", "runs/b-1"], tasks=["hellaswag"], limit=500)
        lmsmith.compare(train="book.txt", minutes=2)
        lmsmith.compare(items={"a": "a.jsonl", "b": "b.jsonl"})

    runs      runs or their folders
    text      the file to compare on (with `train`: the held-out part of that text)
    tasks     benchmark tasks to run on all runs, as a list or separated by commas; acc (of
              generated answers, exact_match) is compared
    limit, shots, task_data
              with `tasks`: as in `evaluate`
    items     results on task items, one file or list per model, such as `evaluate` writes with
              `per_item`; each item has "item" (its id),
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

    Raises UsageError if there is nothing to compare, DataError for items that cannot be read, and
    the errors of `train`, `load` and `evaluate`.
    """
    from lmsmith.api.tasks import check_tasks
    from lmsmith.evaluate.comparison import differences, read_text
    from lmsmith.report.comparison import check_output_path, compare_runs

    folders = [Path(path) for path in paths(runs)]
    sources = [] if train is None else paths(train)
    _check_together(tasks, items, limit, shots, task_data, len(folders), bool(sources))
    if tasks:  # before anything is trained
        check_tasks(tasks, limit, shots)
    on_text = _is_on_text(folders, text, sources, tasks, items)
    page = None if out is None else Path(out)
    if page and not (runs_out and page.parent == Path(runs_out)):  # training creates runs_out
        check_output_path(page)
    reading = {
        "text_field": text_field,
        "encoding": encoding,
        "document_separator": document_separator,
    }
    about_tasks = (tasks, limit, shots, None if task_data is None else Path(task_data))
    if not on_text:
        of_items = _on_tasks(folders, *about_tasks) if tasks else _compared_items(items)
        return _written(Comparison(None, **of_items), page)
    on = None if text is None else read_text(Path(text), **reading)
    changes = _training_settings(tokenizer, seed, reading)
    trained, about = _train_models(sources, changes, models, minutes, runs_out, progress)
    compared = [*folders, *trained]
    if on is None:
        on = _held_out_text(compared[-1], sources)
    of_items = _on_tasks(compared, *about_tasks) if tasks else _compared_items(items)
    entries = tuple(compare_runs(compared, on))
    of_items["differences"] = (*differences(entries, on), *of_items["differences"])
    return _written(Comparison(on, entries, tuple(map(Run, trained)), about, **of_items), page)


def _is_on_text(
    folders: Sequence[Path], text: Folder | None, sources: Sequence[str], tasks: Any, items: Any
) -> bool:
    """Whether `compare` compares runs on a text. Raises UsageError if nothing can be compared."""
    if sources or (folders and text is not None):
        return True
    if text is not None or not (tasks or items) or (folders and not tasks):
        raise UsageError(
            "nothing to compare: pass runs and text=FILE or tasks=NAMES; or train=SOURCE, which "
            "trains models first and compares them on its held-out part; or items of several "
            "models."
        )
    return False


def _check_together(
    tasks: Any,
    items: Any,
    limit: int | None,
    shots: int,
    task_data: Any,
    n_runs: int,
    trains: bool,
) -> None:
    """Raises UsageError for arguments about tasks that do not go together."""
    if tasks and items:
        raise UsageError("tasks and items do not go together: run tasks, or pass their results.")
    if tasks and n_runs < 2 and not trains:
        raise UsageError(f"tasks compare at least two runs, and there are {n_runs}: name more.")
    given = {"limit": limit is not None, "shots": shots != 0, "task_data": task_data is not None}
    for name, is_given in given.items():
        if is_given and not tasks:
            raise UsageError(f"{name} is for tasks, and no tasks are named.")


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


def _on_tasks(
    runs: Sequence[Path],
    tasks: str | Sequence[str],
    limit: int | None,
    shots: int,
    folder: Path | None,
) -> dict[str, Any]:
    """The fields of `Comparison` about tasks that are run on each of the runs."""
    from lmsmith.api.tasks import run_on_each
    from lmsmith.report.comparison import run_names

    items, notes = run_on_each(
        runs, run_names(runs), tasks, limit=limit, shots=shots, folder=folder
    )
    found = _compared_items(items)
    return found | {"item_notes": (*found["item_notes"], *notes)}


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
