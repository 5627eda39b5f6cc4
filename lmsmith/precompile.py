"""Compiles what lmsmith compiles, so that no later command waits for it.

    python -m lmsmith.precompile

Run it once after the installation, on the machine that will use lmsmith. The results are cached on
disk (`tokens/compiled.py`, NUMBA_CACHE_DIR). Without it, each part is compiled when it is first
used. Compiled code is for one kind of processor, so a package cannot ship it.

Each part calls its functions with a few numbers or bytes, in a process of its own, because Numba
compiles with one thread per process. `tokens/ahead.py` starts the parts that a command needs.
"""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from lmsmith.machine.limits import n_cores
from lmsmith.tokens.ahead import HELPER

TEXT = b"Once upon a time there was a little dog. " * 50


def splitting() -> None:
    """Pre-tokenization."""
    from lmsmith.tokens.split import PATTERNS, piece_ends

    piece_ends(TEXT, PATTERNS["gpt2"])


def cutting() -> None:
    """Cutting long texts into parts."""
    from lmsmith.tokens.split import last_cut

    last_cut(TEXT)


def piece_counting() -> None:
    """Counting the pieces of texts. Splits with a regular expression, which is not compiled."""
    from lmsmith.tokens.piece_counts import PieceCounter
    from lmsmith.tokens.split import pattern_of

    counter = PieceCounter(pattern_of(r"\w+|\W+"))
    counter.add([TEXT])
    counter.counts()


def learning() -> None:
    """Learning the merges of byte-pair encoding."""
    from lmsmith.tokens.bpe_train import learn_merges
    from lmsmith.tokens.piece_counts import PieceCounts

    symbols = np.array([-1, 97, 98, -1], np.int32)
    learn_merges(PieceCounts(symbols, np.zeros(4, np.int32), np.ones(1, np.int64)), 1)


def encoding() -> None:
    """Byte-pair encoding: merging the bytes of pieces; decoding."""
    from lmsmith.tokens.bpe import BpeTokenizer
    from lmsmith.tokens.piece_cache import PieceCache, encode_pieces
    from lmsmith.tokens.split import Texts

    tokens = [bytes([byte]) for byte in range(256)]
    tokenizer = BpeTokenizer([*tokens, b"ab"], [(97, 98)], "gpt2")
    encode_pieces(Texts([b"ab"]), tokenizer.vocabulary.tables, PieceCache(64, {}, np.uint16))
    tokenizer.decode([256])


def numbers(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


def whole(n: int) -> Any:
    return np.zeros(n, np.int64)


def matrices() -> None:
    """The decoder's matrix products and norms in float32."""
    from lmsmith.generate import kernels

    products(np.float32)
    x, none = numbers(1, 16), numbers(0)
    kernels.norm(x, x, 1, 16, kernels.NORMS["rmsnorm"], 1e-5, none, none, x, numbers(1, 1))


def products(kind: Any) -> None:
    """Matrix products with weights of this type."""
    from lmsmith.generate.kernels import linear

    none = numbers(0)
    y = numbers(1, 16)
    linear(np.zeros((16, 16), kind), none, none, numbers(1, 16), 1, y, y, False)


def products_of_integers() -> None:
    """Matrix products with int8 weights."""
    from lmsmith.generate.int8 import linear_int8

    vectors, y = np.zeros((1, 32), np.int16), numbers(1, 32)
    matrix = np.zeros((32, 32), np.int8)
    linear_int8(matrix, numbers(32), numbers(0), y, 1, vectors, numbers(1), y, y, False)


def attention() -> None:
    """The decoder's attention."""
    from lmsmith.generate import kernels

    q, cache, one = numbers(1, 16), numbers(1, 1, 16, 16), whole(1)
    gains = False, numbers(0, 0)
    kernels.place(numbers(1, 48), 1, 16, one, one, numbers(0, 0, 0), -1.0, *gains, q, cache, cache)
    kernels.attend(q, 1, 16, one, one, np.float32(1), cache, cache, numbers(1, 16), q)


def activation() -> None:
    """The decoder's activation functions."""
    from lmsmith.generate import kernels

    kernels.activate(numbers(1, 32), 1, 16, kernels.ACTIVATIONS["swiglu"], numbers(1, 16))


def sampling(top_p: float = 1.0) -> None:
    """Choosing a token from logits."""
    from lmsmith.generate.filters import Scratch, choose

    room = Scratch(64)
    room.z[:] = 0
    choose(room.z, room.work, 1.0, 0, top_p, 0.0, 0.5, np.empty(0))


def filters() -> None:
    """Choosing a token with top-k and top-p, log-probabilities and the most likely tokens."""
    from lmsmith.generate.filters import Scratch, largest, log_normalizer

    sampling(top_p=0.9)
    room = Scratch(64)
    room.z[:] = 0
    log_normalizer(room.z, room.work)
    largest(room.z, room.work, 3)


def soft_cap() -> None:
    """Soft-capped logits."""
    from lmsmith.generate import kernels

    kernels.soft_cap(numbers(1, 16), 1, 16, np.float32(1))


def counting() -> None:
    """Learning and evaluating n-gram models."""
    import torch

    from lmsmith.models.ngram_config import NgramConfig

    ids = np.frombuffer(TEXT, np.uint8).astype(np.uint16)
    model = NgramConfig(vocab_size=256).learn(ids)
    some = torch.from_numpy(ids[:64].astype(np.int64))[None]
    model.log_probabilities(some)
    model.next_logits(some, model.new_state(1))


PARTS: dict[str, Callable[[], None]] = {
    "learn": learning,
    "split": splitting,
    "cut": cutting,
    "encode": encoding,
    "count": piece_counting,
    "matrices": matrices,
    "attention": attention,
    "activation": activation,
    "sampling": sampling,
    "filters": filters,
    "soft-cap": soft_cap,
    "bfloat16": partial(products, np.uint16),
    "int8": products_of_integers,
    "n-grams": counting,
}


def main(names: list[str]) -> int:
    """Compiles the named parts, one after the other; by default all, as many at once as there are
    cores. Returns the exit status.
    """
    if unknown := set(names) - PARTS.keys():
        from lmsmith.cli.console import problem

        problem(f"{', '.join(sorted(unknown))}: expected parts of {', '.join(PARTS)}.")
        return 2
    logging.disable(logging.WARNING)  # that it compiles
    if names:
        gc.disable()  # a tenth of the time
        # Numba imports scipy if it is installed (0.2 s), for products that no part needs.
        sys.modules.setdefault("scipy", None)  # type: ignore[arg-type]
        for name in names:
            PARTS[name]()
        return 0
    # Only here: a command waits for the processes that compile single parts.
    from lmsmith.cli.console import Printer
    from lmsmith.text.files import plural

    console = Printer()
    environment = os.environ | {HELPER: "1"}

    def compiled(name: str) -> bool:
        began = time.monotonic()
        command = [sys.executable, "-m", "lmsmith.precompile", name]
        done = subprocess.run(command, check=False, env=environment)
        if done.returncode == 0:
            console.print(f"{name:14} {plural(round(time.monotonic() - began), 'second')}")
        return done.returncode == 0

    with ThreadPoolExecutor(n_cores()) as pool:
        return 0 if all(list(pool.map(compiled, PARTS))) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
