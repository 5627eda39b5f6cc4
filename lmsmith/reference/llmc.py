"""llm.c's checkpoints: GPT-2's weights in one file, read and written byte for byte.

The header is 256 little-endian int32. The first eight are used:

    0 magic     1 version    2 context   3 vocabulary   4 layers   5 heads   6 width   7 padded
    20240326    3 or 5                                                                 vocabulary

The 16 tensors of `blocks.parameter_shapes` follow, one after the other, in float32 (version 3) or
bfloat16 (version 5). Source: llm.c, `train_gpt2.py` (write_model) and `train_gpt2.c`
(gpt2_build_from_checkpoint).

NumPy has no bfloat16. A bfloat16 is the upper half of a float32: it is read by shifting left and
written by rounding to nearest, ties to even, as PyTorch does. Versions 1 and 2 (without padding)
are not supported.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from lmsmith import atomic
from lmsmith.errors import CheckpointError
from lmsmith.reference.blocks import Sizes, n_numbers, parameter_shapes, views

MAGIC = 20240326
N_HEADER = 256
HEADER_BYTES = 4 * N_HEADER
_TYPES: dict[int, np.dtype] = {3: np.dtype("<f4"), 5: np.dtype("<u2")}  # version -> element type
_VERSIONS = {"float32": 3, "bfloat16": 5}
_CHUNK = 2**20  # numbers converted at once


def read_llmc(path: Path) -> tuple[Sizes, dict[str, np.ndarray]]:
    """Sizes and the 16 named tensors of a checkpoint: float32, views into one block.

    Raises CheckpointError if the file cannot be read, is not an llm.c checkpoint, or does not have
    the length that its header implies.
    """
    try:
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
            file_bytes = file.seek(0, 2)
            sizes, kind = _read_header(path, header, file_bytes)
            file.seek(HEADER_BYTES)
            numbers = np.fromfile(file, kind)
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be read: {error.strerror}. Check the "
            f"path and its permissions."
        ) from error
    block = (
        _from_bfloat16(numbers) if kind.itemsize == 2 else numbers.astype(np.float32, copy=False)
    )
    return sizes, views(block, parameter_shapes(sizes))


def write_llmc(
    path: Path,
    sizes: Sizes,
    params: Mapping[str, np.ndarray],
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Writes the 16 named tensors as a checkpoint, atomically. Raises StorageError if that fails.

    `params` have any float type and the shapes of `parameter_shapes`, so the token table is already
    padded. llm.c's CUDA programs need the vocabulary padded to a multiple of 128; its CPU program
    accepts any.
    """
    header = np.zeros(N_HEADER, "<i4")
    header[:8] = (
        MAGIC,
        _VERSIONS[dtype],
        sizes.context_length,
        sizes.vocab_size,
        sizes.n_layer,
        sizes.n_head,
        sizes.d_model,
        sizes.padded_vocab_size,
    )
    with atomic.file(path) as file:
        file.write(header.tobytes())
        for name, shape in parameter_shapes(sizes).items():
            assert params[name].shape == shape, (
                f"{name} has shape {params[name].shape}, expected {shape}"
            )
            numbers = params[name].reshape(-1)
            for start in range(0, len(numbers), _CHUNK):
                chunk = numbers[start : start + _CHUNK].astype("<f4", copy=False)
                file.write((_to_bfloat16(chunk) if dtype == "bfloat16" else chunk).tobytes())


def _read_header(path: Path, header: bytes, file_bytes: int) -> tuple[Sizes, np.dtype]:
    """Parses the header; checks it for consistency and against the file's length. Raises
    CheckpointError.
    """
    if len(header) < HEADER_BYTES:
        raise CheckpointError(
            f"{path} is not an llm.c checkpoint: it has {file_bytes:,} bytes, less than the "
            f"header's {HEADER_BYTES:,}."
        )
    magic, version, T, V, L, H, D, padded = (
        int(number) for number in np.frombuffer(header, "<i4", count=8)
    )
    if magic != MAGIC:
        raise CheckpointError(
            f"{path} is not an llm.c checkpoint: it starts with {magic}, expected {MAGIC}. Name "
            "the file of weights, such as gpt2_124M.bin, not a token shard or a debug state."
        )
    if version not in _TYPES:
        raise CheckpointError(
            f"The llm.c checkpoint {path} has version {version}, expected 3 (float32) or 5 "
            "(bfloat16): write it again with train_gpt2.py of a current llm.c."
        )
    if min(T, V, L, H, D) < 1 or D % H or padded < V:
        raise CheckpointError(
            f"The llm.c checkpoint {path} is damaged: its header says context {T}, vocabulary {V} "
            f"padded to {padded}, {L} layers, {H} heads and width {D}, which is not possible. Copy "
            "or write it again."
        )
    sizes = Sizes(
        n_layer=L, n_head=H, d_model=D, vocab_size=V, padded_vocab_size=padded, context_length=T
    )
    kind = _TYPES[version]
    expected = HEADER_BYTES + n_numbers(parameter_shapes(sizes)) * kind.itemsize
    if file_bytes != expected:
        problem = "cut short" if file_bytes < expected else "damaged"
        raise CheckpointError(
            f"The llm.c checkpoint {path} is {problem}: it has {file_bytes:,} bytes, but its "
            f"header says {sizes.n_params:,} parameters, which take {expected:,}. Copy or write it "
            "again."
        )
    return sizes, kind


def _from_bfloat16(halves: np.ndarray) -> np.ndarray:
    """uint16 of any byte order -> float32, exact."""
    wide = halves.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def _to_bfloat16(numbers: np.ndarray) -> np.ndarray:
    """float32 -> little-endian uint16, rounded to nearest, ties to even; NaN stays NaN."""
    bits = numbers.astype(np.float32).view(np.uint32)
    # Add half of the last remaining bit, minus one unless that bit is set: ties go to even.
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    quiet = bits >> 16 | 0x0040  # rounding could turn a NaN into infinity
    return np.where(np.isnan(numbers), quiet, rounded).astype("<u2")
