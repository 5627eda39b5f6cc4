"""The grammar of the command line: verbs, groups of verbs, and every setting of `config.py` as an
option.

argparse, and not a generator of parsers from dataclasses: only options that were given are passed
on, so what the user set is known from what was chosen; and `--help` answers in a tenth of a second.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lmsmith import __version__
from lmsmith.config import (
    CHANGEABLE,
    LENGTH,
    MODEL_KINDS,
    RunConfig,
    Setting,
    read_toml,
    settings,
    synonyms,
)
from lmsmith.config.aliases import todays_option
from lmsmith.config.presets import has_size, preset
from lmsmith.config.run import of_another_kind
from lmsmith.errors import LmsmithError, UsageError
from lmsmith.optim.rates import TOGETHER

# Settings that are used often: their own group in the help, and short names.
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

# What `train` chooses for the text, the machine and the time, unless it is set or the preset says
# it.
CHOSEN = {
    "model.n_layer",
    "model.n_head",
    "model.d_model",
    "model.context_length",
    "train.batch_size",
}
# Verbs that take a text which may begin with a dash.
PROMPTED = {"generate", "tokenizer encode"}


class _Aligned(argparse.RawDescriptionHelpFormatter):
    def format_help(self) -> str:
        self._action_max_length += (
            2  # argparse forgets that verbs are indented, and breaks the line after the longest
        )
        return super().format_help()


_HELP: dict[str, Any] = {"formatter_class": _Aligned, "allow_abbrev": False}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. `{self.prog} --help` says what there is.")


class Verbs:
    """What can be said to lmsmith. `found` has each verb by its words: "train", "tokenizer
    train".
    """

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        """`arguments`: of the command; the preset among them decides which settings there are."""
        self.arguments = arguments
        self.top = Parser(prog="lmsmith", description="Makes language models from text.", **_HELP)
        self.top.add_argument("--version", action="version", version=f"lmsmith {__version__}")
        self._places: dict[str, Any] = {
            "": self.top.add_subparsers(title="verbs", metavar="VERB", required=True),
        }
        self._groups: dict[str, argparse.ArgumentParser] = {}
        self.found: dict[str, argparse.ArgumentParser] = {}

    def is_for(self, words: str) -> bool:
        """Whether the command is this verb, so that its many options are needed."""
        return not self.arguments or list(self.arguments[: len(words.split())]) == words.split()

    def group(self, name: str, meaning: str) -> None:
        """Makes room for verbs of two words, of which `name` is the first."""
        made = self._places[""].add_parser(
            name,
            help=meaning,
            description=_sentence(meaning),
            usage=f"lmsmith {name} VERB ...",
            **_HELP,
        )
        self._groups[name] = made
        self._places[name] = made.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(
        self,
        words: str,
        call: Callable[..., int],
        meaning: str,
        example: str,
        usage: str | None = None,
    ) -> argparse.ArgumentParser:
        """Adds a verb, which calls `call(options, console, started)`. The example can be run as
        it is.
        """
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
        """The options, with the verb's function as `call`. Raises UsageError; SystemExit after
        --help, --version.
        """
        words, others = self._words(arguments)
        others = [todays_option(word) for word in others]
        verb = self.found[words]
        before, behind = _at_dashes(others)
        _refuse_options_behind(verb, behind)
        marked = [_BEHIND + word if word.startswith("-") else word for word in behind]
        try:  # texts and prompts may stand among the options
            options, unknown = verb.parse_known_intermixed_args([*before, *marked])
        except UsageError as error:
            _explain_dashes(verb, words, before, str(error))
            raise
        if unknown:
            option = next((argument for argument in unknown if argument.startswith("-")), None)
            if option is None:
                extra = unknown[0].removeprefix(_BEHIND)
                raise UsageError(
                    f"{extra!r} is one argument too many. `{verb.prog} --help` says what there is."
                )
            name = option.partition("=")[0].lstrip("-")
            if words == "resume" and (fixed := _fixed(name)):
                raise UsageError(fixed)
            kind = starting_point(self.arguments).model.kind
            if problem := of_another_kind(name, kind, "the command line"):
                raise UsageError(problem)
            raise _no_such_option(verb, words, option)
        _unmark(options)
        return options

    def _words(self, arguments: Sequence[str]) -> tuple[str, list[str]]:
        """The verb, of one word or two, and what comes behind it."""
        if not arguments:
            self.top.print_help()
            raise UsageError(
                "no verb was given. Begin with `lmsmith demo`, or `lmsmith train book.txt "
                "--minutes 10`."
            )
        first, *others = arguments
        if first in ("-h", "--help", "--version"):
            self.top.parse_args([first])
        if first.startswith("-"):
            raise UsageError(
                f"{first!r} comes before a verb. Wanted `lmsmith VERB ...`; `lmsmith --help` "
                f"lists them."
            )
        if first not in self._groups:
            if first not in self.found:
                near = _verb_meant(first, self._places[""].choices)
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
                f"there is no verb '{first} {second}'.{_verb_meant(second, known, first)} "
                f"`lmsmith {first} --help` lists them."
            )
        return f"{first} {second}", others


# Marks a word that stands behind `--`, so that argparse does not take it for an option. The
# arguments of a command end at a NUL, so none of them can begin with one by itself.
_BEHIND = "\0"


def _at_dashes(words: list[str]) -> tuple[list[str], list[str]]:
    """The words before `--` and those behind it, which are names and texts whatever they begin
    with.
    """
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _refuse_options_behind(verb: argparse.ArgumentParser, behind: list[str]) -> None:
    """Raises UsageError for an option behind `--` that would be taken for a name or for one text
    too many.
    """
    positional = [action for action in verb._actions if not action.option_strings]
    several = any(action.nargs in ("+", "*") for action in positional)
    if not several and len(behind) <= len(positional):
        return
    for word in behind[0 if several else 1 :]:
        if word.partition("=")[0] in verb._option_string_actions and not os.path.lexists(word):
            raise UsageError(
                f"{word!r} stands behind the --, where every word is a name or a text: put "
                f"options before the --."
            )


def _unmark(options: argparse.Namespace) -> None:
    """Takes the marks of `_BEHIND` away."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(each) for each in value]
        if isinstance(value, str | Path) and str(value).startswith(_BEHIND):
            return type(value)(str(value)[len(_BEHIND) :])
        return value

    for name, value in vars(options).items():
        setattr(options, name, plain(value))


def _explain_dashes(
    verb: argparse.ArgumentParser, words: str, before: list[str], error: str
) -> None:
    """Raises a UsageError that says more than argparse's, where a word that begins with - is the
    reason of it.
    """
    known = verb._option_string_actions
    dashed = [word for word in before if word.startswith("-") and word != "-"]
    if "expected one argument" in error or "expected at least one argument" in error:
        for option, value in itertools.pairwise(before):
            unknown = value in dashed and value.partition("=")[0] not in known
            if option in known and option in error and unknown:
                said = error.partition(". `")[0]
                raise UsageError(
                    f"{said}. A value that begins with - goes behind =: {option}=VALUE."
                )
    elif "required" in error:
        for word in dashed:
            if word.partition("=")[0] not in known and " " not in word:
                raise _no_such_option(verb, words, word)


def _fixed(name: str) -> str:
    """What to say of a setting that a resumed run keeps; "" where it is no such setting.

    `name`: without dashes; short (`seed`), or as other programs call it (`batch-size`).
    """
    kinds = map(MODEL_KINDS.get, MODEL_KINDS.names())
    known = {"model.kind", *(each for kind in kinds for each, _ in settings(kind))}
    known -= {*CHANGEABLE, *LENGTH}
    dotted = next((long for long, short in OFTEN.items() if short == name), name)
    meant = (
        dotted if dotted in known else synonyms.option(name, known | CHANGEABLE).partition(" ")[0]
    )
    if meant not in known:
        return ""
    called = f"--{name}" + (f" (here --{meant})" if dotted not in known else "")
    return (
        f"{called} cannot change when a run is resumed: its weights, optimizer state or data order "
        "depend on it. Train a new run with it. `lmsmith resume --help` lists what may change."
    )


def _no_such_option(verb: argparse.ArgumentParser, words: str, option: str) -> UsageError:
    known = verb._option_string_actions
    name = option.partition("=")[0]
    meant = synonyms.option(name, (each for each in known if each.startswith("--")), words)
    if not meant:
        near = _nearest(name, known)
    else:  # a sentence ends in a full stop, an option never does
        near = f" {meant}" if meant.endswith(".") else f" Did you mean {meant}?"
    text = ""
    if (words in PROMPTED and not near) or os.path.lexists(option):
        text = f" A {'text' if words in PROMPTED else 'name'} that begins with - goes behind a --."
    return UsageError(
        f"there is no option {option!r}.{near}{text} `{verb.prog} --help` lists them."
    )


def _verb_meant(word: str, known: Iterable[str], group: str = "") -> str:
    meant = synonyms.verb(word, group)
    return f" {meant}" if meant else _nearest(word, known)


def at_least_one(value: str) -> int:
    if value.isdecimal() and int(value) >= 1:
        return int(value)
    raise argparse.ArgumentTypeError(f"{value!r}: wanted a whole number of 1 or more")


def add_settings(
    made: argparse.ArgumentParser, arguments: Sequence[str], *, out: bool = True
) -> None:
    """Every setting, those used often first, with the values of the preset in `arguments`.

    Settings of the model are those of the preset's kind. With `out`, also where the run goes.
    """
    often = made.add_argument_group("often used")
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
            groups[section] = made.add_argument_group(f"{section} settings{of}")
        value = functools.reduce(getattr, name.split("."), shown)
        chosen = name in CHOSEN and not has_size(shown.preset)
        add_setting(groups[section], leaf, "chosen" if chosen else _as_typed(leaf.shown(value)))


def starting_point(arguments: Sequence[str]) -> RunConfig:
    """The preset that the arguments name, or a recipe among them; the default one if it is unknown.

    What is wrong with the arguments is reported later, when all of them are read.
    """
    said: dict[str, Any] = {}
    with contextlib.suppress(LmsmithError):
        for recipe in (word for word in arguments if word.endswith(".toml")):
            said |= read_toml(Path(recipe))
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        option, equals, value = word.partition("=")
        if option in ("--preset", "--model.kind"):
            said[option.lstrip("-")] = value if equals else following
    try:
        config = preset(str(said.get("preset", RunConfig.preset)))
        kind = {name: value for name, value in said.items() if name == "model.kind"}
        return config.changed(kind, where="the command line")
    except LmsmithError:
        return preset(RunConfig.preset)


def add_learning_rate(often: argparse._ActionsContainer) -> None:
    """`--learning-rate`, which is no setting of its own: it sets the rates of all parameter
    groups.
    """
    often.add_argument(
        "--learning-rate",
        dest=TOGETHER,
        default=argparse.SUPPRESS,
        metavar="X",
        help="peak learning rate: of Muon's matrices, or without Muon of the weights; all other "
        "groups keep their "
        "ratio to it",
    )


def add_setting(group: argparse._ActionsContainer, leaf: Setting, default: str = "") -> None:
    """`default`: what the help says of it, where that is not the setting's own."""
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


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(
        name, [word for word in known if word.startswith("--") or name[:1] != "-"], n=1, cutoff=0.7
    )
    return f" Did you mean {near[0]}?" if near else ""


def settings_given(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, by dotted name, and `learning_rate` for all groups."""
    top = {name for name, _ in settings() if "." not in name} | {TOGETHER}
    return {name: value for name, value in vars(options).items() if "." in name or name in top}


def _sentence(meaning: str) -> str:
    return meaning[0].upper() + meaning[1:] + "."
