"""Likelihood of a text under a model: nats per token, perplexity, bits per byte.

**Sliding windows.** Every token is predicted exactly once, from windows no longer than the model's
context T. Window k reads ids[kS : kS+T] and predicts ids[kS+1 : kS+T+1], where S is the stride.
Targets that an earlier window has predicted are not counted again. The last window may be shorter.

- S = T (the default): the windows do not overlap, as in nanoGPT. A window's first target has one
  token of context, its last has T. This is the cheapest, and matches the training loss.
- S < T: every target outside the first window has more than T - S tokens of context. This costs
  T / S times as much and gives a lower, more accurate loss.

**Separate documents.** If the model was trained with `data.documents` packed or rows, each document
is scored separately, in its own windows. Its first token, the end-of-text token before it, is
context only; all others are predicted once, as above.

**Unbounded context.** N-gram models and recurrent networks read the text without windows and keep
their state. For speed the text is split into up to 32 parts that are read in parallel; each part
but the first begins with the 256 tokens before it, which are not counted. For n-grams, which look
at fewer tokens, this changes nothing.

**First token.** If the tokenizer has an end-of-text token, the caller puts one in front of the text
(`starts_with_end_of_text`) as context, which is not counted. Otherwise the first token costs
ln(vocab_size), as under a uniform guess, so that every byte of the text is paid for.

**Bits per byte** is nats / ln 2 divided by the bytes of the raw text. It does not depend on the
tokenization, so it compares models with different tokenizers. A uniform guess over bytes needs 8.
Unknown text costs as many bits as an encoding of it would need, so that a tokenizer gains nothing
by knowing less: 8 bits for each of its B bytes, and

- if the tokenizer skips unknown units (characters), log2 C(N + U, U) bits for the positions of U
  units among N tokens;
- if a token represents them (words), log2 C(B - 1, U - 1) bits for how the B bytes divide among U
  units.

A token with probability zero makes perplexity and bits infinite; `n_impossible` counts such tokens.

Logits are float32 or better; log-probabilities are summed in float64.
"""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lmsmith.data.batches.rows import document_bounds
from lmsmith.data.conversations import Conversations
from lmsmith.data.shards import Shards
from lmsmith.errors import CheckpointError, ConfigError, DataError
from lmsmith.models.interface import LanguageModel

Ids = npt.NDArray[np.unsignedinteger[Any]] | Shards
Batch = tuple[npt.NDArray[np.int64], int | npt.NDArray[np.bool_], npt.NDArray[np.int64]]
"""Windows (rows, N); which targets count: the number of leading tokens that do not, or a mask
(rows, N - 1); and the index in the text of each window's first token (rows,).
"""

_LOGIT_BYTES = 64 * 2**20
_TOKENS_AT_ONCE = 64 * 2**10
# Small enough for a small model's activations to stay in the cache: 20 % faster than 16,384 tokens.
_TOKENS_AT_ONCE_CPU = 4 * 2**10
# With unbounded context: most parts; fewest tokens per part; tokens of context before each part.
_PARTS, _LEAST_PART, _WARM_UP = 32, 2048, 256


@dataclass(frozen=True)
class Score:
    """The negative log-likelihood of a text under a model, and counts."""

    nats: float
    n_tokens: int  # tokens that `nats` includes
    n_bytes: int  # bytes of the raw text
    n_unknown: int = 0  # characters or words that the tokenizer does not know
    n_unknown_bytes: int = 0
    n_impossible: int = 0  # tokens with probability zero
    n_invalid: int = 0  # bytes that are not valid UTF-8
    left_out: bool = False  # the tokenizer skips unknown units

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.n_tokens if self.n_tokens else 0.0

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf

    @property
    def unknown_bits(self) -> float:
        """Bits to encode the unknown units: their bytes, and their positions or lengths."""
        if not self.n_unknown_bytes:
            return 0.0
        if self.left_out:
            positions = _log2_choices(self.n_tokens + self.n_unknown, self.n_unknown)
        else:
            positions = _log2_choices(self.n_unknown_bytes - 1, self.n_unknown - 1)
        return 8 * self.n_unknown_bytes + positions

    @property
    def bits_per_byte(self) -> float:
        return (self.nats / math.log(2) + self.unknown_bits) / self.n_bytes

    def as_dict(self) -> dict[str, float | int]:
        """The metrics and counts that are printed and saved."""
        return {
            "nats_per_token": self.nats_per_token,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "n_tokens": self.n_tokens,
            "n_bytes": self.n_bytes,
            "n_invalid": self.n_invalid,
            "n_unknown": self.n_unknown,
            "n_impossible": self.n_impossible,
        }


def checked(score: Score) -> Score:
    """Returns the score. Raises CheckpointError if it is NaN."""
    if math.isnan(score.nats):
        raise CheckpointError(
            "the model's probabilities are NaN, although its weights are finite: its activations "
            "overflow. Training diverged; train again with a lower --learning-rate."
        )
    return score


def score_ids(
    model: LanguageModel,
    ids: Ids | Conversations,
    *,
    n_bytes: int,
    n_unknown: int = 0,
    n_unknown_bytes: int = 0,
    n_invalid: int = 0,
    left_out: bool = False,
    starts_with_end_of_text: bool = False,
    rows_per_batch: int | None = None,
    stride: int | None = None,
    boundary: int | None = None,
    share: tuple[int, int] = (0, 1),
    per_token: npt.NDArray[np.float64] | None = None,
) -> Score:
    """Scores a text given as ids (an array, a memory map or shards; only a batch is copied at a
    time).

    - `starts_with_end_of_text`: ids[0] is an end-of-text token before the text; it is context and
      not counted.
    - `rows_per_batch`: windows per batch; by default as many as fit in 65,536 tokens (on a CPU,
      4,096 tokens and 64 MiB of logits), at least one.
    - Of conversations, each is scored separately, and only its learned tokens count.
    - `boundary`: the id before each document, if documents are scored separately.
    - `share`: (rank, world size); `nats` then covers only every world-th batch, and the ranks'
      values are to be added. All ranks call the model equally often.
    - `per_token`: an array (len(ids),) that receives the nats of each token; their sum is `nats`.

    Runs in evaluation mode and restores the model's mode. Raises DataError for a text without
    tokens, ConfigError for a stride outside 1 .. context_length.
    """
    T, V = model.context_length, model.vocab_size
    _check_stride(stride, T)
    if n_bytes < 1 or len(ids) < 1 + starts_with_end_of_text:
        raise DataError(
            f"nothing to score: the text has {n_bytes} bytes and {len(ids)} tokens. Give "
            f"another text."
        )
    with inference(model):
        costs = _costs(model, ids, rows_per_batch, stride, boundary, share, per_token)
        first_is_free = starts_with_end_of_text or isinstance(ids, Conversations)
        nats, n_impossible = 0.0 if first_is_free or share[0] else math.log(V), 0
        if per_token is not None:
            per_token[:] = 0.0
            per_token[0] = nats
        for more, n_more in costs:
            nats, n_impossible = nats + more, n_impossible + n_more
    n_predicted = len(ids) - starts_with_end_of_text
    if isinstance(ids, Conversations):
        n_predicted = ids.n_learned
    return Score(
        nats, n_predicted, n_bytes, n_unknown, n_unknown_bytes, n_impossible, n_invalid, left_out
    )


def _costs(
    model: LanguageModel,
    ids: Ids | Conversations,
    rows_per_batch: int | None,
    stride: int | None,
    boundary: int | None,
    share: tuple[int, int],
    per_token: npt.NDArray[np.float64] | None,
) -> Iterator[tuple[float, int]]:
    """The costs of all batches (see `_cost`), with the arguments of `score_ids`."""
    T, V = model.context_length, model.vocab_size
    on_cpu = model.device.type == "cpu"
    n_tokens = _TOKENS_AT_ONCE_CPU if on_cpu else _TOKENS_AT_ONCE
    if boundary is None and T is None and not isinstance(ids, Conversations):
        at_once = min(n_tokens, _LOGIT_BYTES // (4 * V))
        return _costs_as_one(model, ids, at_once, share[0] == 0, per_token)
    width = T or len(ids)
    rows = rows_per_batch or max(
        1, min(_LOGIT_BYTES // (4 * V * width) if on_cpu else n_tokens, n_tokens // width)
    )
    if isinstance(ids, Conversations):
        batches = _conversations(ids, rows * width)
    elif boundary is None:
        batches = _windows(ids, width, stride or width, rows)
    else:
        batches = _document_windows(ids, boundary, width, stride or width, rows * width)
    return (
        _cost(model, batch, counts, per_token=per_token)
        for batch, counts in _shared(batches, *share)
    )


def _check_stride(stride: int | None, context_length: int | None) -> None:
    """Raises ConfigError for a stride that the model does not support."""
    if stride is None:
        return
    if context_length is None:
        raise ConfigError(
            "this model has an unbounded context and no sliding windows: leave the stride out."
        )
    if not 1 <= stride <= context_length:
        raise ConfigError(
            f"stride = {stride}: expected 1 to the model's context length, {context_length}."
        )


def _log2_choices(n: int, k: int) -> float:
    """log2 of the binomial coefficient n over k."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def _cost(
    model: LanguageModel,
    batch: Batch,
    counts: bool = True,
    state: Any = None,
    per_token: npt.NDArray[np.float64] | None = None,
) -> tuple[float, int]:
    """Nats of the targets that count, and how many of these have probability zero. Writes the nats
    of each to `per_token`.
    """
    windows, which, starts = batch
    n_given = which if isinstance(which, int) else 1
    log_p = model.log_probabilities(
        torch.from_numpy(windows).to(model.device), n_given, state
    ).cpu()
    if not isinstance(which, int):
        log_p = log_p[torch.from_numpy(which)]
    if not counts:
        return 0.0, 0
    if per_token is not None:
        targets = starts[:, None] + np.arange(n_given, windows.shape[1])
        per_token[targets if isinstance(which, int) else targets[which]] = -log_p.numpy()
    return -float(log_p.sum(dtype=torch.float64)), int(log_p.isneginf().sum())


def _shared(batches: Iterator[Batch], rank: int, world: int) -> Iterator[tuple[Batch, bool]]:
    """This rank's batches, and whether each counts. If the last round has no batch for this rank,
    it repeats another rank's, which does not count.
    """
    while some := list(itertools.islice(batches, world)):
        yield some[min(rank, len(some) - 1)], rank < len(some)


@contextmanager
def inference(model: LanguageModel | nn.Module) -> Iterator[None]:
    """A context with the model in evaluation mode and without gradients; restores its mode on exit,
    also after an exception.
    """
    # Skipped in evaluation mode, because eval() visits all modules, at every generated token.
    in_training = model if isinstance(model, nn.Module) and model.training else None
    try:
        if in_training:
            in_training.eval()
        # Not inference_mode: tensors that the model caches must be usable in training, too.
        with torch.no_grad():
            yield
    finally:
        if in_training:
            in_training.train()


def _windows(ids: Ids, T: int, stride: int, rows: int) -> Iterator[Batch]:
    """Batches of windows (rows, T + 1): inputs and the next token."""
    start = n_predicted = 0
    if len(ids) > T:
        if stride < T:  # targets that only the first window predicts
            yield np.asarray(ids[: T - stride + 1], dtype=np.int64)[None], 1, np.zeros(1, np.int64)
        n_whole = 1 + (len(ids) - T - 1) // stride
        for row in range(0, n_whole, rows):
            last = min(row + rows, n_whole) - 1
            near = ids[row * stride : last * stride + T + 1]
            yield (
                np.lib.stride_tricks.sliding_window_view(near, T + 1)[::stride].astype(np.int64),
                1 + T - stride,
                np.arange(row, last + 1) * stride,
            )
        start = n_whole * stride
        n_predicted = start + T - stride
    if n_predicted < len(ids) - 1:
        rest = np.asarray(ids[start:], dtype=np.int64)[None]
        yield rest, 1 + n_predicted - start, np.array([start])


def _document_windows(
    ids: Ids, boundary: int, T: int, stride: int, n_tokens: int
) -> Iterator[Batch]:
    """Windows of each document, the longest first, in zero-padded batches of up to `n_tokens`
    tokens.
    """
    windows = []  # start, length, number of leading targets that do not count
    for begin, n in zip(*(bound.tolist() for bound in document_bounds(ids, boundary)), strict=True):
        done = 0
        for start in range(0, n, stride):
            if done < n:
                end = min(start + T, n)
                windows.append((begin + start, end - start, done - start))
                done = end
    windows.sort(key=lambda window: -window[1])
    while windows:
        width = windows[0][1]
        batch, windows = windows[: max(1, n_tokens // width)], windows[max(1, n_tokens // width) :]
        padded, counted = (
            np.zeros((len(batch), width + 1), np.int64),
            np.zeros((len(batch), width), np.bool_),
        )
        for row, (start, n, n_seen) in enumerate(batch):
            padded[row, : n + 1] = ids[start : start + n + 1]
            counted[row, n_seen:n] = True
        yield padded, counted, np.array([start for start, *_ in batch])


def _conversations(some: Conversations, n_tokens: int) -> Iterator[Batch]:
    """Conversations, the longest first, in zero-padded batches of up to `n_tokens` tokens."""
    lengths = np.diff(some.starts)
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        width = int(lengths[order[0]])
        batch, order = np.split(order, [min(len(order), max(1, n_tokens // width))])
        padded = np.zeros((len(batch), width), np.int64)
        counted = np.zeros((len(batch), width), np.bool_)
        for row, member in enumerate(batch.tolist()):
            start, n = int(some.starts[member]), int(lengths[member])
            padded[row, :n] = some.ids[start : start + n]
            counted[row, :n] = some.learned[start : start + n]
        yield padded, counted[:, 1:], some.starts[batch].astype(np.int64)


def _costs_as_one(
    model: LanguageModel,
    ids: Ids,
    n_tokens: int,
    counts: bool,
    per_token: npt.NDArray[np.float64] | None,
) -> Iterator[tuple[float, int]]:
    """Costs of ids[1:] with unbounded context, in parallel parts, `n_tokens` at a time over all
    parts.
    """
    n = len(ids) - 1
    n_parts = max(1, min(_PARTS, n // _LEAST_PART))
    size, at_once = -(-n // n_parts), max(1, n_tokens // n_parts)
    width = min(n, size + _WARM_UP)
    first = np.arange(n_parts)[:, None] * size  # the first counted target of each part
    begin = np.clip(first - _WARM_UP, 0, n - width)
    state = model.new_state(n_parts)
    for start in range(0, width, at_once):
        end = min(width, start + at_once)
        windows = np.stack(
            [
                np.asarray(ids[at + start : at + end + 1], dtype=np.int64)
                for at in begin[:, 0].tolist()
            ]
        )
        targets = begin + np.arange(start, end)
        counted = (targets >= first) & (targets < first + size)
        yield _cost(model, (windows, counted, begin[:, 0] + start), counts, state, per_token)
