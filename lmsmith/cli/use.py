"""Command generate; `evaluation.py` has eval."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lmsmith import api
from lmsmith.cli import evaluation
from lmsmith.cli.console import problem
from lmsmith.cli.evaluation import add_no_bos
from lmsmith.cli.grammar import Verbs, add_penalties, add_stop, at_least_one
from lmsmith.errors import DataError, UsageError
from lmsmith.train.stop import Stopped

if TYPE_CHECKING:
    from lmsmith.api.generation import Options as Sampled
    from lmsmith.generate.sampling import Sampling
    from lmsmith.tokens.tokenizer import Tokenizer


def add(verbs: Verbs) -> None:
    _add_generate(verbs)
    evaluation.add(verbs)


def _add_generate(verbs: Verbs) -> None:
    generate = verbs.verb(
        "generate",
        _generate,
        "generate text from a prompt, token by token with a KV cache",
        'lmsmith generate demo/run-1 "Once upon a time"',
    )
    generate.add_argument(
        "run", type=Path, metavar="RUN", help="folder that `lmsmith train` or `import` wrote"
    )
    generate.add_argument(
        "prompt",
        nargs="?",
        metavar="PROMPT",
        help="the text to continue; without it each line of standard input is a prompt",
    )
    generate.add_argument(
        "--n", type=at_least_one, default=1, metavar="N", help="samples per prompt (1)"
    )
    generate.add_argument(
        "--max-tokens",
        type=int,
        default=500,
        metavar="N",
        help="maximum number of new tokens (500)",
    )
    _add_sampling(generate)
    _add_decoding(generate)
    add_no_bos(generate, "the prompt")


def _add_sampling(generate: argparse.ArgumentParser) -> None:
    """Adds the options that choose tokens and end the text."""
    generate.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        metavar="T",
        help="sampling temperature: 0 always takes the most likely token (greedy), 1 samples from "
        "the model's own probabilities (0.8)",
    )
    generate.add_argument(
        "--top-k",
        type=int,
        default=0,
        metavar="K",
        help="top-k sampling: only the K most likely tokens; 0: all (0)",
    )
    generate.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="top-p (nucleus) sampling: only the most likely tokens whose probabilities add up to "
        "P; 1: all (1)",
    )
    generate.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="min-p sampling: only tokens with at least P times the probability of the most likely "
        "one; 0: all (0)",
    )
    add_penalties(generate)
    generate.add_argument(
        "--seed",
        type=int,
        default=1,
        metavar="N",
        help="random seed; the same seed gives the same text (1)",
    )
    generate.add_argument(
        "--special-tokens",
        action="store_true",
        help="read special tokens in the prompt, such as <|im_start|>, as control tokens, as chat "
        "models expect; without this option they are plain text",
    )
    add_stop(generate)


def _add_decoding(generate: argparse.ArgumentParser) -> None:
    """Adds the options for showing probabilities, beam search and speed."""
    generate.add_argument(
        "--show-probs",
        type=int,
        nargs="?",
        const=5,
        metavar="K",
        help="colour each token by its probability and list the K likeliest alternatives (5)",
    )
    generate.add_argument(
        "--beams",
        type=at_least_one,
        metavar="N",
        help="beam search with N beams instead of sampling; --n best texts are printed",
    )
    generate.add_argument(
        "--length-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="with --beams: texts are compared by log-probability / length ** X (1)",
    )
    generate.add_argument(
        "--weights",
        default="fp32",
        choices=("fp32", "bf16", "int8"),
        metavar="FORMAT",
        help="fp32, bf16 or int8: less memory and faster, slightly less accurate; `lmsmith eval` "
        "prints the change (fp32)",
    )
    generate.add_argument(
        "--draft",
        type=Path,
        metavar="RUN",
        help="an n-gram run with the same tokenizer that proposes tokens (speculative decoding): "
        "faster, never another text",
    )
    generate.add_argument(
        "--speed", action="store_true", help="print tokens per second after each text"
    )


def compile_ahead(*, later: Sequence[str] = ()) -> None:
    """Starts to compile what generating needs, if it is not on disk, while torch is imported.
    `later`: parts that are needed afterwards.
    """
    from lmsmith.generate import kernels
    from lmsmith.tokens import bpe  # names the part "encode", and imports that of "split"

    assert bpe
    kernels.compile_ahead("split", "encode", later=[*later, "soft-cap"])


def _generate(options: argparse.Namespace, console: Console, started: float) -> int:
    compile_ahead()
    from lmsmith.tokens.control import check_control

    special_tokens: api.SpecialTokens = "control" if options.special_tokens else "text"
    sampled = _sampled(options, special_tokens)
    _check_beams(options)
    if options.stop and (options.beams or options.speed or options.show_probs is not None):
        raise UsageError("--stop does not go together with --beams, --speed or --show-probs.")
    lm = api.load(options.run, weights=options.weights, draft=options.draft)
    check_control(lm.tokenizer, special_tokens)

    def write(prompt: str) -> None:
        _tell_unknown(lm.tokenizer, prompt)
        if options.beams:
            _write_beams(lm, prompt, options, special_tokens)
            return
        for index in range(options.n):
            if options.n > 1:
                print(f"--- {index + 1}")
            if options.show_probs is not None:
                _write_probabilities(lm, prompt, options.show_probs, console, index, sampled)
            elif options.speed:
                _write_timed(lm, prompt, index, sampled)
            else:
                _write_text(lm, prompt, options.stop, index, sampled)

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


def sampling_of(options: argparse.Namespace) -> Sampling:
    """How `generate` and `chat` draw tokens. Raises ConfigError for a number out of range."""
    from lmsmith.generate.sampling import Sampling

    return Sampling(
        options.temperature,
        options.top_k,
        options.top_p,
        options.min_p,
        options.repetition_penalty,
        options.frequency_penalty,
        options.presence_penalty,
    )


def _sampled(options: argparse.Namespace, special_tokens: api.SpecialTokens) -> Sampled:
    """The options of sampling. Reports a number out of range before the model is loaded."""
    sampled: Sampled = {
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "repetition_penalty": options.repetition_penalty,
        "frequency_penalty": options.frequency_penalty,
        "presence_penalty": options.presence_penalty,
        "seed": options.seed,
        "special_tokens": special_tokens,
        "bos": not options.no_bos,
    }
    sampling_of(options)
    return sampled


def _write_text(lm: api.LM, prompt: str, stop: list[str], index: int, sampled: Sampled) -> None:
    """Prints the prompt and its continuation as it is generated."""
    pieces = lm.stream(prompt, index=index, **sampled | {"stop": stop})
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)


def _write_timed(lm: api.LM, prompt: str, index: int, sampled: Sampled) -> None:
    """As `_write_text`, and prints how long it took."""
    tokens = lm.tokens(prompt, index=index, **sampled)
    print(prompt, end="", flush=True)
    began, first, n = time.perf_counter(), 0.0, 0
    for token in tokens:
        n += 1
        first = first or time.perf_counter()
        print(token.text, end="", flush=True)
    print(flush=True)
    seconds = time.perf_counter() - first
    rate = f", then {(n - 1) / seconds:,.1f} tokens/s" if n > 1 else ""
    problem(f"{n:,} tokens: the first after {first - began:.2f} s{rate}")


def _write_probabilities(
    lm: api.LM,
    prompt: str,
    n_alternatives: int,
    console: Console,
    index: int,
    sampled: Sampled,
) -> None:
    """Prints a continuation with the probability of each token."""
    from lmsmith.generate.show import show

    tokens = list(lm.tokens(prompt, alternatives=n_alternatives, index=index, **sampled))
    shown = show(
        [token.id for token in tokens],
        [token.log_probability for token in tokens],
        [token.alternatives for token in tokens] if n_alternatives else [],
        lm.tokenizer,
        width=console.width,
        colour=console.color_system is not None and not console.no_color,
    )
    console.print(shown, soft_wrap=True)


def _check_beams(options: argparse.Namespace) -> None:
    """Raises UsageError for options that would have no effect with `--beams`, or without it."""
    if not options.beams:
        if options.length_penalty != 1:
            raise UsageError("--length-penalty is an option of beam search: add --beams N.")
        return
    defaults = {
        "temperature": 0.8,
        "top_k": 0,
        "top_p": 1,
        "min_p": 0,
        "repetition_penalty": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "seed": 1,
        "draft": None,
        "show_probs": None,
        "speed": False,
    }
    for name, default in defaults.items():
        if getattr(options, name) != default:
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"{option} has no effect on beam search, which draws no samples: leave it out, or "
                "leave out --beams."
            )
    if options.n > options.beams:
        raise UsageError(f"--n {options.n} needs at least as many --beams.")


def _write_beams(
    lm: api.LM, prompt: str, options: argparse.Namespace, special_tokens: api.SpecialTokens
) -> None:
    """Prints the best continuations that beam search finds, with their scores."""
    found = lm.beam_search(
        prompt,
        n_beams=options.beams,
        n_best=options.n,
        max_tokens=options.max_tokens,
        length_penalty=options.length_penalty,
        special_tokens=special_tokens,
        bos=not options.no_bos,
    )
    for beam in found:
        if options.n > 1:
            print(f"--- score {beam.score:.4f}, log-probability {beam.log_probability:.2f}")
        print(prompt + beam.text, flush=True)


def _converse(write: Any, console: Console) -> None:
    """Reads prompts from the terminal and continues each of them."""
    with contextlib.suppress(ImportError):  # absent on Windows
        import readline  # noqa: F401 - gives input() line editing and a history
    console.print("Type a prompt. Ctrl-C stops a text; an empty line or Ctrl-D quits.")
    while True:
        try:
            prompt = input("> ")
        except (EOFError, KeyboardInterrupt) as end:
            if isinstance(end, Stopped):
                raise
            print()
            return
        if not prompt:
            return
        try:
            write(prompt)
        except UsageError as error:
            problem(f"lmsmith: {error}")
        except KeyboardInterrupt as stop:  # stops this text, not the loop
            if isinstance(stop, Stopped):
                raise
            print()


def _lines_of_stdin() -> Iterator[str]:
    """Yields lines of standard input as they arrive. Raises DataError for bytes that are not
    UTF-8.
    """
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(
                f"line {number} of standard input is not UTF-8: byte 0x{line[error.start]:02X} at "
                f"offset {error.start} of the line. Convert it to UTF-8, for example with iconv."
            ) from error


def _tell_unknown(tokenizer: Tokenizer, prompt: str) -> None:
    """Prints a note if the tokenizer does not know all of the prompt."""
    n_unknown = tokenizer.count_unknown(prompt)
    if n_unknown and tokenizer.kind == "word":
        problem(
            f"note: {n_unknown} of the prompt's words are not in the vocabulary; the model reads "
            f"<unk> instead"
        )
    elif n_unknown and tokenizer.kind in ("library", "sentencepiece"):
        problem(
            f"note: this model's tokenizer changes or does not know {n_unknown} of the prompt's "
            f"words or spaces; the model reads: {tokenizer.decode(tokenizer.encode(prompt))}"
        )
    elif n_unknown:
        unknown = "".join(dict.fromkeys(c for c in prompt if tokenizer.count_unknown(c)))
        problem(
            f"note: {n_unknown} of the prompt's characters are not in the vocabulary and are "
            f"skipped: {unknown}"
        )
