"""All n-grams of a text with their counts, as a trie; counting, finding and weighing them,
compiled.

A node of the trie is an n-gram, from the empty one (node 0) to order n. Nodes are numbered order by
order, those of one order as a dictionary would have them, so the children of node u, which are the
n-grams one token longer, stand side by side, sorted by that token: they are nodes first[u] to
first[u + 1]. `suffix[u]` is the same n-gram without its first token, which is always there:
whatever occurs in a text, its end does.

Counting sorts the positions of the text by the n tokens that begin there (n stable counting sorts,
the last token first), so equal n-grams of every order become neighbours, and one look at the sorted
positions, each beside the one before it, makes all nodes. Any n, any vocabulary; time grows with n
times the tokens, memory is thirteen bytes a token and sixteen a node.

Predicting walks along the text, always at the longest end of what was read that is in the trie (as
Aho and Corasick's automaton does), and looks a token up among the children there, and of the node's
suffixes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from lmsmith.errors import DataError
from lmsmith.tokens.compiled import kernel

MAX_NODES = 2**31 - 1
LONGEST = 255  # the largest n: shared lengths are kept as bytes

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Trie:
    """The n-grams of a text, up to order `n`."""

    token: Ints  # (nodes,) the last token of each n-gram; -1 for the empty one
    count: Ints  # (nodes,) how often it occurs; the empty one as often as there are tokens
    suffix: Ints  # (nodes,)
    first: Ints  # (nodes below order n, and one,)
    levels: npt.NDArray[np.int64]  # (n + 2,) nodes of order k are levels[k] to levels[k + 1]

    @property
    def n(self) -> int:
        return len(self.levels) - 2

    def find(self, ids: npt.NDArray[np.integer]) -> int | None:
        """The node of this n-gram; None if the text does not have it."""
        node, _ = _longest_end(
            np.asarray(ids, np.int32), len(ids), self.token, self.first, self.suffix, self.n
        )
        return int(node) if self.order_of(node) == len(ids) else None

    def order_of(self, node: int) -> int:
        return int(np.searchsorted(self.levels, node, side="right")) - 1


@dataclass(frozen=True)
class Weights:
    """Smoothed counts: p(w | u) = own[child of u by w] + rest[u] p(w | what is less specific).

    Less specific is the suffix of u if `interpolated`, else, and behind the empty context, the
    uniform distribution.
    """

    own: Floats  # (nodes,)
    rest: Floats  # (nodes below order n,)
    # what `rest` is after what the text does not have: 1, or 0 where no smoothing takes care of it
    unknown: float
    interpolated: bool


def count_ngrams(ids: npt.NDArray[np.unsignedinteger], vocab_size: int, n: int) -> Trie:
    """The n-grams of orders 0 to n in `ids` (an array or memory map). Raises DataError for too
    much text.
    """
    assert 1 <= n <= LONGEST, n
    if len(ids) > MAX_NODES:
        raise DataError(
            f"{len(ids):,} tokens are too many for an n-gram model, which counts up to "
            f"{MAX_NODES:,}."
        )
    text = np.array(ids, dtype=np.int32)
    assert len(text)
    assert 0 <= text.min() <= text.max() < vocab_size
    order = _sorted_positions(text, n, vocab_size)
    shared, levels = _shared_lengths(text, order, n)
    if levels[-1] > MAX_NODES:
        raise DataError(
            f"this text has {levels[-1]:,} different n-grams of up to {n} tokens, and an n-gram "
            f"model holds at most "
            f"{MAX_NODES:,}: set a smaller --model.order."
        )
    token, count, first = _nodes(text, order, shared, levels)
    return Trie(token, count, _suffixes(token, first, levels), first, levels)


def continuation_counts(trie: Trie) -> Ints:
    """In how many different ways each n-gram is preceded: how many one longer end in it. Order n
    keeps its counts.
    """
    adjusted = trie.count.copy()
    for k in range(trie.n):
        start, end = trie.levels[k : k + 2]
        longer = trie.suffix[end : trie.levels[k + 2]]
        adjusted[start:end] = np.bincount(longer - start, minlength=end - start)
    return adjusted


def weigh(trie: Trie, counts: Ints, discounts: Floats, added: float, interpolated: bool) -> Weights:
    """own = (c - D(c)) / (total + added), rest = (all that was taken off + added) / (total +
    added).

    `discounts` (n, 4): of order k + 1, what is taken off counts of 0, 1, 2, and of 3 and more.
    """
    unknown = float(interpolated or added > 0)
    own, rest = np.zeros(len(trie.token)), np.full(len(trie.first) - 1, unknown)
    _weigh(trie.first, trie.levels, counts, discounts, added, own, rest)
    return Weights(own, rest, unknown, interpolated)


def log_probabilities(
    trie: Trie, weights: Weights, ids: Ints, n_given: int, vocab_size: int
) -> Floats:
    """ln p of ids[n_given:], each as `distribution` has it after all before it; -inf where p is
    zero.
    """
    out = np.empty(len(ids) - n_given)
    _walk(
        ids, n_given, trie.token, trie.first, trie.suffix, trie.n,
        weights.own, weights.rest, weights.unknown, weights.interpolated, 1 / vocab_size, out,
    )  # fmt: skip
    with np.errstate(divide="ignore"):
        return np.log(out)


def distribution(trie: Trie, weights: Weights, before: Ints, vocab_size: int) -> Floats:
    """p of each token after `before`.

    Where nothing at all is held possible there (maximum likelihood after what the text does not
    have, or ends with), it is what comes after the longest end of `before` that something does
    follow.
    """
    p = np.full(vocab_size, 1 / vocab_size)
    _distribution(
        before, trie.token, trie.first, trie.suffix, trie.n,
        weights.own, weights.rest, weights.unknown, weights.interpolated, p,
    )  # fmt: skip
    return p


# ---- counting ------------------------------------------------------------------------------------


@kernel
def _sorted_positions(text, n, vocab_size):
    """Positions by the n tokens that begin there; at the end of the text there are fewer, and
    fewer come first.
    """
    order, other = np.arange(len(text)).astype(np.int32), np.empty(len(text), np.int32)
    place = np.empty(vocab_size + 2, np.int64)
    for j in range(n - 1, -1, -1):
        place[:] = 0
        place[1] = min(j, len(text))
        for i in range(j, len(text)):
            place[text[i] + 2] += 1
        for key in range(1, vocab_size + 2):
            place[key] += place[key - 1]
        for position in order:
            key = text[position + j] + 1 if position + j < len(text) else 0
            other[place[key]] = position
            place[key] += 1
        order, other = other, order
    return order


@kernel
def _shared_lengths(text, order, n):
    """How many tokens each sorted position shares with the one before it, and where the orders'
    nodes begin.
    """
    shared, levels = np.empty(len(order), np.uint8), np.zeros(n + 2, np.int64)
    levels[1] = 1
    before, n_before = 0, 0
    for rank, position in enumerate(order):
        n_here, k = min(n, len(text) - position), 0
        while k < min(n_here, n_before) and text[position + k] == text[before + k]:
            k += 1
        shared[rank] = k
        for longer in range(k, n_here):
            levels[longer + 2] += 1
        before, n_before = position, n_here
    for k in range(1, n + 2):
        levels[k] += levels[k - 1]
    return shared, levels


@kernel
def _nodes(text, order, shared, levels):
    n = len(levels) - 2
    token, count = np.empty(levels[n + 1], np.int32), np.zeros(levels[n + 1], np.int32)
    first = np.empty(levels[n] + 1, np.int32)
    free = levels.copy()  # the next node of each order
    token[0], count[0], first[0], free[0] = -1, len(text), 1, 1
    for rank, position in enumerate(order):
        n_here = min(n, len(text) - position)
        for k in range(shared[rank] + 1, n_here + 1):
            node = free[k]
            free[k] += 1
            token[node] = text[position + k - 1]
            if k < n:
                first[node] = free[k + 1]
        for k in range(1, n_here + 1):
            count[free[k] - 1] += 1
    first[levels[n]] = levels[n + 1]
    return token, count, first


@kernel
def _suffixes(token, first, levels):
    suffix = np.zeros(len(token), np.int32)
    for node in range(1, len(first) - 1):
        shorter = suffix[node]
        for child in range(first[node], first[node + 1]):
            suffix[child] = _child(token, first, shorter, token[child])
    return suffix


# ---- weighing ------------------------------------------------------------------------------------


@kernel
def _weigh(first, levels, counts, discounts, added, own, rest):
    for k in range(len(discounts)):
        discount = discounts[k]
        for node in range(levels[k], levels[k + 1]):
            total, taken = 0, 0.0
            for child in range(first[node], first[node + 1]):
                total += counts[child]
                taken += discount[min(counts[child], 3)]
            if total:
                for child in range(first[node], first[node + 1]):
                    own[child] = (counts[child] - discount[min(counts[child], 3)]) / (total + added)
                rest[node] = (taken + added) / (total + added)


# ---- predicting ----------------------------------------------------------------------------------


@njit
def _child(token, first, node, wanted):
    """The child of `node` by a token; -1 if there is none."""
    low, high = first[node], first[node + 1]
    while low < high:
        middle = (low + high) >> 1
        if token[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low if low < first[node + 1] and token[low] == wanted else -1


@njit
def _step(token, first, suffix, n, node, order, wanted):
    """The longest end, of up to n - 1 tokens, of what `node` is and a token after it; and its
    order.
    """
    while True:
        child = _child(token, first, node, wanted)
        if child >= 0:
            return (suffix[child], order) if order + 1 == n else (child, order + 1)
        if order == 0:
            return np.int32(0), order
        node, order = suffix[node], order - 1


@kernel
def _longest_end(text, n_read, token, first, suffix, n):
    """The longest end of text[:n_read], of up to n tokens, that is in the trie."""
    node, order = np.int32(0), 0
    for i in range(n_read - 1):
        node, order = _step(token, first, suffix, n, node, order, text[i])
    if n_read:
        node, order = _step(token, first, suffix, n + 1, node, order, text[n_read - 1])
    return node, order


@kernel
def _walk(text, n_given, token, first, suffix, n, own, rest, unknown, interpolated, uniform, out):
    node, order = np.int32(0), 0
    for i in range(len(text)):
        if i >= n_given:
            p, share, at = 0.0, 1.0, node
            if (
                not interpolated and unknown and order < min(i, n - 1)
            ):  # the text does not have this context
                share = unknown
            else:
                while not interpolated and not unknown and first[at] == first[at + 1]:
                    at = suffix[at]
                while True:
                    child = _child(token, first, at, text[i])
                    if child >= 0:
                        p += share * own[child]
                    share *= rest[at]
                    if at == 0 or not interpolated:
                        break
                    at = suffix[at]
            out[i - n_given] = p + share * uniform
        node, order = _step(token, first, suffix, n, node, order, text[i])


@kernel
def _distribution(text, token, first, suffix, n, own, rest, unknown, interpolated, p):
    node, order = np.int32(0), 0
    for i in range(len(text)):
        node, order = _step(token, first, suffix, n, node, order, text[i])
    if not interpolated and unknown and order < min(len(text), n - 1):
        return
    while not interpolated and not unknown and first[node] == first[node + 1]:
        node = suffix[node]
    chain, length = np.empty(n, np.int32), 0  # from the most specific context to the least
    while True:
        chain[length] = node
        length += 1
        if node == 0 or not interpolated:
            break
        node = suffix[node]
    for k in range(length - 1, -1, -1):
        p *= rest[chain[k]]
        for child in range(first[chain[k]], first[chain[k] + 1]):
            p[token[child]] += own[child]
