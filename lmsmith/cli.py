"""The command line: parse, build, call.

`lmsmith VERB ... --section.field value`. Every setting of `config.py` is an option of `train`; only those that were
given are passed on, so what the user set is known from what was chosen. (argparse and not a generator of parsers from
dataclasses: that difference is the point, and `--help` must answer in a fraction of a second.) torch is imported by the
verbs that need it, not here.

Exit status: 0 done; 1 failed; 2 wrong use; 130 or 143 stopped by a signal.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from lmsmith import __version__
from lmsmith.config import Setting, settings
from lmsmith.errors import DataError, LmsmithError, UsageError
from lmsmith.train.stop import Stopped, handle, stop_at_once

if TYPE_CHECKING:
    from lmsmith.tokens.tokenizer import Tokenizer

# Settings that are used often: their own group in the help, and short names.
OFTEN = {
    "train.minutes": "minutes",
    "train.steps": "steps",
    "train.tokens": "tokens",
    "train.stop_at_val_loss": "stop-at-val-loss",
    "preset": "",
    "tokenizer": "",
    "train.seed": "seed",
    "train.keep": "keep",
    "data.errors": "errors",
}

# What `train` chooses for the text, the machine and the time, unless it is set or the preset says it.
CHOSEN = {"model.n_layer", "model.n_head", "model.d_model", "model.context_length", "train.batch_size"}


def run(arguments: Sequence[str], *, started: float) -> int:
    """Runs one command and returns its exit status. `started`: the time.monotonic() from which `--minutes` counts."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows another, and no traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_Warnings()])
    handle(signal.SIGTERM, stop_at_once)
    try:
        options = parse(arguments)
        return int(options.call(options, _console(), started))
    except LmsmithError as error:
        _problem(f"lmsmith: {error}")
        return error.exit_status
    except KeyboardInterrupt as stop:
        number = stop.signal if isinstance(stop, Stopped) else signal.SIGINT
        _problem(f"lmsmith: stopped by {number.name}")
        return 128 + number
    except BrokenPipeError:  # whoever read our output has seen enough
        _no_more_output()
        return 0
    except SystemExit as done:  # argparse, after --help and --version
        return int(done.code or 0)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, with the verb's function as `call`. Raises UsageError; SystemExit after --help and --version."""
    top, verbs = parser()
    if not arguments:
        top.print_help()
        raise UsageError("no verb was given. Begin with `lmsmith demo`, or `lmsmith train book.txt --minutes 10`.")
    first, *others = arguments
    if first in ("-h", "--help", "--version"):
        top.parse_args([first])
    if first.startswith("-"):
        raise UsageError(f"{first!r} comes before a verb. Wanted `lmsmith VERB ...`; `lmsmith --help` lists the verbs.")
    if first not in verbs:
        raise UsageError(f"there is no verb {first!r}.{_nearest(first, verbs)} `lmsmith --help` lists them.")
    verb = verbs[first]
    options, unknown = verb.parse_known_intermixed_args(others)  # texts and prompts may stand among the options
    if unknown:
        option = next((argument for argument in unknown if argument.startswith("-")), None)
        if option is None:
            raise UsageError(f"{unknown[0]!r} is one argument too many. `{verb.prog} --help` says what there is.")
        near = _nearest(option.partition("=")[0], verb._option_string_actions)
        text = " A prompt that begins with - goes behind a --." if first == "generate" else ""
        raise UsageError(f"there is no option {option!r}.{near}{text} `{verb.prog} --help` lists them.")
    return options


def parser() -> tuple[_Parser, dict[str, _Parser]]:
    """The command line's grammar, and that of each verb."""
    top = _Parser(prog="lmsmith", description="Makes language models from text.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"lmsmith {__version__}")
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(name: str, call: Any, meaning: str, example: str, usage: str | None = None) -> argparse.ArgumentParser:
        made = verbs.add_parser(
            name,
            help=meaning,
            description=meaning[0].upper() + meaning[1:] + ".",
            usage=usage,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        made.set_defaults(call=call)
        return made

    # The examples can be run as they are, one after the other.
    demo = verb("demo", _demo, "the two-minute tour, offline: stories, training, report, sample", "lmsmith demo")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder for stories and run (demo)")
    demo.add_argument("--minutes", type=float, default=1.8, metavar="M", help="how long it may take (1.8)")

    train = verb(
        "train",
        _train,
        "train a model on text",
        "lmsmith train demo/stories.jsonl --minutes 1 --out demo/mine",
        usage="lmsmith train SOURCE... [--minutes M] [--out RUN] [--SETTING VALUE]...",
    )
    train.add_argument("source", nargs="+", metavar="SOURCE", help="text files, folders, globs; or a recipe.toml")
    _add_settings(train)

    resume = verb("resume", _resume, "go on with a run from its last whole checkpoint", "lmsmith resume demo/mine")
    resume.add_argument("run", type=Path, metavar="RUN", help="the folder that `lmsmith train` wrote")

    generate = verb("generate", _generate, "continue a text", 'lmsmith generate demo/run-1 "Once upon a time"')
    generate.add_argument("run", type=Path, metavar="RUN", help="the folder that `lmsmith train` wrote")
    generate.add_argument("prompt", nargs="?", help="without one: lines from standard input, one prompt each")
    generate.add_argument("--n", type=_at_least_one, default=1, help="continuations of each prompt (1)")
    generate.add_argument("--max-tokens", type=int, default=500, metavar="N", help="tokens of a continuation (500)")
    generate.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0 is greedy (0.8)")
    generate.add_argument("--top-k", type=int, default=0, metavar="K", help="only the K likeliest tokens; 0: all (0)")
    generate.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="only the likeliest tokens that together reach P (1)"
    )
    generate.add_argument(
        "--min-p", type=float, default=0.0, metavar="P", help="only tokens P times as likely as the likeliest (0)"
    )
    generate.add_argument("--seed", type=int, default=1, help="the same seed gives the same text (1)")
    generate.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this; can be repeated"
    )

    evaluate = verb("eval", _eval, "score a text under a model", "lmsmith eval demo/run-1 --text demo/stories.jsonl")
    evaluate.add_argument("run", type=Path, metavar="RUN", help="the folder that `lmsmith train` wrote")
    evaluate.add_argument("--text", nargs="+", metavar="FILE", help="without: the run's own validation text")
    evaluate.add_argument(
        "--stride", type=int, metavar="N", help="a window every N tokens; less than the context: overlap"
    )
    known = dict(settings())
    for name in ("data.text_field", "data.encoding", "data.errors"):
        _add_setting(evaluate, known[name])
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")

    report = verb("report", _report, "plots and tables of runs in one HTML file", "lmsmith report demo/run-1")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders that `lmsmith train` wrote")
    report.add_argument("--out", type=Path, metavar="FILE", help="(RUN/report.html; several runs: report.html)")
    return top, verbs.choices


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. `{self.prog} --help` says what there is.")


def _at_least_one(value: str) -> int:
    if value.isdecimal() and int(value) >= 1:
        return int(value)
    raise argparse.ArgumentTypeError(f"{value!r}: wanted a whole number of 1 or more")


def _add_settings(made: argparse.ArgumentParser) -> None:
    """Every setting, those used often first."""
    often = made.add_argument_group("often used")
    often.add_argument("--out", type=Path, metavar="RUN", help="the run's folder (runs/NAME-1)")
    known = dict(settings())
    for name in OFTEN:
        _add_setting(often, known[name])
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, leaf in known.items():
        section = name.rpartition(".")[0]
        if name in OFTEN or name == "data.sources":
            continue
        if section not in groups:
            groups[section] = made.add_argument_group(f"{section} settings")
        _add_setting(groups[section], leaf)


def _add_setting(group: argparse._ActionsContainer, leaf: Setting) -> None:
    short = OFTEN.get(leaf.name)
    group.add_argument(
        *([f"--{short}"] if short else []),
        f"--{leaf.name}",
        dest=leaf.name,
        default=argparse.SUPPRESS,
        metavar=_metavar(leaf),
        help=f"{leaf.meaning} ({'chosen' if leaf.name in CHOSEN else _as_typed(leaf.default)})".replace("%", "%%"),
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


def _nearest(name: str, known: Iterator[str] | Any) -> str:
    near = difflib.get_close_matches(
        name, [word for word in known if word.startswith("--") or name[:1] != "-"], n=1, cutoff=0.7
    )
    return f" Did you mean {near[0]}?" if near else ""


def _set(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, by dotted name."""
    known = dict(settings())
    return {name: value for name, value in vars(options).items() if name in known}


def _train(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.train.start import train

    run, summary = train(options.source, _set(options), out=options.out, console=console, started=started)
    return _closing(run, summary, console)


def _resume(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.train.start import resume

    return _closing(options.run, resume(options.run, console=console), console)


def _demo(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.demo import demo

    run, summary = demo(options.out, options.minutes, console=console, started=started)
    return _closing(run, summary, console)


def _closing(run: Path, summary: dict[str, Any], console: Console) -> int:
    """The run's last lines, its report, and the exit status its end asks for."""
    from lmsmith.studies.report import write_report

    name = shlex.quote(str(run))
    if summary["finished"] == "signal":
        console.print(f"{run} is saved at step {summary['steps']:,}; `lmsmith resume {name}` goes on")
        return 128 + signal.Signals[summary["signal"]]
    path = run / "report.html"
    if not path.exists() or path.stat().st_mtime < (run / "summary.json").stat().st_mtime:
        write_report([run], path)
    target = summary["seconds_to_target"]
    console.print(
        f"best val loss {summary['best_val_loss']:.4f} ({summary['best_val_bits_per_byte']:.3f} bits per byte) at step "
        f"{summary['best_step']:,}; {summary['train_seconds']:.1f} s of updates, "
        f"{summary['tokens_per_second']:,.0f} tokens/s" + (f"; target reached after {target:.1f} s" if target else "")
    )
    console.print(f"report   {path}\ntry      lmsmith generate {name}")
    return 0


def _generate(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.generate.decode import stream_text
    from lmsmith.generate.sampling import Sampling
    from lmsmith.train.run import empty_prompt, load_for_use

    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.min_p)
    model, tokenizer, _ = load_for_use(options.run)

    def write(prompt: str) -> None:
        _tell_unknown(tokenizer, prompt)
        for index in range(options.n):
            pieces = stream_text(
                model,
                tokenizer,
                prompt or empty_prompt(tokenizer),
                max_tokens=options.max_tokens,
                sampling=sampling,
                seed=options.seed,
                stop=options.stop,
                index=index,
            )
            if options.n > 1:
                print(f"--- {index + 1}")
            print(prompt, end="", flush=True)
            for piece in pieces:
                print(piece, end="", flush=True)
            print(flush=True)

    if options.prompt is not None:
        write(options.prompt)
    elif sys.stdin.isatty():
        _converse(write, console)
    else:
        n_prompts = 0
        for prompt in _lines_of_stdin():
            n_prompts += 1
            write(prompt)
        if not n_prompts:
            write("")
    return 0


def _converse(write: Any, console: Console) -> None:
    """A prompt, a continuation, and so on, on a terminal."""
    with contextlib.suppress(ImportError):  # not on Windows
        import readline  # noqa: F401 - input() then has a history and can be edited
    console.print("A prompt a line; an empty line or Ctrl-D ends.")
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return
        if not prompt:
            return
        try:
            write(prompt)
        except UsageError as error:
            _problem(f"lmsmith: {error}")


def _lines_of_stdin() -> Iterator[str]:
    """Lines as they come. Raises DataError for what is not UTF-8."""
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(
                f"line {number} of standard input is not UTF-8: byte 0x{line[error.start]:02X} at its offset "
                f"{error.start}. Convert it, with iconv for example."
            ) from error


def _tell_unknown(tokenizer: Tokenizer, prompt: str) -> None:
    n_unknown = tokenizer.count_unknown(prompt)
    if n_unknown and tokenizer.kind == "word":
        _problem(f"note: {n_unknown} of the prompt's words are unknown to this model; it reads <unk> in their place")
    elif n_unknown:
        unknown = "".join(dict.fromkeys(c for c in prompt if tokenizer.count_unknown(c)))
        _problem(f"note: {n_unknown} of the prompt's characters are unknown to this model and left out: {unknown}")


def _eval(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.config import RunConfig
    from lmsmith.evaluate.texts import score_texts
    from lmsmith.train.run import load_for_use, score_validation

    data = RunConfig().changed(_set(options), where="the command line").data
    if _set(options) and not options.text:
        raise UsageError(f"--{next(iter(_set(options)))} says how --text is read, and there is no --text.")
    model, tokenizer, _ = load_for_use(options.run)
    if options.text:
        score = score_texts(
            model,
            tokenizer,
            options.text,
            text_field=data.text_field,
            encoding=data.encoding,
            errors=data.errors,
            stride=options.stride,
        )
    else:
        score = score_validation(options.run, model, stride=options.stride)
    if options.json:
        print(json.dumps(score.as_dict()))
        return 0
    for name, value in score.as_dict().items():
        console.print(f"{name:20} {value:,.4f}" if isinstance(value, float) else f"{name:20} {value:,}")
    if score.n_unknown:
        units = {"word": "words", "char": "characters"}.get(tokenizer.kind, "units")
        console.print(
            f"note: {score.n_unknown:,} {units} of the text are unknown to this model; each of their "
            f"{score.n_unknown_bytes:,} bytes is charged 8 bits"
        )
    return 0


def _report(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.studies.report import write_report

    out = options.out or (options.runs[0] / "report.html" if len(options.runs) == 1 else Path("report.html"))
    console.print(str(write_report(options.runs, out)))
    return 0


class _Console(Console):
    """Prints text as it is, in lines as long as they are."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """A reader that goes away (`| head`) does not end a run."""
        self.quiet = True
        _no_more_output()


def _console() -> Console:
    return _Console()


def _problem(message: str) -> None:
    _Console(stderr=True).print(message, style="red")


def _no_more_output() -> None:
    """So that Python, flushing at its exit, does not complain of the pipe that is gone."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Warnings(logging.Handler):
    """To what is standard error at that moment: while a live bar is on, rich stands there and keeps the bar below."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)
