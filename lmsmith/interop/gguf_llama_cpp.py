"""Compares an exported GGUF file with its run in llama.cpp itself.

    check(path, model, tokenizer, exact=True)     # None if xllamacpp is not installed

llama.cpp runs in a process of its own, so that a file on which it aborts ends in an error message
here. Three things are compared:

- the ids of generated lines in many scripts, with runs of white space, digits and punctuation;
- the probabilities of the next token after prompts of several lengths;
- the tokens of a greedy continuation.

    python -m lmsmith.interop.gguf_llama_cpp REQUEST RESULT      # the process: JSON in, NumPy out
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmsmith.errors import CheckpointError
from lmsmith.machine.limits import n_cores

LIBRARY = "xllamacpp"
TOLERANCE = 1e-3  # nats, of log-probabilities with f32 weights
MOST_DIVERGENCE = 0.02  # nats, with weights and activations that are rounded
N_LINES = 10_000
_N_TOKENS = 48  # of the longest prompt
_N_LENGTHS = 12
_N_GREEDY = 24
TIME_LIMIT = 900.0  # seconds; a model of 135M parameters takes half a minute
_THREADS = 4  # at most: more do not help with one sequence, and they wait for each other by polling

TEXTS = (
    "The quick brown fox doesn't jump over 12,345 lazy dogs.",
    "  two  spaces,\ttabs\n\nlines \r\n and   an end  ",
    "naïve café, 中文字, العربية, हिन्दी",
    "😀 🇩🇪 e\u0301 \u200b\ufeff",
    "def f(x):\n    return x**2  # squared\n",
)

# First and last letter of scripts, and how many letters a word has at most.
_SCRIPTS = {
    "Latin": ("a", "z", 9),
    "Latin extended": ("\u00c0", "\u024f", 6),
    "Greek": ("\u0391", "\u03c9", 8),
    "Cyrillic": ("\u0410", "\u044f", 9),
    "Armenian": ("\u0531", "\u0556", 6),
    "Hebrew": ("\u05d0", "\u05ea", 6),
    "Arabic": ("\u0621", "\u064a", 7),
    "Devanagari": ("\u0905", "\u094d", 6),
    "Bengali": ("\u0985", "\u09b9", 6),
    "Thai": ("\u0e01", "\u0e3a", 9),
    "Georgian": ("\u10d0", "\u10f0", 7),
    "Hangul": ("\uac00", "\ud7a3", 4),
    "Hiragana": ("\u3041", "\u3096", 5),
    "Chinese": ("\u4e00", "\u9fa5", 4),
}
_BETWEEN = (" ", " ", " ", " ", "  ", "\t", ", ", ". ", "-", "'s ", "'LL ", "\n", "\r\n", " \n  ")
_MARKS = "!?#$%&()*+,-./:;<=>@[]^_`{|}~—“”…€😀🇩🇪\u0301\u200b\u00a0\u3000"


def lines(n: int, seed: int = 0) -> list[str]:
    """`n` generated lines of words, numbers and marks, each in one of 14 scripts."""
    draw = random.Random(seed)
    scripts = list(_SCRIPTS.values())

    def word(first: str, last: str, longest: int) -> str:
        kind = draw.random()
        if kind < 0.1:
            return str(draw.randrange(10 ** draw.randrange(1, 8)))
        if kind < 0.2:
            return "".join(draw.choices(_MARKS, k=draw.randrange(1, 4)))
        letters = [chr(draw.randint(ord(first), ord(last))) for _ in range(longest)]
        text = "".join(letters[: draw.randint(1, longest)])
        return text.capitalize() if kind < 0.4 else text.upper() if kind < 0.45 else text

    return [
        "".join(
            word(*scripts[number % len(scripts)]) + draw.choice(_BETWEEN)
            for _ in range(draw.randint(1, 12))
        )
        for number in range(n)
    ]


def check(
    path: Path, model: Any, tokenizer: Any, *, exact: bool, texts: Sequence[str] = ()
) -> dict[str, Any] | None:
    """What llama.cpp makes of a file, compared with the run's model and tokenizer; None if it is
    not installed.

    `exact`: weights are f32, so log-probabilities must agree within `TOLERANCE`. `texts`: compared
    in addition to the generated lines. Raises CheckpointError if ids or probabilities differ.
    """
    if not importlib.util.find_spec(LIBRARY):
        return None
    compared = [*TEXTS, *lines(N_LINES - len(TEXTS)), *texts]
    begin = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    prompt = (begin + tokenizer.encode(" ".join(TEXTS)).tolist())[:_N_TOKENS]
    prompt = prompt[: model.config.context_length]
    lengths = sorted({1 + k * (len(prompt) - 1) // (_N_LENGTHS - 1) for k in range(_N_LENGTHS)})
    n_greedy = max(1, min(_N_GREEDY, model.config.context_length - len(prompt)))
    letter = int(tokenizer.encode("a")[0])
    found = _run(path, compared, prompt, lengths, n_greedy, model.config.vocab_size, letter)
    _check_ids(compared, tokenizer, found["ids"], found["starts"])
    receipt: dict[str, Any] = {
        LIBRARY: importlib.metadata.version(LIBRARY),
        "n_lines_with_equal_ids": len(compared),
    }
    receipt |= _compared(model, prompt, lengths, found["log_probabilities"], exact)
    receipt["n_greedy_tokens"] = len(found["greedy"])
    receipt["n_equal_greedy_tokens"] = _check_greedy(model, prompt, found["greedy"], exact)
    return receipt


def _check_ids(texts: Sequence[str], tokenizer: Any, ids: Any, starts: Any) -> None:
    encoded = tokenizer.encode_batch(texts)
    for text, ours, start, stop in zip(texts, encoded, starts[:-1], starts[1:], strict=True):
        wanted, found = ours.tolist(), ids[start:stop].tolist()
        if wanted != found:
            raise CheckpointError(
                f"llama.cpp gives other ids than the run for {text!r}: {found[:20]}, expected "
                f"{wanted[:20]}. The model is not written. Please report this."
            )


def _compared(
    model: Any, prompt: Sequence[int], lengths: Sequence[int], theirs: Any, exact: bool
) -> dict[str, float]:
    """The largest difference of log-probabilities, and the mean divergence in nats."""
    # llama.cpp's server normalizes in float32, which loses digits over a large vocabulary.
    theirs = theirs - np.logaddexp.reduce(theirs, axis=1, keepdims=True)
    at = [n - 1 for n in lengths]
    ours = _log_softmax(model, prompt)[at].numpy()
    difference = float(np.abs(ours - theirs).max())
    divergence = float((np.exp(ours) * (ours - theirs)).sum(1).mean())
    found = {"max_log_probability_difference": difference, "mean_divergence_nats": divergence}
    measured, most = (difference, TOLERANCE) if exact else (divergence, MOST_DIVERGENCE)
    if exact and model.config.feed_forward == "gelu-tanh":
        with _gelu_in_float16(model):
            again = _log_softmax(model, prompt)[at].numpy()
        measured = float(np.abs(again - theirs).max())
        found["max_log_probability_difference_with_gelu_in_float16"] = measured
    if not measured <= most:
        what = "log-probabilities that differ" if exact else "probabilities that diverge"
        raise CheckpointError(
            f"llama.cpp gives {what} from the run's by {measured:.3g} nats; expected at most "
            f"{most:g}. The model is not written. Please report this, with the run's config.toml."
        )
    return found


def _log_softmax(model: Any, ids: Sequence[int]) -> Any:
    """Log-probabilities of the token after each of `ids`, (T, V) in float64."""
    import torch

    from lmsmith.evaluate.likelihood import inference

    with inference(model):
        logits = model(torch.tensor([list(ids)]))[0, :, : model.config.vocab_size]
    return logits.double().log_softmax(-1)


@contextlib.contextmanager
def _gelu_in_float16(model: Any) -> Iterator[None]:
    """llama.cpp looks GELU up in a table: its argument and its value are rounded to float16. This
    differs by more than the tolerance, so the comparison makes the model do the same.
    """
    import torch.nn.functional as F

    handles = []
    for block in model.blocks:
        layer = block.feed_forward
        seen: dict[str, Any] = {}

        def keep(_: Any, __: Any, h: Any, seen: dict[str, Any] = seen) -> None:
            seen["h"] = h

        def replace(_: Any, __: Any, seen: dict[str, Any] = seen) -> Any:
            h = seen["h"]
            looked_up = F.gelu(h.half().float(), approximate="tanh").half().float()
            return (looked_up.where(h.abs() < 10, h.clamp(min=0)),)

        handles.append(layer.up.register_forward_hook(keep))
        handles.append(layer.down.register_forward_pre_hook(replace))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_greedy(model: Any, prompt: Sequence[int], theirs: Any, exact: bool) -> int:
    """How many tokens of a greedy continuation are equal. A difference between two tokens that are
    equally likely within the tolerance is none.
    """
    import torch

    if not len(theirs):
        return 0
    ours = _log_softmax(model, [*prompt, *theirs.tolist()[:-1]])[len(prompt) - 1 :]
    behind = ours.amax(-1) - ours.gather(1, torch.from_numpy(theirs)[:, None])[:, 0]
    most = 2 * TOLERANCE if model.config.feed_forward != "gelu-tanh" else 20 * TOLERANCE
    if exact and float(behind.max()) > most:
        raise CheckpointError(
            "llama.cpp continues a text with other tokens than the run. The model is not written. "
            "Please report this, with the run's config.toml."
        )
    differ = (ours.argmax(-1).numpy() != theirs).nonzero()[0]
    return int(differ[0]) if len(differ) else len(theirs)


def _run(
    path: Path,
    texts: Sequence[str],
    prompt: Sequence[int],
    lengths: Sequence[int],
    n_greedy: int,
    n_ids: int,
    letter: int,
) -> dict[str, Any]:
    """Runs the process; returns its arrays. Raises CheckpointError with the end of its output."""
    request = {
        **{"path": str(path.absolute()), "texts": list(texts), "prompt": list(prompt)},
        **{"lengths": list(lengths), "n_greedy": n_greedy, "n_ids": n_ids},
        "letter": letter,
    }
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "request.json", Path(folder) / "result.npz"
        asked.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", __name__, str(asked), str(answered)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=TIME_LIMIT
            )
        except subprocess.TimeoutExpired:
            raise CheckpointError(
                f"llama.cpp gave no answer about the exported model within {TIME_LIMIT / 60:.0f} "
                "minutes, so the model is not written. Try again when the machine is less busy; "
                "without the package xllamacpp, the model is written unchecked."
            ) from None
        if done.returncode or not answered.is_file():
            said = (done.stderr or done.stdout).strip().splitlines()[-3:]
            raise CheckpointError(
                "llama.cpp cannot run the exported model, so it is not written. It says: "
                f"{' '.join(said) or f'exit status {done.returncode}'}"
            )
        with np.load(answered) as arrays:
            return {name: arrays[name] for name in arrays.files}


# ---- the process ---------------------------------------------------------------------------------


def _serve(path: str, n_context: int) -> Any:
    """llama.cpp's server on a file: one sequence, everything in float32, on the CPU."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.n_gpu_layers = n_context, 1, 0
    params.warmup, params.verbosity = False, 0
    for threads in (params.cpuparams, params.cpuparams_batch):
        # The default is the number of the machine's cores, also where fewer may be used.
        threads.n_threads, threads.poll = min(n_cores(), _THREADS), 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    disabled = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.flash_attn_type = disabled
    return xllamacpp.Server(params)


def _ask(server: Any, path: str, what: dict[str, Any]) -> Any:
    asked = urllib.request.Request(
        server.listening_address + path,
        json.dumps(what).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked) as answer:
        return json.load(answer)


_GREEDY = {"temperature": 0.0, "cache_prompt": False}


def _log_probabilities(server: Any, prompt: Sequence[int], n_ids: int, letter: int) -> Any:
    """Those of all tokens after a prompt, (V,).

    A bias makes `letter` the token that is drawn, because the server answers only when the text
    that it drew is complete; the probabilities are without the bias.
    """
    forced = {"n_predict": 1, "n_probs": n_ids, "logit_bias": [[letter, 1e4]]}
    answer = _ask(server, "/completion", {"prompt": list(prompt)} | _GREEDY | forced)
    row = np.full(n_ids, -np.inf)
    for token in answer["completion_probabilities"][0]["top_logprobs"]:
        row[token["id"]] = token["logprob"]
    return row


def _tokenized(server: Any, texts: Sequence[str]) -> tuple[list[int], list[int]]:
    """The ids of all texts, one after another, and where each text starts."""
    content = [part for text in texts for part in (text, -1)]  # numbers are passed through
    plain = {"content": content, "add_special": False, "parse_special": False}
    ids: list[int] = []
    starts = [0]
    for number in _ask(server, "/tokenize", plain)["tokens"]:
        if number == -1:
            starts.append(len(ids))
        else:
            ids.append(number)
    return ids, starts


def _main(asked: str, answered: str) -> None:
    request = json.loads(Path(asked).read_text(encoding="utf-8"))
    prompt, V = request["prompt"], request["n_ids"]
    server = _serve(request["path"], len(prompt) + request["n_greedy"] + 1)
    ids, starts = _tokenized(server, request["texts"])
    rows = [
        _log_probabilities(server, prompt[:length], V, request["letter"])
        for length in request["lengths"]
    ]
    continued = {"prompt": prompt, "n_predict": request["n_greedy"], "return_tokens": True}
    greedy = _ask(server, "/completion", _GREEDY | continued)["tokens"]
    np.savez(
        answered,
        ids=np.array(ids, np.int64),
        starts=np.array(starts, np.int64),
        log_probabilities=np.array(rows),
        greedy=np.array(greedy, np.int64),
    )


if __name__ == "__main__":
    _main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # without the server's destructor, which waits for its threads
