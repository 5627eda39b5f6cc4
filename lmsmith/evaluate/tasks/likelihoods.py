"""Log-likelihoods of endings. Endings of one context share its computation.

    answers = log_likelihoods(model, [(context_ids, ending_ids), ...])

A batch of contexts is prefilled up to the length of the shortest, which fills a KV cache (or the
state of a recurrent network) without padding. What is left of each context is read again with each
of its endings: few tokens, because batches hold contexts of similar lengths. Endings are padded on
the right, where a causal model does not look. Logits are computed for scored positions only.

Models of other kinds read context and ending together. A text that is longer than the model's
context loses tokens on the left. An ending that alone is longer is scored in windows, half a
context apart, so each of its tokens counts once.

Much work on a CPU uses the faster of PyTorch's two libraries for float32 products, as training
does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lmsmith.errors import CheckpointError
from lmsmith.evaluate.likelihood import inference
from lmsmith.evaluate.tasks.encode import Pair
from lmsmith.evaluate.tasks.states import can_select, select
from lmsmith.evaluate.tasks.task import Answer
from lmsmith.machine.products import fastest_matmul
from lmsmith.models.interface import LanguageModel, NeuralModel

TOKENS_AT_ONCE, TOKENS_AT_ONCE_GPU = 2048, 32768
LOGITS_AT_ONCE, LOGITS_AT_ONCE_GPU = 1 << 23, 1 << 28
MUCH_WORK = 10**11
"""Parameters times tokens from which the speed of matrix products is measured."""
READ_AGAIN = 0.05
"""The share of a batch's tokens that may be read again because contexts differ in length."""
PADDED = 0.15
"""The share of a batch of endings that may be padding."""


@dataclass
class _Piece:
    """Scored tokens behind their context: a pair, or a window of a long ending."""

    number: int  # of the pair
    context: tuple[int, ...]
    ending: tuple[int, ...]


@dataclass
class _Found:
    """The sums of one pair so far."""

    nats: float = 0.0
    greedy: bool = True


def log_likelihoods(model: LanguageModel, pairs: Sequence[Pair]) -> list[Answer]:
    """ln p of each ending given its context, in the order of the pairs.

    An ending without a token has a log-likelihood of 0. Without any context the first token costs
    ln(vocab_size), as everywhere in lmsmith. Raises CheckpointError for a model that gives NaN.
    """
    found = [_Found() for _ in pairs]
    pieces: list[_Piece] = []
    for number, (context, ending) in enumerate(pairs):
        if ending and not context:
            found[number] = _Found(-math.log(model.vocab_size), False)
            context, ending = ending[:1], ending[1:]
        pieces += _pieces(number, context, ending, model.context_length)
    with inference(model), _fast_products(model, pieces):
        if isinstance(model, NeuralModel):
            for batch in _batches(model, pieces):
                _score_batch(model, batch, found)
        else:
            for piece in pieces:
                _score_alone(model, piece, found[piece.number])
    if any(math.isnan(one.nats) for one in found):
        raise CheckpointError(
            "the model gives probabilities that are not numbers, although its weights are finite. "
            "Its training diverged; train again with a lower --learning-rate."
        )
    return [
        Answer(one.nats, len(ending), one.greedy)
        for one, (_, ending) in zip(found, pairs, strict=True)
    ]


def _fast_products(model: LanguageModel, pieces: Sequence[_Piece]) -> AbstractContextManager[None]:
    """`fastest_matmul` where its measurement takes less time than it can save."""
    n_tokens = sum(_length(piece) for piece in pieces)
    on_cpu = model.device.type == "cpu" and isinstance(model, NeuralModel)
    if on_cpu and model.n_parameters() * n_tokens > MUCH_WORK:
        return fastest_matmul()
    return nullcontext()


def n_cut(pair: Pair, context_length: int | None) -> int:
    """Tokens of a pair that do not fit into the model's context."""
    context, ending = pair
    return 0 if context_length is None else max(0, len(context) + len(ending) - 1 - context_length)


def _pieces(
    number: int, context: tuple[int, ...], ending: tuple[int, ...], T: int | None
) -> Iterator[_Piece]:
    """A pair in windows that fit: almost always one."""
    if not ending:
        return
    if T is None or len(ending) <= T:
        room = len(context) if T is None else T + 1 - len(ending)
        yield _Piece(number, context[max(0, len(context) - room) :], ending)
        return
    hop = max(1, T // 2)
    for start in range(0, len(ending), hop):
        part = ending[start : start + hop]
        before = (context + ending[:start])[-(T + 1 - len(part)) :]
        yield _Piece(number, before, part)


def _batches(model: NeuralModel, pieces: list[_Piece]) -> Iterator[list[list[_Piece]]]:
    """Batches of groups; the pieces of a group have the same context. Longest first."""
    budget = TOKENS_AT_ONCE if model.device.type == "cpu" else TOKENS_AT_ONCE_GPU
    by_context: dict[tuple[int, ...], list[_Piece]] = {}
    for piece in pieces:
        by_context.setdefault(piece.context, []).append(piece)
    shareable = can_select(model)
    shared = [group for group in by_context.values() if shareable and len(group) > 1]
    alone = [
        [piece]
        for group in by_context.values()
        if not (shareable and len(group) > 1)
        for piece in group
    ]
    shared.sort(key=lambda group: -len(group[0].context))
    yield from _filled(shared, budget, shares=True)
    alone.sort(key=lambda group: -_length(group[0]))
    yield from _filled(alone, budget, shares=False)


def _filled(groups: list[list[_Piece]], budget: int, shares: bool) -> Iterator[list[list[_Piece]]]:
    """Neighbours in one batch, as long as little is read again or padded."""
    batch: list[list[_Piece]] = []
    n_tokens = 0
    for group in groups:
        n_more = _n_tokens(group) if shares else _length(group[0])
        if batch:
            if shares:
                L = len(group[0].context)
                extra = sum((len(g[0].context) - L) * (len(g) - 1) for g in batch)
                limit = READ_AGAIN * n_tokens
            else:
                extra = sum(_length(g[0]) for g in batch[:1]) * len(batch) - n_tokens
                limit = PADDED * n_tokens
            if n_tokens + n_more > budget or extra > limit:
                yield batch
                batch, n_tokens = [], 0
        batch.append(group)
        n_tokens += n_more
    if batch:
        yield batch


def _length(piece: _Piece) -> int:
    return len(piece.context) + len(piece.ending) - 1


def _n_tokens(group: list[_Piece]) -> int:
    return len(group[0].context) + sum(len(piece.ending) for piece in group)


def _score_batch(model: NeuralModel, batch: list[list[_Piece]], found: list[_Found]) -> None:
    """Adds the scores of a batch's pieces."""
    shares = len(batch[0]) > 1
    n_read = min(len(group[0].context) for group in batch) - 1 if shares else 0
    state = None
    if n_read:
        state = model.new_state(len(batch))
        first = [list(group[0].context[:n_read]) for group in batch]
        model.hidden(torch.tensor(first, device=model.device), state)
    rows = [(index, piece) for index, group in enumerate(batch) for piece in group]
    rows.sort(key=lambda row: -_length(row[1]))
    for some in _of_similar_length(rows, n_read):
        width = _length(some[0][1]) - n_read
        ids = torch.zeros(len(some), width, dtype=torch.int64)
        for row, (_, piece) in enumerate(some):
            tokens = (piece.context + piece.ending)[n_read:-1]
            ids[row, : len(tokens)] = torch.tensor(tokens)
        where = torch.tensor([index for index, _ in some], device=model.device)
        own = None if state is None else select(state, where, n_read + width)
        hidden = model.hidden(ids.to(model.device), own)
        _add_scores(model, hidden, [piece for _, piece in some], n_read, found)


def _of_similar_length(
    rows: list[tuple[int, _Piece]], n_read: int
) -> Iterator[list[tuple[int, _Piece]]]:
    """Cuts sorted rows, the longest first, where padding would be more than PADDED."""
    start = n_tokens = 0
    for end, (_, piece) in enumerate(rows):
        n_tokens += _length(piece) - n_read
        padded = (_length(rows[start][1]) - n_read) * (end + 1 - start)
        if padded - n_tokens > PADDED * padded:
            yield rows[start:end]
            start, n_tokens = end, _length(piece) - n_read
    yield rows[start:]


def _add_scores(
    model: NeuralModel,
    hidden: Float[Tensor, "B T D"],
    pieces: list[_Piece],
    n_read: int,
    found: list[_Found],
) -> None:
    """Adds ln p of each piece's ending. `n_read`: tokens before hidden[:, 0]."""
    at: list[Tensor] = []
    for row, piece in enumerate(pieces):
        first = len(piece.context) - 1 - n_read
        at.append(hidden[row, first : first + len(piece.ending)])
    targets = torch.tensor([id for piece in pieces for id in piece.ending], device=hidden.device)
    values, greedy = token_scores(model, torch.cat(at), targets)
    start = 0
    for piece in pieces:
        end = start + len(piece.ending)
        found[piece.number].nats += float(values[start:end].sum())
        found[piece.number].greedy &= bool(greedy[start:end].all())
        start = end


def token_scores(
    model: NeuralModel, hidden: Float[Tensor, "N D"], targets: Int[Tensor, " N"]
) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"]]:
    """ln p of each target in float64, and whether it is the likeliest token; on the CPU."""
    at_once = LOGITS_AT_ONCE if hidden.device.type == "cpu" else LOGITS_AT_ONCE_GPU
    n = max(1, at_once // model.vocab_size)
    values, likeliest = [], []
    for x, y in zip(hidden.split(n), targets.split(n), strict=True):
        logits = model.logits(x[None])[0]
        of_target = logits.gather(1, y[:, None])
        top, index = logits.max(dim=1, keepdim=True)
        total = logits.sub_(top).exp_().sum(dim=1, keepdim=True)
        values.append((of_target - top - total.log())[:, 0])
        likeliest.append(index[:, 0] == y)
    return torch.cat(values).double().cpu(), torch.cat(likeliest).cpu()


def _score_alone(model: LanguageModel, piece: _Piece, found: _Found) -> None:
    """The score of one piece by a model that has no hidden vectors: n-grams."""
    ids = torch.tensor([piece.context + piece.ending], device=model.device)
    n = len(piece.context)
    found.nats += float(model.log_probabilities(ids, n).sum(dtype=torch.float64))
    state = model.new_state(1)
    logits = model.next_logits(ids[:, :n], state)
    for index in range(n, ids.shape[1]):
        if int(logits[0].argmax()) != int(ids[0, index]):
            found.greedy = False
            return
        logits = model.next_logits(ids[:, index : index + 1], state)
