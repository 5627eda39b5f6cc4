"""SHA-256 of files, as `sha256sum` prints it."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, read in blocks: 64 hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_hashed(path: Path, chunks: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Writes a file and returns its size and SHA-256. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
        return {"size": file.tell(), "sha256": digest.hexdigest()}
