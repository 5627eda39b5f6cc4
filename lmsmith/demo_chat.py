"""`lmsmith demo --chat`: the demo's story model becomes one that you can talk to.

A ladder of stages, each a run that starts from the one before it:

    base    OUT/run-N     predicts stories (`lmsmith.demo`)
    SFT     OUT/chat      tuned on OUT/chats.jsonl, conversations about little stories
    DPO     OUT/chat-dpo  prefers right to wrong answers, of OUT/pairs.jsonl
    RL      OUT/chat-rl   learns from the rewards of its own answers (GRPO)

The stories of the conversations have two or three sentences (`lmsmith.text.little_questions`),
because a short passage has more questions per token than a long story. After each stage the model
answers the same questions about held-out stories, which are in no training file. The table of
accuracies is printed, and written to RUN/ladder.json, which the run's report shows. DPO and RL are
refinements: one that fails, or has too little time, is skipped with a note.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from lmsmith.chat.align import align
from lmsmith.chat.answers import replies
from lmsmith.chat.held_out import score_conversations
from lmsmith.chat.prepare import speaker_if_any
from lmsmith.chat.rl.run import rl
from lmsmith.chat.sft import tune
from lmsmith.errors import LmsmithError
from lmsmith.evaluate.tasks.run import run_tasks
from lmsmith.evaluate.tasks.task import TaskResult
from lmsmith.generate.subject import subject_of
from lmsmith.generate.text_model import TextModel
from lmsmith.report.ladder import FILE_NAME
from lmsmith.report.runs import write_report
from lmsmith.strict_json import write_json
from lmsmith.text.little_questions import write_little_conversations, write_little_pairs
from lmsmith.train.log import say

TASK = "little_stories"
N_CONVERSATIONS = 24_000  # between two and three passes in two minutes
N_PAIRS = 1000
N_HELD_OUT = 200  # conversations about held-out stories, for the loss
SEED = 1
LIMIT = 500  # questions after each stage: 100 of each kind
MINUTES = 3.0  # of the stages after the base, evaluations included
HELD_OUT = "held-out.jsonl"
SETTINGS: dict[str, Any] = {
    "train.batch_size": 10,
    "optim.learning_rate": 0.003,
    "optim.muon_learning_rate": 0.02,
    "optim.embedding_learning_rate": 0.02,
}
"""Batch and learning rates of pre-training: after two minutes of it there is little to forget."""
ALIGN_SETTINGS: dict[str, Any] = {
    "align.method": "dpo",
    "optim.learning_rate": 3e-5,
    "optim.muon_learning_rate": 2e-4,
    "optim.embedding_learning_rate": 2e-4,
}
"""Ten times these rates lower the accuracy by four points."""
RL_SETTINGS: dict[str, Any] = {"rl.eval_problems": 50}
SHORTEST = 8.0  # seconds of a stage after SFT
N_SAMPLES = 3


@dataclass
class Rung:
    """A stage with its results. `accuracy`: kind -> share of right answers, `all` of all kinds."""

    stage: str
    run: str
    accuracy: dict[str, float]
    chance: dict[str, float]
    loss: float | None = None  # nats per held-out token of the assistant, where the stage has it
    samples: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """What makes a run of the one before it. `make(base, folder, deadline, console)` returns the
    run's folder and summary; `deadline`: of time.monotonic().
    """

    name: str
    folder: str
    share: float  # of the time
    make: Callable[[Path, Path, float, Console], tuple[Path, dict[str, Any]]]
    optional: bool = False  # skipped if it fails or has too little time


def _sft(
    base: Path, folder: Path, deadline: float, console: Console
) -> tuple[Path, dict[str, Any]]:
    chats = folder.parent / "chats.jsonl"
    write_little_conversations(chats, N_CONVERSATIONS, SEED)
    write_little_conversations(chats.parent / HELD_OUT, N_HELD_OUT, SEED, held_out=True)
    say(console, f"wrote {N_CONVERSATIONS:,} conversations about generated stories to {chats}")
    changes = {
        **_length(deadline),
        "data.validation": [str(chats.parent / HELD_OUT)],
        **SETTINGS,
    }
    return tune(base, [str(chats)], changes, out=folder, console=console)


def _dpo(
    base: Path, folder: Path, deadline: float, console: Console
) -> tuple[Path, dict[str, Any]]:
    pairs = folder.parent / "pairs.jsonl"
    write_little_pairs(pairs, N_PAIRS, SEED)
    say(console, f"wrote {N_PAIRS:,} pairs of a right and a wrong answer to {pairs}")
    changes = {**_length(deadline), **ALIGN_SETTINGS}
    return align(base, [str(pairs)], changes, out=folder, console=console)


def _rl(base: Path, folder: Path, deadline: float, console: Console) -> tuple[Path, dict[str, Any]]:
    changes = {**_length(deadline), **RL_SETTINGS}
    return rl(base, TASK, changes, out=folder, console=console)


def _length(deadline: float) -> dict[str, Any]:
    return {"train.minutes": max(0.05, (deadline - time.monotonic()) / 60), "train.seed": SEED}


STAGES: tuple[Stage, ...] = (
    Stage("SFT", "chat", 0.7, _sft),
    Stage("DPO", "chat-dpo", 0.15, _dpo, optional=True),
    Stage("RL", "chat-rl", 0.15, _rl, optional=True),
)
"""Stages in order."""


def climb(
    base: Path, out: Path, *, console: Console, minutes: float = MINUTES
) -> tuple[Path, dict[str, Any], list[Rung]]:
    """Runs all stages on a story model; returns the last run, its summary, and the ladder.

    Stops after a stage that a signal ended. Raises LmsmithError of every kind.
    """
    end = time.monotonic() + 60 * minutes
    run, summary = base, dict[str, Any]()
    ladder = [rung("base", base)]
    share_left = 1.0
    for stage in STAGES:
        now = time.monotonic()
        deadline = now + (end - now) * stage.share / share_left - EVALUATION_SECONDS
        share_left -= stage.share
        if stage.optional and deadline - now < SHORTEST:
            say(console, f"note     {stage.name} is skipped: {max(0, deadline - now):.0f} s left")
            continue
        try:
            run, summary = stage.make(run, _free(out, stage.folder), deadline, console)
        except LmsmithError as error:
            if not stage.optional:
                raise
            say(console, f"note     {stage.name} is skipped: {error}")
            continue
        if summary["finished"] == "signal":
            return run, summary, ladder
        ladder.append(rung(stage.name, run, out / HELD_OUT))
        write_json(run / FILE_NAME, {"task": TASK, "rungs": [asdict(one) for one in ladder]})
        write_report([run], run / "report.html")
    say(console, "\n" + shown(ladder))
    return run, summary, ladder


def rung(stage: str, run: Path, held_out: Path | None = None) -> Rung:
    """Asks the model of a run the held-out questions, and scores held-out conversations."""
    writer, _ = TextModel.load(run)
    subject, loss = subject_of(writer), None
    if (speaker := speaker_if_any(run)) is not None:
        if held_out is not None:
            loss = score_conversations(writer.model, speaker, [str(held_out)]).nats_per_token
        subject = dataclasses.replace(subject, reply=replies(writer, speaker))
    (found,) = run_tasks(subject, [TASK], limit=LIMIT)
    assert isinstance(found, TaskResult)
    accuracy = {name: of["exact_match"] for name, of in found.groups.items()}
    chance = {name: of["chance"] for name, of in found.groups.items()}
    samples = [
        {
            "question": item.item.messages[-1]["content"],
            "answer": item.text.strip(),
            "expected": item.item.answer,
        }
        for item in found.items[:N_SAMPLES]
    ]
    return Rung(
        stage,
        run.name,
        {**accuracy, "all": found.metrics["exact_match"]},
        {**chance, "all": found.chance or 0.0},
        loss,
        samples,
    )


def shown(ladder: list[Rung]) -> str:
    """The ladder as a table: a row for each stage, a column for each kind of question."""
    kinds = list(ladder[0].accuracy)
    first = ladder[0].chance
    rows = [["right answers", *kinds, "loss"], ["chance", *(f"{first[k]:.0%}" for k in kinds), ""]]
    rows += [
        [
            one.stage,
            *(f"{one.accuracy[kind]:.0%}" for kind in kinds),
            "" if one.loss is None else f"{one.loss:.3f}",
        ]
        for one in ladder
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _free(out: Path, name: str) -> Path:
    """OUT/NAME, or OUT/NAME-2 and so on if it exists."""
    names = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
    return next(out / one for one in names if not (out / one).exists())


EVALUATION_SECONDS = 8.0
"""Reserved in each stage for the questions after it."""
