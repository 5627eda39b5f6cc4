"""Reads the structure of a GGUF file: its metadata and where each tensor is.

    file = read(path)
    file.metadata["general.architecture"]        # "llama"
    file.tensors["token_embd.weight"].shape      # (49152, 576), the outermost dimension first
    file.load("token_embd.weight")               # float32

A GGUF file is a header (magic, version, counts), metadata as typed key-value pairs, a list of
tensors, and the tensors' data, each at a multiple of the alignment. Versions 2 and 3 are read.

Nothing in the file is trusted. Each count and length is compared with the bytes that are left
before anything is allocated, tensors must lie within the file and must not overlap, so a damaged
file costs at most a small multiple of its size in memory and gives one CheckpointError.

Source: the GGUF specification in ggml's documentation (ggml/docs/gguf.md).
"""

from __future__ import annotations

import itertools
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmsmith.errors import CheckpointError
from lmsmith.foreign_json import shown
from lmsmith.interop.gguf_quants import BLOCKS, NAMES, Floats, dequantize

FILE_NAME = "model.gguf"  # in a folder written by `export`
MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = "general.alignment"

_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 17
_MAX_NAME = 1 << 16  # bytes of a key or a tensor's name
_MAX_DIMENSIONS = 4
_MAX_ALIGNMENT = 1 << 16
_ADVICE = "Download or copy the file again."

# Numbers of value types in the file -> their form, little-endian.
_SCALARS = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4"},
    **{7: "?", 10: "<u8", 11: "<i8", 12: "<f8"},
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor is. `shape`: outermost dimension first; `kind`: "F32", "Q8_0", ..."""

    name: str
    shape: tuple[int, ...]
    kind: str
    start: int  # position in the file
    n_bytes: int


@dataclass(frozen=True)
class GgufFile:
    """The content of a GGUF file, without the tensors' data."""

    path: Path
    metadata: Mapping[str, Any]
    """Scalars as bool, int and float, strings as str, arrays of numbers as NumPy arrays, arrays of
    strings as lists."""
    tensors: Mapping[str, GgufTensor]

    def load(self, name: str, out: Floats | None = None) -> Floats:
        """A tensor as float32, dequantized, in new memory or in `out`. Raises CheckpointError."""
        tensor = self.tensors[name]
        values = np.empty(tensor.shape, np.float32) if out is None else out
        assert values.shape == tensor.shape
        try:
            raw = np.fromfile(self.path, np.uint8, tensor.n_bytes, offset=tensor.start)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}.") from error
        if len(raw) != tensor.n_bytes:
            raise _damaged(self.path, f"it ends within the tensor {name}")
        dequantize(raw, tensor.kind, values.reshape(-1))
        return values


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does, or is named so."""
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC or path.suffix.lower() == ".gguf"
    except OSError:
        return False


def read(path: Path) -> GgufFile:
    """Reads and checks the structure of a file. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise _damaged(path, "it is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).file()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is not a complete GGUF file: {what}. {_ADVICE}")


class _Reader:
    """Reads the header from front to back. `where` says what is being read, for errors."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size = path, data, len(data)
        self.at, self.where = 0, "the header"

    def file(self) -> GgufFile:
        n_tensors, n_keys = self._counts()
        metadata: dict[str, Any] = {}
        for number in range(n_keys):
            self.where = f"metadata entry {number + 1} of {n_keys}"
            key = self._string(_MAX_NAME)
            self.where = f"the metadata {shown(key)}"
            if key in metadata:
                raise self._error("it has two entries of this name")
            metadata[key] = self._value(self._scalar("<u4"))
        alignment = metadata.get(ALIGNMENT, 32)
        if not (isinstance(alignment, int) and 8 <= alignment <= _MAX_ALIGNMENT) or (
            alignment & (alignment - 1)
        ):
            self.where = ALIGNMENT
            raise self._error(f"it is {shown(alignment)}; expected a power of two from 8")
        found = [self._tensor(number, n_tensors) for number in range(n_tensors)]
        begin = -(-self.at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset, n_bytes in found:
            self.where = f"the tensor {shown(name)}"
            if name in tensors:
                raise self._error("there are two of this name")
            if offset % alignment:
                raise self._error(f"its offset {offset} is no multiple of {alignment}")
            if begin + offset + n_bytes > self.size:
                raise self._error(
                    f"its {n_bytes:,} bytes at {begin + offset:,} are beyond the end of the file, "
                    f"which has {self.size:,} bytes"
                )
            tensors[name] = GgufTensor(name, shape, kind, begin + offset, n_bytes)
        in_order = sorted(tensors.values(), key=lambda tensor: tensor.start)
        for first, second in itertools.pairwise(in_order):
            if first.start + first.n_bytes > second.start:
                self.where = f"the tensor {shown(second.name)}"
                raise self._error(f"its data overlaps that of {shown(first.name)}")
        return GgufFile(self.path, metadata, tensors)

    def _counts(self) -> tuple[int, int]:
        """Checks magic and version; returns how many tensors and metadata entries there are."""
        magic = self._take(4)
        if magic != MAGIC:
            raise self._error(f"it begins with {magic!r}; expected {MAGIC!r}")
        version = self._scalar("<u4")
        if version not in VERSIONS:
            if version and version & 0xFFFF == 0:
                raise CheckpointError(
                    f"{self.path} is a big-endian GGUF file, and lmsmith reads little-endian "
                    "ones: convert the model again without --bigendian."
                )
            known = " and ".join(map(str, VERSIONS))
            raise CheckpointError(
                f"{self.path} is of GGUF version {version}, and lmsmith reads versions {known}: "
                "convert the model again with a current convert_hf_to_gguf.py of llama.cpp."
            )
        n_tensors, n_keys = self._scalar("<u8"), self._scalar("<u8")
        for n, most, what in (
            (n_tensors, _MAX_TENSORS, "tensors"),
            (n_keys, _MAX_KEYS, "metadata entries"),
        ):
            if n > most:
                raise self._error(f"it announces {n:,} {what}; expected at most {most:,}")
        return n_tensors, n_keys

    def _tensor(self, number: int, n: int) -> tuple[str, tuple[int, ...], str, int, int]:
        """Name, shape, type, offset and size in bytes."""
        self.where = f"tensor {number + 1} of {n}"
        name = self._string(_MAX_NAME)
        self.where = f"the tensor {shown(name)}"
        n_dimensions = self._scalar("<u4")
        if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
            raise self._error(f"it has {n_dimensions} dimensions; expected 1 to {_MAX_DIMENSIONS}")
        sizes = [self._scalar("<u8") for _ in range(n_dimensions)]
        number_of_kind = self._scalar("<u4")
        offset = self._scalar("<u8")
        kind = NAMES.get(number_of_kind, f"type {number_of_kind}")
        if kind not in BLOCKS:
            raise CheckpointError(
                f"{self.path} has the tensor {shown(name)} of type {kind}, which lmsmith does not "
                f"read: expected {', '.join(BLOCKS)}. Take a file with one of these "
                "quantizations, such as Q8_0."
            )
        n_values, n_bytes = BLOCKS[kind]
        if not all(sizes) or sizes[0] % n_values or math.prod(sizes) >= 1 << 62:
            raise self._error(
                f"it has the shape {tuple(reversed(sizes))}; expected sizes from 1 on, and rows of "
                f"a multiple of {n_values}"
            )
        total = math.prod(sizes) // n_values * n_bytes
        return name, tuple(reversed(sizes)), kind, offset, total

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string(self.size)
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise self._error(f"its value is of the unknown type {kind}")
        inner, n = self._scalar("<u4"), self._scalar("<u8")
        if inner == _STRING:
            if n * 8 > self.size - self.at:
                raise self._error(f"it announces {n:,} strings, more than the file has room for")
            return [self._string(self.size) for _ in range(n)]
        if inner not in _SCALARS:
            raise self._error(f"it is an array of type {inner}, which lmsmith does not read")
        form = np.dtype(_SCALARS[inner])
        if n * form.itemsize > self.size - self.at:
            raise self._error(f"it announces {n:,} numbers, more than the file has room for")
        return np.frombuffer(self._take(n * form.itemsize), form)

    def _scalar(self, form: str) -> Any:
        dtype = np.dtype(form)
        return np.frombuffer(self._take(dtype.itemsize), dtype)[0].item()

    def _string(self, most: int) -> str:
        (n,) = struct.unpack("<Q", self._take(8))
        if n > min(most, self.size - self.at):
            raise self._error(
                f"it announces a string of {n:,} bytes, and {self.size - self.at:,} are left"
            )
        try:
            return self._take(n).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._error("it has a string that is not UTF-8") from error

    def _take(self, n: int) -> bytes:
        if n > self.size - self.at:
            raise self._error(f"it ends at byte {self.size:,}, in the middle of {self.where}")
        taken = self.data[self.at : self.at + n]
        self.at += n
        return taken

    def _error(self, what: str) -> CheckpointError:
        return _damaged(self.path, f"in {self.where}, {what}")
