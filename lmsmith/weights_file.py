"""Reads and writes safetensors files (https://github.com/huggingface/safetensors) one tensor at a
time, and checks that weights are finite.

Reading puts each tensor into memory of its own.
`safetensors.torch.load` holds the file and the tensors at once. `load_file` maps the file instead:
its tensors are not aligned to cache lines, which can change the last bits of products, and they
change if another program writes to the file. Here a tensor is read when it is asked for, so a model
can be packed while it is read, without ever being in memory as a whole.

Writing keeps only one tensor at a time in CPU memory, hashes the file while it is written, raises
an OSError with its errno for a full disk, and leaves the usual permissions. A file from the
library's `save_file` would have to be read again for its hash, its errors differ between versions,
and only its owner may read it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import safetensors
import torch
from torch import Tensor

from lmsmith import foreign_json
from lmsmith.errors import CheckpointError
from lmsmith.hashes import write_hashed
from lmsmith.strict_json import to_json

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


def check_finite(tensors: Mapping[str, Tensor], what: str, advice: str) -> None:
    """Raises CheckpointError, naming the tensors, if tensors of `what` contain NaN or infinity.

    One pass over the weights at memory speed, a tenth of the time that hashing takes.
    """
    bad = [name for name in tensors if not all(map(_is_finite, _blocks(tensors, name)))]
    if bad:
        named = ", ".join(_not_finite(name, tensors[name]) for name in bad[:_NAMED])
        more = f", and {len(bad) - _NAMED} more tensors" if len(bad) > _NAMED else ""
        raise CheckpointError(
            f"{what[0].upper()}{what[1:]} has weights that are not finite numbers: "
            f"{named}{more}. Training diverged, or the file is damaged. {advice}"
        )


_NAMED = 3  # number of tensors that an error lists


def _blocks(tensors: Mapping[str, Tensor], name: str) -> Iterable[Tensor]:
    """The parts of a tensor that are in memory at once."""
    return tensors.rows(name) if isinstance(tensors, WeightsFile) else [tensors[name]]


def _is_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() and tensor.numel()):
        return True
    # Both the minimum and the maximum are NaN if any value is. `isfinite().all()` takes twenty
    # times as long.
    return all(bound.isfinite().item() for bound in torch.aminmax(tensor.detach()))


def _not_finite(name: str, tensor: Tensor) -> str:
    n_nan, n_infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    kinds = [f"{n:,} {kind}" for n, kind in ((n_nan, "NaN"), (n_infinite, "infinite")) if n]
    return f"{name} ({' and '.join(kinds)} of {tensor.numel():,} values)"


# ---- writing -------------------------------------------------------------------------------------


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Writes a safetensors file and returns its size and SHA-256. Raises OSError if it cannot."""

    def chunks() -> Iterator[bytes | memoryview]:
        yield _header(tensors, metadata)
        for name in _in_file_order(tensors):
            yield _bytes_of(tensors[name])

    return write_hashed(path, chunks())


def write_with_hash(
    file: IO[bytes],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    load: Callable[[str], Tensor] | None = None,
) -> None:
    """Writes a safetensors file whose metadata contains `sha256`, the hash of its tensors, so that
    weights and hash match at every moment. `load`: as in `checkpoint.save_model`.
    """
    # The hash is known when the tensors are written, so the header is written again; its length is
    # the same.
    digest = hashlib.sha256()
    file.write(_header(tensors, {**metadata, "sha256": digest.hexdigest()}))
    for name in _in_file_order(tensors):
        chunk = _bytes_of(load(name) if load else tensors[name])
        file.write(chunk)
        digest.update(chunk)
    file.seek(0)
    file.write(_header(tensors, {**metadata, "sha256": digest.hexdigest()}))


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The first bytes of a safetensors file: the header's length, and the header (JSON)."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in _in_file_order(tensors):
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        shape = list(tensors[name].shape)
        header[name] = {
            "dtype": TYPES[tensors[name].dtype],
            "shape": shape,
            "data_offsets": [start, end],
        }
    text = to_json(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # aligns the tensors to 8 bytes
    return len(text).to_bytes(8, "little") + text


def _in_file_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Sorts tensors by the width of their type, widest first, which aligns each tensor without
    gaps.
    """
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _bytes_of(tensor: Tensor) -> memoryview:
    """Returns a tensor's elements in row-major order. Little-endian, like every machine that torch
    is built for.
    """
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
