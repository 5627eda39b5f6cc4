"""Benchmark tasks, as `lmsmith.evaluate(..., tasks=[...])` runs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsmith.api.run import Folder
from lmsmith.errors import StorageError, UsageError

if TYPE_CHECKING:
    from lmsmith.api.lm import LM
    from lmsmith.evaluate.tasks.task import TaskResult


MOST_GROUPS = 8
"""Tasks with more parts, such as MMLU, do not list them in the table."""


class TaskResults(tuple["TaskResult", ...]):
    """The result of each task, in the order in which they were named. `print` it for a table."""

    def __getitem__(self, key: Any) -> Any:
        """By number, or by the task's name."""
        if isinstance(key, str):
            return next(result for result in self if result.task == key)
        return super().__getitem__(key)

    def as_dict(self) -> dict[str, Any]:
        """Task -> its numbers, without the items."""
        return {result.task: result.as_dict() for result in self}

    def per_item(self) -> Iterator[dict[str, Any]]:
        """One dict for each item of each task; `lmsmith.compare(items=...)` reads them."""
        for result in self:
            for item in result.items:
                yield {"task": item.task or result.task, **item.as_dict()}
            for sample in result.samples:
                yield _of_sample(result.task, sample)

    @property
    def notes(self) -> list[str]:
        """What a reader should know about the numbers, in sentences."""
        return [
            f"{result.task}: {result.n_cut:,} of {result.n_items:,} items are longer than the "
            "model's context; they are cut from the left"
            for result in self
            if result.n_cut
        ]

    def __repr__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("task", "shots", "items", "metric", "value", "stderr", "chance", "best")
        ]
        for result in self:
            first = (result.task, str(result.shots), f"{result.n_items:,}")
            for name, value in result.metrics.items():
                if "_stderr" in name:
                    continue
                about = ["", ""]
                if name.startswith("acc") or (name == "exact_match" and result.chance):
                    about[0] = _number(result.chance)
                    about[1] = _number(result.ceiling)
                error = _number(result.metrics.get(f"{name}_stderr"))
                rows.append((*first, name, _number(value), error, *about))
                first = ("", "", "")
            if 1 < len(result.groups) <= MOST_GROUPS:
                rows += [_group(name, of) for name, of in result.groups.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if place in (0, 3) else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )


def _group(name: str, metrics: dict[str, float]) -> tuple[str, ...]:
    """The row of a part of a task: its first metric."""
    metric = next(key for key in metrics if key != "n_items")
    error = _number(metrics.get(f"{metric}_stderr"))
    cells = (metric, _number(metrics[metric]), error, _number(metrics.get("chance")), "")
    return (f"  {name}", "", f"{metrics['n_items']:,}", *cells)


def _of_sample(task: str, sample: dict[str, Any]) -> dict[str, Any]:
    """A sample of the harness, with the fields that `compare` reads. Several filters of one item
    count as several tasks.
    """
    name = sample.get("filter", "none")
    grade = next((sample[key] for key in ("acc", "exact_match") if key in sample), None)
    return {
        "task": task if name == "none" else f"{task},{name}",
        "item": sample.get("doc_id"),
        "correct": bool(grade) if grade in (0, 1) else None,
        **sample,
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """The arguments of `evaluate` that are for tasks."""

    limit: int | None = None
    shots: int = 0
    task_data: Folder | None = None
    per_item: Folder | None = None

    @property
    def given(self) -> list[str]:
        """The names of those that differ from their defaults."""
        return [each.name for each in fields(self) if getattr(self, each.name) != each.default]

    @property
    def folder(self) -> Path | None:
        return None if self.task_data is None else Path(self.task_data)


def run(lm: LM, tasks: str | Sequence[str], options: TaskOptions, *, bos: bool) -> TaskResults:
    """Runs tasks and writes the items. Raises ConfigError, DataError, StorageError."""
    from lmsmith.chat.answers import replies
    from lmsmith.chat.prepare import speaker_if_any
    from lmsmith.evaluate.tasks.run import run_tasks
    from lmsmith.generate.subject import subject_of

    subject = subject_of(lm.writer, bos=bos)
    if (speaker := speaker_if_any(lm.path)) is not None:
        subject = replace(subject, reply=replies(lm.writer, speaker))
    found = run_tasks(
        subject, _names(tasks), limit=options.limit, shots=options.shots, folder=options.folder
    )
    return _written(TaskResults(found), options)


def run_harness(
    lm: LM, tasks: str | Sequence[str], options: TaskOptions, *, bos: bool
) -> TaskResults:
    """Runs tasks of lm-evaluation-harness. Raises ConfigError, StorageError; UsageError where
    lm-eval is not installed.
    """
    from lmsmith.interop import harness

    model = harness.HarnessLM(lm.writer, bos=bos)
    model.boundaries = lm.boundaries
    found = harness.run_harness(
        model, _names(tasks), limit=options.limit, shots=options.shots, folder=options.folder
    )
    return _written(TaskResults(found), options)


def check_tasks(tasks: str | Sequence[str], limit: int | None, shots: int) -> None:
    """Raises ConfigError for a task that does not exist and for numbers out of range."""
    from lmsmith.evaluate.tasks.run import check_numbers, task_named

    check_numbers(limit, shots)
    for name in _names(tasks):
        task_named(name)


def run_on_each(
    runs: Sequence[Path],
    names: Sequence[str],
    tasks: str | Sequence[str],
    *,
    limit: int | None,
    shots: int,
    folder: Path | None,
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Runs tasks on several runs. Returns the results of the items of each run under its name, for
    `compare`, and notes. Holds one model in memory at a time.

    Raises ConfigError, DataError; UsageError for a task without right and wrong answers.
    """
    from lmsmith.api.lm import load
    from lmsmith.evaluate.tasks.run import load_tasks, run_loaded
    from lmsmith.generate.subject import subject_of
    from lmsmith.run_folder import tokenizer_of

    for run in runs:  # an error of the last run appears before the first is evaluated
        tokenizer_of(run)
    loaded = load_tasks(_names(tasks), folder)
    items: dict[str, list[dict[str, Any]]] = {}
    notes: list[str] = []
    for place, name in zip(runs, names, strict=True):
        subject = subject_of(load(place).writer)
        results = TaskResults(run_loaded(subject, loaded, limit=limit, shots=shots))
        notes += [f"{name}, {note}" for note in results.notes]
        items[name] = list(results.per_item())
        for item in items[name]:
            if item["correct"] is None:
                raise UsageError(
                    f"{item['task']} grades its items by numbers, and a comparison needs right or "
                    "wrong answers: leave this task out."
                )
    return items, notes


def _names(tasks: str | Sequence[str]) -> list[str]:
    names = tasks.split(",") if isinstance(tasks, str) else tasks
    return [name.strip() for name in names if name.strip()]


def _written(results: TaskResults, options: TaskOptions) -> TaskResults:
    from lmsmith import atomic
    from lmsmith.strict_json import to_json

    if options.per_item is not None:
        place = Path(options.per_item)
        atomic.write(place, "".join(to_json(item) + "\n" for item in results.per_item()))
    return results


def check_places(per_item: Any, per_document: Any) -> None:
    """Raises UsageError or StorageError for a file that cannot be written, before any work."""
    import errno

    from lmsmith import atomic

    for given, first_key in ((per_item, "task"), (per_document, "index")):
        if given is None:
            continue
        place = Path(given)
        if place.is_dir():
            raise UsageError(
                f"{place} is a folder: name the file to write, such as {place / 'scores.jsonl'}."
            )
        if not place.parent.is_dir():
            raise StorageError(atomic.explain(FileNotFoundError(errno.ENOENT, ""), place))
        atomic.check_replaceable(place, f'{{"{first_key}": ')


def check_together(
    tasks: Any, text: Any, options: TaskOptions, *, bos: bool, stride: Any, per_document: Any
) -> None:
    """Raises UsageError for arguments of `evaluate` that do not fit together."""
    if tasks is None and text is None and not bos:
        raise UsageError("bos=False applies to `text`, and there is no text: pass text=FILE.")
    if tasks is not None:
        for_texts = {"text": text, "stride": stride, "per_document": per_document}
        for name, value in for_texts.items():
            if value is not None:
                raise UsageError(f"{name} is for texts, and tasks are asked for: give one of both.")
        return
    for name in options.given:
        raise UsageError(f"{name} is for tasks, and no tasks are named.")
    if text is None and per_document is not None:
        raise UsageError("per_document lists the documents of a text, and there is no text.")
