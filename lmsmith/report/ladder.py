"""The ladder of a chat model: one row for each stage from the base model, from RUN/ladder.json.

`lmsmith.demo_chat` writes the file. A run without it has no such section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmsmith import foreign_json
from lmsmith.report.page import table, text

FILE_NAME = "ladder.json"


def ladder(folder: Path) -> str:
    """The table of stages and their answers to the same questions; empty without the file, or if
    it cannot be read.
    """
    try:
        content = foreign_json.parse((folder / FILE_NAME).read_text(encoding="utf-8"))
        rungs: Sequence[Mapping[str, Any]] = content["rungs"]
        kinds = list(rungs[0]["accuracy"])
        rows = [
            ["chance", "", *(f"{rungs[0]['chance'][kind]:.0%}" for kind in kinds), ""],
            *(
                [
                    text(str(one["stage"])),
                    text(str(one["run"])),
                    *(f"{one['accuracy'][kind]:.0%}" for kind in kinds),
                    "" if one["loss"] is None else f"{one['loss']:.4f}",
                ]
                for one in rungs
            ),
        ]
        samples = [_samples(rungs, number) for number in range(len(rungs[0]["samples"]))]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return ""
    head = ["stage", "run", *kinds, "held-out loss"]
    return (
        f"<h2>From base to chat</h2><p>Right answers to the held-out questions of "
        f"{text(str(content['task']))}, by kind, and the loss on the assistant's held-out tokens "
        f"(nats per token).</p>{table(head, rows)}{''.join(samples)}"
    )


def _samples(rungs: Sequence[Mapping[str, Any]], number: int) -> str:
    """One question with the answer of each stage."""
    first = rungs[0]["samples"][number]
    rows = [[text(str(one["stage"])), text(str(one["samples"][number]["answer"]))] for one in rungs]
    rows.append(["expected", text(str(first["expected"]))])
    return f"<pre>{text(str(first['question']))}</pre>{table(['stage', 'answer'], rows)}"
