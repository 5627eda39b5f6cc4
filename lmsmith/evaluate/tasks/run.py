"""Runs tasks on a model.

    results = run_tasks(subject, ["hellaswag"], limit=500, shots=5)

Few-shot examples of item i are drawn from the other items by Random(seed + i), so they depend on
nothing else. With `limit` the first items count; examples still come from all. Where items have
groups, examples are of the item's group. A task that has files of examples takes the first ones.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmsmith.errors import ConfigError, DataError
from lmsmith.evaluate.tasks.encode import Pair, PairEncoder
from lmsmith.evaluate.tasks.files import (
    Placed,
    example_files_of,
    files_of,
    read_rows,
    to_item,
)
from lmsmith.evaluate.tasks.likelihoods import log_likelihoods, n_cut
from lmsmith.evaluate.tasks.registry import TASKS
from lmsmith.evaluate.tasks.suite import Part, Suite
from lmsmith.evaluate.tasks.task import (
    ChoiceTask,
    GenerateTask,
    Graded,
    Item,
    LastWordTask,
    Task,
    TaskResult,
)
from lmsmith.models.interface import LanguageModel
from lmsmith.tokens.tokenizer import Tokenizer

SEED = 1234

Write = Callable[[Sequence[Sequence[int]], int, Sequence[str]], list[str]]
"""Prompts as ids, the most tokens of a text, and stop strings, to greedy continuations."""


@dataclass(frozen=True)
class Subject:
    """The model that tasks are run on."""

    model: LanguageModel
    tokenizer: Tokenizer
    begin: int | None
    """The id before each text."""
    write: Write


def task_named(name: str) -> Task | Suite:
    """The task of this name. Raises ConfigError, with the nearest one, if there is none."""
    if name not in TASKS:
        plain = {known.replace("_", ""): known for known in TASKS}
        typed = name.lower().replace("-", "").replace("_", "")
        near = difflib.get_close_matches(typed, plain, n=1, cutoff=0.5)
        hint = f" Did you mean {plain[near[0]]!r}?" if near else ""
        raise ConfigError(
            f"there is no task {name!r}.{hint} There are: {', '.join(TASKS.names())}."
        )
    return TASKS.get(name)


def run_tasks(
    subject: Subject,
    names: Sequence[str],
    *,
    limit: int | None = None,
    shots: int = 0,
    seed: int = SEED,
    folder: Path | None = None,
) -> list[TaskResult]:
    """The result of each task, in the order of the names.

    `folder`: where the items lie; None: named corpora, downloaded if they are small. Raises
    ConfigError for an unknown task and for numbers out of range, DataError for items that cannot
    be read.
    """
    check_numbers(limit, shots)
    return run_loaded(subject, load_tasks(names, folder), limit=limit, shots=shots, seed=seed)


def check_numbers(limit: int | None, shots: int) -> None:
    """Raises ConfigError for numbers out of range."""
    if limit is not None and limit < 1:
        raise ConfigError(f"limit = {limit}: expected 1 or more items.")
    if shots < 0:
        raise ConfigError(f"shots = {shots}: expected 0 or more examples.")


@dataclass(frozen=True)
class Loaded:
    """A task with its rows, or a suite with those of its parts."""

    task: Task | Suite
    parts: Sequence[Part]
    examples: Sequence[Placed] = ()
    """Rows for few-shot examples, of a task that has files of them."""


def load_tasks(names: Sequence[str], folder: Path | None = None) -> list[Loaded]:
    """Reads the rows of tasks. Raises ConfigError for an unknown task, DataError."""
    if not names:
        raise ConfigError("tasks is empty: name at least one.")
    loaded = []
    for task in [task_named(name) for name in names]:
        if isinstance(task, Suite):
            loaded.append(Loaded(task, task.parts(folder)))
        else:
            examples = read_rows(example_files_of(task, folder))
            loaded.append(Loaded(task, [(task, _rows(task, folder), None)], examples))
    return loaded


def run_loaded(
    subject: Subject,
    loaded: Sequence[Loaded],
    *,
    limit: int | None = None,
    shots: int = 0,
    seed: int = SEED,
) -> list[TaskResult]:
    """The result of each task. `shots` does not apply to suites, whose parts have their own.

    Raises DataError for an item of another form.
    """
    results = []
    for one in loaded:
        found = [
            _run(
                subject,
                part,
                rows,
                one.examples,
                limit=limit,
                shots=shots if n is None else n,
                seed=seed,
            )
            for part, rows, n in one.parts
        ]
        results.append(one.task.result(found) if isinstance(one.task, Suite) else found[0])
    return results


def _rows(task: Task, folder: Path | None) -> Sequence[Placed]:
    """The rows of a task. Raises DataError."""
    own = task.rows(folder)
    if own is None:
        rows = read_rows(files_of(task, folder))
    else:
        rows = [Placed(f"item {number}", row) for number, row in enumerate(own, start=1)]
    if not rows:
        raise DataError(f"{task.name} has no items.")
    return rows


def _run(
    subject: Subject,
    task: Task,
    rows: Sequence[Placed],
    examples: Sequence[Placed],
    *,
    limit: int | None,
    shots: int,
    seed: int,
) -> TaskResult:
    """One task on its rows."""
    if not examples and len(rows) <= shots:
        raise DataError(
            f"{task.name} has {len(rows)} items; {shots} few-shot examples and the question itself "
            f"need {shots + 1}. Use fewer shots."
        )
    count = len(rows) if limit is None else min(limit, len(rows))
    items = [to_item(task, placed) for placed in rows[:count]]
    prefixes = _prefixes(task, rows, items, examples, shots, seed)
    encoder = PairEncoder(subject.tokenizer, subject.begin)
    places = [placed.where for placed in rows[:count]]
    if isinstance(task, GenerateTask):
        graded = _generate(subject, task, encoder, items, prefixes, places)
    else:
        assert isinstance(task, ChoiceTask | LastWordTask)
        graded = _score(subject, task, encoder, items, prefixes, places)
    chance = sum(1 / item.n_choices for item in items) / count
    return TaskResult(
        task.name,
        shots,
        task.summary([one.grade for one in graded]),
        chance if task.chance is None else task.chance,
        tuple(graded),
        task.ceiling_of(items),
        _groups(task, graded),
    )


def _prefixes(
    task: Task,
    rows: Sequence[Placed],
    items: Sequence[Item],
    examples: Sequence[Placed],
    shots: int,
    seed: int,
) -> list[str]:
    """What stands before each question: the introduction and the solved examples.

    Raises DataError if a group has too few.
    """
    if not shots:
        return [item.intro for item in items]
    source = examples or rows
    groups = [""] * len(source)
    if any(item.group for item in items):
        groups = [to_item(task, row).group for row in source]
    of_group: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        of_group.setdefault(group, []).append(number)
    prefixes = []
    for index, item in enumerate(items):
        others = of_group.get(item.group if item.group in of_group else "", [])
        if not examples:
            others = [other for other in others if other != index]
        if len(others) < shots:
            about = f" of {item.group}" if item.group else ""
            raise DataError(
                f"{task.name} has {len(others)} examples{about}, and {shots} shots are asked for. "
                "Use fewer shots."
            )
        if examples:
            chosen = others[:shots]
        else:
            chosen = random.Random(seed + index).sample(others, shots)
        solved = [to_item(task, source[other]).solved for other in chosen]
        prefixes.append(item.intro + "".join(example + task.separator for example in solved))
    return prefixes


def _score(
    subject: Subject,
    task: ChoiceTask | LastWordTask,
    encoder: PairEncoder,
    items: Sequence[Item],
    prefixes: Sequence[str],
    places: Sequence[str],
) -> list[Graded]:
    pairs: list[list[Pair]] = [
        encoder.item(item, prefix) for item, prefix in zip(items, prefixes, strict=True)
    ]
    answers = log_likelihoods(subject.model, [pair for some in pairs for pair in some])
    graded, start = [], 0
    for index, (item, some) in enumerate(zip(items, pairs, strict=True)):
        own = answers[start : start + len(some)]
        start += len(some)
        cut = max(n_cut(pair, subject.model.context_length) for pair in some)
        grade = task.grade(item, own)
        graded.append(
            Graded(index, item, grade, tuple(own), n_cut=cut, where=places[index], task=task.name)
        )
    return graded


def _generate(
    subject: Subject,
    task: GenerateTask,
    encoder: PairEncoder,
    items: Sequence[Item],
    prefixes: Sequence[str],
    places: Sequence[str],
) -> list[Graded]:
    T = subject.model.context_length
    prompts, cuts = [], []
    for item, prefix in zip(items, prefixes, strict=True):
        ids, _ = encoder.pair(prefix + item.contexts[0], "")
        room = len(ids) if T is None else T - min(task.max_tokens, T // 2)
        prompts.append(ids[-room:])
        cuts.append(max(0, len(ids) - room))
    texts = subject.write(prompts, task.max_tokens, task.stop)
    return [
        Graded(
            index,
            item,
            task.grade_text(item, text),
            text=text,
            n_cut=cut,
            where=places[index],
            task=task.name,
        )
        for index, (item, text, cut) in enumerate(zip(items, texts, cuts, strict=True))
    ]


def _groups(task: Task, graded: Sequence[Graded]) -> dict[str, dict[str, float]]:
    """The metrics of each group of items, if the task has groups."""
    by_group: dict[str, list[Graded]] = {}
    for one in graded:
        if one.item.group:
            by_group.setdefault(one.item.group, []).append(one)
    return {
        name: {"n_items": len(some), **task.summary([one.grade for one in some])}
        for name, some in sorted(by_group.items())
    }
