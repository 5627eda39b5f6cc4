"""A trie of all n-grams of a text with their counts: compiled functions that build and query it.

A node of the trie is an n-gram, from the empty one (node 0) to order n. Nodes are numbered order by
order, and in lexicographic order within an order. So the children of node u (the n-grams that are
one token longer) are adjacent and sorted by their last token: nodes first[u] to first[u + 1].
`suffix[u]` is the n-gram without its first token. It always exists, because every suffix of an
n-gram in a text is in the text too.

Counting sorts the positions of the text by the n tokens that start there (n stable counting sorts,
last token first). Equal n-grams of every order become neighbours, and one pass over the sorted
positions, comparing each with the one before, creates all nodes. Any n and any vocabulary work.
Time is proportional to n times the number of tokens; memory is 13 bytes per token and 16 per node.

Predicting walks along the text and always stays at the longest suffix of the tokens read that is in
the trie (as the Aho-Corasick automaton does). It looks a token up among the children of that node
and of its suffixes.
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
    count: Ints  # (nodes,) how often it occurs; for the empty one, the number of tokens
    suffix: Ints  # (nodes,)
    first: Ints  # (nodes below order n, plus one,)
    levels: npt.NDArray[np.int64]  # (n + 2,) nodes of order k are levels[k] to levels[k + 1]

    @property
    def n(self) -> int:
        return len(self.levels) - 2

    def find(self, ids: npt.NDArray[np.integer]) -> int | None:
        """Returns the node of this n-gram; None if it does not occur in the text."""
        node, _ = _longest_end(
            np.asarray(ids, np.int32), len(ids), self.token, self.first, self.suffix, self.n
        )
        return int(node) if self.order_of(node) == len(ids) else None

    def order_of(self, node: int) -> int:
        return int(np.searchsorted(self.levels, node, side="right")) - 1


@dataclass(frozen=True)
class Weights:
    """Smoothed counts: p(w | u) = own[child of u by w] + rest[u] p(w | shorter context).

    If `interpolated`, the shorter context is the suffix of u. Otherwise, and for the empty context,
    the uniform distribution takes the place of p(w | shorter context).
    """

    own: Floats  # (nodes,)
    rest: Floats  # (nodes below order n,)
    unknown: float  # `rest` of contexts that are not in the text: 1, or 0 without smoothing
    interpolated: bool


def count_ngrams(ids: npt.NDArray[np.unsignedinteger], vocab_size: int, n: int) -> Trie:
    """Counts the n-grams of orders 0 to n in `ids` (an array or memory map).

    Raises DataError if there are too many tokens or too many distinct n-grams.
    """
    assert 1 <= n <= LONGEST, n
    if len(ids) > MAX_NODES:
        raise DataError(
            f"the training text has {len(ids):,} tokens, and an n-gram model counts at most "
            f"{MAX_NODES:,}: train on less text."
        )
    text = np.array(ids, dtype=np.int32)
    assert len(text)
    assert 0 <= text.min() <= text.max() < vocab_size
    order = _sorted_positions(text, n, vocab_size)
    shared, levels = _shared_lengths(text, order, n)
    if levels[-1] > MAX_NODES:
        raise DataError(
            f"the training text has {levels[-1]:,} different n-grams of up to {n} tokens, and an "
            f"n-gram model holds at most {MAX_NODES:,}: set a smaller --model.order."
        )
    token, count, first = _nodes(text, order, shared, levels)
    return Trie(token, count, _suffixes(token, first, levels), first, levels)


def continuation_counts(trie: Trie) -> Ints:
    """Distinct tokens that precede each n-gram. N-grams of order n keep their counts."""
    adjusted = trie.count.copy()
    for k in range(trie.n):
        start, end = trie.levels[k : k + 2]
        longer = trie.suffix[end : trie.levels[k + 2]]
        adjusted[start:end] = np.bincount(longer - start, minlength=end - start)
    return adjusted


def weigh(trie: Trie, counts: Ints, discounts: Floats, added: float, interpolated: bool) -> Weights:
    """own = (c - D(c)) / (total + added), rest = (all discounts + added) / (total + added).

    `discounts` (n, 4): row k holds what is subtracted from counts of 0, 1, 2, and 3 or more in
    order k + 1.
    """
    unknown = float(interpolated or added > 0)
    own, rest = np.zeros(len(trie.token)), np.full(len(trie.first) - 1, unknown)
    _weigh(trie.first, trie.levels, counts, discounts, added, own, rest)
    return Weights(own, rest, unknown, interpolated)


def log_probabilities(
    trie: Trie, weights: Weights, ids: Ints, n_given: int, vocab_size: int
) -> Floats:
    """ln p of ids[n_given:], given all tokens before each, as in `distribution`; -inf for p = 0."""
    out = np.empty(len(ids) - n_given)
    _walk(
        ids, n_given, trie.token, trie.first, trie.suffix, trie.n,
        weights.own, weights.rest, weights.unknown, weights.interpolated, 1 / vocab_size, out,
    )  # fmt: skip
    with np.errstate(divide="ignore"):
        return np.log(out)


def distribution(trie: Trie, weights: Weights, before: Ints, vocab_size: int) -> Floats:
    """p of each token after `before`.

    With maximum likelihood, nothing is possible after a context that the text does not contain, or
    only contains at its end. Then the context is shortened from the front until some token follows
    it.
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
    """Returns the positions, sorted by the n tokens that start there. Shorter sequences, at the end
    of the text, come first.
    """
    order, other = np.arange(len(text)).astype(np.int32), np.empty(len(text), np.int32)
    slot = np.empty(vocab_size + 2, np.int64)
    for j in range(n - 1, -1, -1):
        slot[:] = 0
        slot[1] = min(j, len(text))
        for i in range(j, len(text)):
            slot[text[i] + 2] += 1
        for key in range(1, vocab_size + 2):
            slot[key] += slot[key - 1]
        for position in order:
            key = text[position + j] + 1 if position + j < len(text) else 0
            other[slot[key]] = position
            slot[key] += 1
        order, other = other, order
    return order


@kernel
def _shared_lengths(text, order, n):
    """Returns the number of tokens that each sorted position shares with the one before, and the
    first node of each order.
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
    """Returns the child of `node` by a token (binary search); -1 if there is none."""
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
    """Reads one token: the longest suffix in the trie, of up to n - 1 tokens, and its order."""
    while True:
        child = _child(token, first, node, wanted)
        if child >= 0:
            return (suffix[child], order) if order + 1 == n else (child, order + 1)
        if order == 0:
            return np.int32(0), order
        node, order = suffix[node], order - 1


@kernel
def _longest_end(text, n_read, token, first, suffix, n):
    """Returns the longest suffix of text[:n_read], of up to n tokens, that is in the trie."""
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
            if not interpolated and unknown and order < min(i, n - 1):
                share = unknown  # this context is not in the text
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
