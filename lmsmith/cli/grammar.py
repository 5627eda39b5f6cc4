"""The grammar of the command line: verbs, groups of verbs, and every setting of `config.py` as an option.

argparse, and not a generator of parsers from dataclasses: only options that were given are passed on, so what the user
set is known from what was chosen; and `--help` answers in a tenth of a second.
"""

from __future__ import annotations

import argparse
import difflib
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lmsmith import __version__
from lmsmith.config import RunConfig, Setting, settings
from lmsmith.errors import UsageError
from lmsmith.presets import preset

# Settings that are used often: their own group in the help, and short names.
OFTEN = {
    "train.minutes": "minutes",
    "train.steps": "steps",
    "train.tokens": "tokens",
    "train.stop_at_val_loss": "stop-at-val-loss",
    "preset": "",
    "tokenizer": "",
    "train.start_from": "from",
    "train.seed": "seed",
    "train.keep": "keep",
    "train.engine": "engine",
    "train.on_spike": "on-spike",
    "data.errors": "errors",
}

# What `train` chooses for the text, the machine and the time, unless it is set or the preset says it.
CHOSEN = {"model.n_layer", "model.n_head", "model.d_model", "model.context_length", "train.batch_size"}
# Verbs that take a text which may begin with a dash.
PROMPTED = {"generate", "tokenizer encode"}


class _Aligned(argparse.RawDescriptionHelpFormatter):
    def format_help(self) -> str:
        self._action_max_length += 2  # argparse forgets that verbs are indented, and breaks the line after the longest
        return super().format_help()


_HELP: dict[str, Any] = {"formatter_class": _Aligned, "allow_abbrev": False}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. `{self.prog} --help` says what there is.")


class Verbs:
    """What can be said to lmsmith. `found` has each verb by its words: "train", "tokenizer train"."""

    def __init__(self) -> None:
        self.top = Parser(prog="lmsmith", description="Makes language models from text.", **_HELP)
        self.top.add_argument("--version", action="version", version=f"lmsmith {__version__}")
        self._places: dict[str, Any] = {
            "": self.top.add_subparsers(title="verbs", metavar="VERB", required=True),
        }
        self._groups: dict[str, argparse.ArgumentParser] = {}
        self.found: dict[str, argparse.ArgumentParser] = {}

    def group(self, name: str, meaning: str) -> None:
        """Makes room for verbs of two words, of which `name` is the first."""
        made = self._places[""].add_parser(
            name, help=meaning, description=_sentence(meaning), usage=f"lmsmith {name} VERB ...", **_HELP
        )
        self._groups[name] = made
        self._places[name] = made.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(
        self, words: str, call: Callable[..., int], meaning: str, example: str, usage: str | None = None
    ) -> argparse.ArgumentParser:
        """Adds a verb, which calls `call(options, console, started)`. The example can be run as it is."""
        group, _, name = words.rpartition(" ")
        made: argparse.ArgumentParser = self._places[group].add_parser(
            name,
            prog=f"lmsmith {words}",
            help=meaning,
            description=_sentence(meaning),
            usage=usage,
            epilog=f"example:\n  {example}",
            **_HELP,
        )
        made.set_defaults(call=call)
        self.found[words] = made
        return made

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The options, with the verb's function as `call`. Raises UsageError; SystemExit after --help, --version."""
        words, others = self._words(arguments)
        verb = self.found[words]
        options, unknown = verb.parse_known_intermixed_args(others)  # texts and prompts may stand among the options
        if unknown:
            option = next((argument for argument in unknown if argument.startswith("-")), None)
            if option is None:
                raise UsageError(f"{unknown[0]!r} is one argument too many. `{verb.prog} --help` says what there is.")
            near = _nearest(option.partition("=")[0], verb._option_string_actions)
            text = " A text that begins with - goes behind a --." if words in PROMPTED else ""
            raise UsageError(f"there is no option {option!r}.{near}{text} `{verb.prog} --help` lists them.")
        return options

    def _words(self, arguments: Sequence[str]) -> tuple[str, list[str]]:
        """The verb, of one word or two, and what comes behind it."""
        if not arguments:
            self.top.print_help()
            raise UsageError("no verb was given. Begin with `lmsmith demo`, or `lmsmith train book.txt --minutes 10`.")
        first, *others = arguments
        if first in ("-h", "--help", "--version"):
            self.top.parse_args([first])
        if first.startswith("-"):
            raise UsageError(f"{first!r} comes before a verb. Wanted `lmsmith VERB ...`; `lmsmith --help` lists them.")
        if first not in self._groups:
            if first not in self.found:
                near = _nearest(first, self._places[""].choices)
                raise UsageError(f"there is no verb {first!r}.{near} `lmsmith --help` lists them.")
            return first, others
        group, known = self._groups[first], self._places[first].choices
        if not others:
            raise UsageError(f"`lmsmith {first}` wants one of {', '.join(known)} behind it.")
        second, *others = others
        if second in ("-h", "--help"):
            group.parse_args([second])
        if second not in known:
            raise UsageError(
                f"there is no verb '{first} {second}'.{_nearest(second, known)} `lmsmith {first} --help` lists them."
            )
        return f"{first} {second}", others


def at_least_one(value: str) -> int:
    if value.isdecimal() and int(value) >= 1:
        return int(value)
    raise argparse.ArgumentTypeError(f"{value!r}: wanted a whole number of 1 or more")


def add_settings(made: argparse.ArgumentParser, *, out: bool = True) -> None:
    """Every setting, those used often first, with the default preset's values; with `out`, where a run goes."""
    often = made.add_argument_group("often used")
    if out:
        often.add_argument("--out", type=Path, metavar="RUN", help="the run's folder (runs/NAME-1)")
    known = dict(settings())
    shown = preset(RunConfig.preset)
    for name in OFTEN:
        add_setting(often, known[name])
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, leaf in known.items():
        section = name.rpartition(".")[0]
        if name in OFTEN or name in ("data.sources", "data.source", "data.validation"):  # arguments; tables of a recipe
            continue
        if section not in groups:
            groups[section] = made.add_argument_group(f"{section} settings")
        value = functools.reduce(getattr, name.split("."), shown)
        add_setting(groups[section], leaf, "chosen" if name in CHOSEN else _as_typed(value))


def add_setting(group: argparse._ActionsContainer, leaf: Setting, default: str = "") -> None:
    """`default`: what the help says of it, where that is not the setting's own."""
    default = default or _as_typed(leaf.default)
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
    """A setting that is files: as many words as are given, `--validation a.txt b.txt`."""
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
    """A setting that is yes or no, as a flag that says yes."""
    group.add_argument(
        short, dest=leaf.name, action="store_const", const="yes", default=argparse.SUPPRESS, help=leaf.meaning
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


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(
        name, [word for word in known if word.startswith("--") or name[:1] != "-"], n=1, cutoff=0.7
    )
    return f" Did you mean {near[0]}?" if near else ""


def settings_given(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, by dotted name."""
    known = dict(settings())
    return {name: value for name, value in vars(options).items() if name in known}


def _sentence(meaning: str) -> str:
    return meaning[0].upper() + meaning[1:] + "."
