"""Writes the reference pages cli.md, settings.md and api.md from the code.

    python docs/make_reference.py             # writes the pages
    python docs/make_reference.py --check     # changes nothing; fails if a page is stale

The texts are those of `lmsmith VERB --help`, of the settings in `lmsmith/config` and of the
docstrings of the public API, so they are changed there. The pages are committed, because a forge
shows only committed files; a test fails while one is stale.
"""

import argparse
import dataclasses
import functools
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lmsmith
from lmsmith import cli
from lmsmith.cli.grammar import CHOSEN, OFTEN
from lmsmith.config import MODEL_KINDS, Setting, settings
from lmsmith.config.presets import PRESETS, has_size, preset

HERE = Path(__file__).resolve().parent
NOTE = "<!-- Written by docs/make_reference.py from the code. Change the texts there. -->\n\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Writes cli.md, settings.md and api.md.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if stale")
    options = parser.parse_args(arguments)
    stale = [path for path, text in pages().items() if not same(path, text)]
    for path in stale:
        if not options.check:
            path.write_text(pages()[path], encoding="utf-8", newline="\n")
        verb = "stale; run python docs/make_reference.py" if options.check else "written"
        sys.stdout.write(f"{path}: {verb}\n")
    return int(options.check and bool(stale))


@functools.cache
def pages() -> dict[Path, str]:
    """What the pages should be: path -> text."""
    texts = {"cli.md": cli_page(), "settings.md": settings_page(), "api.md": api_page()}
    return {HERE / name: NOTE + text.rstrip() + "\n" for name, text in texts.items()}


def same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    """A Markdown table; a line break or a | in a cell would end it."""
    lines = [head, ["---"] * len(head), *rows]
    cells = ([" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in lines)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n\n"


# --- the command line


def cli_page() -> str:
    """Every verb with its arguments, from argparse."""
    verbs = cli.verbs()
    text = (
        "# Command line\n\n`lmsmith VERB --help` prints the same text. Exit status: 0 done; "
        "1 failed; 2 wrong usage; 130 or 143 stopped by a signal.\n\n"
    )
    summary = [
        (f"[`{words}`](#lmsmith-{words.replace(' ', '-')})", _help_of(verbs, words))
        for words in verbs.found
    ]
    text += table(("verb", "what it does"), summary)
    return text + "".join(_verb(words, verb) for words, verb in verbs.found.items())


def _help_of(verbs: Any, words: str) -> str:
    return str(verbs.found[words].description or "").rstrip(".")


def _verb(words: str, verb: argparse.ArgumentParser) -> str:
    text = f"## lmsmith {words}\n\n{verb.description}\n\n"
    usage = verb.usage or verb.format_usage()
    text += f"```text\n{_one_line(usage)}\n```\n\n"
    for group in verb._action_groups:
        actions = [a for a in group._group_actions if a.dest != "help"]
        if not actions:
            continue
        title = str(group.title)
        if re.search(r"^(model|optim|schedule|data|train) settings", title):
            section = title.split()[0]
            text += f"{title}: see [settings](settings.md#{section}).\n\n"
            continue
        if title not in ("positional arguments", "options"):
            text += f"### {words}: {title}\n\n"
            text += f"{textwrap.dedent(group.description)}\n\n" if group.description else ""
        text += table(("argument", "meaning"), [(_names(a), _meaning(verb, a)) for a in actions])
    example = str(verb.epilog).removeprefix("example:\n").strip()
    return text + f"```sh\n{example}\n```\n\n"


def _one_line(usage: str) -> str:
    return " ".join(usage.removeprefix("usage: ").split())


def _names(action: argparse.Action) -> str:
    value = action.metavar or ("" if action.option_strings else action.dest)
    if not value and action.nargs is None and action.option_strings and action.dest:
        value = "{" + ",".join(action.choices) + "}" if action.choices else action.dest.upper()
    value = "" if action.nargs == 0 else str(value)
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    return f"{names} `{value}`" if names and value else names or f"`{value}`"


def _meaning(verb: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = verb._get_formatter()._expand_help(action) if action.help else ""
    return _plain(text)


def _plain(text: str) -> str:
    """Text for a table: what Markdown would read as markup is made code or escaped."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([<>*\[\]])", r"\\\1", part) for part in parts
    )


# --- settings


def settings_page() -> str:
    """Every setting with its values, default and meaning, from the dataclasses of config/."""
    text = (
        "# Settings\n\nA setting has one name everywhere: `--model.n_layer 6` on the command line, "
        "`n_layer = 6` under `[model]` in a recipe and in a run's `config.toml`, "
        '`settings={"model.n_layer": 6}` in Python. "chosen" means that `train` chooses the value '
        "for the text, the machine and the time. Defaults are those of the preset `modern`, or of "
        "the preset with the kind's name.\n\n"
    )
    kinds = {kind: f"kind {kind}: {MODEL_KINDS.get(kind).description}" for kind in BUILT_IN}
    shared = dict(settings(MODEL_KINDS.get("gpt")))
    sections = dict.fromkeys(name.rpartition(".")[0] for name in shared)
    for section in sections:
        text += f"## {section or 'general'}\n\n"
        if section != "model":
            text += _settings_table(section, shared, "modern")
            continue
        text += "The settings of `[model]` depend on the kind of model, which the preset names.\n\n"
        for kind, title in kinds.items():
            known = dict(settings(MODEL_KINDS.get(kind)))
            text += f"### {title}\n\n"
            text += _settings_table("model", known, "modern" if kind == "gpt" else kind)
    text += "## Presets\n\nA preset changes these settings from the defaults of the code.\n\n"
    rows = []
    for name in PRESETS.names():
        changes = {key: preset_value(name, key) for key in PRESETS.get(name)}
        rows.append(
            (
                f"`{name}`",
                ", ".join(f"`{k.replace('model.', '')} = {v}`" for k, v in changes.items()),
            )
        )
    return text + table(("preset", "what it sets"), rows)


BUILT_IN = ("gpt", "rnn", "ngram")


def preset_value(name: str, key: str) -> str:
    value: Any = functools.reduce(getattr, key.split("."), preset(name))
    leaf = dict(settings(type(preset(name).model)))[key]
    return written(leaf, value)


def written(leaf: Setting, value: Any) -> str:
    """A value as the command line takes it."""
    value = leaf.shown(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _settings_table(section: str, known: dict[str, Setting], preset_name: str) -> str:
    rows = []
    base = preset(preset_name)
    for name, leaf in known.items():
        if name.rpartition(".")[0] != section:
            continue
        value: Any = functools.reduce(getattr, name.split("."), base)
        chosen = name in CHOSEN and not has_size(preset_name)
        default = "chosen" if chosen else written(leaf, value)
        short = f", `--{OFTEN[name]}`" if OFTEN.get(name) else ""
        rows.append(
            (
                f"`{name}`{short}",
                _values(leaf),
                f"`{default}`" if default else "",
                _plain(leaf.meaning),
            )
        )
    return table(("setting", "values", "default", "meaning"), rows)


def _values(leaf: Setting) -> str:
    if leaf.choices and leaf.name not in ("preset", "model.kind"):
        return ", ".join(f"`{choice}`" for choice in leaf.choices)
    if typing.get_origin(leaf.kind) is tuple:
        inner = typing.get_args(leaf.kind)[0]
        return "tables" if dataclasses.is_dataclass(inner) else "list"
    words = {bool: "`yes`, `no`", int: "whole number", float: "number", str: "text"}
    return words.get(leaf.kind, "text")


# --- the Python API


def api_page() -> str:
    """The public names with their signatures and docstrings."""
    text = "# Python API\n\n" + docstring(lmsmith) + "\n"
    names = sorted({*lmsmith.__all__, "LM", "Run"})
    text += "## lmsmith\n\n"
    for name in sorted(names, key=str.lower):
        # A submodule of the same name stands for the function once it is imported.
        text += _entry(f"lmsmith.{name}", inspect.unwrap(getattr(lmsmith, name)))
    text += "## lmsmith.errors\n\n" + docstring(lmsmith.errors) + "\n"
    for name, error in vars(lmsmith.errors).items():
        if isinstance(error, type) and issubclass(error, Exception):
            base = error.__bases__[0].__name__
            text += (
                f"- `{name}` ({base}): {' '.join(inspect.cleandoc(error.__doc__ or '').split())}\n"
            )
    text += "\n## lmsmith.extend\n\n" + docstring(lmsmith.extend) + "\n"
    for name in lmsmith.extend.__all__:
        text += _entry(f"lmsmith.extend.{name}", getattr(lmsmith.extend, name))
    return text


def _entry(name: str, thing: Any) -> str:
    text = f"### {name}\n\n"
    if typing.get_origin(thing):  # an alias of a type
        return text + f"```python\n{name.split('.')[-1]} = {_annotation(thing)}\n```\n\n"
    if not isinstance(thing, type):
        return text + signature(name, thing) + docstring(thing)
    text += docstring(thing)
    for member, value in _members(thing):
        function = value.fget if isinstance(value, property) else getattr(thing, member)
        short = thing.__name__ if member == "__init__" else f"{thing.__name__}.{member}"
        text += f"#### {short}\n\n"
        text += "" if isinstance(value, property) else signature(short, function)
        text += docstring(function)
    return text


def _members(thing: type) -> Iterator[tuple[str, Any]]:
    """Documented methods and properties that lmsmith defines for the class."""
    if dataclasses.is_dataclass(thing):
        members = {}
    else:
        members = {"__init__": vars(thing).get("__init__")}
    for base in reversed(thing.__mro__):
        if base.__module__.startswith("lmsmith"):
            members |= {n: v for n, v in vars(base).items() if not n.startswith("_")}
    for name, value in members.items():
        function = getattr(value, "__func__", getattr(value, "fget", value))
        if not inspect.isfunction(function) or not function.__doc__:
            continue
        if "Use `lmsmith." not in function.__doc__:
            yield name, value


def signature(name: str, function: Any) -> str:
    """A block with the call, one parameter a line where it is long."""
    found = inspect.signature(function)
    parts, star = [], False
    for p in found.parameters.values():
        if p.name == "self":
            continue
        if p.kind is p.KEYWORD_ONLY and not star:
            parts.append("*")
        star = star or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        prefix = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        kind = "" if p.annotation is p.empty else f": {_annotation(p.annotation)}"
        default = "" if p.default is p.empty else f" = {p.default!r}"
        parts.append(prefix + p.name + kind + default)
    result = found.return_annotation
    arrow = "" if result is found.empty else f" -> {_annotation(result)}"
    line = f"{name}({', '.join(parts)}){arrow}"
    if len(line) > 88:
        line = f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){arrow}"
    return f"```python\n{line}\n```\n\n"


def _annotation(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:lmsmith|typing|collections|pathlib|jaxtyping)\.(?:\w+\.)*", "", text)


def docstring(thing: Any) -> str:
    """A docstring as Markdown: indented lines become code, aligned columns become a table."""
    text, code = "", []
    for part in inspect.cleandoc(thing.__doc__ or "").split("\n\n"):
        lines = part.splitlines()
        if all(line.startswith("    ") for line in lines):
            code.append(textwrap.dedent(part))
            continue
        text += _code(code) + _paragraph(lines)
        code = []
    return text + _code(code)


def _code(parts: list[str]) -> str:
    if not parts:
        return ""
    text = "\n\n".join(parts)
    try:
        compile(text, "docstring", "exec")
    except SyntaxError:
        return f"```text\n{text}\n```\n\n"
    return f"```python\n{text}\n```\n\n"


def _paragraph(lines: list[str]) -> str:
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines]
    if len(lines) > 1 and all(len(row) == 2 for row in rows):
        return table(("", ""), [(f"`{name}`", _plain(meaning)) for name, meaning in rows])
    if len(lines) > 1 and any(len(row) > 2 for row in rows):
        return "```text\n" + "\n".join(lines) + "\n```\n\n"
    return "\n".join(_plain(line) for line in lines) + "\n\n"


if __name__ == "__main__":
    sys.exit(main())
