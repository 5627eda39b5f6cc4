"""Compiles what lmsmith compiles, so that no later command waits for it.

    python -m lmsmith.precompile

Run it once after the installation, on the machine that will use lmsmith. The results are cached on
disk (`tokens/compiled.py`, NUMBA_CACHE_DIR). Without it, each part is compiled when it is first
used. Compiled code is for one kind of processor, so a package cannot ship it.

Each part runs the functions that compile it on a few bytes of text, in a process of its own: Numba
compiles with one thread per process.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from lmsmith.cli.console import Printer, problem
from lmsmith.machine.limits import n_cores
from lmsmith.text.files import plural

TEXT = "Once upon a time there was a little dog. " * 50


def learning() -> None:
    """Learning a byte-pair encoding, and encoding with it."""
    from lmsmith.tokens.bpe_train import learn_bpe

    tokenizer = learn_bpe([TEXT], 300)
    tokenizer.decode(tokenizer.encode(TEXT).tolist())
    tokenizer.decode(tokenizer.encode(TEXT[:5]).tolist())


def decoding(weights: Any) -> None:
    """Generating with a Transformer: the steps of the decoder, and sampling."""
    import torch

    from lmsmith.config.presets import preset
    from lmsmith.generate.engine import Engine, Request
    from lmsmith.generate.sampling import Sampling
    from lmsmith.generate.weights import pack
    from lmsmith.models.gpt import GPT
    from lmsmith.models.gpt_config import GPTConfig

    sizes = {"vocab_size": 64, "n_layer": 1, "d_model": 16, "n_head": 1, "context_length": 16}
    config = preset("modern").changed({f"model.{k}": v for k, v in sizes.items()}, where="here")
    assert isinstance(config.model, GPTConfig)
    model = GPT(config.model).eval()
    model.initialise(torch.Generator().manual_seed(1))
    pack(model, weights)
    engine = Engine(model, 2)
    for sampling in (Sampling(n_alternatives=1), Sampling(temperature=0.5, top_k=5, top_p=0.9)):
        engine.submit(Request([0], 3, sampling, log_probabilities=True))
    while engine.busy:
        engine.step()


def counting() -> None:
    """Learning and evaluating n-gram models."""
    import numpy as np
    import torch

    from lmsmith.models.ngram_config import NgramConfig

    ids = np.frombuffer(TEXT.encode(), np.uint8).astype(np.uint16)
    model = NgramConfig(vocab_size=256).learn(ids)
    some = torch.from_numpy(ids[:64].astype(np.int64))[None]
    model.log_probabilities(some)
    model.next_logits(some, model.new_state(1))


PARTS: dict[str, Callable[[], None]] = {
    "tokenizers": learning,
    "decoding": partial(decoding, "fp32"),
    "decoding-bf16": partial(decoding, "bf16"),
    "decoding-int8": partial(decoding, "int8"),
    "n-grams": counting,
}


def main(names: list[str]) -> int:
    """Compiles the named parts, by default all, as many at once as there are cores. Returns the
    exit status.
    """
    if unknown := set(names) - PARTS.keys():
        problem(f"{', '.join(sorted(unknown))}: expected parts of {', '.join(PARTS)}.")
        return 2
    if len(names) == 1:
        logging.disable(logging.WARNING)  # that it compiles
        PARTS[names[0]]()
        return 0
    console = Printer()

    def compiled(name: str) -> bool:
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "lmsmith.precompile", name], check=False)
        if done.returncode == 0:
            console.print(f"{name:14} {plural(round(time.monotonic() - began), 'second')}")
        return done.returncode == 0

    with ThreadPoolExecutor(n_cores()) as pool:
        return 0 if all(list(pool.map(compiled, names or PARTS))) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
