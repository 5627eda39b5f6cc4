"""Verbs that make runs and look at them: demo, train, resume, report."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from lmsmith import api
from lmsmith.cli.grammar import (
    OFTEN,
    Verbs,
    add_files,
    add_flag,
    add_learning_rate,
    add_setting,
    add_settings,
    settings_given,
)
from lmsmith.cli.output import outliving
from lmsmith.config import CHANGEABLE, LENGTH, settings

_LONGER = """The learning rate is from then on that of a run planned for the new length.
constant: it stays at its peak.
inverse-sqrt: it goes on falling as 1/sqrt(step). These two come to the same
weights as a run that was planned longer from the start.
linear, cosine, trapezoid: it rises at once to where a run of the new length
has it at this step, and comes down again until the new end."""
_LENGTHS: dict[str, dict[str, Any]] = {
    "train.steps": {"metavar": "N", "help": "steps in all, those already made included"},
    "train.tokens": {"metavar": "N", "help": "training tokens in all, those already seen included"},
    "train.epochs": {"metavar": "X", "help": "passes over the training tokens in all"},
    "train.minutes": {"metavar": "M", "help": "minutes from now on, in which this command ends"},
}
for _options in _LENGTHS.values():
    _options["default"] = argparse.SUPPRESS


def add(verbs: Verbs) -> None:
    # The examples can be run as they are, one after the other.
    _add_demo(verbs)
    _add_train(verbs)
    _add_resume(verbs)
    _add_report(verbs)
    _add_replay(verbs)


def _add_demo(verbs: Verbs) -> None:
    demo = verbs.verb(
        "demo", _demo, "the two-minute tour: stories, training, report, sample", "lmsmith demo"
    )
    demo.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder for stories and run (demo)"
    )
    demo.add_argument(
        "--minutes", type=float, default=1.8, metavar="M", help="how long it may take (1.8)"
    )


def _add_train(verbs: Verbs) -> None:
    train = verbs.verb(
        "train",
        _train,
        "train a model on text",
        "lmsmith train demo/stories.jsonl --minutes 1 --out demo/mine",
        usage="lmsmith train SOURCE... [--minutes M] [--out RUN] [--SETTING VALUE]...",
    )
    train.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="text files, folders, globs; folders of token shards; corpora by name; or a "
        "recipe.toml",
    )
    if verbs.is_for("train"):
        add_settings(train, verbs.arguments)
    reading = train.add_argument_group("text")
    add_files(reading, dict(settings())["data.validation"], "--validation")
    add_flag(reading, dict(settings())["data.skip_bad"], "--skip-bad")


def _add_resume(verbs: Verbs) -> None:
    resume = verbs.verb(
        "resume",
        _resume,
        "resume a run from its last complete checkpoint, or make a finished one longer",
        "lmsmith resume demo/mine",
        usage="lmsmith resume RUN [--steps N] [--minutes M] [--SETTING VALUE]...",
    )
    resume.add_argument(
        "run", type=Path, metavar="RUN", help="the folder that `lmsmith train` wrote"
    )
    resume.add_argument(
        "--without-hook",
        action="append",
        default=[],
        metavar="NAME",
        help="go on without this hook of a run that was trained from Python, and drop its state",
    )
    length = resume.add_argument_group("another length, of a finished run too", _LONGER)
    changeable = resume.add_argument_group(
        "settings that may change on the way",
        "Also by hand in RUN/config.toml. They hold from the next step on.",
    )
    add_learning_rate(changeable)
    for name, leaf in settings():
        if name in LENGTH:
            length.add_argument(f"--{OFTEN[name]}", f"--{name}", dest=name, **_LENGTHS[name])
        elif name in CHANGEABLE:
            add_setting(changeable, leaf, "as it was")


def _add_report(verbs: Verbs) -> None:
    report = verbs.verb(
        "report", _report, "plots and tables of runs in one HTML file", "lmsmith report demo/run-1"
    )
    report.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folders that `lmsmith train` wrote"
    )
    report.add_argument(
        "--out", type=Path, metavar="FILE", help="(RUN/report.html; several runs: report.html)"
    )


def _add_replay(verbs: Verbs) -> None:
    replay = verbs.verb(
        "replay",
        _replay,
        "make an update again that a run has stopped at",
        "lmsmith replay demo/mine/spikes/step-00000123",
    )
    replay.add_argument(
        "record", type=Path, metavar="RECORD", help="the folder in RUN/spikes that the run named"
    )


def _replay(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.train.replay import replay

    found = replay(options.record)
    console.print(f"recorded {found.record['why']}")
    bits = "the same bits" if found.same else "other bits"
    console.print(f"now      loss {found.loss}, gradient norm {found.grad_norm}: {bits}")
    if not found.same and found.record["n_ranks"] > 1:
        console.print(
            "note     it was made by several processes, whose sums round in another order"
        )
    tensors = sorted(found.record["tensors"].items(), key=lambda item: -item[1]["n_not_finite"])
    console.print(f"{'gradients':40} {'norm':>12} {'of weights':>12} {'not finite':>12}")
    for name, numbers in tensors:
        norms = [numbers["gradient_norm"], numbers["norm"]]
        shown = [
            "not finite" if norm is None else f"{norm:.4g}" for norm in norms
        ]  # JSON has null for these
        console.print(f"{name:40} {shown[0]:>12} {shown[1]:>12} {numbers['n_not_finite']:>12,}")
    return 0 if found.same else 1


def _train(options: argparse.Namespace, console: Console, started: float) -> int:
    given = settings_given(options)
    return _making(
        lambda: api.train(
            options.source, out=options.out, settings=given, progress=console, started=started
        ),
        console,
    )


def _resume(options: argparse.Namespace, console: Console, started: float) -> int:
    return _making(
        lambda: api.resume(
            options.run,
            settings=settings_given(options),
            without_hooks=options.without_hook,
            progress=console,
        ),
        console,
    )


def _demo(options: argparse.Namespace, console: Console, started: float) -> int:
    return _making(
        lambda: api.demo(
            out=options.out, minutes=options.minutes, progress=console, started=started
        ),
        console,
    )


def _making(make: Callable[[], api.Run], console: Console) -> int:
    """Makes a run and prints its last lines; the exit status its end asks for."""
    from lmsmith.train.log import say
    from lmsmith.train.stop import RunStopped

    first = os.environ.get("RANK", "0") == "0"  # of several processes the first one speaks
    with outliving(), api.settings_from("the command line"):
        try:
            run = make()
        except RunStopped as stopped:
            if first:
                name = shlex.quote(str(stopped.run))
                say(
                    console,
                    f"{stopped.run} is saved at step {stopped.steps:,}; `lmsmith resume {name}` "
                    f"continues it",
                )
            return 128 + stopped.signal
        return _closing(run.path, run.summary, console) if first else 0


def _closing(run: Path, summary: dict[str, Any], console: Console) -> int:
    """The last lines of a run that has come to its end."""
    from lmsmith.report.reading import prompt_of
    from lmsmith.train.ended import init_from, learned_nothing
    from lmsmith.train.log import say

    say(console, _counted(summary) if summary["finished"] == "counted" else _trained(summary))
    if nothing := learned_nothing(summary, init_from(run)):
        say(
            console,
            f"note     {nothing}. Set more --minutes, a smaller model or a smaller "
            f"--train.batch_size.",
            indent=9,
            style="red",
        )
    console.print(
        f"report   {run / 'report.html'}\n"
        f"try      lmsmith generate {shlex.quote(str(run))} {shlex.quote(prompt_of(run))}"
    )
    return 0


def _counted(summary: dict[str, Any]) -> str:
    """What an n-gram model's run came to."""
    loss, share = summary["val_loss"], summary["val_impossible_share"]
    found = (
        f"{loss:.4f} ({summary['val_bits_per_byte']:.3f} bits per byte)"
        if loss is not None
        else "infinite"
    )
    impossible = f"; {share:.2%} of its tokens are held impossible" if share else ""
    return (
        f"val loss {found}{impossible}; {summary['train_seconds']:.1f} s of counting, "
        f"{summary['tokens_per_second']:,.0f} tokens/s"
    )


def _trained(summary: dict[str, Any]) -> str:
    """What a trained run came to."""
    target, rate = (
        summary["seconds_to_target"],
        summary["tokens_per_second"],
    )  # the rate is None if no step was made (`--from`)
    return (
        f"best val loss {summary['best_val_loss']:.4f} ({summary['best_val_bits_per_byte']:.3f} "
        f"bits per byte) at step "
        f"{summary['best_step']:,}; {summary['train_seconds']:.1f} s of training steps"
        + (f", {rate:,.0f} tokens/s" if rate is not None else "")
        + (f"; target reached after {target:.1f} s" if target is not None else "")
    )


def _report(options: argparse.Namespace, console: Console, started: float) -> int:
    console.print(str(api.report(options.runs, out=options.out)))
    return 0
