"""Verbs that make runs and look at them: demo, train, resume, report."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
from pathlib import Path
from typing import Any

from rich.console import Console

from lmsmith.cli.grammar import Verbs, add_setting, add_settings, settings_given
from lmsmith.config import CHANGEABLE, settings


def add(verbs: Verbs) -> None:
    # The examples can be run as they are, one after the other.
    demo = verbs.verb("demo", _demo, "the two-minute tour: stories, training, report, sample", "lmsmith demo")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder for stories and run (demo)")
    demo.add_argument("--minutes", type=float, default=1.8, metavar="M", help="how long it may take (1.8)")

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
        help="text files, folders, globs; folders of token shards; corpora by name; or a recipe.toml",
    )
    add_settings(train)

    resume = verbs.verb(
        "resume", _resume, "go on with a run from its last whole checkpoint", "lmsmith resume demo/mine"
    )
    resume.add_argument("run", type=Path, metavar="RUN", help="the folder that `lmsmith train` wrote")
    resume.add_argument(
        "--without-hook",
        action="append",
        default=[],
        metavar="NAME",
        help="go on without this hook of a run that was trained from Python, and drop its state",
    )
    changeable = resume.add_argument_group("settings that may change on the way")
    for name, leaf in settings():
        if name in CHANGEABLE:
            add_setting(changeable, leaf, "as it was")

    report = verbs.verb("report", _report, "plots and tables of runs in one HTML file", "lmsmith report demo/run-1")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders that `lmsmith train` wrote")
    report.add_argument("--out", type=Path, metavar="FILE", help="(RUN/report.html; several runs: report.html)")

    replay = verbs.verb(
        "replay",
        _replay,
        "make an update again that a run has stopped at",
        "lmsmith replay demo/mine/flight/step-00000123",
    )
    replay.add_argument("record", type=Path, metavar="RECORD", help="the folder in RUN/flight that the run named")


def _replay(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.train.replay import replay

    found = replay(options.record)
    console.print(f"recorded {found.record['why']}")
    bits = "the same bits" if found.same else "other bits"
    console.print(f"now      loss {found.loss}, gradient norm {found.grad_norm}: {bits}")
    if not found.same and found.record["n_ranks"] > 1:
        console.print(f"note     it was made by {found.record['n_ranks']} processes, whose sums round in another order")
    tensors = sorted(found.record["tensors"].items(), key=lambda item: -item[1]["n_not_finite"])
    console.print(f"{'gradients':40} {'norm':>12} {'of weights':>12} {'not finite':>12}")
    for name, numbers in tensors:
        norm = "" if numbers["gradient_norm"] is None else f"{numbers['gradient_norm']:.4g}"
        console.print(f"{name:40} {norm:>12} {numbers['norm']:>12.4g} {numbers['n_not_finite']:>12,}")
    return 0 if found.same else 1


def _train(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.train.start import train

    run, summary = train(options.source, settings_given(options), out=options.out, console=console, started=started)
    return _closing(run, summary, console)


def _resume(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.train.start import resume

    summary = resume(
        options.run,
        settings_given(options),
        console=console,
        without_hooks=options.without_hook,
    )
    return _closing(options.run, summary, console)


def _demo(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.demo import demo

    run, summary = demo(options.out, options.minutes, console=console, started=started)
    return _closing(run, summary, console)


def _closing(run: Path, summary: dict[str, Any], console: Console) -> int:
    """The run's last lines, its report, and the exit status its end asks for."""
    from lmsmith.studies.report import write_report

    if os.environ.get("RANK", "0") != "0":  # of several processes the first one speaks
        return 128 + signal.Signals[summary["signal"]] if summary["finished"] == "signal" else 0
    name = shlex.quote(str(run))
    if summary["finished"] == "signal":
        console.print(f"{run} is saved at step {summary['steps']:,}; `lmsmith resume {name}` goes on")
        return 128 + signal.Signals[summary["signal"]]
    path = run / "report.html"
    if not path.exists() or path.stat().st_mtime < (run / "summary.json").stat().st_mtime:
        write_report([run], path)
    if summary["finished"] == "counted":
        loss, share = summary["val_loss"], summary["val_impossible_share"]
        found = f"{loss:.4f} ({summary['val_bits_per_byte']:.3f} bits per byte)" if loss is not None else "infinite"
        impossible = f"; {share:.2%} of its tokens are held impossible" if share else ""
        console.print(
            f"val loss {found}{impossible}; {summary['train_seconds']:.1f} s of counting, "
            f"{summary['tokens_per_second']:,.0f} tokens/s"
        )
        console.print(f"report   {path}\ntry      lmsmith generate {name}")
        return 0
    target, rate = summary["seconds_to_target"], summary["tokens_per_second"]  # none without an update (`--from`)
    console.print(
        f"best val loss {summary['best_val_loss']:.4f} ({summary['best_val_bits_per_byte']:.3f} bits per byte) at step "
        f"{summary['best_step']:,}; {summary['train_seconds']:.1f} s of updates"
        + (f", {rate:,.0f} tokens/s" if rate is not None else "")
        + (f"; target reached after {target:.1f} s" if target is not None else "")
    )
    console.print(f"report   {path}\ntry      lmsmith generate {name}")
    return 0


def _report(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.studies.report import write_report

    out = options.out or (options.runs[0] / "report.html" if len(options.runs) == 1 else Path("report.html"))
    console.print(str(write_report(options.runs, out)))
    return 0
