"""Tensor types of GGUF: sizes of their blocks, and dequantization to float32.

| type | a block | bytes | value |
|---|---|---|---|
| F32, F16, BF16 | one number | 4, 2, 2 | itself |
| Q8_0 | 32 numbers | half d, 32 int8 q | d q |
| Q4_0 | 32 numbers | half d, 16 bytes | d (q - 8) |
| Q4_1 | 32 numbers | half d, half m, 16 bytes | d q + m |

In Q4_0 and Q4_1, byte i has number i in its lower four bits and number i + 16 in its upper four.
Source: ggml's `ggml-common.h` and `ggml-quants.c` (`dequantize_row_q4_0` and others).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

# ggml's numbers of tensor types. A missing number is a type that ggml has removed.
NAMES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1"},
    **{10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS"},
    **{17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S"},
    **{23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M"},
    **{30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0"},
}
# Types that `dequantize` reads: values and bytes of a block.
BLOCKS = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q8_0": (32, 34),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
}
_AT_ONCE = 1 << 15  # blocks: what is computed at once stays in the CPU cache


def dequantize(raw: Bytes, kind: str, out: Floats) -> None:
    """Writes the numbers of a tensor of type `kind` to `out`, in order, from its bytes."""
    if kind == "F32":
        out[:] = raw.view("<f4")
        return
    if kind == "F16":
        out[:] = raw.view("<f2")
        return
    if kind == "BF16":
        np.left_shift(raw.view("<u2"), 16, out=out.view(np.uint32), dtype=np.uint32)
        return
    n_values, n_bytes = BLOCKS[kind]
    assert n_values > 1, kind
    blocks, values = raw.reshape(-1, n_bytes), out.reshape(-1, n_values)
    for start in range(0, len(blocks), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        with np.errstate(invalid="ignore"):  # a scale that is not finite: the caller looks for NaN
            _dequantize_blocks(blocks[part], kind, values[part])


def _dequantize_blocks(blocks: Bytes, kind: str, out: Floats) -> None:
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)  # (N, 1)
    if kind == "Q8_0":
        np.multiply(blocks[:, 2:].view(np.int8), scale, out=out)
        return
    packed = blocks[:, -16:]
    np.bitwise_and(packed, 15, out=out[:, :16], casting="unsafe")
    np.right_shift(packed, 4, out=out[:, 16:], casting="unsafe")
    if kind == "Q4_0":
        out -= 8
        out *= scale
    else:
        assert kind == "Q4_1"
        out *= scale
        out += blocks[:, 2:4].copy().view("<f2").astype(np.float32)
