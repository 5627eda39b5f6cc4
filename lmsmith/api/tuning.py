"""The calls `tune` and `align`: a model that continues text becomes one that answers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmsmith.api.progress import Shown, showing
from lmsmith.api.run import Folder, Run, paths
from lmsmith.api.training import SHORT, _changes, _ended, _where

if TYPE_CHECKING:
    from lmsmith.train.hooks.hook import Hook


def tune(
    run: Folder,
    conversations: Folder | Sequence[Folder],
    *,
    out: Folder | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    tokens: int | None = None,
    epochs: float | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    validation: Folder | Sequence[Folder] | None = None,
    skip_bad: bool | None = None,
    template: str | None = None,
    lora_rank: int | None = None,
    settings: Mapping[str, Any] | None = None,
    hooks: Sequence[Hook] = (),
    progress: Shown = None,
    started: float | None = None,
) -> Run:
    """Tunes a run's model on conversations (supervised fine-tuning) and returns the new run.

        run = lmsmith.tune("runs/book-1", "chats.jsonl")
        print(lmsmith.load(run).chat([{"role": "user", "content": "Hello"}]))

    `run`: a trained or imported model. `conversations`: files with `messages`, ShareGPT's
    `conversations`, `prompt` and `completion`, or Alpaca's `instruction` and `output`; .jsonl,
    .json or .parquet, or a data set of the Hub by name. The loss counts the assistant's tokens.

    epochs, steps, minutes, tokens   length; 3 epochs if none is given; tokens: learned ones
    validation  conversations to hold out; default: a tenth, at most 500
    template    chat template: lmsmith, chatml, llama3, or a Jinja file; default: the model's own,
                else lmsmith
    lora_rank   learn adapters of this rank instead of all weights

    Other arguments are those of `lmsmith.train`. Raises its errors.
    """
    started = time.monotonic() if started is None else started
    given = {name: value for name, value in locals().items() if name in SHORT}
    changes = _changes(given, settings)
    for name, value in (("data.chat_template", template), ("lora.rank", lora_rank)):
        if value is not None:
            changes[name] = value
    from lmsmith.chat.sft import tune as start

    with showing(progress) as console:
        folder, summary = start(
            Path(run),
            paths(conversations),
            changes,
            out=None if out is None else Path(out),
            console=console,
            started=started,
            hooks=hooks,
            where=_where.get(),
        )
        return _ended(folder, summary)


def align(
    run: Folder,
    preferences: Folder | Sequence[Folder],
    *,
    method: Literal["dpo", "ipo", "simpo", "kto"] | None = None,
    beta: float | None = None,
    out: Folder | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    validation: Folder | Sequence[Folder] | None = None,
    skip_bad: bool | None = None,
    template: str | None = None,
    lora_rank: int | None = None,
    settings: Mapping[str, Any] | None = None,
    hooks: Sequence[Hook] = (),
    progress: Shown = None,
    started: float | None = None,
) -> Run:
    """Trains a run's model on preferences between answers and returns the new run.

        run = lmsmith.align("runs/chat", "pairs.jsonl", method="dpo")
        print(run.summary["val_metrics"]["rewards/accuracies"])

    `run`: a tuned model, which is also the reference. `preferences`: files with `prompt`, `chosen`
    and `rejected` (texts or lists of messages), or for kto `prompt`, `completion` and `label`.

    method      dpo (default), ipo, simpo, kto
    beta        scale of the rewards; default: 0.1, 2 for simpo
    epochs, steps, minutes   length; 3 epochs if none is given
    validation  preferences to hold out; default: those of a tenth of the prompts, at most 500

    Other arguments are those of `lmsmith.tune`; `settings` has align.gamma, align.label_smoothing
    and align.max_length. Raises the errors of `lmsmith.train`.
    """
    started = time.monotonic() if started is None else started
    given = {name: value for name, value in locals().items() if name in SHORT}
    changes = _changes(given, settings)
    ours = {
        "align.method": method,
        "align.beta": beta,
        "data.chat_template": template,
        "lora.rank": lora_rank,
    }
    changes |= {name: value for name, value in ours.items() if value is not None}
    from lmsmith.chat.align import align as start

    with showing(progress) as console:
        folder, summary = start(
            Path(run),
            paths(preferences),
            changes,
            out=None if out is None else Path(out),
            console=console,
            started=started,
            hooks=hooks,
            where=_where.get(),
        )
        return _ended(folder, summary)
