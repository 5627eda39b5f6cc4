"""The command line: parse, build, call.

`lmsmith VERB ... --section.field value`. Every setting of `config.py` is an option of `train`; only those that were given
are passed on, so what the user set is known from what was chosen. (argparse and not a generator of parsers from
dataclasses: that difference is the point, and `--help` must answer in a tenth of a second.) torch is imported by the verbs
that need it, not here.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsmith import __version__
from lmsmith.config import settings
from lmsmith.errors import LmsmithError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

# Short names of settings that are used often.
SHORT = {
    "minutes": "train.minutes",
    "steps": "train.steps",
    "tokens": "train.tokens",
    "seed": "train.seed",
    "keep": "train.keep",
    "stop-at-val-loss": "train.stop_at_val_loss",
    "errors": "data.errors",
}


def run(arguments: Sequence[str], *, started: float) -> int:
    """Runs one command and returns its exit status: 0 done, 1 failed, 2 wrong use, 130 and 143 stopped by a signal."""
    from rich.console import Console

    problems = Console(stderr=True)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        options = parser().parse_args(arguments)
        return int(options.call(options, Console(), started))
    except LmsmithError as error:
        problems.print(f"lmsmith: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return error.exit_status
    except KeyboardInterrupt:
        problems.print("lmsmith: interrupted", style="red")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stderr.close()
        return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(f"{message}. `{self.prog} --help` says what there is.")


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog="lmsmith", description="Makes language models from text.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"lmsmith {__version__}")
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(name: str, call: Any, meaning: str, example: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(
            name,
            help=meaning,
            description=meaning[0].upper() + meaning[1:] + ".",
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        made.set_defaults(call=call)
        return made

    demo = verb("demo", _demo, "the two-minute tour, offline: stories, training, report, sample", "lmsmith demo")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder for stories and run (demo)")
    demo.add_argument("--minutes", type=float, default=1.8, help="how long it may take (1.8)")

    train = verb("train", _train, "train a model on text", "lmsmith train book.txt --minutes 10")
    train.add_argument("source", nargs="+", metavar="SOURCE", help="text files, folders, globs; or a recipe.toml")
    train.add_argument("--out", type=Path, help="the run's folder (runs/NAME-1)")
    _add_settings(train)

    resume = verb("resume", _resume, "go on with a run from its last whole checkpoint", "lmsmith resume runs/book-1")
    resume.add_argument("run", type=Path, metavar="RUN")

    generate = verb("generate", _generate, "continue a text", 'lmsmith generate runs/book-1 "Once upon a time"')
    generate.add_argument("run", type=Path, metavar="RUN")
    generate.add_argument("prompt", nargs="?", help="without one: lines from standard input, one prompt each")
    generate.add_argument("--n", type=int, default=1, help="continuations of each prompt (1)")
    generate.add_argument("--max-tokens", type=int, default=500, help="tokens of a continuation (500)")
    generate.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (0.8)")
    generate.add_argument("--top-k", type=int, help="only the k likeliest tokens")
    generate.add_argument("--top-p", type=float, help="only the likeliest tokens that together reach p")
    generate.add_argument("--min-p", type=float, help="only tokens at least this share as likely as the likeliest")
    generate.add_argument("--seed", type=int, default=1, help="the same seed gives the same text (1)")
    generate.add_argument("--stop", action="append", default=[], help="end before this string; can be given again")

    evaluate = verb("eval", _eval, "score a text under a model", "lmsmith eval runs/book-1 --text other.txt")
    evaluate.add_argument("run", type=Path, metavar="RUN")
    evaluate.add_argument("--text", nargs="+", help="files; without: the run's own validation text")
    evaluate.add_argument("--stride", type=int, help="overlap windows: start one every STRIDE tokens")
    evaluate.add_argument("--errors", choices=["strict", "replace"], default="strict", help="undecodable bytes")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")

    report = verb("report", _report, "plots and tables of runs in one HTML file", "lmsmith report runs/book-1")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    report.add_argument("--out", type=Path, help="the file (RUN/report.html; several runs: report.html)")
    return top


def _add_settings(made: argparse.ArgumentParser) -> None:
    known = dict(settings())
    often = made.add_argument_group("often used")
    for short, name in SHORT.items():
        often.add_argument(f"--{short}", dest=name, default=argparse.SUPPRESS, metavar="X", help=known[name].meaning)
    groups = {}
    for name, leaf in known.items():
        section = name.rpartition(".")[0]
        if section not in groups:
            groups[section] = made.add_argument_group(f"{section} settings" if section else "what to start from")
        default = ",".join(map(str, leaf.default)) if isinstance(leaf.default, tuple) else leaf.default
        groups[section].add_argument(
            f"--{name}",
            dest=name,
            default=argparse.SUPPRESS,
            metavar="|".join(leaf.choices) or "X",
            help=f"{leaf.meaning} ({default})".replace("%", "%%"),
        )


def _train(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.train.start import train

    known = dict(settings())
    changes = {name: value for name, value in vars(options).items() if name in known}
    run, summary = train(options.source, changes, out=options.out, console=console, started=started)
    return _closing(run, summary, console)


def _resume(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.train.start import resume

    return _closing(options.run, resume(options.run, console=console, started=started), console)


def _closing(run: Path, summary: dict[str, Any], console: Console) -> int:
    """The run's last lines, its report, and the exit status its end asks for."""
    from lmsmith.studies.report import write_report

    if summary["finished"] == "signal":
        console.print(f"{run} is saved at step {summary['steps']:,}; `lmsmith resume {run}` goes on", soft_wrap=True)
        return 128 + signal.Signals[summary["signal"]]
    path = write_report([run], run / "report.html")
    loss, bits = summary["best_val_loss"], summary["best_val_bits_per_byte"]
    console.print(
        f"best val loss {loss:.4f} ({bits:.3f} bits per byte) at step {summary['best_step']:,}; "
        f"{summary['train_seconds']:.1f} s of updates, {summary['tokens_per_second']:,.0f} tokens/s\n"
        f"report   {path}\ntry      lmsmith generate {run} --n 3",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _demo(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.demo import demo

    run, summary = demo(options.out, options.minutes, console=console, started=started)
    return _closing(run, summary, console)


def _generate(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.generate.decode import stream_text
    from lmsmith.generate.sampling import Sampling
    from lmsmith.train.run import load_for_use

    model, tokenizer, _ = load_for_use(options.run)
    filters = {name: getattr(options, name) for name in ("top_k", "top_p", "min_p")}
    sampling = Sampling(temperature=options.temperature, **{k: v for k, v in filters.items() if v is not None})

    def write(prompt: str) -> None:
        for index in range(options.n):
            if options.n > 1:
                print(f"--- {index + 1}")
            print(prompt, end="", flush=True)
            for piece in stream_text(
                model,
                tokenizer,
                prompt,
                max_tokens=options.max_tokens,
                sampling=sampling,
                seed=options.seed,
                stop=options.stop,
                index=index,
            ):
                print(piece, end="", flush=True)
            print()

    if options.prompt is not None:
        write(options.prompt)
    elif sys.stdin.isatty():
        console.print("A prompt a line; an empty line or Ctrl-D ends.", style="bright_black")
        while prompt := _ask():
            write(prompt)
    else:
        for line in [line.rstrip("\n") for line in sys.stdin] or ["" if tokenizer.end_of_text is not None else "\n"]:
            write(line)
    return 0


def _ask() -> str:
    try:
        return input("> ")
    except EOFError:
        return ""


def _eval(options: argparse.Namespace, console: Console, started: float) -> int:
    import json

    from lmsmith.evaluate.texts import score_texts
    from lmsmith.train.run import load_for_use, score_validation

    model, tokenizer, _ = load_for_use(options.run)
    if options.text:
        score = score_texts(model, tokenizer, options.text, errors=options.errors, stride=options.stride)
    else:
        score = score_validation(options.run, model, stride=options.stride)
    if options.json:
        print(json.dumps(score.as_dict()))
        return 0
    for name, value in score.as_dict().items():
        console.print(
            f"{name:20} {value:,.4f}" if isinstance(value, float) else f"{name:20} {value:,}", highlight=False
        )
    return 0


def _report(options: argparse.Namespace, console: Console, started: float) -> int:
    from lmsmith.studies.report import write_report

    out = options.out or (options.runs[0] / "report.html" if len(options.runs) == 1 else Path("report.html"))
    console.print(str(write_report(options.runs, out)))
    return 0
