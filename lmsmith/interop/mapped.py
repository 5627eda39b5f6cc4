"""Safetensors files as memory-mapped tensors whose pages can be dropped again.

`safetensors.torch.load_file` maps a file too, but its pages stay in memory until the last tensor is
gone. While a checkpoint is converted, that adds the size of the file to the size of the converted
tensors. `release` drops pages that were read; they are read again if they are needed.
"""

import math
import mmap
import weakref
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lmsmith import foreign_json

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_open: "weakref.WeakSet[mmap.mmap]" = weakref.WeakSet()


def load(path: Path) -> dict[str, Tensor]:
    """Maps all tensors of a file. They must not be written to.

    Raises OSError, or SafetensorError for a damaged file.
    """
    with safetensors.safe_open(path, framework="pt") as file:  # checks the header and all offsets
        names = list(file.keys())
    with path.open("rb") as raw:
        begin = 8 + int.from_bytes(raw.read(8), "little")
        header = foreign_json.parse(raw.read(begin - 8))
        entries = [header[name] for name in names]
        if not _can_be_mapped(entries, begin):
            return safetensors.torch.load_file(path)
        mapping = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_COPY)
    _open.add(mapping)
    tensors = {}
    for name, entry in zip(names, entries, strict=True):
        dtype, count = _DTYPES[entry["dtype"]], math.prod(entry["shape"])
        offset = begin + entry["data_offsets"][0]
        flat = (
            torch.frombuffer(mapping, dtype=dtype, count=count, offset=offset)
            if count
            else torch.empty(0, dtype=dtype)
        )
        tensors[name] = flat.view(entry["shape"])
    return tensors


def release() -> None:
    """Drops the pages of all mapped files that are in this process's memory."""
    if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        for mapping in list(_open):
            mapping.madvise(mmap.MADV_DONTNEED)


def _can_be_mapped(entries: list[dict], begin: int) -> bool:
    """Whether all tensors have a known dtype and an aligned address."""
    return bool(entries) and all(
        entry["dtype"] in _DTYPES
        and (begin + entry["data_offsets"][0]) % _DTYPES[entry["dtype"]].itemsize == 0
        for entry in entries
    )
