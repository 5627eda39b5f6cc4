"""A new benchmark task: which word rhymes?

    LMSMITH_EXTENSIONS=examples/rhymes.py lmsmith eval RUN --tasks rhymes --task-data FOLDER

FOLDER/rhymes.jsonl has one object per line: {"line": "The cat sat on the", "words": ["mat", "rug"],
"rhyme": 0}. Without a folder the task asks about four lines of its own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsmith.extend import ChoiceTask, Item, register_task

LINES = [
    {"line": "The cat took off its hat and sat upon the", "words": ["mat", "rug"], "rhyme": 0},
    {"line": "A mouse ran all around the", "words": ["garden", "house"], "rhyme": 1},
    {"line": "The moon will come out soon in", "words": ["June", "May"], "rhyme": 0},
    {"line": "The bee flew over the", "words": ["river", "sea"], "rhyme": 1},
]


class Rhymes(ChoiceTask):
    """The most likely word is the answer; accuracy and its standard error come by themselves."""

    name = "rhymes"
    what = "which word rhymes?"
    files = ("rhymes.jsonl",)
    chance = 0.5

    def rows(self, folder: Path | None) -> list[Mapping[str, Any]] | None:
        return LINES if folder is None else None

    def item(self, row: Mapping[str, Any]) -> Item:
        return Item.choice(row["line"], row["words"], row["rhyme"])


register_task(Rhymes())
