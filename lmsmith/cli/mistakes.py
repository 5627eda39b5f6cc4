"""Errors in a command line: what is wrong with an argument, and what was probably meant.

`grammar.py` parses; these functions explain what it cannot parse.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import os
from collections.abc import Iterable

from lmsmith.config import CHANGEABLE, LENGTH, MODEL_KINDS, settings, synonyms
from lmsmith.errors import UsageError

# Commands with a text argument, which may begin with a dash.
PROMPTED = {"generate", "tokenizer encode"}


def refuse_options_behind(verb: argparse.ArgumentParser, behind: list[str]) -> None:
    """Raises UsageError for an option after `--`, where it would be read as a name or a text."""
    positional = [action for action in verb._actions if not action.option_strings]
    several = any(action.nargs in ("+", "*") for action in positional)
    if not several and len(behind) <= len(positional):
        return
    for word in behind[0 if several else 1 :]:
        if word.partition("=")[0] in verb._option_string_actions and not os.path.lexists(word):
            raise UsageError(
                f"{word!r} comes after the --, where every word is a name or a text: put options "
                f"before the --."
            )


def explain_dashes(
    verb: argparse.ArgumentParser, words: str, before: list[str], error: str
) -> None:
    """Raises a UsageError that explains more than argparse's `error`, if a word that begins with
    - caused it.
    """
    known = verb._option_string_actions
    dashed = [word for word in before if word.startswith("-") and word != "-"]
    if "expected one argument" in error or "expected at least one argument" in error:
        for option, value in itertools.pairwise(before):
            unknown = value in dashed and value.partition("=")[0] not in known
            if option in known and option in error and unknown:
                reason = error.partition(". `")[0]
                raise UsageError(
                    f"{reason}. Write a value that begins with - after an =: {option}=VALUE."
                )
    elif "required" in error:
        for word in dashed:
            if word.partition("=")[0] not in known and " " not in word:
                raise no_such_option(verb, words, word)


def cannot_change(name: str, dotted: str) -> str:
    """Returns the error message for a setting that cannot change on resume; "" for any other name.

    `name`: as typed, without dashes: short (`seed`), or another program's name (`batch-size`).
    `dotted`: the setting with that short name (`train.seed`), or `name`.
    """
    kinds = map(MODEL_KINDS.get, MODEL_KINDS.names())
    known = {"model.kind", *(each for kind in kinds for each, _ in settings(kind))}
    known -= {*CHANGEABLE, *LENGTH}
    meant = dotted
    if dotted not in known:
        meant = synonyms.option(name, known | CHANGEABLE).partition(" ")[0]
    if meant not in known:
        return ""
    called = f"--{name}" + (f" (here --{meant})" if dotted not in known else "")
    return (
        f"{called} cannot change when a run is resumed: its weights, optimizer state or data order "
        "depend on it. Train a new run with it. `lmsmith resume --help` lists the settings that "
        "can change."
    )


def no_such_option(verb: argparse.ArgumentParser, words: str, option: str) -> UsageError:
    """The error for an option that the command does not have."""
    known = verb._option_string_actions
    name = option.partition("=")[0]
    meant = synonyms.option(name, (each for each in known if each.startswith("--")), words)
    if not meant:
        near = _nearest(name, known)
    else:  # `meant` is an option, or a sentence, which ends in a full stop
        near = f" {meant}" if meant.endswith(".") else f" Did you mean {meant}?"
    text = ""
    if (words in PROMPTED and not near) or os.path.lexists(option):
        kind = "text" if words in PROMPTED else "name"
        text = f" Write a {kind} that begins with - after a --."
    return UsageError(
        f"there is no option {option!r}.{near}{text} `{verb.prog} --help` lists the options."
    )


def verb_meant(word: str, known: Iterable[str], group: str = "") -> str:
    """Returns a sentence that names the command that was probably meant; "" without a guess."""
    meant = synonyms.verb(word, group)
    return f" {meant}" if meant else _nearest(word, known)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(
        name, [word for word in known if word.startswith("--") or name[:1] != "-"], n=1, cutoff=0.7
    )
    return f" Did you mean {near[0]}?" if near else ""
