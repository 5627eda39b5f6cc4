"""Calls that make runs and look at them: demo, train, resume, report."""

from __future__ import annotations

import contextlib
import contextvars
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmsmith.api.progress import Shown, showing
from lmsmith.api.run import Folder, Run, paths
from lmsmith.config import flatten
from lmsmith.errors import UsageError

if TYPE_CHECKING:
    from lmsmith.train.hooks.hook import Hook

SHORT = {
    "minutes": "train.minutes",
    "steps": "train.steps",
    "tokens": "train.tokens",
    "epochs": "train.epochs",
    "stop_at_val_loss": "train.stop_at_val_loss",
    "preset": "preset",
    "tokenizer": "tokenizer",
    "learning_rate": "learning_rate",
    "init_from": "train.init_from",
    "seed": "train.seed",
    "keep": "train.keep",
    "engine": "train.engine",
    "on_spike": "train.on_spike",
    "validation": "data.validation",
    "skip_bad": "data.skip_bad",
    "errors": "data.errors",
}
"""Arguments of `train` that are settings -> the setting's dotted name."""

_where = contextvars.ContextVar("where", default="the arguments")


@contextlib.contextmanager
def settings_from(place: str) -> Iterator[None]:
    """Within: errors about a setting say that it was given in `place`."""
    token = _where.set(place)
    try:
        yield
    finally:
        _where.reset(token)


def train(
    sources: Folder | Sequence[Folder],
    *,
    out: Folder | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    tokens: int | None = None,
    epochs: float | None = None,
    stop_at_val_loss: float | None = None,
    preset: str | None = None,
    tokenizer: Folder | None = None,
    learning_rate: float | None = None,
    init_from: Folder | None = None,
    seed: int | None = None,
    keep: int | None = None,
    engine: Literal["torch", "reference"] | None = None,
    on_spike: Literal["no", "stop", "skip", "rewind"] | None = None,
    validation: Folder | Sequence[Folder] | None = None,
    skip_bad: bool | None = None,
    errors: Literal["strict", "replace"] | None = None,
    settings: Mapping[str, Any] | None = None,
    hooks: Sequence[Hook] = (),
    progress: Shown = None,
    started: float | None = None,
) -> Run:
    """Trains a model on text and returns its run.

        run = lmsmith.train("book.txt", minutes=1)
        run = lmsmith.train(["a.txt", "b.jsonl"], steps=500, settings={"model.n_layer": 4})

    `sources`: text files, folders, globs, token shard folders, named corpora, or a recipe (.toml).
    `out`: the run's new folder (default: runs/NAME-1). None keeps the preset's or recipe's value.

    minutes           the call returns within this; without any length: 10
    steps, tokens     number of optimizer steps; number of training tokens
    epochs            passes over the training text
    stop_at_val_loss  stop at the first evaluation at or below this, in nats per token
    preset            the named starting point that all other settings change
    tokenizer         auto, byte, char, word, bpe:SIZE, gpt2, or a tokenizer's folder
    learning_rate     peak learning rate; all parameter groups keep their ratio to it
    init_from         fine-tune: start from the weights and tokenizer of this run
    seed              determines initial weights, data order and dropout
    keep              number of checkpoints kept, besides the best one
    engine            torch, or reference: GPT-2 in NumPy
    on_spike          what to do on a spike of the loss or the gradient norm
    validation        files of validation text; all of `sources` is then for training
    skip_bad          skip lines, rows and files that cannot be read; name and count them
    errors            undecodable bytes: strict stops, replace reads them as U+FFFD

    `settings`: other settings by dotted name (`lmsmith train --help`). `hooks`: called between
    steps (`lmsmith.extend.Hook`). `progress`: whether to print it (None: on a terminal and in a
    notebook). `started`: the time.monotonic() from which `minutes` count (default: now).

    Ctrl-C saves the run and raises KeyboardInterrupt; `resume` continues it. Raises ConfigError,
    UsageError, DataError, TokenizerError, TrainingError, CheckpointError or StorageError; nothing
    is at `out` then if training has not begun.
    """
    started = time.monotonic() if started is None else started
    given = {name: value for name, value in locals().items() if name in SHORT}
    return _train(sources, _changes(given, settings), out, hooks, progress, started)


def _train(
    sources: Folder | Sequence[Folder],
    changes: Mapping[str, Any],
    out: Folder | None,
    hooks: Sequence[Hook],
    progress: Shown,
    started: float,
) -> Run:
    """Does what `train` promises, with `changes` as settings by dotted name."""
    from lmsmith.train.start import train as start

    with showing(progress) as console:
        place, summary = start(
            paths(sources),
            changes,
            out=None if out is None else Path(out),
            console=console,
            started=started,
            hooks=hooks,
            where=_where.get(),
        )
        return _ended(place, summary)


def resume(
    run: Folder,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    tokens: int | None = None,
    epochs: float | None = None,
    learning_rate: float | None = None,
    stop_at_val_loss: float | None = None,
    keep: int | None = None,
    on_spike: Literal["no", "stop", "skip", "rewind"] | None = None,
    settings: Mapping[str, Any] | None = None,
    hooks: Sequence[Hook] = (),
    without_hooks: Collection[str] = (),
    progress: Shown = None,
) -> Run:
    """Resumes a run from its last complete checkpoint, or makes a finished one longer.

    `minutes`: from now on; `steps`, `tokens`, `epochs`: in all, those already made included.
    Without a length an interrupted run goes to its planned end, and a finished one stays as it is.
    Other arguments and `settings` (by dotted name, as `lmsmith resume --help` lists them) hold from
    the next step on. `hooks`: the run's own hooks, and new ones; `without_hooks`: names of hooks
    that the run gives up.

    Raises ConfigError for a setting that cannot change, UsageError if a hook is missing or another
    process trains the run, and what `train` raises.
    """
    given = {name: value for name, value in locals().items() if name in SHORT}
    changes = _changes(given, settings)
    from lmsmith.train.start import resume as again

    with showing(progress) as console:
        summary = again(
            Path(run),
            changes,
            console=console,
            hooks=hooks,
            without_hooks=without_hooks,
            where=_where.get(),
        )
        return _ended(Path(run), summary)


def demo(
    *,
    out: Folder = "demo",
    minutes: float = 1.8,
    progress: Shown = None,
    started: float | None = None,
) -> Run:
    """The two-minute tour: writes stories, trains a model on them and reports on it.

    `out`: the folder for the stories and the run. `minutes`: how long it may take. The rest is as
    for `train`.
    """
    started = time.monotonic() if started is None else started
    from lmsmith.demo import demo as tour

    with showing(progress) as console:
        place, summary = tour(Path(out), minutes, console=console, started=started)
        return _ended(place, summary)


def report(runs: Folder | Sequence[Folder], *, out: Folder | None = None) -> Path:
    """Writes plots and tables of runs into one HTML file and returns its path.

    `out`: default RUN/report.html; of several runs report.html in the current folder. Raises
    CheckpointError for a path that is not a run folder, StorageError if `out` cannot be written.
    """
    from lmsmith.report.runs import write_report

    folders = [Path(path) for path in paths(runs)]
    default = folders[0] / "report.html" if len(folders) == 1 else Path("report.html")
    return write_report(folders, default if out is None else Path(out))


def _changes(given: Mapping[str, Any], settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings by dotted name, from arguments and `settings`. Raises UsageError for one given
    twice.
    """
    changes = dict(flatten(settings or {}))
    for name, value in given.items():
        if value is None:
            continue
        dotted = SHORT[name]
        if dotted in changes:
            raise UsageError(
                f"{name}={value!r} and settings[{dotted!r}] = {changes[dotted]!r} are the same "
                "setting: give one of them."
            )
        changes[dotted] = value
    for dotted in ("tokenizer", "train.init_from"):
        if dotted in changes:
            changes[dotted] = _folder(dotted, changes[dotted])
    if "data.validation" in changes:
        changes["data.validation"] = paths(changes["data.validation"])
    return changes


def _folder(name: str, value: Any) -> str:
    """A path as text. Raises UsageError for a tokenizer that is not saved, as a run refers to
    its folder.
    """
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    raise UsageError(
        f"{name} = {value!r}: wanted a name or a folder. Save a tokenizer first: tok.save('tok'), "
        "then tokenizer='tok'."
    )


def _ended(place: Path, summary: Mapping[str, Any]) -> Run:
    """The run, with its report. Raises RunStopped where a signal ended it."""
    from lmsmith.train.stop import RunStopped

    if summary.get("finished") == "signal":
        raise RunStopped(summary["signal"], place, summary["steps"])
    path = place / "report.html"
    if os.environ.get("RANK", "0") == "0" and _older(path, place / "summary.json"):
        report(place, out=path)
    return Run(place)


def _older(path: Path, than: Path) -> bool:
    return not path.exists() or path.stat().st_mtime < than.stat().st_mtime
