"""How well a model predicts a text: nats per token, perplexity, bits per byte, over the whole of it.

Every token of the text is predicted exactly once, from windows no longer than the model's context T. Window k reads
ids[kS : kS+T] and predicts ids[kS+1 : kS+T+1], where S is the stride; of these, the targets that an earlier window has
predicted do not count again. The last window is as short as the text leaves it.

- S = T (the default): windows side by side, each target once, as nanoGPT evaluates. A window's first target has one
  token of context, its last has T. Cheapest, and what training's own loss measures.
- S < T: every target outside the first window has more than T - S tokens of context. Costs T / S times as much and
  gives a lower, truer loss.

Where a model was trained on documents apart (`data.documents` packed or rows), each document is scored alone: it has
its windows to itself, and its first token, the end of the text before it, has nothing before it. All other tokens are
predicted once, as above.

The first token of a text has nothing before it. Where the tokenizer has an end-of-text token, the caller puts that one
in front (`first_given`): it is context and costs nothing itself. Otherwise the first token is charged ln(vocab_size),
as a uniform guess would be, so that the text's bytes are all paid for.

Bits per byte is nats / ln 2, and 8 bits for each byte that the tokenizer could not represent, over the bytes of the raw
text. It does not depend on how the text was cut into tokens, so models with different tokenizers can be compared. A
uniform model over bytes scores 8.

Logits are float32; cross-entropies are summed in float64.
"""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from lmsmith.data.batches import IGNORED
from lmsmith.data.rows import document_bounds
from lmsmith.data.shards import Shards
from lmsmith.errors import ConfigError, DataError
from lmsmith.models.interface import LanguageModel

Batch = TypeVar("Batch")
Ids = npt.NDArray[np.unsignedinteger[Any]] | Shards

_LOGIT_BYTES = 64 * 2**20
_TOKENS_AT_ONCE = 64 * 2**10
_TOKENS_AT_ONCE_CPU = 4 * 2**10  # a small model's activations stay in the cache: a fifth faster than 16,384


@dataclass(frozen=True)
class Score:
    """What a text costs under a model. `n_tokens` counts the tokens in `nats`, `n_bytes` the raw text's bytes."""

    nats: float
    n_tokens: int
    n_bytes: int
    n_unknown: int = 0
    n_unknown_bytes: int = 0

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.n_tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        return (self.nats / math.log(2) + 8 * self.n_unknown_bytes) / self.n_bytes

    def as_dict(self) -> dict[str, float | int]:
        """What is shown and written: the three measures and the counts behind them."""
        return {
            "nats_per_token": self.nats_per_token,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "n_tokens": self.n_tokens,
            "n_bytes": self.n_bytes,
            "n_unknown": self.n_unknown,
        }


def score_ids(
    model: nn.Module,
    ids: Ids,
    *,
    n_bytes: int,
    n_unknown: int = 0,
    n_unknown_bytes: int = 0,
    first_given: bool = False,
    rows_per_batch: int | None = None,
    stride: int | None = None,
    boundary: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> Score:
    """The score of a text as ids (an array, a memory map or shards; only a batch of it is ever copied).

    `first_given` says that ids[0] is an end-of-text token put before the text: context, neither counted nor charged.
    `rows_per_batch` windows are read at once; by default as many as keep the logits within 64 MiB and the batch within
    65,536 tokens (on a CPU 4,096), one at least. `boundary` is the id that stands before each document, where these are
    to be scored alone. With a `share` of (rank, world) the score has the nats of every world-th batch alone, for the
    others' to be added; all processes call the model equally often. Dropout is off, and the model's training mode is
    restored. Raises DataError for a text without tokens, ConfigError for a stride outside 1 .. context_length.
    """
    config: Any = model.config
    T, V = config.context_length, config.vocab_size
    stride = T if stride is None else stride
    if not 1 <= stride <= T:
        raise ConfigError(f"stride = {stride}: wanted 1 to the model's context length, {T}.")
    if n_bytes < 1 or len(ids) < 1 + first_given:
        raise DataError(f"nothing to score: the text has {n_bytes} bytes and {len(ids)} tokens.")
    if rows_per_batch is None:
        n_tokens = _TOKENS_AT_ONCE_CPU if device_of(model).type == "cpu" else _TOKENS_AT_ONCE
        rows_per_batch = max(1, min(_LOGIT_BYTES // (4 * V * T), n_tokens // T))

    nats = 0.0 if first_given or share[0] else math.log(V)
    with inference(model):
        if boundary is None:
            for (windows, n_seen), counts in _shared(_windows(ids, T, stride, rows_per_batch), *share):
                nats += _nats(model, windows, n_seen) * counts
        else:
            for (inputs, targets), counts in _shared(
                _document_windows(ids, boundary, T, stride, rows_per_batch * T), *share
            ):
                nats += _nats_of(model, inputs, targets) * counts
    return Score(nats, len(ids) - first_given, n_bytes, n_unknown, n_unknown_bytes)


def _shared(batches: Iterator[Batch], rank: int, world: int) -> Iterator[tuple[Batch, bool]]:
    """This process's batches; where the last round has none for it, one that does not count."""
    while some := list(itertools.islice(batches, world)):
        yield some[min(rank, len(some) - 1)], rank < len(some)


@contextmanager
def inference(model: LanguageModel | nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients; the model's training mode is restored afterwards, come what may."""
    # Setting the mode of a model that has it already would walk all its modules at every token.
    in_training = model if isinstance(model, nn.Module) and model.training else None
    try:
        if in_training:
            in_training.eval()
        with torch.no_grad():  # not inference_mode: what a model computes once and keeps must serve training, too
            yield
    finally:
        if in_training:
            in_training.train()


def device_of(model: nn.Module) -> torch.device:
    """Where the model's tensors lie; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def _windows(ids: Ids, T: int, stride: int, rows: int) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
    """Batches of windows (rows, T + 1), inputs and the token after; and how many first targets of each do not count."""
    start = n_predicted = 0
    if len(ids) > T:
        if stride < T:  # what no window but the first predicts
            yield np.asarray(ids[: T - stride + 1], dtype=np.int64)[None], 0
        n_whole = 1 + (len(ids) - T - 1) // stride
        for row in range(0, n_whole, rows):
            last = min(row + rows, n_whole) - 1
            near = ids[row * stride : last * stride + T + 1]
            yield np.lib.stride_tricks.sliding_window_view(near, T + 1)[::stride].astype(np.int64), T - stride
        start = n_whole * stride
        n_predicted = start + T - stride
    if n_predicted < len(ids) - 1:
        yield np.asarray(ids[start:], dtype=np.int64)[None], n_predicted - start


def _document_windows(
    ids: Ids, boundary: int, T: int, stride: int, n_tokens: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Windows of each document, the longest first, in batches of up to `n_tokens` with their padding.

    Inputs and targets, the latter IGNORED where an earlier window has predicted them and in padding.
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
        inputs = np.zeros((len(batch), width), np.int64)
        targets = np.full((len(batch), width), IGNORED, np.int64)
        for row, (start, n, n_seen) in enumerate(batch):
            inputs[row, :n] = ids[start : start + n]
            targets[row, n_seen:n] = ids[start + n_seen + 1 : start + n + 1]
        yield inputs, targets


def _nats_of(model: nn.Module, inputs: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]) -> float:
    x, y = (torch.from_numpy(part).to(device_of(model)) for part in (inputs, targets))
    logits = model(x).float()  # (B, T, V)
    losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none", ignore_index=IGNORED)
    return float(losses.cpu().sum(dtype=torch.float64))


def _nats(model: nn.Module, windows: npt.NDArray[np.int64], n_seen: int) -> float:
    ids = torch.from_numpy(windows).to(device_of(model))
    logits = model(ids[:, :-1])[:, n_seen:].float()  # (B, T, V)
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1 + n_seen :].flatten(), reduction="none")
    return float(losses.cpu().sum(dtype=torch.float64))
