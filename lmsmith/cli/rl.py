"""The command rl."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from lmsmith import api
from lmsmith.cli.grammar import Verbs, add_settings, settings_given
from lmsmith.cli.runs import _making


def add(verbs: Verbs) -> None:
    rl = verbs.verb(
        "rl",
        _rl,
        "train a tuned model on rewards of its own answers (GRPO)",
        "lmsmith rl demo/chat --task arithmetic --steps 20 --out demo/rl",
        usage="lmsmith rl RUN --task NAME [--steps N] [--out RUN] [--SETTING VALUE]...",
    )
    rl.add_argument("run", type=Path, metavar="RUN", help="a tuned model")
    rl.add_argument(
        "--task",
        required=True,
        metavar="NAME",
        help="the task: arithmetic, gsm8k (with --rl.data FILE), one of an extension; or a recipe",
    )
    if verbs.is_for("rl"):
        add_settings(rl, verbs.arguments)


def _rl(options: argparse.Namespace, console: Console, started: float) -> int:
    return _making(
        lambda: api.rl(
            options.run,
            options.task,
            out=options.out,
            settings=settings_given(options),
            progress=console,
            started=started,
        ),
        console,
        "chat",
    )
