"""Commands about runs: demo, train, resume, report, replay."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
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

_LONGER = """From here on, the learning rate schedule is that of a run of the new length.
constant: the rate stays at its peak. inverse-sqrt: it continues to fall as
1/sqrt(step). Both give the same weights as one run of the new length.
linear, cosine, trapezoid: the rate jumps up to the new schedule's value at
this step, and decays again until the new end."""
_LENGTHS: dict[str, dict[str, Any]] = {
    "train.steps": {"metavar": "N", "help": "total number of steps, from the run's start"},
    "train.tokens": {"metavar": "N", "help": "total number of tokens, from the run's start"},
    "train.epochs": {"metavar": "X", "help": "total number of epochs, from the run's start"},
    "train.minutes": {"metavar": "M", "help": "minutes from now within which this command ends"},
}
for _options in _LENGTHS.values():
    _options["default"] = argparse.SUPPRESS


def add(verbs: Verbs) -> None:
    # The examples in the help can be run as they are, one after the other.
    _add_demo(verbs)
    _add_train(verbs)
    _add_resume(verbs)
    _add_report(verbs)
    _add_replay(verbs)


def _add_demo(verbs: Verbs) -> None:
    demo = verbs.verb(
        "demo",
        _demo,
        "two-minute tour: generate stories, train a model on them, write a report",
        "lmsmith demo",
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("demo"),
        metavar="DIR",
        help="folder for the stories and the run (demo)",
    )
    demo.add_argument(
        "--minutes", type=float, default=1.8, metavar="M", help="time limit in minutes (1.8)"
    )
    demo.add_argument(
        "--chat",
        action="store_true",
        help="three minutes more: tune the model on conversations about stories, and talk to it",
    )


def _add_train(verbs: Verbs) -> None:
    train = verbs.verb(
        "train",
        _train,
        "train a model on text, or fine-tune one with --from",
        "lmsmith train demo/stories.jsonl --minutes 1 --out demo/mine",
        usage="lmsmith train SOURCE... [--minutes M] [--out RUN] [--SETTING VALUE]...",
    )
    train.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="text files, folders or globs; folders of token shards; names of corpora; a recipe "
        "(.toml)",
    )
    if verbs.is_for("train"):
        add_settings(train, verbs.arguments)
    reading = train.add_argument_group("training and validation text")
    add_files(reading, dict(settings())["data.validation"], "--validation")
    add_flag(reading, dict(settings())["data.skip_bad"], "--skip-bad")


def _add_resume(verbs: Verbs) -> None:
    resume = verbs.verb(
        "resume",
        _resume,
        "resume a run from its last complete checkpoint, or extend a finished run",
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
        help="resume without this hook and drop its state; for runs trained from Python with hooks",
    )
    length = resume.add_argument_group("new length, also for a finished run", _LONGER)
    changeable = resume.add_argument_group(
        "settings that can change when a run is resumed",
        "They apply from the next step. You can also edit them in RUN/config.toml.",
    )
    add_learning_rate(changeable)
    for name, leaf in settings():
        if name in LENGTH:
            length.add_argument(f"--{OFTEN[name]}", f"--{name}", dest=name, **_LENGTHS[name])
        elif name in CHANGEABLE:
            add_setting(changeable, leaf, "unchanged")


def _add_report(verbs: Verbs) -> None:
    report = verbs.verb(
        "report",
        _report,
        "write plots and tables of runs to one HTML file",
        "lmsmith report demo/run-1",
    )
    report.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folders that `lmsmith train` wrote"
    )
    report.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the HTML file (RUN/report.html; for several runs report.html)",
    )
    report.add_argument(
        "--inspect",
        action="store_true",
        help="for a single run: also show what its model has learned, as `lmsmith inspect` does",
    )


def _add_replay(verbs: Verbs) -> None:
    replay = verbs.verb(
        "replay",
        _replay,
        "recompute the step at which a run stopped on a spike, and show its gradients",
        "lmsmith replay demo/mine/spikes/step-00000123",
    )
    replay.add_argument(
        "record",
        type=Path,
        metavar="RECORD",
        help="the spike record, a folder in RUN/spikes; the run printed its name",
    )


def _replay(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.train.replay import replay

    replayed = replay(options.record)
    console.print(f"recorded {replayed.record['why']}")
    bits = "identical to the record, bit for bit" if replayed.same else "differs from the record"
    console.print(f"replayed loss {replayed.loss}, gradient norm {replayed.grad_norm}: {bits}")
    if not replayed.same and replayed.record["n_ranks"] > 1:
        console.print(
            "note     the recorded step ran on several ranks, whose sums round in another order"
        )
    tensors = sorted(replayed.record["tensors"].items(), key=lambda item: -item[1]["n_not_finite"])
    console.print(f"{'tensor':40} {'grad norm':>12} {'weight norm':>12} {'not finite':>12}")
    for name, numbers in tensors:
        norms = [numbers["gradient_norm"], numbers["norm"]]
        shown = [
            "not finite" if norm is None else f"{norm:.4g}" for norm in norms
        ]  # the record has null for norms that are not finite
        console.print(f"{name:40} {shown[0]:>12} {shown[1]:>12} {numbers['n_not_finite']:>12,}")
    return 0 if replayed.same else 1


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
    made: list[Path] = []

    def make() -> api.Run:
        run = api.demo(
            out=options.out,
            minutes=options.minutes,
            chat=options.chat,
            progress=console,
            started=started,
        )
        made.append(run.path)
        return run

    status = _making(make, console, "chat" if options.chat else "generate")
    if options.chat and made and sys.stdin.isatty() and sys.stdout.isatty():
        from lmsmith.cli.chat import talk

        return talk(made[0], console)
    return status


def _making(make: Callable[[], api.Run], console: Console, next_verb: str = "generate") -> int:
    """Makes a run, prints its closing lines, which name a command to try next, and returns the exit
    status.
    """
    from lmsmith.train.log import say
    from lmsmith.train.stop import RunStopped

    first = os.environ.get("RANK", "0") == "0"  # under torchrun only rank 0 prints
    with outliving(), api.settings_from("the command line"):
        try:
            run = make()
        except RunStopped as stopped:
            if first:
                name = shlex.quote(str(stopped.run))
                say(
                    console,
                    f"saved {stopped.run} at step {stopped.steps:,}; `lmsmith resume {name}` "
                    f"continues it",
                )
            return 128 + stopped.signal
        return _closing(run.path, run.summary, console, next_verb) if first else 0


def _closing(
    run: Path, summary: dict[str, Any], console: Console, next_verb: str = "generate"
) -> int:
    """Prints the closing lines of a finished run and returns the exit status."""
    from lmsmith.report.reading import prompt_of
    from lmsmith.train.ended import init_from, too_few_steps_note
    from lmsmith.train.log import say

    say(console, _counted(summary) if summary["finished"] == "counted" else _trained(summary))
    if nothing := too_few_steps_note(summary, init_from(run)):
        say(
            console,
            f"note     {nothing}. Give it more --minutes, or choose a smaller model, text or "
            f"--train.batch_size.",
            indent=9,
            style="red",
        )
    prompt = f" {shlex.quote(prompt_of(run))}" if next_verb == "generate" else ""
    console.print(
        f"report   {run / 'report.html'}\n"
        f"try      lmsmith {next_verb} {shlex.quote(str(run))}{prompt}"
    )
    return 0


def _counted(summary: dict[str, Any]) -> str:
    """Returns the result of an n-gram model's run, in one line."""
    loss, share = summary["val_loss"], summary["val_impossible_share"]
    result = (
        f"{loss:.4f} ({summary['val_bits_per_byte']:.3f} bits per byte)"
        if loss is not None
        else "infinite"
    )
    impossible = f"; {share:.2%} of the validation tokens have probability 0" if share else ""
    return (
        f"val loss {result}{impossible}; {summary['train_seconds']:.1f} s of counting, "
        f"{summary['tokens_per_second']:,.0f} tokens/s"
    )


def _trained(summary: dict[str, Any]) -> str:
    """Returns the result of a trained run, in one line."""
    target = summary["seconds_to_target"]
    rate = summary["tokens_per_second"]  # None if no step was made (`--from` with --steps 0)
    bits, metrics = summary["best_val_bits_per_byte"], summary.get("best_val_metrics", {})
    shown = [f"{bits:.3f} bits per byte"] if bits is not None else []
    shown += [f"{name} {value:.3f}" for name, value in metrics.items() if "rewards/" in name]
    return (
        f"best val loss {summary['best_val_loss']:.4f} ({', '.join(shown)}) at step "
        f"{summary['best_step']:,}; "
        f"{summary['train_seconds']:.1f} s of training"
        + (f", {rate:,.0f} tokens/s{_learned(summary)}" if rate is not None else "")
        + (f"; target reached after {target:.1f} s" if target is not None else "")
    )


def _learned(summary: dict[str, Any]) -> str:
    """Returns the rate of learned tokens, if a run on conversations read others too; else ""."""
    seen, read = summary.get("tokens_seen"), summary.get("tokens_read")
    if seen is None or read is None or read == seen:
        return ""
    return f" ({seen / summary['train_seconds']:,.0f} of them learned)"


def _report(options: argparse.Namespace, console: Console, started: float) -> int:
    console.print(str(api.report(options.runs, out=options.out, inspect=options.inspect)))
    return 0
