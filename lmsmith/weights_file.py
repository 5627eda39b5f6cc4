"""Reads a safetensors file one tensor at a time, each into memory of its own.

`safetensors.torch.load` holds the file and the tensors at once. `load_file` maps the file instead:
its tensors are not aligned to cache lines, which can change the last bits of products, and they
change if another program writes to the file. Here a tensor is read when it is asked for, so a model
can be packed while it is read, without ever being in memory as a whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from lmsmith import foreign_json

TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in TYPES.items()}
_BLOCK = 1 << 20  # bytes that are hashed at once
ROWS_BYTES = 1 << 20  # of the blocks of `rows`; some copies of a block fit in the cache


class WeightsFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file by name, in the order of the file. Each access reads the
    tensor again.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError, and SafetensorError if the file is damaged."""
        self.path = path
        with safetensors.safe_open(path, framework="pt"):
            pass  # checks the header and all offsets
        # The same file to the end, even if another program replaces it.
        self._file = path.open("rb", buffering=0)
        start = int.from_bytes(self._file.read(8), "little")
        header: dict[str, Any] = foreign_json.parse(self._file.read(start))
        self._begin = 8 + start
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self._entries = dict(
            sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"]))
        )

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:  # one that lmsmith never writes
            with safetensors.safe_open(self.path, framework="pt") as file:
                return file.get_tensor(name).clone()
        return self._read(entry["shape"], dtype, entry["data_offsets"][0])

    def shape(self, name: str) -> torch.Size:
        """The shape of a tensor, which is not read."""
        return torch.Size(self._entries[name]["shape"])

    def rows(self, name: str) -> Iterator[Tensor]:
        """Reads a tensor in blocks of rows, in order."""
        entry = self._entries[name]
        dtype, (start, end) = _DTYPES.get(entry["dtype"]), entry["data_offsets"]
        if dtype is None or not entry["shape"] or start == end:
            yield self[name]
            return
        n_rows, *shape = entry["shape"]
        n_bytes = (end - start) // n_rows
        at_once = max(1, ROWS_BYTES // n_bytes)
        for row in range(0, n_rows, at_once):
            n = min(at_once, n_rows - row)
            yield self._read([n, *shape], dtype, start + row * n_bytes)

    def _read(self, shape: list[int], dtype: torch.dtype, offset: int) -> Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        if tensor.numel():
            self._file.seek(self._begin + offset)
            room = memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)
            while room:
                if not (n := self._file.readinto(room)):
                    raise OSError(f"{self.path} has become shorter while it is read")
                room = room[n:]
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def sha256(self) -> str:
        """SHA-256 of the bytes of all tensors, as `checkpoint.save_model` records it."""
        digest, room = hashlib.sha256(), memoryview(bytearray(_BLOCK))
        self._file.seek(self._begin)
        while n := self._file.readinto(room):
            digest.update(room[:n])
        return digest.hexdigest()

    def close(self) -> None:
        """Closes the file; no tensor can be read any more."""
        self._file.close()
