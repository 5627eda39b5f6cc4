"""Command plan: what a run costs, before it starts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsmith import api
from lmsmith.cli.grammar import Verbs, add_settings, at_least_one, settings_given
from lmsmith.errors import UsageError
from lmsmith.strict_json import to_json

if TYPE_CHECKING:
    from rich.console import Console

    from lmsmith.plan.predict import Plan


def add(verbs: Verbs) -> None:
    verb = verbs.verb(
        "plan",
        _plan,
        "predict parameters, FLOPs, memory, time and cost of a run",
        "lmsmith plan --preset gpt2 --train.batch_size 16 --device a100-80gb",
        usage="lmsmith plan [RECIPE] [--device NAME] [--fit 24GB] [--SETTING VALUE]...",
    )
    verb.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="a recipe (.toml) or a run's folder"
    )
    verb.add_argument(
        "--device",
        default="h100",
        metavar="NAME",
        help="an accelerator of the table (--devices-list), or here: this machine, measured (h100)",
    )
    verb.add_argument(
        "--devices", type=at_least_one, default=1, metavar="N", help="how many of them (1)"
    )
    verb.add_argument("--price", type=float, metavar="X", help="dollars per hour and device")
    verb.add_argument(
        "--decode-batch",
        type=at_least_one,
        default=1,
        metavar="N",
        help="sequences that generation decodes together (1)",
    )
    _add_method(verb)
    limits = verb.add_argument_group("choose size, tokens and batch for what is available")
    limits.add_argument("--fit", metavar="SIZE", help="memory of each device, such as 24GB")
    limits.add_argument("--budget", metavar="USD", help="dollars, such as 100usd")
    limits.add_argument("--hours", type=float, metavar="H", help="time limit in hours")
    several = verb.add_argument_group("several plans")
    several.add_argument(
        "--compare", nargs="+", metavar="NAME", help="presets, recipes or runs, side by side"
    )
    several.add_argument(
        "--sweep", metavar="NAME=A,B", help="one plan per value: context_length=1024,4096"
    )
    _add_output(verb)
    if verbs.is_for("plan"):
        add_settings(verb, verbs.arguments, out=False)


def _add_method(verb: argparse.ArgumentParser) -> None:
    tuning = verb.add_argument_group("preference optimization and reinforcement learning")
    tuning.add_argument(
        "--method",
        metavar="NAME",
        help="dpo, ipo, simpo or kto, as align; grpo, dr-grpo, dapo or reinforce, as rl",
    )
    tuning.add_argument(
        "--prompt-tokens",
        type=at_least_one,
        default=0,
        metavar="N",
        help="tokens of a prompt, with the chat template (half of the context)",
    )
    tuning.add_argument(
        "--answer-tokens",
        type=at_least_one,
        default=0,
        metavar="N",
        help="tokens of an answer (rl.max_tokens, or half of the context)",
    )


def _add_output(verb: argparse.ArgumentParser) -> None:
    output = verb.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON object")
    output.add_argument(
        "--out", type=Path, metavar="FILE", help="also write stacked bars to an .html or .png file"
    )
    output.add_argument(
        "--devices-list", action="store_true", help="list the accelerators and their sources"
    )
    output.add_argument(
        "--published", action="store_true", help="what the plan predicts for published runs"
    )
    output.add_argument(
        "--grade",
        action="store_true",
        help="measure 48 configs here in fresh processes and print every error",
    )


def _plan(options: argparse.Namespace, console: Console, started: float) -> int:
    if report := _report(options):
        report(console)
        return 0
    if options.out:
        from lmsmith.api.planning import check_plans_file

        check_plans_file(options.out)
    with api.settings_from("the command line"):
        plans = _plans(options)
    if options.json:
        one = plans[0][1].as_dict()
        several = options.compare or options.sweep
        print(to_json({name: plan.as_dict() for name, plan in plans} if several else one))
    elif len(plans) == 1:
        console.print(str(plans[0][1]))
    else:
        from lmsmith.plan.show import compare

        console.print(compare(plans))
    if options.out:
        from lmsmith.api.planning import plans_file

        written = plans_file(plans, options.out)
        if not options.json:  # the object is the only output
            console.print(f"{'picture' if written.suffix.lower() == '.png' else 'page':9}{written}")
    return 0


def _report(options: argparse.Namespace) -> Callable[[Console], None] | None:
    """What --devices-list, --published or --grade prints; None without them.

    Raises UsageError for several of them, or with arguments that they do not use.
    """
    reports = {"devices_list": _list_devices, "published": _published, "grade": _grade}
    chosen = [name for name in reports if getattr(options, name)]
    if not chosen:
        return None
    one, *others = chosen
    unused = ("recipe", "compare", "sweep", "fit", "budget", "hours", "method", "json", "out")
    others += [name for name in unused if getattr(options, name)]
    others += ["price"] * (options.price is not None) + ["device"] * (options.device != "h100")
    others += ["devices"] * (options.devices != 1) + list(settings_given(options))
    if others:
        also = options.recipe if others[0] == "recipe" else f"--{others[0].replace('_', '-')}"
        raise UsageError(
            f"--{one.replace('_', '-')} prints a table of its own and does not use {also}: run "
            "them one after the other."
        )
    return reports[one]


def _plans(options: argparse.Namespace) -> list[tuple[str, Plan]]:
    """The plans that the options ask for, with their names."""
    given = settings_given(options)
    common: dict[str, Any] = {
        name: getattr(options, name)
        for name in (
            *("device", "devices", "price", "fit", "budget", "hours", "decode_batch"),
            *("method", "prompt_tokens", "answer_tokens"),
        )
    }
    if options.compare and options.sweep:
        raise UsageError("--compare and --sweep both name several plans: use one of them.")
    if options.sweep:
        name, equals, values = options.sweep.partition("=")
        if not equals or not all(values.split(",")):
            raise UsageError(f"--sweep {options.sweep}: expected NAME=A,B,C.")
        from lmsmith.api.planning import sweep

        return sweep(name, values.split(","), options.recipe, **common, settings=given)
    if not options.compare:
        plan = api.plan(options.recipe, **common, settings=given)
        return [(options.recipe or plan.config.preset, plan)]
    if options.recipe:
        raise UsageError(f"{options.recipe} comes before --compare: name it after --compare.")
    if len(set(options.compare)) < max(2, len(options.compare)):
        raise UsageError(
            f"--compare {' '.join(options.compare)}: expected two or more different presets, "
            "recipes or runs. For a single plan, use --preset NAME or name the recipe or run alone."
        )
    found = []
    for name in options.compare:
        is_file = name.endswith(".toml") or Path(name).is_dir()
        of_name = given if is_file else {**given, "preset": name}
        found.append((name, api.plan(name if is_file else None, **common, settings=of_name)))
    return found


def _list_devices(console: Console) -> None:
    from lmsmith.cli.console import table
    from lmsmith.plan.devices import devices

    rows = [
        [
            key,
            f"{found.peak(found.usual_dtype) / 1e12:,.0f}",
            f"{found.memory / 1e9:,.0f}",
            f"{found.bandwidth / 1e9:,.0f}",
            f"{found.price:g}" if found.price else "",
            str(found.price_date or ""),
            "yes" if found.verified else "no",
        ]
        for key, found in devices().items()
    ]
    table(console, ("device", "TFLOP/s", "GB", "GB/s", "$/h", "price of", "verified"), rows)
    for key, found in devices().items():
        console.print(f"{key}: {found.source}")


def _published(console: Console) -> None:
    from lmsmith.cli.console import table
    from lmsmith.plan.published import retrodictions

    rows = [row.cells() for row in retrodictions()]
    table(console, ("run", "figure", "predicted", "published", "error"), rows)


def _grade(console: Console) -> None:
    from lmsmith.api.planning import grades as graded
    from lmsmith.plan.grade import summary
    from lmsmith.plan.show import bytes_of, duration

    grades = []
    for found in graded():
        grades.append(found)
        form = bytes_of if found.figure == "memory" else duration
        name, settings = found.case
        sizes = "/".join(str(settings[key]) for key in list(settings)[:6])
        console.print(
            f"{name:8}{sizes:24}{found.figure:8}{form(found.predicted):>9} predicted, "
            f"{form(found.measured):>9} measured{found.error:+7.1%}"
        )
    for figure in ("memory", "time"):
        console.print(summary(grades, figure))
