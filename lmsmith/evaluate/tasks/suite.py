"""A suite: several tasks that give one number together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from lmsmith.evaluate.tasks.files import Placed
from lmsmith.evaluate.tasks.task import Task, TaskResult

Part = tuple[Task, Sequence[Placed], int | None]
"""A task, its rows, and its own number of few-shot examples; None: the user's."""


class Suite(ABC):
    """Tasks that are run and reported together."""

    name: ClassVar[str]
    what: ClassVar[str] = ""

    @abstractmethod
    def parts(self, folder: Path | None) -> Sequence[Part]:
        """The tasks, from the folder of task data. Raises DataError."""

    @abstractmethod
    def result(self, results: Sequence[TaskResult]) -> TaskResult:
        """One result from those of the parts, in their order."""
