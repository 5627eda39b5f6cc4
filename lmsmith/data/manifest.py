"""The manifest of a prepared folder: `manifest.json` beside the shards.

    manifest = read_manifest(folder)
    manifest.tokenizer.fingerprint          # SHA-256 of the tokenizer that made the ids
    manifest.splits["train"].shards[0]      # ShardRecord(file="train_000000.bin", n_tokens=...,
                                            # sha256=...)

A shard in llm.c's format holds a token count and the tokens. The manifest adds which tokenizer made
them, from which files, and the size of the text in bytes, which bits per byte needs. It is written
last, so a folder with a manifest is complete.

The manifest does not depend on when or where it was written or on the number of processes: the same
text and settings give the same file.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from lmsmith import foreign_json
from lmsmith.errors import DataError
from lmsmith.strict_json import write_json
from lmsmith.tokens.tokenizer import Tokenizer

FILE_NAME = "manifest.json"
FORMAT = 1
SPLITS = ("train", "val")
Record = TypeVar("Record")


@dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer that made the ids. It is stored in `tokenizer.json` beside the manifest."""

    fingerprint: str
    kind: str
    vocab_size: int
    end_of_text: int | None  # the token before each document

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "TokenizerRecord":
        return cls(
            tokenizer.fingerprint, tokenizer.kind, tokenizer.vocab_size, tokenizer.end_of_text
        )


@dataclass(frozen=True)
class SourceRecord:
    """A source file: its path as given, its size, and a fingerprint of its content."""

    path: str
    n_bytes: int
    fingerprint: str


@dataclass(frozen=True)
class ShardRecord:
    """One shard. `n_documents` counts the documents that begin in it; `n_bytes` is the size of its
    text in UTF-8, without end-of-text tokens.

    `sha256` covers the complete file, with its header. A document that does not fit continues in
    the next shard; its bytes are divided at that token.
    """

    file: str
    n_tokens: int
    n_documents: int
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class SplitRecord:
    """The training or validation split: its shards in order, and their totals.

    `n_unknown` characters or words of the text (`n_unknown_bytes` bytes) are not represented by the
    ids: see `Tokenizer.count_unknown`.
    """

    n_tokens: int
    n_documents: int
    n_bytes: int
    shards: tuple[ShardRecord, ...]
    n_unknown: int = 0
    n_unknown_bytes: int = 0


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`. `splits` has "train" and "val"; `notes` are sentences for the
    user.
    """

    tokenizer: TokenizerRecord
    splits: Mapping[str, SplitRecord]
    sources: tuple[SourceRecord, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `folder/manifest.json` atomically. Raises StorageError."""
    content = {"format": FORMAT, **asdict(manifest)}
    write_json(folder / FILE_NAME, content)  # ASCII: a path may not be valid Unicode


def read_manifest(folder: Path) -> Manifest:
    """Reads `folder/manifest.json`. Raises DataError if it is missing, damaged or of another
    format.

    Does not check the shards.
    """
    path = folder / FILE_NAME
    try:
        content = foreign_json.read(path)
    except OSError as error:
        raise DataError(
            f"the manifest {path} cannot be read: {error.strerror}. Check the "
            f"path and its permissions."
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}. Prepare the folder again.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else content
        raise DataError(
            f"{path} has format {found!r}, but this version of lmsmith reads format {FORMAT}. "
            "Upgrade lmsmith, or prepare the folder again."
        )
    try:
        return Manifest(
            tokenizer=_record(TokenizerRecord, content["tokenizer"]),
            splits={name: _split(content["splits"][name]) for name in SPLITS},
            sources=tuple(_record(SourceRecord, source) for source in content["sources"]),
            settings=dict(content["settings"]),
            notes=tuple(content["notes"]),
        )
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(
            f"{path} is damaged or edited: {error}. Prepare the folder again."
        ) from error


def _record(kind: type[Record], values: dict[str, Any]) -> Record:
    record = kind(**values)
    for name, expected in get_type_hints(kind).items():
        if not isinstance(getattr(record, name), expected):
            raise TypeError(f"{name} is {getattr(record, name)!r}")
    return record


def _split(values: dict[str, Any]) -> SplitRecord:
    split = SplitRecord(
        **{**values, "shards": tuple(_record(ShardRecord, shard) for shard in values["shards"])}
    )
    for name in ("n_tokens", "n_documents", "n_bytes"):
        total = sum(getattr(shard, name) for shard in split.shards)
        if getattr(split, name) != total:
            raise ValueError(
                f"{name} is {getattr(split, name)!r}, but its shards add up to {total:,}"
            )
    return split
