"""What `lmsmith verify --full` adds: other sizes and seeds, long texts, and all places to stop."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import torch

from lmsmith.generate.decoders import decoder_for
from lmsmith.generate.prefix import PIECE
from lmsmith.reference.blocks import Sizes
from lmsmith.tokens.bpe_train import learn_bpe
from lmsmith.verify.decoding import by_cache
from lmsmith.verify.gradients import DIFFERENCES_TOLERANCE, ENGINES, TOLERANCE, compare_gradients
from lmsmith.verify.models import VARIANTS, device, log_softmax, random_ids, small_model
from lmsmith.verify.registry import apart, equivalence, unequal
from lmsmith.verify.resuming import STEPS, resumed_apart, uninterrupted
from lmsmith.verify.tokenization import TEXT, encoded_by_merges

SIZES = (
    Sizes(n_layer=1, n_head=1, d_model=5, vocab_size=7, padded_vocab_size=7, context_length=2),
    Sizes(n_layer=3, n_head=2, d_model=8, vocab_size=10, padded_vocab_size=16, context_length=9),
    Sizes(n_layer=1, n_head=5, d_model=15, vocab_size=3, padded_vocab_size=4, context_length=12),
)
ALPHABET = "aab  c\n\t1 23.'s\u2019éß雪降😀\u0301\u200d\r\x00<|end|>"


@equivalence("gradients, sizes", "other sizes and seeds; by hand", bound=TOLERANCE, full=True)
def gradients_of_sizes() -> float:
    return _largest([engine for engine in ENGINES if engine != "differences"])


@equivalence(
    "differences, sizes",
    "other sizes and seeds; by hand",
    bound=DIFFERENCES_TOLERANCE,
    full=True,
)
def differences_of_sizes() -> float:
    return _largest(["differences"])


def _largest(engines: list[str]) -> float:
    found = [
        [one.loss, *one.gradients.values()]
        for number, sizes in enumerate(SIZES)
        for one in compare_gradients(sizes, seed=10 + number, engines=engines)
    ]
    return max(max(values) for values in found)


@equivalence(
    "long prompts",
    "read in pieces; the full text",
    bound=1e-10,
    cuda=1e-9,
    full=True,
)
def long_prompts() -> float:
    """PyTorch reads the full pieces of a long prompt, and the compiled kernels the rest."""
    n, worst = 2 * PIECE + 40, 0.0
    texts, n_given = random_ids(3, n).tolist(), [PIECE - 1, PIECE + 1, 2 * PIECE]
    with torch.no_grad():
        for variant in VARIANTS:
            model = small_model(variant, context_length=n)
            full = log_softmax(model(torch.tensor(texts, device=device())))
            found = by_cache(decoder_for(model, 3), texts, n_given)
            for row, (logits, given) in enumerate(zip(found, n_given, strict=True)):
                worst = max(worst, apart(log_softmax(logits), full[row, given - 1 :]))
    return worst


@equivalence("resume, every step", "stopped anywhere; uninterrupted", bound=0.0, full=True)
def resume_every_step() -> float:
    with tempfile.TemporaryDirectory() as place:
        one = uninterrupted(Path(place) / "one")
        return max(resumed_apart(one, Path(place) / f"{n}", n) for n in range(1, STEPS))


@equivalence("random texts", "2,000 texts; merges one by one", bound=0.0, full=True)
def random_texts() -> float:
    rng, tokenizer, worst = random.Random(4), learn_bpe([TEXT], 256 + 60 + 1), 0.0
    for _ in range(2000):
        text = "".join(rng.choices(ALPHABET, k=rng.randint(1, 60)))
        ids = tokenizer.encode(text)
        worst = max(worst, unequal(ids.tolist(), encoded_by_merges(tokenizer, text)))
        worst = max(worst, unequal(tokenizer.decode(ids), text))
    return worst
