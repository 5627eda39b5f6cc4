"""Compiled decoding: ids to bytes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lmsmith.tokens.compiled import address, kernel, load64, store64


def decode_ids(
    ids: npt.NDArray[np.int64], token_bytes: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64]
) -> bytes:
    """Returns the concatenated bytes of `ids`, which must be valid. The bytes of id i are
    token_bytes[starts[i]:starts[i + 1]].

    `token_bytes` must have eight extra bytes at its end, because whole words of 8 bytes are copied.
    """
    n_bytes = int((starts[ids + 1] - starts[ids]).sum())
    out = np.empty(n_bytes + 8, dtype=np.uint8)
    copy_tokens(ids, token_bytes, starts, out)
    return out[:n_bytes].tobytes()


@kernel
def copy_tokens(ids, token_bytes, starts, out):
    source, to = address(token_bytes), address(out)
    for i in ids:
        length = starts[i + 1] - starts[i]
        for offset in range(0, length, 8):  # the next token overwrites excess bytes
            store64(to + offset, load64(source + starts[i] + offset))
        to += length
