"""llm.c's checkpoints: GPT-2's weights in one file, read and written to the byte.

A header of 256 little-endian int32, of which eight say something:

    0 magic     1 version    2 context   3 vocabulary   4 layers   5 heads   6 width   7 padded
                vocabulary
    20240326    3 or 5

and then the 16 tensors of `blocks.parameter_shapes`, end to end, in float32 (version 3) or bfloat16
(version 5). Source: llm.c, `train_gpt2.py` (write_model) and `train_gpt2.c`
(gpt2_build_from_checkpoint).

NumPy has no bfloat16. It is the upper half of a float32, so it is read by shifting up and written
by rounding to nearest, ties to even, which is what PyTorch does. Versions 1 and 2 (no padding) are
not read.
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
_TYPES: dict[int, np.dtype] = {
    3: np.dtype("<f4"),
    5: np.dtype("<u2"),
}  # version -> a number in the file
_VERSIONS = {"float32": 3, "bfloat16": 5}
_CHUNK = 2**20  # numbers converted at once


def read_llmc(path: Path) -> tuple[Sizes, dict[str, np.ndarray]]:
    """Sizes and the 16 named tensors, float32, views into one block, of a checkpoint of either
    precision.

    Raises CheckpointError where the file cannot be read, is no such checkpoint, or is not as long
    as its header says.
    """
    try:
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
            file_bytes = file.seek(0, 2)
            sizes, kind = _read_header(path, header, file_bytes)
            file.seek(HEADER_BYTES)
            numbers = np.fromfile(file, kind)
    except OSError as error:
        raise CheckpointError(f"The checkpoint {path} cannot be read: {error.strerror}.") from error
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
    """Writes the 16 named tensors as a checkpoint, whole or not at all. Raises StorageError where
    that cannot be done.

    `params`: of any float type and of the shapes of `parameter_shapes`; the token table is padded
    already. llm.c's CUDA programs want the vocabulary padded to a multiple of 128; its CPU program
    takes any.
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
                f"{name} of shape {params[name].shape}, wanted {shape}"
            )
            numbers = params[name].reshape(-1)
            for start in range(0, len(numbers), _CHUNK):
                chunk = numbers[start : start + _CHUNK].astype("<f4", copy=False)
                file.write((_to_bfloat16(chunk) if dtype == "bfloat16" else chunk).tobytes())


def _read_header(path: Path, header: bytes, file_bytes: int) -> tuple[Sizes, np.dtype]:
    """What the header says, held against itself and the file's length. Raises CheckpointError."""
    if len(header) < HEADER_BYTES:
        raise CheckpointError(
            f"{path} is no llm.c checkpoint: it has {file_bytes:,} bytes, and the header alone "
            f"has {HEADER_BYTES:,}."
        )
    magic, version, T, V, L, H, D, padded = (
        int(number) for number in np.frombuffer(header, "<i4", count=8)
    )
    if magic != MAGIC:
        raise CheckpointError(
            f"{path} is no llm.c checkpoint: it starts with {magic}, wanted {MAGIC}. Name the "
            f"weights' "
            "file, such as gpt2_124M.bin; shards of tokens and states for debugging are other "
            "files."
        )
    if version not in _TYPES:
        raise CheckpointError(
            f"The llm.c checkpoint {path} has version {version}, wanted 3 (float32) or 5 "
            f"(bfloat16): write it again by "
            "a present llm.c's train_gpt2.py."
        )
    if min(T, V, L, H, D) < 1 or D % H or padded < V:
        raise CheckpointError(
            f"The llm.c checkpoint {path} is damaged: its header tells of context {T}, vocabulary "
            f"{V} padded to "
            f"{padded}, {L} layers, {H} heads and width {D}, which no model has. Copy or write it "
            f"again."
        )
    sizes = Sizes(
        n_layer=L, n_head=H, d_model=D, vocab_size=V, padded_vocab_size=padded, context_length=T
    )
    kind = _TYPES[version]
    wanted = HEADER_BYTES + n_numbers(parameter_shapes(sizes)) * kind.itemsize
    if file_bytes != wanted:
        raise CheckpointError(
            f"The llm.c checkpoint {path} is {'cut short' if file_bytes < wanted else 'damaged'}: "
            f"its header tells of "
            f"{sizes.n_params:,} parameters, which makes {wanted:,} bytes, and it has "
            f"{file_bytes:,}. Copy or write it "
            "again."
        )
    return sizes, kind


def _from_bfloat16(halves: np.ndarray) -> np.ndarray:
    """uint16 of any byte order -> float32, exactly."""
    wide = halves.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def _to_bfloat16(numbers: np.ndarray) -> np.ndarray:
    """float32 -> little-endian uint16: rounded to nearest, ties to even; what is no number stays
    none.
    """
    bits = numbers.astype(np.float32).view(np.uint32)
    # Half of the last kept place, less a bit unless that place is odd: a tie then goes to the even
    # neighbour.
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    quiet = bits >> 16 | 0x0040  # rounding could carry a NaN into infinity
    return np.where(np.isnan(numbers), quiet, rounded).astype("<u2")
