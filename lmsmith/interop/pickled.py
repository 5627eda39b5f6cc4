"""Reads checkpoints that `torch.save` wrote, without running code from them.

A checkpoint is a ZIP archive without compression: `data.pkl`, a pickle of the objects, and a file
for each tensor's numbers. Unpickling can call any function, so `torch.load(weights_only=True)`
reads it, which knows tensors, numbers, texts, lists and dictionaries only. The archive is checked
before that, so that errors say what the file is, and what was read is checked after it, so that no
tensor is larger than the file.

Source: torch/serialization.py and torch/_weights_only_unpickler.py of PyTorch 2.13.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmsmith.errors import CheckpointError

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"


def load(path: Path) -> Any:
    """The content of a checkpoint, with memory-mapped tensors. Raises CheckpointError."""
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        _check_tensors(content, path)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise _code(path, found[1] if found else "of a kind that torch.save does not write") from (
            error
        )
    except Exception as error:  # a damaged pickle raises nearly anything, MemoryError included
        raise _damaged(path, "its objects cannot be read") from error
    return content


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a complete checkpoint of PyTorch: {what}. Copy it again."
    )


def _code(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} holds a pickled object ({what}) that can run code when it is loaded, so it is not "
        "read. Only tensors, numbers, texts, lists and dictionaries are: save it again without "
        "other objects."
    )


def _check_archive(path: Path) -> None:
    """Raises CheckpointError unless the file is an archive that `torch.save` may have written."""
    with path.open("rb") as file:
        begin = file.read(4)
    if not begin:
        raise _damaged(path, "it is empty")
    if begin[:1] == _PICKLE:
        raise CheckpointError(
            f"{path} is a plain pickle, as PyTorch before 1.6 wrote them, and is not read. If you "
            "trust its origin, load it with torch.load and save it again with torch.save."
        )
    if begin != _ZIP:
        raise CheckpointError(
            f"{path} is not a checkpoint of PyTorch: it begins with {begin!r}, expected the ZIP "
            f"archive that torch.save writes ({_ZIP!r})."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            stored = all(info.compress_type == zipfile.ZIP_STORED for info in members.values())
            pickled = _content(path, members["data.pkl"]) if "data.pkl" in members else b""
    except Exception as error:  # zipfile raises several kinds for damaged archives
        raise _damaged(path, "its ZIP archive is cut off or damaged") from error
    if "constants.pkl" in members:
        raise CheckpointError(
            f"{path} is a TorchScript program, not a checkpoint with weights alone: expected what "
            "torch.save writes of a dictionary."
        )
    if "data.pkl" not in members:
        raise CheckpointError(
            f"{path} is a ZIP archive without data.pkl: torch.save did not write it."
        )
    if not stored:
        raise _damaged(path, "its archive is compressed, and torch.save does not compress")
    try:
        names = {arg for code, arg, _ in pickletools.genops(pickled) if code.name == "GLOBAL"}
    except Exception as error:  # what is no pickle raises several kinds
        raise _damaged(path, "its data.pkl is not a pickle") from error
    for name in names:  # weights_only allows it, and it takes as much memory as the file says
        if str(name).endswith(" bytearray"):
            raise _code(path, "bytearray")


def _content(path: Path, member: zipfile.ZipInfo) -> bytes:
    """The bytes of a member that is not compressed. zipfile's own reading fails for files without
    checksums, which `torch.serialization.set_crc32_options(False)` writes.
    """
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        lengths = struct.unpack("<HH", file.read(4))  # of the name and the extra field
        file.seek(sum(lengths), 1)
        return file.read(member.file_size)


def _check_tensors(content: Any, path: Path) -> None:
    """Raises CheckpointError for tensors that the file does not hold all numbers of: a stride of
    zero, or the meta device, gives a tensor of any size.
    """
    seen, left = set(), [content]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            left.extend(value.values())
        elif isinstance(value, list | tuple):
            left.extend(value)
        elif isinstance(value, Tensor) and (
            value.device.type != "cpu"
            or value.layout != torch.strided
            or value.numel() * value.element_size() > value.untyped_storage().nbytes()
        ):
            raise _damaged(path, "it has a tensor without all of its numbers")
