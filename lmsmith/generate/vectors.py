"""Products of matrix rows with vectors: LLVM vectors of 16 lanes, one fixed order of additions.

`dots_QxR` multiplies Q neighbouring rows of a matrix with R neighbouring vectors. Each of the Q x R
dot products is summed in the same order whatever Q and R are: lane j adds the products of elements
j, j + 16, j + 32 ... one after the other with fused multiply-add, and the 16 lanes are added
pairwise (8 + 8, 4 + 4, 2 + 2, 1 + 1). So a vector gets the same bits alone and in a batch, on any
number of threads, and on any processor. The compiler may not reorder: nothing here is "fast math".

Q x R only decides how often what was loaded is used again: 4 x 1 reads four rows side by side,
which a single vector needs to reach the memory's bandwidth; 4 x 4 uses each load four times, which
a batch needs to reach the processor's arithmetic.

Matrices are float32, float64, bfloat16 (as uint16) or int8; vectors are float32, or float64 for a
float64 matrix. Widths are multiples of 16: callers pad with zeros. Nothing is checked here.
`int8.py` multiplies the int8 matrices of float32 models with integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from lmsmith.tokens.compiled import intrinsic

LANES = 16


def padded(width: int) -> int:
    """The next multiple of LANES."""
    return -(-width // LANES) * LANES


_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


def _dots(n_rows: int, n_vectors: int) -> Any:
    """The intrinsic dots(matrix, row, vectors, vector, width, out): writes
    out[vector + r, row + q] = matrix[row + q, :width] . vectors[vector + r, :width].
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
            ahead = [W.at(builder.add(row, _I64(n_rows + q))) for q in range(n_rows)]
            sums = _loop(builder, W.element, X.element, rows, ahead, inputs, width)
            for r in range(n_vectors):
                for q in range(n_rows):
                    target = Y.at(builder.add(vector, _I64(r)))
                    builder.store(
                        sum_lanes(builder, sums[q][r], builder.fadd),
                        builder.gep(target, [builder.add(row, _I64(q))]),
                    )
            return context.get_dummy_value()

        return signature, generate

    return dots


class MatrixRows:
    """A C-contiguous two-dimensional array in generated code."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        array = context.make_array(kind)(context, builder, value)
        self.builder = builder
        self.element = array.data.type.pointee
        self.bytes = builder.bitcast(array.data, ir.IntType(8).as_pointer())
        self.stride = builder.extract_value(array.strides, 0)

    def at(self, row: Any) -> Any:
        """Pointer to the first element of a row."""
        start = self.builder.gep(self.bytes, [self.builder.mul(row, self.stride)])
        return self.builder.bitcast(start, self.element.as_pointer())


def _loop(
    builder: Any,
    stored: Any,
    number: Any,
    rows: list[Any],
    following_rows: list[Any],
    inputs: list[Any],
    width: Any,
) -> list[list[Any]]:
    """The loop over the width, 16 elements at a time; gives the lanes' sums [row][vector]."""
    wide = ir.VectorType(number, LANES)
    bits = 64 if isinstance(number, ir.DoubleType) else 32
    fma = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(wide, [wide] * 3), f"llvm.fma.v{LANES}f{bits}"
    )
    before = builder.block
    body, after = builder.append_basic_block("dots"), builder.append_basic_block("dots.end")
    builder.branch(body)
    builder.position_at_end(body)
    at = builder.phi(_I64)
    at.add_incoming(_I64(0), before)
    zero = ir.Constant(wide, [number(0.0)] * LANES)
    sums = [[builder.phi(wide) for _ in inputs] for _ in rows]
    xs = [_load(builder, x, at, number, number) for x in inputs]
    for row, partial in zip(rows, sums, strict=True):
        w = _load(builder, row, at, stored, number)
        for x, lanes in zip(xs, partial, strict=True):
            lanes.add_incoming(zero, before)
            lanes.add_incoming(builder.call(fma, [w, x, lanes]), body)
    if len(inputs) > 1:  # the next rows come while these are multiplied with the other vectors
        for ahead in following_rows:
            prefetch(builder, builder.gep(ahead, [at]))
    following = builder.add(at, _I64(LANES))
    at.add_incoming(following, body)
    builder.cbranch(builder.icmp_signed("<", following, width), body, after)
    builder.position_at_end(after)
    return [[lanes.incomings[1][0] for lanes in partial] for partial in sums]


def _load(builder: Any, start: Any, at: Any, stored: Any, number: Any) -> Any:
    """Sixteen elements as numbers."""
    kind = ir.VectorType(stored, LANES)
    pointer = builder.bitcast(builder.gep(start, [at]), kind.as_pointer())
    value = builder.load(pointer, align=1)
    if stored == number:
        return value
    wide = ir.VectorType(number, LANES)
    if stored == _I16:  # bfloat16: the upper half of a float32
        bits = builder.zext(value, ir.VectorType(_I32, LANES))
        sixteen = ir.Constant(ir.VectorType(_I32, LANES), [_I32(16)] * LANES)
        return builder.bitcast(builder.shl(bits, sixteen), wide)
    return builder.sitofp(builder.sext(value, ir.VectorType(_I32, LANES)), wide)


def prefetch(builder: Any, pointer: Any) -> None:
    """Asks for a cache line. It may lie behind the matrix: a prefetch cannot fault."""
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    address = builder.bitcast(pointer, ir.IntType(8).as_pointer())
    builder.call(function, [address, _I32(0), _I32(3), _I32(1)])


def sum_lanes(builder: Any, lanes: Any, add: Callable[[Any, Any], Any]) -> Any:
    """The sum of a power of two of lanes: halves are added until one is left."""
    n = lanes.type.count
    while n > 1:
        n //= 2
        low, high = (chosen(builder, lanes, range(k, k + n)) for k in (0, n))
        lanes = add(low, high)
    return builder.extract_element(lanes, _I32(0))


def chosen(builder: Any, lanes: Any, places: Sequence[int]) -> Any:
    """The lanes at these places."""
    kind = ir.VectorType(_I32, len(places))
    return builder.shuffle_vector(lanes, lanes, ir.Constant(kind, [_I32(i) for i in places]))


dots_1x1 = _dots(1, 1)
dots_4x1 = _dots(4, 1)
dots_4x2 = _dots(4, 2)
dots_4x4 = _dots(4, 4)


@intrinsic
def float32_of_bits(typing_context, bits):
    """The float32 with these 32 bits (an int32)."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate
