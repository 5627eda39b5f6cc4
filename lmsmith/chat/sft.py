"""Supervised fine-tuning (SFT): a run on conversations, from another run's weights.

    folder, summary = tune(Path("runs/book-1"), ["chats.jsonl"], {}, out=None, console=console)

It is a run of `lmsmith.train`: the same loop, checkpoints, guards and report, with conversations as
its tokens. The loss counts what the assistant says (Ouyang et al. 2022, section 3.5).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lmsmith.chat.conversations import Conversations
from lmsmith.chat.masks import masked, shown
from lmsmith.chat.prepare import gather, speaker_of
from lmsmith.checkpoint import load_model
from lmsmith.config import LENGTH, read_toml
from lmsmith.errors import ConfigError
from lmsmith.run_folder import config_of, model_folder
from lmsmith.train.hooks.hook import Hook
from lmsmith.train.request import COMMAND_LINE
from lmsmith.train.start import train

EPOCHS = 3.0
"""Passes over the conversations, unless a length is set."""


def tune(
    run: Path,
    sources: Sequence[str],
    changes: Mapping[str, Any],
    *,
    out: Path | None,
    console: Console,
    started: float | None = None,
    hooks: Sequence[Hook] = (),
    where: str = COMMAND_LINE,
) -> tuple[Path, dict[str, Any]]:
    """Tunes the model of `run` on conversations; returns the new run's folder and summary.

    `sources`: files of conversations, or a recipe. Other arguments are those of
    `lmsmith.train.start.train`. Raises LmsmithError of every kind.
    """
    return train(
        sources,
        with_defaults(run, sources, changes, where),
        out=out,
        console=console,
        started=started,
        hooks=hooks,
        where=where,
        gather=gather,
    )


def with_defaults(
    run: Path, sources: Sequence[str], changes: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """The settings of a tuning run. Raises ConfigError for one that contradicts it."""
    fixed = {"train.init_from": str(run), "data.documents": "conversations"}
    for name, value in fixed.items():
        if changes.get(name, value) != value:
            raise ConfigError(
                f"{name} = {changes[name]!r} in {where}: `tune` sets it to {value!r}. Leave it out."
            )
    recipes = [read_toml(Path(source)) for source in sources if source.endswith(".toml")]
    given = {*changes, *itertools.chain.from_iterable(recipes)}
    length = {} if given & set(LENGTH) else {"train.epochs": EPOCHS}
    return {**length, **changes, **fixed}


def masks(
    run: Path, sources: Sequence[str], template: str = "", *, skip_bad: bool = False
) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    """Yields each conversation as `tune` would learn it: its source, and its text in parts, each
    with whether it is learned. Raises DataError, ConfigError.
    """
    folder = model_folder(run)
    size = config_of(load_model(folder)[1], folder).vocab_size
    speaker = speaker_of(folder, template, size)
    for conversation in Conversations(sources, skip_bad=skip_bad):
        found = masked(conversation, speaker.template, speaker.tokenizer)
        yield conversation.source, shown(found, speaker.tokenizer)
