"""How well a model predicts a text: nats per token, perplexity, bits per byte, over the whole of
it.

Every token of the text is predicted exactly once, from windows no longer than the model's context
T. Window k reads ids[kS : kS+T] and predicts ids[kS+1 : kS+T+1], where S is the stride; of these,
the targets that an earlier window has predicted do not count again. The last window is as short as
the text leaves it.

- S = T (the default): windows side by side, each target once, as nanoGPT evaluates. A window's
  first target has one token of context, its last has T. Cheapest, and what training's own loss
  measures.
- S < T: every target outside the first window has more than T - S tokens of context. Costs T / S
  times as much and gives a lower, truer loss.

Where a model was trained on documents apart (`data.documents` packed or rows), each document is
scored alone: it has its windows to itself, and its first token, the end of the text before it, has
nothing before it. All other tokens are predicted once, as above.

A model whose context has no bound (n-grams, recurrent networks) has no windows: it reads the text
as one, and its state is carried on. To be read faster the text is cut into up to 32 parts side by
side; each part but the first begins with the 256 tokens before it, which do not count. For n-grams,
which look at less, that changes nothing.

The first token of a text has nothing before it. Where the tokenizer has an end-of-text token, the
caller puts that one in front (`first_given`): it is context and costs nothing itself. Otherwise the
first token is charged ln(vocab_size), as a uniform guess would be, so that the text's bytes are all
paid for.

Bits per byte is nats / ln 2 over the bytes of the raw text. It does not depend on how the text was
cut into tokens, so models with different tokenizers can be compared. A uniform model over bytes
scores 8. What the tokenizer does not know is charged as a code for it would need, so that none
gains by knowing less: 8 bits for each of its B bytes, and

- where a tokenizer leaves unknown units out (characters), log2 C(N + U, U) bits for where U of them
  stand among N tokens;
- where a token stands for them (words), log2 C(B - 1, U - 1) bits for how U of them share the B
  bytes.

A token that a model holds impossible makes perplexity and bits infinite; how many there were is
counted.

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
from lmsmith.data.shards import Shards
from lmsmith.errors import CheckpointError, ConfigError, DataError
from lmsmith.models.interface import LanguageModel

Ids = npt.NDArray[np.unsignedinteger[Any]] | Shards
Batch = tuple[npt.NDArray[np.int64], int | npt.NDArray[np.bool_]]
"""Windows (rows, N), and which targets count: those behind the first so many tokens, or by a
mask (rows, N - 1).
"""

_LOGIT_BYTES = 64 * 2**20
_TOKENS_AT_ONCE = 64 * 2**10
_TOKENS_AT_ONCE_CPU = (
    4 * 2**10
)  # a small model's activations stay in the cache: a fifth faster than 16,384
_PARTS, _LEAST_PART, _WARM_UP = 32, 2048, 256  # of a text that is read as one: how many; tokens


@dataclass(frozen=True)
class Score:
    """What a text costs under a model. `n_tokens` counts the tokens in `nats`, `n_bytes` the raw
    text's bytes.
    """

    nats: float
    n_tokens: int
    n_bytes: int
    n_unknown: int = 0
    n_unknown_bytes: int = 0
    n_impossible: int = 0  # tokens whose probability is zero
    n_invalid: int = 0  # of the bytes, those that are no UTF-8
    left_out: bool = False  # no token stands for unknown units

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.n_tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf

    @property
    def unknown_bits(self) -> float:
        """What the units cost that the tokenizer does not know: their bytes, and where they
        stand or end.
        """
        if not self.n_unknown_bytes:
            return 0.0
        if self.left_out:
            places = _log2_choices(self.n_tokens + self.n_unknown, self.n_unknown)
        else:
            places = _log2_choices(self.n_unknown_bytes - 1, self.n_unknown - 1)
        return 8 * self.n_unknown_bytes + places

    @property
    def bits_per_byte(self) -> float:
        return (self.nats / math.log(2) + self.unknown_bits) / self.n_bytes

    def as_dict(self) -> dict[str, float | int]:
        """What is shown and written: the three measures and the counts behind them."""
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
    """The score. Raises CheckpointError where it is NaN, which no text costs under a model that
    works.
    """
    if math.isnan(score.nats):
        raise CheckpointError(
            "the model gives probabilities that are not numbers, although all of its weights are "
            "finite: values "
            "overflow on the way. Its training diverged; train again with a lower --learning-rate."
        )
    return score


def score_ids(
    model: LanguageModel,
    ids: Ids,
    *,
    n_bytes: int,
    n_unknown: int = 0,
    n_unknown_bytes: int = 0,
    n_invalid: int = 0,
    left_out: bool = False,
    first_given: bool = False,
    rows_per_batch: int | None = None,
    stride: int | None = None,
    boundary: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> Score:
    """The score of a text as ids (an array, a memory map or shards; only a batch of it is ever
    copied).

    `first_given` says that ids[0] is an end-of-text token put before the text: context, neither
    counted nor charged. `rows_per_batch` windows are read at once; by default as many as keep the
    batch within 65,536 tokens, on a CPU within 4,096 and the logits within 64 MiB, one at least.
    `boundary` is the id that stands before each document, where these are to be scored alone. With
    a `share` of (rank, world) the score has the nats of every world-th batch alone, for the others'
    to be added; all processes call the model equally often. Dropout is off, and the model's
    training mode is restored. Raises DataError for a text without tokens, ConfigError for a stride
    outside 1 .. context_length.
    """
    T, V = model.context_length, model.vocab_size
    _check_stride(stride, T)
    if n_bytes < 1 or len(ids) < 1 + first_given:
        raise DataError(f"nothing to score: the text has {n_bytes} bytes and {len(ids)} tokens.")
    on_cpu = model.device.type == "cpu"
    n_tokens = _TOKENS_AT_ONCE_CPU if on_cpu else _TOKENS_AT_ONCE
    width = T or len(ids)
    rows = rows_per_batch or max(
        1, min(_LOGIT_BYTES // (4 * V * width) if on_cpu else n_tokens, n_tokens // width)
    )
    costs: Iterator[tuple[float, int]]
    with inference(model):
        if boundary is not None:
            batches = _document_windows(ids, boundary, width, stride or width, rows * width)
            costs = (_cost(model, batch, counts) for batch, counts in _shared(batches, *share))
        elif T is not None:
            batches = _windows(ids, T, stride or T, rows)
            costs = (_cost(model, batch, counts) for batch, counts in _shared(batches, *share))
        else:
            costs = _costs_as_one(
                model, ids, min(n_tokens, _LOGIT_BYTES // (4 * V)), counts=share[0] == 0
            )
        nats, n_impossible = 0.0 if first_given or share[0] else math.log(V), 0
        for more, n_more in costs:
            nats, n_impossible = nats + more, n_impossible + n_more
    n_predicted = len(ids) - first_given
    return Score(
        nats, n_predicted, n_bytes, n_unknown, n_unknown_bytes, n_impossible, n_invalid, left_out
    )


def _check_stride(stride: int | None, context_length: int | None) -> None:
    """Raises ConfigError for a stride that the model's windows cannot have."""
    if stride is None:
        return
    if context_length is None:
        raise ConfigError(
            "this model reads a text as one, not in windows that could have a stride: leave it out."
        )
    if not 1 <= stride <= context_length:
        raise ConfigError(
            f"stride = {stride}: wanted 1 to the model's context length, {context_length}."
        )


def _log2_choices(n: int, k: int) -> float:
    """log2 of n over k."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def _cost(
    model: LanguageModel, batch: Batch, counts: bool = True, state: Any = None
) -> tuple[float, int]:
    """Nats of the targets that count, and how many of these are impossible."""
    windows, which = batch
    n_given = which if isinstance(which, int) else 1
    found = model.log_probabilities(
        torch.from_numpy(windows).to(model.device), n_given, state
    ).cpu()
    if not isinstance(which, int):
        found = found[torch.from_numpy(which)]
    return (
        (-float(found.sum(dtype=torch.float64)), int(found.isneginf().sum()))
        if counts
        else (0.0, 0)
    )


def _shared(batches: Iterator[Batch], rank: int, world: int) -> Iterator[tuple[Batch, bool]]:
    """This process's batches; where the last round has none for it, one that does not count."""
    while some := list(itertools.islice(batches, world)):
        yield some[min(rank, len(some) - 1)], rank < len(some)


@contextmanager
def inference(model: LanguageModel | nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients; the model's training mode is restored afterwards, come
    what may.
    """
    # Setting the mode of a model that has it already would walk all its modules at every token.
    in_training = model if isinstance(model, nn.Module) and model.training else None
    try:
        if in_training:
            in_training.eval()
        with (
            torch.no_grad()
        ):  # not inference_mode: what a model computes once and keeps must serve training, too
            yield
    finally:
        if in_training:
            in_training.train()


def _windows(ids: Ids, T: int, stride: int, rows: int) -> Iterator[Batch]:
    """Batches of windows (rows, T + 1), inputs and the token after."""
    start = n_predicted = 0
    if len(ids) > T:
        if stride < T:  # what no window but the first predicts
            yield np.asarray(ids[: T - stride + 1], dtype=np.int64)[None], 1
        n_whole = 1 + (len(ids) - T - 1) // stride
        for row in range(0, n_whole, rows):
            last = min(row + rows, n_whole) - 1
            near = ids[row * stride : last * stride + T + 1]
            yield (
                np.lib.stride_tricks.sliding_window_view(near, T + 1)[::stride].astype(np.int64),
                1 + T - stride,
            )
        start = n_whole * stride
        n_predicted = start + T - stride
    if n_predicted < len(ids) - 1:
        yield np.asarray(ids[start:], dtype=np.int64)[None], 1 + n_predicted - start


def _document_windows(
    ids: Ids, boundary: int, T: int, stride: int, n_tokens: int
) -> Iterator[Batch]:
    """Windows of each document, the longest first, in batches of up to `n_tokens` with their
    padding, which is zero.
    """
    windows = []  # from where, how many, and how many first targets do not count
    for begin, n in zip(*(found.tolist() for found in document_bounds(ids, boundary)), strict=True):
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
        yield padded, counted


def _costs_as_one(
    model: LanguageModel, ids: Ids, n_tokens: int, counts: bool
) -> Iterator[tuple[float, int]]:
    """What ids[1:] cost, read as one: in parts side by side, `n_tokens` of all of them at a
    time.
    """
    n = len(ids) - 1
    n_parts = max(1, min(_PARTS, n // _LEAST_PART))
    size, at_once = -(-n // n_parts), max(1, n_tokens // n_parts)
    width = min(n, size + _WARM_UP)
    first = np.arange(n_parts)[:, None] * size  # the first target of each part that counts
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
        yield _cost(model, (windows, (targets >= first) & (targets < first + size)), counts, state)
