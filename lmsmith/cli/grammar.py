"""The grammar of the command line: commands, groups of commands, and each setting as an option.

The parsers use argparse directly instead of a generator of parsers from dataclasses. Options that
the user does not give are absent, so lmsmith can tell them from those that were given with their
default value. `--help` answers in a tenth of a second.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lmsmith import __version__
from lmsmith.cli.mistakes import (
    cannot_change,
    explain_dashes,
    no_such_option,
    refuse_options_behind,
    verb_meant,
)
from lmsmith.config import (
    RunConfig,
    Setting,
    read_toml,
    settings,
)
from lmsmith.config.aliases import current_option
from lmsmith.config.presets import has_size, preset
from lmsmith.config.run import of_another_kind
from lmsmith.errors import LmsmithError, UsageError
from lmsmith.optim.rates import TOGETHER

# Settings that are used often have a group of their own in the help, and short names.
OFTEN = {
    "train.minutes": "minutes",
    "train.steps": "steps",
    "train.tokens": "tokens",
    "train.epochs": "epochs",
    "train.stop_at_val_loss": "stop-at-val-loss",
    "preset": "",
    "tokenizer": "",
    "train.init_from": "from",
    "train.seed": "seed",
    "train.keep": "keep",
    "train.engine": "engine",
    "train.on_spike": "on-spike",
    "data.errors": "errors",
}

# `train` chooses these for the text, the machine and the time, unless the user or the preset sets
# them.
CHOSEN = {
    "model.n_layer",
    "model.n_head",
    "model.d_model",
    "model.context_length",
    "train.batch_size",
}


class _Aligned(argparse.RawDescriptionHelpFormatter):
    def format_help(self) -> str:
        self._action_max_length += (
            2  # argparse does not count the indent of commands, and breaks the longest one's line
        )
        return super().format_help()


_HELP: dict[str, Any] = {"formatter_class": _Aligned, "allow_abbrev": False}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. `{self.prog} --help` lists the options.")


class Verbs:
    """All commands. `found` maps a command's words ("train", "tokenizer train") to its parser."""

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        """`arguments`: the command line; the preset in it decides which settings exist."""
        self.arguments = arguments
        self.top = Parser(prog="lmsmith", description="Trains and uses language models.", **_HELP)
        self.top.add_argument("--version", action="version", version=f"lmsmith {__version__}")
        self._subparsers: dict[str, Any] = {
            "": self.top.add_subparsers(title="commands", metavar="COMMAND", required=True),
        }
        self._groups: dict[str, argparse.ArgumentParser] = {}
        self.found: dict[str, argparse.ArgumentParser] = {}

    def is_for(self, words: str) -> bool:
        """Returns whether the command line calls this command, so that its many options are
        needed.
        """
        return not self.arguments or list(self.arguments[: len(words.split())]) == words.split()

    def group(self, name: str, meaning: str) -> None:
        """Adds a group: commands of two words, the first of which is `name`."""
        parser = self._subparsers[""].add_parser(
            name,
            help=meaning,
            description=_sentence(meaning),
            usage=f"lmsmith {name} COMMAND ...",
            **_HELP,
        )
        self._groups[name] = parser
        self._subparsers[name] = parser.add_subparsers(
            title="commands", metavar="COMMAND", required=True
        )

    def verb(
        self,
        words: str,
        call: Callable[..., int],
        meaning: str,
        example: str,
        usage: str | None = None,
    ) -> argparse.ArgumentParser:
        """Adds a command, which calls `call(options, console, started)`. The example can be run
        as it is, after `lmsmith demo`.
        """
        group, _, name = words.rpartition(" ")
        parser: argparse.ArgumentParser = self._subparsers[group].add_parser(
            name,
            prog=f"lmsmith {words}",
            help=meaning,
            description=_sentence(meaning),
            usage=usage,
            epilog=f"example:\n  {example}",
            **_HELP,
        )
        parser.set_defaults(call=call)
        self.found[words] = parser
        return parser

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Returns the options, with the command's function as `call`. Raises UsageError;
        SystemExit after --help and --version.
        """
        words, others = self._words(arguments)
        others = [current_option(word) for word in others]
        verb = self.found[words]
        before, behind = _at_dashes(others)
        refuse_options_behind(verb, behind)
        marked = [_BEHIND + word if word.startswith("-") else word for word in behind]
        try:  # texts and prompts may come between options
            options, unknown = verb.parse_known_intermixed_args([*before, *marked])
        except UsageError as error:
            explain_dashes(verb, words, before, str(error))
            raise
        if unknown:
            option = next((argument for argument in unknown if argument.startswith("-")), None)
            if option is None:
                extra = unknown[0].removeprefix(_BEHIND)
                raise UsageError(
                    f"{extra!r} is one argument too many. `{verb.prog} --help` lists the arguments."
                )
            name = option.partition("=")[0].lstrip("-")
            if words == "resume":
                dotted = next((long for long, short in OFTEN.items() if short == name), name)
                if fixed := cannot_change(name, dotted):
                    raise UsageError(fixed)
            kind = starting_point(self.arguments).model.kind
            if problem := of_another_kind(name, kind, "the command line"):
                raise UsageError(problem)
            raise no_such_option(verb, words, option)
        _unmark(options)
        return options

    def _words(self, arguments: Sequence[str]) -> tuple[str, list[str]]:
        """Splits the arguments into the command, of one word or two, and the rest."""
        if not arguments:
            self.top.print_help()
            raise UsageError(
                "no command was given. Start with `lmsmith demo`, or `lmsmith train book.txt "
                "--minutes 10`."
            )
        first, *others = arguments
        if first in ("-h", "--help", "--version"):
            self.top.parse_args([first])
        if first.startswith("-"):
            raise UsageError(
                f"{first!r} comes before the command. Expected `lmsmith COMMAND ...`; "
                f"`lmsmith --help` lists the commands."
            )
        if first not in self._groups:
            if first not in self.found:
                near = verb_meant(first, self._subparsers[""].choices)
                raise UsageError(
                    f"there is no command {first!r}.{near} `lmsmith --help` lists the commands."
                )
            return first, others
        group, known = self._groups[first], self._subparsers[first].choices
        if not others:
            raise UsageError(
                f"`lmsmith {first}` needs a second word: one of {', '.join(known)}. "
                f"`lmsmith {first} --help` describes them."
            )
        second, *others = others
        if second in ("-h", "--help"):
            group.parse_args([second])
        if second not in known:
            raise UsageError(
                f"there is no command '{first} {second}'.{verb_meant(second, known, first)} "
                f"`lmsmith {first} --help` lists the commands."
            )
        return f"{first} {second}", others


# Marks a word after `--`, so that argparse does not read it as an option. The system ends each
# argument at a NUL, so no argument can begin with one.
_BEHIND = "\0"


def _at_dashes(words: list[str]) -> tuple[list[str], list[str]]:
    """Returns the words before `--`, and those after it, which are names and texts even if they
    begin with a dash.
    """
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _unmark(options: argparse.Namespace) -> None:
    """Removes the marks of `_BEHIND`."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(each) for each in value]
        if isinstance(value, str | Path) and str(value).startswith(_BEHIND):
            return type(value)(str(value)[len(_BEHIND) :])
        return value

    for name, value in vars(options).items():
        setattr(options, name, plain(value))


def at_least_one(value: str) -> int:
    if value.isdecimal() and int(value) >= 1:
        return int(value)
    raise argparse.ArgumentTypeError(f"{value!r}: expected a whole number, 1 or more")


def add_settings(
    parser: argparse.ArgumentParser, arguments: Sequence[str], *, out: bool = True
) -> None:
    """Adds every setting as an option, often used ones first, with the values of the preset in
    `arguments` as defaults.

    Model settings are the ones that the preset's model kind has. `out`: also add `--out`, the run's
    folder.
    """
    often = parser.add_argument_group(
        "often used",
        "Defaults are in parentheses; (chosen): fitted to the text, machine and time.",
    )
    if out:
        often.add_argument("--out", type=Path, metavar="RUN", help="the run's folder (runs/NAME-1)")
    shown = starting_point(arguments)
    known = dict(settings(type(shown.model)))
    for name in OFTEN:
        add_setting(often, known[name])
    if out:
        add_learning_rate(often)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, leaf in known.items():
        section = name.rpartition(".")[0]
        if name in OFTEN or name in (
            "data.sources",
            "data.mixture",
            "data.validation",
        ):  # arguments; tables of a recipe
            continue
        if section not in groups:
            of = (
                f" of kind {shown.model.kind} ({shown.model.description})"
                if section == "model"
                else ""
            )
            groups[section] = parser.add_argument_group(f"{section} settings{of}")
        value = functools.reduce(getattr, name.split("."), shown)
        chosen = name in CHOSEN and not has_size(shown.preset)
        add_setting(groups[section], leaf, "chosen" if chosen else _as_typed(leaf.shown(value)))


def starting_point(arguments: Sequence[str]) -> RunConfig:
    """Returns the preset that the arguments, or a recipe among them, name; the default preset if
    that is unknown.

    Errors in the arguments are reported later, when all of them are parsed.
    """
    given: dict[str, Any] = {}
    with contextlib.suppress(LmsmithError):
        for recipe in (word for word in arguments if word.endswith(".toml")):
            given |= read_toml(Path(recipe))
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        option, equals, value = word.partition("=")
        if option in ("--preset", "--model.kind"):
            given[option.lstrip("-")] = value if equals else following
    try:
        config = preset(str(given.get("preset", RunConfig.preset)))
        kind = {name: value for name, value in given.items() if name == "model.kind"}
        return config.changed(kind, where="the command line")
    except LmsmithError:
        return preset(RunConfig.preset)


def add_learning_rate(often: argparse._ActionsContainer) -> None:
    """Adds `--learning-rate`, which sets the learning rates of all parameter groups together."""
    often.add_argument(
        "--learning-rate",
        dest=TOGETHER,
        default=argparse.SUPPRESS,
        metavar="X",
        help="peak learning rate of the matrices under Muon, of all weights under AdamW or SGD; "
        "other parameter groups keep their ratio to it",
    )


def add_setting(group: argparse._ActionsContainer, leaf: Setting, default: str = "") -> None:
    """Adds a setting as an option. `default`: shown in the help instead of the setting's own."""
    default = default or _as_typed(leaf.shown(leaf.default))
    short = OFTEN.get(leaf.name)
    group.add_argument(
        *([f"--{short}"] if short else []),
        f"--{leaf.name}",
        dest=leaf.name,
        default=argparse.SUPPRESS,
        metavar=_metavar(leaf),
        help=f"{leaf.meaning} ({default})".replace("%", "%%"),
    )


def add_files(group: argparse._ActionsContainer, leaf: Setting, short: str) -> None:
    """Adds a setting that takes one or more files: `--validation a.txt b.txt`."""
    group.add_argument(
        short,
        f"--{leaf.name}",
        dest=leaf.name,
        nargs="+",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help=f"{leaf.meaning} ({_as_typed(leaf.default)})",
    )


def add_flag(group: argparse._ActionsContainer, leaf: Setting, short: str) -> None:
    """Adds a yes-or-no setting as a flag that sets it to yes."""
    group.add_argument(
        short,
        dest=leaf.name,
        action="store_const",
        const="yes",
        default=argparse.SUPPRESS,
        help=leaf.meaning,
    )


def _as_typed(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _metavar(leaf: Setting) -> str:
    kinds = {int: "N", float: "X", bool: "yes|no", str: "TEXT"}
    return "|".join(leaf.choices) or kinds.get(leaf.kind, "A,B,...")


def settings_given(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the settings that the user gave, by dotted name, and `learning_rate` for all
    groups.
    """
    top = {name for name, _ in settings() if "." not in name} | {TOGETHER}
    return {name: value for name, value in vars(options).items() if "." in name or name in top}


def _sentence(meaning: str) -> str:
    return meaning[0].upper() + meaning[1:] + "."


def add_penalties(verb: argparse.ArgumentParser) -> None:
    """The options that make tokens less likely which the text already has."""
    for name, what in (
        ("repetition", "divides logits of tokens that the prompt or the text has; 1: none"),
        ("frequency", "subtracted from a token's logit for each time it was generated"),
        ("presence", "subtracted from the logit of every token that was generated"),
    ):
        default = 1.0 if name == "repetition" else 0.0
        verb.add_argument(
            f"--{name}-penalty",
            type=float,
            default=default,
            metavar="X",
            help=f"{what} ({default:g})",
        )


def add_stop(verb: argparse.ArgumentParser) -> None:
    """The option that ends a text."""
    verb.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="stop sequence: the output ends before this text; can be repeated",
    )
