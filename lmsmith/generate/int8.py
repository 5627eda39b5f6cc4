"""Products of int8 matrices with vectors that are rounded to 16 bits: exact sums of integers.

A vector is divided by its largest absolute value over 32,767 and rounded. That adds less than a
hundredth of the error that rounding the matrix to int8 already made, and processors multiply and
add 32 such pairs in one instruction, where converting int8 to float32 takes most of the time.

Sums of integers are exact, so a vector gets the same bits alone and in a batch, on any number of
threads, in any order of additions. `products` multiplies single rows with a single vector, which
reads memory as one stream, and 4 rows with 4 or 2 vectors, which uses each load several times.

Widths of matrices are multiples of 32, padded with zeros. Nothing is checked here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types

from lmsmith.generate.kernels import finish, parallel_kernel
from lmsmith.generate.vectors import MatrixRows, chosen, prefetch, sum_lanes
from lmsmith.tokens import ahead
from lmsmith.tokens.compiled import inner, intrinsic

PAIRS = 32
"""Numbers that are multiplied at once; their products are added in pairs, into 16 lanes."""

_ROWS = 32  # of a matrix, per piece of parallel work
_SERIAL = 1 << 15  # a matrix with fewer elements is not worth a second thread
_LANES = PAIRS // 2
_LARGEST = 32767
_TINY = 1e-30  # a vector without larger numbers counts as zeros
_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


def _dots(n_rows: int, n_vectors: int, n_pieces: int = 1) -> Any:
    """The intrinsic dots(matrix, row, vectors, vector, width, out): writes
    out[vector + r, row + q] = matrix[row + q, :width] . vectors[vector + r, :width] as float32.

    `n_pieces` of PAIRS numbers are multiplied in a pass of the loop; `width` is a multiple of them.
    """

    @intrinsic
    def dots(typing_context, matrix, row, vectors, vector, width, out):
        signature = types.void(matrix, types.int64, vectors, types.int64, types.int64, out)

        def generate(context, builder, signature, arguments):
            W, X, Y = (
                MatrixRows(context, builder, signature.args[i], arguments[i]) for i in (0, 2, 5)
            )
            _, row, _, vector, width, _ = arguments
            rows = [W.at(builder.add(row, _I64(q))) for q in range(n_rows)]
            inputs = [X.at(builder.add(vector, _I64(r))) for r in range(n_vectors)]
            following = [W.at(builder.add(row, _I64(n_rows + q))) for q in range(n_rows)]
            if n_vectors == 1:
                following = []
            sums = _loop(builder, rows, following, inputs, width, n_pieces)
            for r in range(n_vectors):
                target = Y.at(builder.add(vector, _I64(r)))
                for q in range(n_rows):
                    # The sum of all lanes may need 64 bits.
                    lanes = builder.sext(sums[q][r], ir.VectorType(_I64, _LANES))
                    total = sum_lanes(builder, lanes, builder.add)
                    total = builder.sitofp(total, Y.element)
                    builder.store(total, builder.gep(target, [builder.add(row, _I64(q))]))
            return context.get_dummy_value()

        return signature, generate

    return dots


def _loop(
    builder: Any,
    rows: list[Any],
    following_rows: list[Any],
    inputs: list[Any],
    width: Any,
    n_pieces: int,
) -> list[list[Any]]:
    """The loop over the width; gives the lanes' sums [row][vector]."""
    lanes = ir.VectorType(_I32, _LANES)
    before = builder.block
    body, after = builder.append_basic_block("dots"), builder.append_basic_block("dots.end")
    builder.branch(body)
    builder.position_at_end(body)
    at = builder.phi(_I64)
    at.add_incoming(_I64(0), before)
    zero = ir.Constant(lanes, [_I32(0)] * _LANES)
    # Sums of their own for each piece, so that an addition does not wait for the one before.
    sums = [[[builder.phi(lanes) for _ in range(n_pieces)] for _ in inputs] for _ in rows]
    for piece in range(n_pieces):
        place = builder.add(at, _I64(piece * PAIRS))
        xs = [_load(builder, x, place) for x in inputs]
        for row, of_row in zip(rows, sums, strict=True):
            w = _load(builder, row, place)
            for x, of_vector in zip(xs, of_row, strict=True):
                total = of_vector[piece]
                total.add_incoming(zero, before)
                added = builder.add(total, _products_in_pairs(builder, w, x))
                total.add_incoming(added, body)
        # The next rows come while these are multiplied with the other vectors.
        for row in following_rows:
            prefetch(builder, builder.gep(row, [place]))
    following = builder.add(at, _I64(n_pieces * PAIRS))
    at.add_incoming(following, body)
    builder.cbranch(builder.icmp_signed("<", following, width), body, after)
    builder.position_at_end(after)
    return [[_total(builder, pieces) for pieces in of_row] for of_row in sums]


def _total(builder: Any, pieces: list[Any]) -> Any:
    total = pieces[0].incomings[1][0]
    for piece in pieces[1:]:
        total = builder.add(total, piece.incomings[1][0])
    return total


def _load(builder: Any, start: Any, at: Any) -> Any:
    """PAIRS numbers as int32. The compiler sees where they come from and multiplies 16 bits."""
    stored = ir.VectorType(start.type.pointee, PAIRS)
    pointer = builder.bitcast(builder.gep(start, [at]), stored.as_pointer())
    return builder.sext(builder.load(pointer, align=1), ir.VectorType(_I32, PAIRS))


def _products_in_pairs(builder: Any, w: Any, x: Any) -> Any:
    """w[2i] x[2i] + w[2i + 1] x[2i + 1]: one instruction with AVX2 or AVX-512."""
    products = builder.mul(w, x)
    even, odd = (chosen(builder, products, range(k, PAIRS, 2)) for k in (0, 1))
    return builder.add(even, odd)


dots_1x1 = _dots(1, 1)
dots_1x1_wide = _dots(1, 1, 4)
dots_4x2 = _dots(4, 2)
dots_4x4 = _dots(4, 4)


@inner
def rounded(x, B, width, vectors, steps):
    """Rounds x[b] to multiples of steps[b]: vectors[b, :width] are int16.

    steps[b] is NaN for a vector with a number that is not finite. A lane adds width / 16 products
    of at most 127 * 32767; wider vectors get smaller integers, so that it cannot overflow.
    """
    most = min(_LARGEST, ((1 << 31) - 1) // (127 * (width // _LANES)))
    n = min(width, x.shape[1])
    for b in range(B):
        top = np.float32(0)
        n_finite = 0
        for i in range(n):
            size = abs(x[b, i])
            n_finite += size < np.inf
            top = max(top, size)
        if n_finite < n or top < _TINY:
            steps[b] = 0 if n_finite == n else np.nan
            vectors[b, :width] = 0
            continue
        steps[b] = top / np.float32(most)
        factor = np.float32(most) / top
        for i in range(n):
            vectors[b, i] = np.int16(math.floor(x[b, i] * factor + np.float32(0.5)))
        vectors[b, n:width] = 0


@inner
def _products(matrix, scale, bias, vectors, steps, B, begin, end, products, y, add):
    """y[:B, begin:end] = (or +=) matrix[begin:end] @ vectors[b] * steps[b] * scale + bias."""
    width = matrix.shape[1]
    row = begin
    while B > 1 and row + 4 <= end:
        b = 0
        while b + 4 <= B:
            dots_4x4(matrix, row, vectors, b, width, products)
            b += 4
        if b + 2 <= B:
            dots_4x2(matrix, row, vectors, b, width, products)
            b += 2
        if b < B:
            for q in range(4):
                dots_1x1(matrix, row + q, vectors, b, width, products)
        row += 4
    wide = width % (4 * PAIRS) == 0
    while row < end:
        for b in range(B):
            if wide:
                dots_1x1_wide(matrix, row, vectors, b, width, products)
            else:
                dots_1x1(matrix, row, vectors, b, width, products)
        row += 1
    for b in range(B):
        for row in range(begin, end):
            products[b, row] *= steps[b]
    finish(scale, bias, B, begin, end, products, y, add)


@parallel_kernel
def linear_int8(matrix, scale, bias, x, B, vectors, steps, products, y, add):
    """y[:B, :N] = matrix @ x[b] * scale + bias, or added to y, with x[b] rounded to 16 bits.

    matrix (N, D) int8; scale (N); bias (N) or empty; x (B, D or more) float32; vectors (B, D or
    more) int16, steps (B), products (B, N): scratch; y (B, N).
    """
    N, width = matrix.shape
    rounded(x, B, width, vectors, steps)
    if matrix.size < _SERIAL:
        # Types as below, so that Numba compiles the products once.
        _products(matrix, scale, bias, vectors, steps, B, np.int64(0), N, products, y, add)
        return
    for piece in prange((N + _ROWS - 1) // _ROWS):
        begin = np.int64(piece) * _ROWS
        end = min(N, begin + _ROWS)
        _products(matrix, scale, bias, vectors, steps, B, begin, end, products, y, add)


ahead.part("int8", 1.2, linear_int8)
