"""Commands about conversations: tune, align, chat."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lmsmith import api
from lmsmith.cli.console import problem
from lmsmith.cli.grammar import (
    Verbs,
    add_files,
    add_flag,
    add_penalties,
    add_settings,
    add_stop,
    at_least_one,
    settings_given,
)
from lmsmith.cli.runs import _making
from lmsmith.cli.use import compile_ahead, sampling_of
from lmsmith.config import settings
from lmsmith.errors import LmsmithError

if TYPE_CHECKING:
    from lmsmith.chat.session import Chat

COMMANDS = """/undo         drop your last message and its answer
/retry        draw another answer
/temp T       sampling temperature, from now on
/save FILE    write the conversation as a line that `lmsmith tune` reads
/new          start again
/quit         leave (or Ctrl-D)
A line that ends with \\ continues on the next. Ctrl-C stops an answer."""


def add(verbs: Verbs) -> None:
    tune = verbs.verb(
        "tune",
        _tune,
        "tune a model on conversations (supervised fine-tuning), fully or with LoRA",
        "lmsmith tune demo/run-1 demo/chats.jsonl --out demo/chat",
        usage="lmsmith tune RUN CHATS... [--epochs X] [--out RUN] [--SETTING VALUE]...",
    )
    tune.add_argument("run", type=Path, metavar="RUN", help="the model to start from")
    tune.add_argument(
        "conversations",
        nargs="+",
        metavar="CHATS",
        help="conversations: .jsonl, .json or .parquet with messages, ShareGPT's conversations, "
        "prompt and completion, or Alpaca's fields; a data set of the Hub (OWNER/NAME); a recipe",
    )
    tune.add_argument(
        "--show-mask",
        nargs="?",
        const=3,
        type=at_least_one,
        metavar="N",
        help="print the first N conversations with what is learned marked, and train nothing (3)",
    )
    if verbs.is_for("tune"):
        add_settings(tune, verbs.arguments)
    reading = tune.add_argument_group("conversations")
    add_files(reading, dict(settings())["data.validation"], "--validation")
    add_flag(reading, dict(settings())["data.skip_bad"], "--skip-bad")
    _add_align(verbs)
    _add_chat(verbs)


def _add_align(verbs: Verbs) -> None:
    align = verbs.verb(
        "align",
        _align,
        "train a tuned model on preferences between answers (DPO, IPO, SimPO, KTO)",
        "lmsmith align demo/chat demo/pairs.jsonl --method dpo --out demo/aligned",
        usage="lmsmith align RUN PAIRS... [--method M] [--out RUN] [--SETTING VALUE]...",
    )
    align.add_argument("run", type=Path, metavar="RUN", help="the model to start from")
    align.add_argument(
        "preferences",
        nargs="+",
        metavar="PAIRS",
        help="preferences: .jsonl, .json or .parquet with prompt, chosen and rejected, or with "
        "prompt, completion and label (kto); a data set of the Hub (OWNER/NAME); a recipe",
    )
    known = dict(settings())
    align.add_argument(
        "--method",
        dest="align.method",
        choices=known["align.method"].choices,
        default=argparse.SUPPRESS,
        help=f"{known['align.method'].meaning} (dpo)",
    )
    align.add_argument(
        "--beta",
        dest="align.beta",
        default=argparse.SUPPRESS,
        metavar="X",
        help=f"{known['align.beta'].meaning} (auto)",
    )
    if verbs.is_for("align"):
        add_settings(align, verbs.arguments)
    reading = align.add_argument_group("preferences")
    add_files(reading, known["data.validation"], "--validation")
    add_flag(reading, known["data.skip_bad"], "--skip-bad")


def _add_chat(verbs: Verbs) -> None:
    chat = verbs.verb(
        "chat",
        _chat,
        "talk to a tuned model in the terminal",
        "lmsmith chat demo/chat",
    )
    chat.add_argument("run", type=Path, metavar="RUN", help="a tuned or imported chat model")
    chat.add_argument("--system", default="", metavar="TEXT", help="a system message (none)")
    chat.add_argument(
        "--max-tokens", type=at_least_one, default=500, metavar="N", help="per answer (500)"
    )
    chat.add_argument(
        "--temperature", type=float, default=0.8, metavar="T", help="sampling temperature (0.8)"
    )
    chat.add_argument("--top-k", type=int, default=0, metavar="K", help="top-k; 0: all (0)")
    chat.add_argument("--top-p", type=float, default=1.0, metavar="P", help="top-p sampling (1)")
    chat.add_argument("--min-p", type=float, default=0.0, metavar="P", help="min-p sampling (0)")
    add_penalties(chat)
    add_stop(chat)
    chat.add_argument(
        "--seed", type=int, default=1, metavar="N", help="the same seed gives the same answers (1)"
    )


def _tune(options: argparse.Namespace, console: Console, started: float) -> int:
    given = settings_given(options)
    if options.show_mask:
        return _show_masks(options, console, given.get("data.chat_template", ""))
    return _making(
        lambda: api.tune(
            options.run,
            options.conversations,
            out=options.out,
            settings=given,
            progress=console,
            started=started,
        ),
        console,
        "chat",
    )


def _align(options: argparse.Namespace, console: Console, started: float) -> int:
    return _making(
        lambda: api.align(
            options.run,
            options.preferences,
            out=options.out,
            settings=settings_given(options),
            progress=console,
            started=started,
        ),
        console,
        "chat",
    )


def _show_masks(options: argparse.Namespace, console: Console, template: str) -> int:
    from rich.text import Text

    from lmsmith.chat.sft import masks

    skip_bad = "data.skip_bad" in vars(options)
    found = masks(options.run, options.conversations, template, skip_bad=skip_bad)
    colour = console.is_terminal and not console.no_color
    for _, (source, parts) in zip(range(options.show_mask), found, strict=False):
        console.print(source if colour else f"{source} (learned text is between [[ and ]])")
        line = Text()
        for text, learned in parts:
            marked = text if colour or not learned else f"[[{text}]]"
            line.append(marked, style="bold green" if learned else "dim")
        console.print(line)
    return 0


def _chat(options: argparse.Namespace, console: Console, started: float) -> int:
    compile_ahead()
    from lmsmith.chat.prepare import own_speaker
    from lmsmith.chat.session import Chat

    sampling = sampling_of(options)
    speaker = own_speaker(options.run)
    chat = Chat(
        api.load(options.run).writer,
        speaker,
        sampling=sampling,
        max_tokens=options.max_tokens,
        seed=options.seed,
        stop=options.stop,
    )
    if options.system:
        chat.messages.append({"role": "system", "content": options.system})
    return _converse(chat, console)


def talk(run: Path, console: Console) -> int:
    """A conversation with the demo's model, which answers best at temperature 0."""
    from lmsmith.chat.prepare import own_speaker
    from lmsmith.chat.session import Chat
    from lmsmith.generate.sampling import Sampling

    return _converse(
        Chat(api.load(run).writer, own_speaker(run), sampling=Sampling(temperature=0)), console
    )


def _converse(chat: Chat, console: Console) -> int:
    """Reads messages and prints answers until the user leaves."""
    asks = sys.stdin.isatty()
    if asks:
        import readline  # noqa: F401 - input() then edits lines and keeps a history

        console.print("Type a message, or /help.")
    while True:
        try:
            text = _message("> " if asks else "")
        except KeyboardInterrupt:
            console.print("(Ctrl-D or /quit leaves)")
            continue
        if text is None or text.strip() in ("/quit", "/exit"):
            return 0
        try:
            if _obey(chat, text, console):
                _answer(chat, console)
        except LmsmithError as error:
            problem(str(error))


def _message(prompt: str) -> str | None:
    """Reads a message; None at the end of the input. A line that ends with a backslash
    continues on the next."""
    lines: list[str] = []
    while True:
        try:
            line = input(prompt if not lines else "." * (len(prompt) - 1) + " " * bool(prompt))
        except EOFError:
            return "\n".join(lines) if lines else None
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])


def _obey(chat: Chat, text: str, console: Console) -> bool:
    """Does what a line says. Returns whether the model answers next. Raises LmsmithError."""
    import dataclasses

    word, _, rest = text.strip().partition(" ")
    said: dict[str, Callable[[], str]] = {
        "/help": lambda: COMMANDS,
        "/undo": lambda: "dropped your last message" if chat.undo() else "nothing to drop",
        "/new": lambda: "started again",
    }
    if word == "/retry":
        if chat.retry():
            return True
        console.print("there is no answer yet")
    elif word == "/temp":
        try:
            chat.sampling = dataclasses.replace(chat.sampling, temperature=float(rest))
            console.print(f"temperature {float(rest):g}")
        except ValueError:
            console.print(f"/temp {rest}: expected a number, as in /temp 0.7")
    elif word == "/save":
        if not rest:
            console.print("/save: expected the name of a file")
        else:
            chat.save(Path(rest))
            console.print(f"saved {rest}")
    elif word in said:
        if word == "/new":
            chat.clear()
        console.print(said[word]())
    elif word.startswith("/") and text.startswith("/") and word[1:].isalpha():
        console.print(f"there is no command {word}; /help lists them")
    elif text.strip():
        chat.say(text)
        return True
    return False


def _answer(chat: Chat, console: Console) -> None:
    """Prints the answer as it is generated. Ctrl-C ends it; the part so far is kept."""
    pieces = chat.answer()
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]
        sys.stdout.write("\n(stopped)")
    except LmsmithError:
        chat.undo()
        raise
    sys.stdout.write("\n")
    sys.stdout.flush()
    if chat.forgotten:
        n = chat.forgotten
        console.print(f"(the context is full: the model no longer sees the first {n} messages)")
    if chat.cut:
        console.print("(the answer reached --max-tokens or the end of the context)")
