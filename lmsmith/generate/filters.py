"""Compiled kernels of sampling: softmax, top-k, top-p, min-p and the draw, for one row of logits.

All arithmetic is float64 in a fixed order of operations. A row gives the same id alone and in a
batch, on any number of threads.

No row is sorted. `_cut` finds the smallest set of the largest numbers that has a given weight (k
ids for top-k, probability p for top-p): it adds up the weights in 1024 buckets of similar numbers,
and sorts only the bucket in which the sum reaches the target. Top-k first computes the maxima of
1024 groups. The k-th largest maximum is a lower bound of the k-th largest number, and only numbers
above it are looked at again.

The draw adds the probabilities in blocks of 512 and looks only into the block that contains u.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import types

from lmsmith.tokens import ahead
from lmsmith.tokens.compiled import inner, intrinsic, kernel

NOT_NUMBERS, NONE_LEFT = -1, -2  # instead of an id: NaN or +inf; all are -inf
_DRAWN = -3  # the id is drawn

_GROUPS = 1024  # of numbers; group j holds the ids j, j + 1024, j + 2048 ...
_BUCKETS = 1024
_BLOCK, _LANES = 512, 64


@intrinsic
def _bits_of(typing_context, number):
    """The 64 bits of a float64."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.int64(types.float64), generate


@intrinsic
def _float_of(typing_context, bits):
    """The float64 with these 64 bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate


@inner
def _exp(x):
    """exp(x) for x <= 0, within 2 units in the last place; 0 below -708.

    Without branches, so that loops become vector code. x = n ln 2 + r; exp(r) by its Taylor
    polynomial of degree 13, for |r| <= ln 2 / 2 within 1e-17; ln 2 in two parts, so that r is
    exact (Cody and Waite 1980). Adding 1.5 * 2**52 rounds to an integer in the low bits.
    """
    limited = x if x > -708.0 else -708.0
    rounded = limited * 1.4426950408889634 + 6755399441055744.0
    n = rounded - 6755399441055744.0
    r = (limited - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10
    p = r * (1 / 6227020800) + 1 / 479001600
    p = p * r + 1 / 39916800
    p = p * r + 1 / 3628800
    p = p * r + 1 / 362880
    p = p * r + 1 / 40320
    p = p * r + 1 / 5040
    p = p * r + 1 / 720
    p = p * r + 1 / 120
    p = p * r + 1 / 24
    p = p * r + 1 / 6
    p = p * r + 1 / 2
    p = p * r + 1.0
    p = p * r + 1.0
    scaled = p * _float_of((_bits_of(rounded) + 1023) << 52)
    return scaled if x >= -708.0 else 0.0


def _small(V: int) -> int:
    """Room for the groups, the buckets, and the sums of all blocks."""
    return max(_GROUPS, _BUCKETS, V // _BLOCK + 1)


@inner
def _n_nan(z):
    n = 0
    for i in range(len(z)):
        n += z[i] != z[i]
    return n


@inner
def _maxima(z, maxima):
    """The largest number of each group, and of all."""
    n = min(len(z), _GROUPS)
    maxima[:] = -np.inf
    for j in range(n):  # an assignment of slices takes a second longer to compile
        maxima[j] = z[j]
    for begin in range(_GROUPS, len(z), _GROUPS):
        part = z[begin : begin + _GROUPS]
        for j in range(len(part)):
            maxima[j] = part[j] if part[j] > maxima[j] else maxima[j]
    top = maxima[0]
    for j in range(n):
        top = max(top, maxima[j])
    return top


@inner
def _least_finite(z):
    least = np.inf
    for i in range(len(z)):
        least = z[i] if -np.inf < z[i] < least else least
    return least


@inner
def _cut(z, weights, top, width, target, masses):
    """The smallest set of the largest z whose weights add up to `target`: (cut, last).

    The set contains all z > cut, and of those equal to it the ones up to position `last`. `width`
    is a guess of how far below the top the cut is; it only decides the speed.
    """
    scale = (_BUCKETS - 1) / width if width > 1e-300 else 0.0
    masses[:] = 0.0
    for i in range(len(z)):
        masses[_bucket(z[i], top, scale)] += weights[i]
    mass, bucket = 0.0, 0
    while bucket < _BUCKETS - 1 and mass + masses[bucket] < target:
        mass += masses[bucket]
        bucket += 1
    members = np.empty(len(z), np.int64)
    n = 0
    for i in range(len(z)):
        if _bucket(z[i], top, scale) == bucket:
            members[n] = i
            n += 1
    if n == 0:  # rounding: all weights together are below the target
        return -np.inf, 0
    # A heap instead of `np.argsort`, which takes a second longer to compile.
    for k in range(n // 2 - 1, -1, -1):
        _sift(z, members, k, n)
    while n > 1:
        mass += weights[members[0]]
        if mass >= target:
            break
        n -= 1
        members[0] = members[n]
        _sift(z, members, 0, n)
    last = members[0]
    return z[last], last


@inner
def _sift(z, heap, k, n):
    """Moves heap[k] down to its place: the largest z is on top, of equal ones the lowest id."""
    moved = heap[k]
    while 2 * k + 1 < n:
        child = 2 * k + 1
        if child + 1 < n and _is_before(z, heap[child + 1], heap[child]):
            child += 1
        if _is_before(z, moved, heap[child]):
            break
        heap[k] = heap[child]
        k = child
    heap[k] = moved


@inner
def _is_before(z, i, j):
    return (z[i] > z[j]) | ((z[i] == z[j]) & (i < j))


@inner
def _bucket(number, top, scale):
    place = (top - number) * scale
    return int(place if place < _BUCKETS - 1 else _BUCKETS - 1)


@inner
def _is_kept(number, i, cut, last):
    return (number > cut) | ((number == cut) & (i <= last))


@inner
def _largest(z, k, top, maxima, masses, weights, ids, kept):
    """The k largest of z, in the order of their ids; of equal ones the lower ids.

    Writes ids[:k] and kept[:k]; `weights`, `ids` and `kept` are as long as z. 1 <= k <= len(z).
    """
    weights[:] = 1.0
    least = bound = -np.inf
    if k <= min(len(z), _GROUPS) // 2:
        groups = maxima[: min(len(z), _GROUPS)]
        width = top - _least_finite(groups)
        bound, _ = _cut(groups, weights, top, width, float(k), masses)
        least = bound
    if least == -np.inf:
        least = _least_finite(z)
    n = 0
    for i in range(len(z)):
        if z[i] >= bound:
            ids[n], kept[n] = i, z[i]
            n += 1
    cut, last = _cut(kept[:n], weights, top, top - least, float(k), masses)
    m = 0
    for i in range(n):
        if _is_kept(kept[i], i, cut, last):
            ids[m], kept[m] = ids[i], kept[i]
            m += 1


@inner
def _block_sum(e, lanes):
    """The sum of at most 512 numbers: in 64 lanes, then pairwise."""
    lanes[:] = 0.0
    for begin in range(0, len(e), _LANES):
        part = e[begin : begin + _LANES]
        for j in range(len(part)):
            lanes[j] += part[j]
    half = _LANES // 2
    while half:
        low, high = lanes[:half], lanes[half : 2 * half]
        for j in range(half):
            low[j] += high[j]
        half //= 2
    return lanes[0]


@inner
def _total(e, sums, lanes):
    """The sum of e; `sums` gets that of each block."""
    total = 0.0
    for block in range((len(e) + _BLOCK - 1) // _BLOCK):
        sums[block] = _block_sum(e[block * _BLOCK : (block + 1) * _BLOCK], lanes)
        total += sums[block]
    return total


@inner
def _exponentials(z, top, temperature, e):
    for i in range(len(z)):
        e[i] = _exp((z[i] - top) / temperature)


@inner
def _keep_top_p(z, e, top, temperature, share, total, masses):
    """Sets e to zero outside the smallest set of the largest z that has `share` of the total."""
    # Numbers with e below this floor together have less than what may be dropped.
    floor = 0.5 * (1 - share) * total / len(z)
    width = -math.log(min(floor, 0.5)) * temperature
    if temperature > 4:  # nearly equal probabilities: the buckets must not be wider than the row
        width = min(width, top - _least_finite(z))
    cut, last = _cut(z, e, top, width, share * total, masses)
    for i in range(len(z)):
        e[i] = e[i] if _is_kept(z[i], i, cut, last) else 0.0


@inner
def _draw(e, u, total, sums):
    """The first position at which the running sum exceeds u times the total."""
    threshold, running, block = u * total, 0.0, 0
    while running + sums[block] <= threshold:
        running += sums[block]
        block += 1
    last = -1
    for i in range(block * _BLOCK, min(len(e), (block + 1) * _BLOCK)):
        running += e[i]
        if running > threshold:
            return i
        if e[i] > 0:
            last = i
    return last  # the block's sum in another order was larger in its last bits


@inner
def _first(z, top):
    for i in range(len(z)):
        if z[i] == top:
            return i
    return -1


@inner
def _without_draw(z, top, temperature, p):
    """An error, the most likely id at temperature 0, or _DRAWN. Sets p to zero, or to one there."""
    if _n_nan(z) or top == np.inf:
        return NOT_NUMBERS
    if top == -np.inf:
        return NONE_LEFT
    p[:] = 0.0
    if temperature != 0:
        return _DRAWN
    best = _first(z, top)
    if len(p):
        p[best] = 1.0
    return best


class Scratch:
    """Memory that the kernels use for a row of V numbers."""

    def __init__(self, V: int) -> None:
        self.z = np.empty(V)  # the logits; the kernels below do not change them
        self.work = np.empty((2, V)), np.empty(V, np.int64), np.empty((4, _small(V)))


def choose(z, work, temperature, top_k, top_p, min_p, u, p):
    """The id of one row z (V) of logits, or NOT_NUMBERS or NONE_LEFT.

    `u` is a uniform number. If p (V) is not empty, it gets the probabilities, and the id returned
    has no meaning unless it is negative.
    """
    # Two functions, so that the first text without top-k and top-p need not wait for the compiler.
    if 0 < top_k < len(z) or top_p < 1 or min_p > 0:
        return _choose_filtered(z, work, temperature, top_k, top_p, min_p, u, p)
    return _choose(z, work, temperature, u, p)


@kernel
def _choose(z, work, temperature, u, p):
    """`choose` without filters."""
    numbers, _, small = work
    e, maxima, sums, lanes = numbers[0], small[0, :_GROUPS], small[2], small[3, :_LANES]
    top = _maxima(z, maxima)
    id = _without_draw(z, top, temperature, p)
    if id != _DRAWN:
        return id
    _exponentials(z, top, temperature, e)
    total = _total(e, sums, lanes)
    for i in range(len(p)):
        p[i] = e[i] / total
    return _draw(e, u, total, sums)


ahead.part("sampling", 1.0, _choose)


@kernel
def _choose_filtered(z, work, temperature, top_k, top_p, min_p, u, p):
    """`choose` with top-k, top-p or min-p."""
    numbers, ids, small = work
    e, kept = numbers[0], numbers[1]
    maxima, masses, sums, lanes = (
        small[0, :_GROUPS],
        small[1, :_BUCKETS],
        small[2],
        small[3, :_LANES],
    )
    top = _maxima(z, maxima)
    id = _without_draw(z, top, temperature, p)
    if id != _DRAWN:
        return id
    filtered = 0 < top_k < len(z)
    if filtered:
        _largest(z, top_k, top, maxima, masses, e, ids, kept)
        z, e = kept[:top_k], e[:top_k]
    _exponentials(z, top, temperature, e)
    if top_p < 1:
        _keep_top_p(z, e, top, temperature, top_p, _total(e, sums, lanes), masses)
    if min_p > 0:
        for i in range(len(e)):
            e[i] = e[i] if e[i] >= min_p else 0.0
    total = _total(e, sums, lanes)
    for i in range(min(len(e), len(p))):
        p[ids[i] if filtered else i] = e[i] / total
    drawn = _draw(e, u, total, sums)
    return ids[drawn] if filtered else drawn


@kernel
def log_normalizer(z, work):
    """The logarithm of the sum of the exponentials of z (V); NaN if z has NaN or +inf."""
    numbers, _, small = work
    e, maxima = numbers[0], small[0, :_GROUPS]
    sums, lanes = small[2], small[3, :_LANES]
    top = _maxima(z, maxima)
    if _n_nan(z):
        return np.nan
    _exponentials(z, top, 1.0, e)
    return top + math.log(_total(e, sums, lanes))


@kernel
def largest(z, work, k):
    """The ids of the k largest of z (V), in the order of the ids; of equal ones the lower ids."""
    numbers, ids, small = work
    maxima, masses = small[0, :_GROUPS], small[1, :_BUCKETS]
    _largest(z, k, _maxima(z, maxima), maxima, masses, numbers[0], ids, numbers[1])
    return ids[:k].copy()


# One part: `_choose_filtered` and `largest` call the same functions.
ahead.part("filters", 1.9, _choose_filtered, log_normalizer, largest)
