"""CORE: 22 tasks as one number (Li et al. 2024, DataComp-LM, section 3.5), as nanochat scores it.

The folder of task data is nanochat's eval bundle, or has it as `eval_bundle`:

    core.yaml             the tasks: label, dataset_uri, num_fewshot, icl_task_type,
                          continuation_delimiter
    eval_meta_data.csv    the accuracy of a random guess of each task, in percent
    eval_data/...         the items, one JSON object per line

Of each task's accuracy a random guess's is subtracted, and the rest is scaled so that 1 is perfect:
(accuracy - chance) / (1 - chance). CORE is the mean over tasks.

Task types: `multiple_choice` (`query`, `choices`, `gold`) scores the tokens behind the common
beginning of all choices; `schema` (`context_options`, `continuation`, `gold`) those of the common
end; the choice with the lowest loss per token is the answer. `language_modeling` (`context`,
`continuation`) needs the continuation from greedy decoding. Items are shuffled with a fixed seed,
so that a limit takes a fair sample.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsmith.errors import DataError, UsageError
from lmsmith.evaluate.tasks.files import read_rows
from lmsmith.evaluate.tasks.suite import Part, Suite
from lmsmith.evaluate.tasks.task import (
    Answer,
    ChoiceTask,
    Grade,
    Item,
    LastWordTask,
    Row,
    TaskResult,
    best,
    text_of,
)

SHUFFLE_SEED = 1337
TYPES = ("multiple_choice", "schema", "language_modeling")


@dataclass(frozen=True)
class Description:
    """One entry of core.yaml."""

    label: str
    path: Path
    shots: int
    kind: str
    delimiter: str
    chance: float  # from 0 to 1


class CoreChoice(ChoiceTask):
    def __init__(self, about: Description) -> None:
        self.about, self.name, self.chance = about, about.label, about.chance  # type: ignore[misc]

    def item(self, row: Row) -> Item:
        delimiter, gold = self.about.delimiter, int(row["gold"])
        if self.about.kind == "schema":
            contexts = tuple(context + delimiter for context in row["context_options"])
            return Item(contexts, (row["continuation"],), gold, scored="difference")
        endings = tuple(delimiter + choice for choice in row["choices"])
        return Item((row["query"],), endings, gold, scored="difference")

    def grade(self, item: Item, answers: Sequence[Answer]) -> Grade:
        """1 where the right choice has the lowest loss per token."""
        means = [answer.log_likelihood / max(1, answer.n_tokens) for answer in answers]
        return {"acc": float(best(means) == item.gold)}


class CoreLanguageModeling(LastWordTask):
    def __init__(self, about: Description) -> None:
        self.about, self.name, self.chance = about, about.label, about.chance  # type: ignore[misc]

    def item(self, row: Row) -> Item:
        context = row["context"].strip() + self.about.delimiter
        return Item((context,), (text_of(row["continuation"]),))


class Core(Suite):
    name = "core"
    what = "nanochat's CORE metric: 22 tasks, centred; needs its eval bundle"

    def parts(self, folder: Path | None) -> Sequence[Part]:
        bundle, parts = _bundle(folder), list[Part]()
        chances = _chances(bundle)
        for entry in _entries(bundle):
            about = _described(entry, bundle, chances)
            kind = CoreLanguageModeling if about.kind == "language_modeling" else CoreChoice
            rows = read_rows([about.path])
            random.Random(SHUFFLE_SEED).shuffle(rows)
            parts.append((kind(about), rows, about.shots))
        return parts

    def result(self, results: Sequence[TaskResult]) -> TaskResult:
        groups = {}
        for found in results:
            accuracy, error = found.metrics["acc"], found.metrics["acc_stderr"]
            assert found.chance is not None
            scale = 1 - found.chance
            groups[found.task] = {
                "n_items": found.n_items,
                "acc": accuracy,
                "acc_stderr": error,
                "centred": (accuracy - found.chance) / scale,
                "centred_stderr": error / scale,
            }
        centred = [group["centred"] for group in groups.values()]
        mean = sum(centred) / len(centred)
        # The tasks are fixed, so only their items are a sample.
        error = sum(group["centred_stderr"] ** 2 for group in groups.values()) ** 0.5 / len(centred)
        items = tuple(item for found in results for item in found.items)
        return TaskResult(
            self.name, 0, {"core": mean, "core_stderr": error}, 0.0, items, groups=groups
        )


def _bundle(folder: Path | None) -> Path:
    for place in () if folder is None else (folder, folder / "eval_bundle"):
        if (place / "core.yaml").is_file():
            return place
    where = "--task-data is not given" if folder is None else f"{folder} has no core.yaml"
    raise DataError(
        f"{where}: CORE needs nanochat's eval bundle (core.yaml, eval_meta_data.csv, eval_data/). "
        "Unpack eval_bundle.zip and name its folder: --task-data eval_bundle."
    )


def _entries(bundle: Path) -> list[dict[str, Any]]:
    try:
        import yaml
    except ImportError as error:
        raise UsageError(
            "CORE's core.yaml needs the package PyYAML: pip install 'lmsmith[eval]'."
        ) from error
    path = bundle / "core.yaml"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))["icl_tasks"]
        return [dict(entry) for entry in found]
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} cannot be read: expected a list `icl_tasks` ({error}).") from error


def _chances(bundle: Path) -> dict[str, float]:
    path = bundle / "eval_meta_data.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {
                row["Eval Task"]: float(row["Random baseline"]) / 100
                for row in csv.DictReader(file)
            }
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read: expected the columns 'Eval Task' and 'Random baseline' "
            f"({error})."
        ) from error


def _described(entry: Mapping[str, Any], bundle: Path, chances: Mapping[str, float]) -> Description:
    where = bundle / "core.yaml"
    try:
        label, kind = str(entry["label"]), str(entry["icl_task_type"])
        shots = entry["num_fewshot"]
        path = bundle / "eval_data" / str(entry["dataset_uri"])
        chance = chances[label]
        n_shots = int(shots[0] if isinstance(shots, list) else shots)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{where}: the task {dict(entry)!r:.80} lacks {error}.") from error
    if kind not in TYPES:
        raise DataError(f"{where}: {label} has the type {kind!r}; expected {', '.join(TYPES)}.")
    delimiter = str(entry.get("continuation_delimiter", " "))
    return Description(label, path, n_shots, kind, delimiter, chance)


CORE = Core()
