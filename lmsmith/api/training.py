"""Calls about runs: train, resume, demo, report."""

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
"""Maps arguments of `train` to the dotted names of settings."""

_where = contextvars.ContextVar("where", default="the arguments")


@contextlib.contextmanager
def settings_from(place: str) -> Iterator[None]:
    """In the block, errors about a setting name `place` as its origin: "the command line"."""
    token = _where.set(place)
    try:
        yield
    finally:
        _where.reset(token)


def where_settings_are() -> str:
    """The place that errors about settings name."""
    return _where.get()


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

    `sources`: text files, folders, globs, folders of token shards, names of corpora, or a recipe
    (.toml). `out`: the run's new folder (default: runs/NAME-1). An argument that is None keeps the
    value of the preset or recipe.

    minutes           time limit of the whole call; 10 if no length is given
    steps, tokens     number of optimizer steps; number of training tokens
    epochs            passes over the training text
    stop_at_val_loss  early stopping: stop at the first evaluation with a validation loss at or
                      below this, in nats per token
    preset            named settings to start from; other settings change them
    tokenizer         auto, byte, char, word, bpe:SIZE, gpt2, or a tokenizer's folder
    learning_rate     peak learning rate; all parameter groups keep their ratio to it
    init_from         fine-tune: start from the weights and tokenizer of this run
    seed              determines initial weights, data order and dropout
    keep              number of checkpoints kept, besides the best one
    engine            torch; reference: GPT-2 in NumPy with each gradient written out
    on_spike          what to do on a loss or gradient-norm spike
    validation        files of validation text; all of `sources` is then for training
    skip_bad          skip lines, rows and files that cannot be read; name and count them
    errors            undecodable bytes: strict stops, replace reads them as U+FFFD

    `settings`: other settings by dotted name (`lmsmith train --help` lists them). `hooks`: called
    between steps (`lmsmith.extend.Hook`). `progress`: whether to print progress (None: on a
    terminal and in a notebook). `started`: the time.monotonic() from which `minutes` count
    (default: now).

    Ctrl-C saves the run and raises KeyboardInterrupt; `resume` continues it. Raises ConfigError,
    UsageError, DataError, TokenizerError, TrainingError, CheckpointError or StorageError. After an
    error before the first step there is no folder `out`.
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
    """Trains as `train` describes. `changes`: settings by dotted name."""
    from lmsmith.interop.formats import note
    from lmsmith.train.start import train as start

    with showing(progress) as console:
        folder, summary = start(
            paths(sources),
            changes,
            out=None if out is None else Path(out),
            console=console,
            started=started,
            hooks=hooks,
            where=_where.get(),
            note_on=note,
        )
        return _ended(folder, summary)


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
    """Resumes a run from its last complete checkpoint, or extends a finished run.

    `minutes` counts from now; `steps`, `tokens` and `epochs` are totals from the run's start.
    Without a length, an interrupted run continues to its planned end, and a finished run stays
    unchanged. Other arguments and `settings` (by dotted name; `lmsmith resume --help` lists them)
    apply from the next step. `hooks`: the run's hooks, and new ones. `without_hooks`: names of
    hooks to drop.

    Raises ConfigError for a setting that cannot change, UsageError if a hook is missing or another
    process is training the run, and the errors of `train`.
    """
    given = {name: value for name, value in locals().items() if name in SHORT}
    changes = _changes(given, settings)
    from lmsmith.train.start import resume as start

    with showing(progress) as console:
        summary = start(
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
    chat: bool = False,
    progress: Shown = None,
    started: float | None = None,
) -> Run:
    """The two-minute tour: generates stories, trains a model on them and writes a report.

    `out`: the folder for the stories and the run. `minutes`: time limit. `chat`: about three
    minutes more, in which the model learns to answer questions about stories; returns the chat
    model's run.
    `progress` and `started`: as in `train`.
    """
    started = time.monotonic() if started is None else started
    from lmsmith.tokens.bpe_train import compile_ahead

    compile_ahead()  # while torch is imported
    from lmsmith.demo import demo as tour

    with showing(progress) as console:
        folder, summary = tour(Path(out), minutes, console=console, started=started, chat=chat)
        run = _ended(folder, summary)
        if not chat:
            return run
        from lmsmith.demo_chat import climb

        folder, summary, _ = climb(folder, Path(out), console=console)
        return _ended(folder, summary)


def report(
    runs: Folder | Sequence[Folder], *, out: Folder | None = None, inspect: bool = False
) -> Path:
    """Writes plots and tables of runs into one HTML file and returns its path.

    `out`: default RUN/report.html; for several runs report.html in the current folder. `inspect`:
    for a single run, also show what its model has learned, as `LM.inspect` does; this loads the
    model. Raises CheckpointError for a path that is not a run folder, UsageError for `inspect` with
    several runs, StorageError if `out` cannot be written.
    """
    from lmsmith.report.runs import write_report

    folders = [Path(path) for path in paths(runs)]
    default = folders[0] / "report.html" if len(folders) == 1 else Path("report.html")
    if not inspect:
        return write_report(folders, default if out is None else Path(out))
    if len(folders) != 1:
        raise UsageError(
            f"a report on {len(folders)} runs cannot inspect a model: name a single run, or leave "
            "inspect out."
        )
    from lmsmith.api.lm import load

    inspection = load(folders[0]).inspect()
    return write_report(folders, default if out is None else Path(out), inspection)


def _changes(given: Mapping[str, Any], settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Merges arguments and `settings` into settings by dotted name. Raises UsageError for a setting
    in both.
    """
    changes = dict(flatten(settings or {}))
    for name, value in given.items():
        if value is None:
            continue
        dotted = SHORT[name]
        if dotted in changes:
            raise UsageError(
                f"{name}={value!r} and settings[{dotted!r}] = {changes[dotted]!r} set the same "
                "setting: pass only one of them."
            )
        changes[dotted] = value
    for dotted in ("tokenizer", "train.init_from"):
        if dotted in changes:
            changes[dotted] = _folder(dotted, changes[dotted])
    if "data.validation" in changes:
        changes["data.validation"] = paths(changes["data.validation"])
    return changes


def _folder(name: str, value: Any) -> str:
    """Returns a path as a string. Raises UsageError for a `Tokenizer` object: a run needs the
    folder of a saved one.
    """
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    raise UsageError(
        f"{name} = {value!r}: expected a name or a folder. Save a tokenizer first: "
        "tok.save('tok'), then pass tokenizer='tok'."
    )


def _ended(folder: Path, summary: Mapping[str, Any]) -> Run:
    """Writes the report and returns the run. Raises RunStopped if a signal ended it."""
    from lmsmith.train.stop import RunStopped

    if summary.get("finished") == "signal":
        raise RunStopped(summary["signal"], folder, summary["steps"])
    path = folder / "report.html"
    if os.environ.get("RANK", "0") == "0" and _older(path, folder / "summary.json"):
        report(folder, out=path)
    return Run(folder)


def _older(path: Path, than: Path) -> bool:
    return not path.exists() or path.stat().st_mtime < than.stat().st_mtime
