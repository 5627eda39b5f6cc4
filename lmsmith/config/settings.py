"""Declares, lists and parses settings.

A setting is a field of a frozen dataclass, with its type, default and description:

    n_layer: int = setting(6, "number of blocks")
    n_kv_head: int = setting(0, "key and value heads", zero="auto")

The command line (`--model.n_layer 6`), recipes (`[model] n_layer = 6`), a run's `config.toml`, the
Python API and the logs all use that name. `__post_init__` checks the values, so a config that
exists is valid.

If 0 (or empty text) has a special meaning, `zero` is the word for it: users read and write `auto`,
`none` or `all`. In memory the value stays 0, which keeps the field's type simple.
"""

import dataclasses
import difflib
import math
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lmsmith.config import synonyms
from lmsmith.config.aliases import renamed
from lmsmith.config.registry import HOW_TO_LOAD
from lmsmith.errors import ConfigError

Names = Callable[[], tuple[str, ...]]


def setting(
    default: Any, meaning: str, *, zero: str | None = None, choices: Names | None = None
) -> Any:
    """Returns a dataclass field with the description that `--help` shows.

    `zero`: the word users write for the value 0, or for empty text. `choices`: returns the
    registered names that a text setting accepts.
    """
    metadata = {"meaning": meaning, "zero": zero, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """One setting, for the command line and the documentation. `name` is dotted."""

    name: str
    kind: Any
    default: Any
    meaning: str
    zero: str | None = None
    names: Names | None = None

    @property
    def choices(self) -> tuple[str, ...]:
        """The accepted values, if the setting has a fixed list of them; else empty."""
        if typing.get_origin(self.kind) is Literal:
            return typing.get_args(self.kind)
        return self.names() if self.names else ()

    def shown(self, value: Any) -> Any:
        """Returns the value as users write it: the word for zero if there is one, else the
        value.
        """
        return self.zero if self.zero is not None and not value else value


def settings_of(section: type, prefix: str = "") -> Iterator[tuple[str, Setting]]:
    """Yields every setting of a dataclass, nested ones included, by dotted name, in declaration
    order.
    """
    kinds = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        name, kind = prefix + field.name, kinds[field.name]
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            yield from settings_of(kind, name + ".")
        else:
            about = field.metadata
            leaf = Setting(
                name,
                kind,
                field.default,
                about["meaning"],
                about.get("zero"),
                about.get("choices"),
            )
            yield name, leaf


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"model": {"n_layer": 6}}` -> `{"model.n_layer": 6}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping)
        flat.update(flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value})
    return flat


def read_toml(path: Path) -> dict[str, Any]:
    """Reads the dotted settings of a TOML file, with old names replaced by today's.

    Raises ConfigError if the file is missing or is not TOML.
    """
    try:
        # Editors on Windows write a byte-order mark first.
        values = flatten(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}. Check the path and its permissions."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}. Correct the file.") from error
    return renamed(values, str(path))


def parse(leaf: Setting, value: Any, where: str) -> Any:
    """Converts `value` (text from the command line, or a TOML or Python value) to the setting's
    type.

    `where` names the source of the value in errors. Raises ConfigError.
    """
    if leaf.zero is not None and value == leaf.zero:
        return leaf.kind()
    parsed = _parse(leaf, leaf.kind, value, where)
    if leaf.names and parsed not in leaf.names():
        raise ConfigError(
            f"{leaf.name} = {parsed!r} in {where}: expected one of {', '.join(leaf.names())}. "
            f"{HOW_TO_LOAD}"
        )
    return parsed


def _parse(leaf: Setting, kind: Any, value: Any, where: str) -> Any:
    name = leaf.name
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        parsed, expected = value if value in inner else None, "one of " + ", ".join(inner)
    elif origin is tuple:
        if value == "none":  # how help shows an empty list
            return ()
        parts = value
        if isinstance(value, str):
            parts = [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(parts, list | tuple):
            return tuple(_parse(leaf, inner[0], part, where) for part in parts)
        parsed, expected = None, "a list"
    elif dataclasses.is_dataclass(kind):
        parsed, expected = _as_table(leaf, kind, value, where), f"a table, as in [[{name}]]"
    else:
        parsed = {bool: _as_bool, int: _as_int, float: _as_float, str: _as_text}[kind](value)
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        expected = words[kind] + (f" or {leaf.zero}" if leaf.zero is not None else "")
    if parsed is None:
        raise ConfigError(f"{name} = {value!r} in {where}: expected {expected}.")
    return parsed


def _as_table(leaf: Setting, kind: Any, value: Any, where: str) -> Any:
    if isinstance(value, kind) or not isinstance(value, Mapping):
        return value if isinstance(value, kind) else None
    known = dict(settings_of(kind, f"{leaf.name}."))
    for key in value:
        if (name := f"{leaf.name}.{key}") not in known:
            raise ConfigError(f"unknown setting {name!r} in {where}.{nearest(name, known)}")
    parts = {key: parse(known[f"{leaf.name}.{key}"], part, where) for key, part in value.items()}
    return kind(**parts)


def _as_bool(value: Any) -> bool | None:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    return (
        words.get(value.lower())
        if isinstance(value, str)
        else value
        if isinstance(value, bool)
        else None
    )


def _as_int(value: Any) -> int | None:
    """12, "12", 12.0 and "1.2e1" are 12. Text tries int() first: it is exact for integers that
    float() would round.
    """
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = _as_float(value)
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    return int(value) if whole else None


def _as_float(value: Any) -> float | None:
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _as_text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def as_toml(value: Any) -> str:
    """Returns a value as written in a TOML file, for messages."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def check(good: bool, name: str, found: Any, expected: str) -> None:
    """Raises ConfigError unless `good`."""
    if not good:
        raise ConfigError(f"{name} = {found}: expected {expected}.")


def nearest(name: str, known: Mapping[str, Any]) -> str:
    """Returns a hint for an unknown setting: the setting that `name` is a synonym of or is spelled
    like, in any section.
    """
    meant, _, value = synonyms.option(name, known).partition(" ")
    if meant in known:  # it can also be a sentence about the command line
        return f" Did you mean {meant!r}" + (f" = {value!r}?" if value else "?")
    word = name.rpartition(".")[2]
    by_word = {full.rpartition(".")[2]: full for full in reversed(list(known))}
    close = difflib.get_close_matches(name, known, n=1)
    close = close or difflib.get_close_matches(word, by_word, n=1)
    near = by_word[word] if word in by_word else by_word.get(close[0], close[0]) if close else None
    return f" Did you mean {near!r}?" if near else " `lmsmith train --help` lists them all."
