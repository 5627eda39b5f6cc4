"""Model sizes for training budgets. `docs/performance.md` describes the measurements."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """A model and batch size for runs of up to `budget` floating-point operations.

    The budget assumes the full rate of matrix products.
    """

    budget: float
    n_layer: int
    d_model: int
    n_head: int
    context_length: int
    batch_size: int


GPT_SIZES = (
    Size(2.5e12, 1, 128, 2, 64, 32),
    Size(6e13, 2, 128, 2, 256, 8),
    Size(6e14, 3, 192, 3, 256, 8),
    Size(2e15, 4, 256, 4, 256, 8),
    Size(1e16, 6, 384, 6, 256, 16),
    Size(1e17, 8, 512, 8, 512, 32),
    Size(math.inf, 12, 768, 12, 1024, 64),
)
LONG_TEXT, SMALL_WIDTH, TIMES_AS_MANY_ROWS = 4_000_000, 256, 4
"""A text of at least LONG_TEXT tokens gives a Transformer of at most SMALL_WIDTH larger n-gram
tables. A short text is read several times, and larger tables would memorize it
(`docs/studies.md`).
"""
SMALL_VOCABULARY, LONG_CONTEXT = 512, 1024
"""Characters and bytes hold less than other tokens, so Transformers with contexts of 256 of them or
more in runs beyond LONG_RUN FLOPs read LONG_CONTEXT instead, with as many tokens per batch
(`docs/studies.md`).
"""
LONG_RUN = 6e13
# Recurrent networks have no heads. They use more rows, because they read positions one by one.
RNN_SIZES = (
    Size(4e12, 1, 128, 0, 64, 16),
    Size(4e14, 1, 256, 0, 64, 16),
    Size(2e15, 2, 384, 0, 128, 32),
    Size(1e16, 2, 640, 0, 128, 64),
    Size(math.inf, 2, 1024, 0, 256, 128),
)


def size_for(sizes: Sequence[Size], budget: float, n_tokens: int) -> tuple[Size, int]:
    """Returns the size for a budget, and its context length, halved until the text fills four
    contexts.
    """
    size = next(size for size in sizes if budget <= size.budget)
    return size, _fitting(size.context_length, n_tokens)


def with_long_context(size: Size, n_tokens: int) -> tuple[int, int]:
    """Returns context length and batch size for a text of characters or bytes."""
    longer = max(1, LONG_CONTEXT // size.context_length)
    return _fitting(longer * size.context_length, n_tokens), max(1, size.batch_size // longer)


def _fitting(context_length: int, n_tokens: int) -> int:
    while context_length > 8 and n_tokens < 4 * context_length:
        context_length //= 2
    return context_length
