"""Where a model loses: the loss by position in the context, and by how frequent a token is.

Both are computed from the loss of each token of a text. A model with a bounded context reads the
text in windows of its context length without overlap, as in `evaluate/likelihood.py`; position t is
a token with t tokens before it in the window. A model trained on separate documents reads each
document in windows of its own. A recurrent network or n-gram model begins every 256 tokens (its
training length, for a recurrent network) with an empty state, so that the loss by position shows
how far back it looks. Averaged over all tokens, either is the loss of the text.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lmsmith.data.batches.rows import document_bounds
from lmsmith.data.batches.windows import Sources
from lmsmith.data.shards import Shards
from lmsmith.evaluate.likelihood import inference, score_ids
from lmsmith.models.interface import LanguageModel

UNBOUNDED = 256  # tokens per window of a model without a context length
MOST_COUNTED = 5_000_000  # training tokens in which frequencies are counted, per source

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TokenLosses:
    """The loss of each token of a text, but the first, in nats: three arrays (n,)."""

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]  # tokens before it in its window, from 1
    nats: Floats

    @property
    def mean(self) -> float:
        """Nats per token."""
        return float(self.nats.mean())


@dataclass(frozen=True)
class Group:
    """Tokens of one group: bounds of the group (inclusive), their number, and their mean loss."""

    low: int
    high: int
    n: int
    nats: float


def token_losses(
    model: LanguageModel, ids: npt.NDArray[Any], boundary: int | None, train_length: int | None
) -> TokenLosses:
    """The losses of ids[1:] (n,), and their positions. `boundary`: the id before each document, if
    the model was trained on separate documents. `train_length`: of an unbounded model.
    """
    width = model.context_length
    nats = np.zeros(len(ids))
    targets = np.arange(1, len(ids))
    if boundary is not None:
        score_ids(model, ids, n_bytes=1, boundary=boundary, per_token=nats)
        begins, _ = document_bounds(ids, boundary)
        since = targets - begins[np.searchsorted(begins, targets, side="left") - 1]
        positions = since if width is None else (since - 1) % width + 1
    elif width is not None:
        score_ids(model, ids, n_bytes=1, per_token=nats)
        positions = (targets - 1) % width + 1
    else:
        width = train_length or UNBOUNDED
        positions = (targets - 1) % width + 1
        with inference(model):
            for start in range(0, len(ids) - 1, width):
                window = torch.from_numpy(ids[start : start + width + 1].astype(np.int64))
                log_p = model.log_probabilities(window[None].to(model.device))
                nats[start + 1 : start + len(window)] = -log_p[0].cpu().numpy()
    return TokenLosses(ids[1:].astype(np.int64), positions, nats[1:])


def by_position(losses: TokenLosses) -> list[Group]:
    """The mean loss in groups of positions: 1, 2, 3 to 4, 5 to 8 and so on."""
    last = int(losses.positions.max())
    edges = [1, 2, *(2**k + 1 for k in range(1, 64) if 2**k < last), last + 1]
    return _grouped(losses.positions, losses.nats, sorted({*edges}))


def by_frequency(losses: TokenLosses, counts: npt.NDArray[np.int64]) -> list[Group]:
    """The mean loss in groups of the token's number of occurrences `counts` (V,): 0, 1 to 9, 10 to
    99 and so on.
    """
    often = counts[losses.ids]
    last = int(often.max())
    edges = [0, *(10**k for k in range(19) if 10**k <= last), last + 1]
    return _grouped(often, losses.nats, edges)


def token_counts(
    train: npt.NDArray[Any] | Shards | Sources, vocab_size: int
) -> npt.NDArray[np.int64]:
    """How often each id occurs in the first five million tokens of each source: (V,)."""
    counts = np.zeros(vocab_size, np.int64)
    for ids in train.ids if isinstance(train, Sources) else (train,):
        some = np.asarray(ids[:MOST_COUNTED], dtype=np.int64)
        counts += np.bincount(some, minlength=vocab_size)[:vocab_size]
    return counts


def _grouped(values: npt.NDArray[np.int64], nats: Floats, edges: list[int]) -> list[Group]:
    """The groups edges[i] <= value < edges[i + 1] that have tokens."""
    groups = []
    for low, end in itertools.pairwise(edges):
        inside = (values >= low) & (values < end)
        if inside.any():
            groups.append(Group(low, end - 1, int(inside.sum()), float(nats[inside].mean())))
    return groups
