"""Compiled kernels of the CPU decoder: one token for each of B sequences.

Every kernel computes each sequence (row b) in an order of operations that depends neither on the
other rows nor on B nor on the number of threads: the same bits alone and in a batch. Sums over the
width use `vectors.py`; everything else is elementwise.

Shapes: B sequences, D model width, N rows of a matrix, H query heads, G key-value heads, K head
width, C positions that a cache holds, S slots. The last axis of every buffer is padded with zeros
to a multiple of 16, and the padding stays zero. Arithmetic is float32, or float64 for a float64
model. Sources of the formulas: `models/layers.py` and `models/attention.py`, which the tests
compare with.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numba
import numpy as np
from numba import extending, prange

from lmsmith.generate.vectors import (
    dots_1x1,
    dots_4x1,
    dots_4x2,
    dots_4x4,
    float32_of_bits,
)
from lmsmith.tokens import ahead
from lmsmith.tokens.compiled import inner, kernel

_ROWS = 32  # of a matrix, per piece of parallel work
_SERIAL = 1 << 15  # a matrix with fewer elements is not worth a second thread
_ROOT = 2 * math.sqrt(2 / math.pi)
_NUMBERS = 4096  # elements per piece of parallel work

parallel_kernel = functools.partial(kernel, parallel=True)

NORMS = {"none": 0, "layernorm": 1, "rmsnorm": 2}
ACTIVATIONS = {"gelu": 0, "gelu-tanh": 1, "silu": 2, "relu2": 3, "swiglu": 4, "geglu": 5}


@inner
def _products(matrix, scale, bias, x, B, begin, end, products, y, add):
    """y[:B, begin:end] = (or +=) matrix[begin:end] @ x[b] * scale + bias."""
    width = matrix.shape[1]
    row = begin
    while row + 4 <= end:
        b = 0
        while b + 4 <= B:
            dots_4x4(matrix, row, x, b, width, products)
            b += 4
        if b + 2 <= B:
            dots_4x2(matrix, row, x, b, width, products)
            b += 2
        if b < B:
            dots_4x1(matrix, row, x, b, width, products)
        row += 4
    while row < end:
        for b in range(B):
            dots_1x1(matrix, row, x, b, width, products)
        row += 1
    finish(scale, bias, B, begin, end, products, y, add)


@inner
def finish(scale, bias, B, begin, end, products, y, add):
    """y[:B, begin:end] = (or +=) products * scale + bias."""
    for b in range(B):
        for row in range(begin, end):
            value = products[b, row]
            if len(scale):
                value *= scale[row]
            if len(bias):
                value += bias[row]
            if add:
                y[b, row] += value
            else:
                y[b, row] = value


@parallel_kernel
def linear(matrix, scale, bias, x, B, products, y, add):
    """y[:B, :N] = matrix @ x[b] * scale + bias, or added to y.

    matrix (N, D): float32, float64, bfloat16 as uint16, or int8; scale, bias (N) or empty; x (B,
    D); products (B, N): scratch; y (B, N).
    """
    N = matrix.shape[0]
    if matrix.size < _SERIAL:
        # Types as below, so that Numba compiles the products once.
        _products(matrix, scale, bias, x, B, np.int64(0), N, products, y, add)
        return
    for piece in prange((N + _ROWS - 1) // _ROWS):
        begin = np.int64(piece) * _ROWS
        _products(matrix, scale, bias, x, B, begin, min(N, begin + _ROWS), products, y, add)


@kernel
def norm(x, y, B, D, kind, eps, gain, bias, ones, scratch):
    """y[b] = the norm of x[b] over D numbers: `kind` of NORMS. gain, bias: (D) or empty.

    ones (1, D): one in the first D places, zero in the padding; scratch (B, B).
    """
    width = x.shape[1]
    for b in range(B):
        mean = x[b, 0] * 0
        if kind == 1:
            dots_1x1(ones, 0, x, b, width, scratch)
            mean = scratch[b, 0] / D
        for i in range(D):
            y[b, i] = x[b, i] - mean
        dots_1x1(y, b, y, b, width, scratch)
        factor = 1 / np.sqrt(scratch[b, b] / D + eps)
        for i in range(D):
            y[b, i] *= factor
        if len(gain):
            for i in range(D):
                y[b, i] *= gain[i]
        if len(bias):
            for i in range(D):
                y[b, i] += bias[i]


@inner
def _rms_norm(x, eps):
    """x / sqrt(mean(x²) + eps), in place."""
    total = x[0] * 0
    for i in range(len(x)):
        total += x[i] * x[i]
    factor = 1 / np.sqrt(total / len(x) + eps)
    for i in range(len(x)):
        x[i] *= factor


@kernel
def place(qkv, B, K, positions, slots, turns, qk_eps, over_heads, gains, q, keys, values):
    """Splits qkv[b] into queries, keys and values, and writes keys and values into the cache.

    qkv (B, (H + 2 G) K); positions, slots (B); turns (T, R/2, 2): cosines and sines of the first R
    numbers of a head, or (0, 0, 0) without rotary positions; qk_eps: eps of the RMS norm of queries
    and keys, negative without one; over_heads: whether it normalizes all heads together; gains (H +
    G, K) or empty: factors of normalized queries and keys; q (B H, K); keys, values (S, G, C, K).
    Position p is stored at p mod C: a window shorter than the text is a ring.
    """
    G, C = keys.shape[1], keys.shape[2]
    H = q.shape[0] // qkv.shape[0]
    for b in range(B):
        at = positions[b]
        if qk_eps >= 0 and over_heads:
            _rms_norm(qkv[b, : H * K], qk_eps)
            _rms_norm(qkv[b, H * K : (H + G) * K], qk_eps)
        for j in range(H + G):
            part = qkv[b, j * K : (j + 1) * K]
            if qk_eps >= 0 and not over_heads:
                _rms_norm(part, qk_eps)
            if len(gains):
                for i in range(K):
                    part[i] *= gains[j, i]
            for i in range(turns.shape[1]):
                even, odd = part[2 * i], part[2 * i + 1]
                cos, sin = turns[at, i, 0], turns[at, i, 1]
                part[2 * i] = even * cos - odd * sin
                part[2 * i + 1] = even * sin + odd * cos
            target = q[b * H + j] if j < H else keys[slots[b], j - H, at % C]
            for i in range(K):
                target[i] = part[i]
        for g in range(G):
            target = values[slots[b], g, at % C]
            for i in range(K):
                target[i] = qkv[b, (H + G + g) * K + i]


@parallel_kernel
def attend(q, B, K, positions, slots, scale, keys, values, scores, y):
    """Attention of one query per head on the cached positions.

    q (B H, K); positions, slots (B); keys, values (S, G, C, K); scores (B H, C): scratch; y (B, H
    K). A sequence at position p sees min(p + 1, C) positions.
    """
    G, C, width = keys.shape[1], keys.shape[2], keys.shape[3]
    H = q.shape[0] // y.shape[0]
    for j in prange(B * H):
        b, h = j // H, j % H
        n = min(positions[b] + 1, C)
        k, v = keys[slots[b], h // (H // G)], values[slots[b], h // (H // G)]
        row = 0
        while row + 4 <= n:
            dots_4x1(k, row, q, j, width, scores)
            row += 4
        while row < n:
            dots_1x1(k, row, q, j, width, scores)
            row += 1
        weights = scores[j]
        most = weights[0]
        for t in range(1, n):
            most = max(most, weights[t])
        total = weights[0] * 0
        for t in range(n):
            weights[t] = math.exp((weights[t] - most) * scale)
            total += weights[t]
        out = y[b, h * K : (h + 1) * K]
        out[:] = 0
        for t in range(n):
            for i in range(K):
                out[i] += weights[t] * v[t, i]
        for i in range(K):
            out[i] /= total


@inner
def _exp32(x):
    """exp in float32 without branches, for loops that the compiler turns into vectors.

    x = n ln 2 + r; exp(r) by its Taylor polynomial of degree 7, for |r| <= ln 2 / 2 within 2e-9;
    ln 2 in two parts, so that r is exact (Cody and Waite 1980).
    """
    x = min(max(x, np.float32(-87)), np.float32(88))
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) - n * np.float32(-2.12194440e-4)
    p = np.float32(1 / 5040)
    p = p * r + np.float32(1 / 720)
    p = p * r + np.float32(1 / 120)
    p = p * r + np.float32(1 / 24)
    p = p * r + np.float32(1 / 6)
    p = p * r + np.float32(1 / 2)
    p = p * r + np.float32(1)
    p = p * r + np.float32(1)
    return p * float32_of_bits(np.int32(np.int32(n) + np.int32(127)) << np.int32(23))


def _exp(x):
    """exp(x) in the precision of x."""
    raise NotImplementedError("compiled only")


def _like(x, number):
    """`number` in the precision of x: a float64 constant would widen the whole expression."""
    raise NotImplementedError("compiled only")


@extending.overload(_exp)
def _exp_of(x):
    if x == numba.float32:
        return lambda x: _exp32(x)
    return lambda x: math.exp(x)


@extending.overload(_like)
def _like_of(x, number):
    if x == numba.float32:
        return lambda x, number: np.float32(number)
    return lambda x, number: np.float64(number)


@inner
def _sigmoid(x):
    one = _like(x, 1)
    return one / (one + _exp(-x))


@inner
def _gelu_tanh(x):
    """x/2 (1 + tanh(u)) = x sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3)."""
    return x * _sigmoid(x * (_like(x, _ROOT) + _like(x, _ROOT * 0.044715) * x * x))


@inner
def _gelu(x):
    half, root = _like(x, 0.5), _like(x, 0.7071067811865476)
    return half * x * (_like(x, 1) + math.erf(x * root))


@parallel_kernel
def activate(h, B, F, kind, y):
    """y[b, :F] = activation of h[b], `kind` of ACTIVATIONS; gated ones read h[b, :2 F]."""
    pieces = (F + _NUMBERS - 1) // _NUMBERS
    for piece in prange(B * pieces):
        b, begin = piece // pieces, piece % pieces * _NUMBERS
        end = min(F, begin + _NUMBERS)
        x, out = h[b, begin:end], y[b, begin:end]
        gated = h[b, F + begin : F + end] if kind >= 4 else x
        # One loop for each kind, so that each becomes vector code.
        if kind == 0:
            for i in range(end - begin):
                out[i] = _gelu(x[i])
        elif kind == 1:
            for i in range(end - begin):
                out[i] = _gelu_tanh(x[i])
        elif kind == 2:
            for i in range(end - begin):
                out[i] = x[i] * _sigmoid(x[i])
        elif kind == 3:
            for i in range(end - begin):
                positive = max(x[i], _like(x[i], 0))
                out[i] = positive * positive
        elif kind == 4:
            for i in range(end - begin):
                out[i] = x[i] * _sigmoid(x[i]) * gated[i]
        else:
            for i in range(end - begin):
                out[i] = _gelu(x[i]) * gated[i]


@parallel_kernel
def soft_cap(logits, B, V, cap):
    """logits[b, :V] = cap tanh(logits[b, :V] / cap); cap in the precision of the logits."""
    pieces = (V + _NUMBERS - 1) // _NUMBERS
    for piece in prange(B * pieces):
        b, begin = piece // pieces, piece % pieces * _NUMBERS
        part = logits[b, begin : min(V, begin + _NUMBERS)]
        for i in range(len(part)):
            u = part[i] / cap
            part[i] = cap * (_like(u, 2) * _sigmoid(u + u) - _like(u, 1))


ahead.part("matrices", 0.9, linear, norm)
ahead.part("attention", 1.4, place, attend)
ahead.part("activation", 0.6, activate)
ahead.part("soft-cap", 0.4, soft_cap)


def compile_ahead(*before: str, later: Sequence[str] = ()) -> None:
    """Starts to compile what generating needs, in other processes, if it is not on disk. `before`,
    `later`: parts that are needed before and afterwards.
    """
    from lmsmith.generate import filters  # names the part "sampling"

    assert filters
    ahead.begin(*before, "matrices", "attention", "activation", "sampling", later=later)
