"""What a prepared folder holds, said by the one who made it: `manifest.json` beside the shards.

    manifest = read_manifest(folder)
    manifest.tokenizer.fingerprint          # SHA-256 of the tokenizer that made the ids
    manifest.splits["train"].shards[0]      # ShardRecord(file="train_000000.bin", n_tokens=...,
                                            # sha256=...)

A shard in llm.c's format is a number of tokens and the tokens; which tokenizer made them, of which
text, and how many bytes that text had (bits per byte needs it) stands here. It is written last, so
a folder with a manifest is whole.

Nothing in it depends on when, where or by how many processes it was made: equal text and settings
give an equal file.
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
    """Which tokenizer made the ids; it lies beside, in `tokenizer.json`."""

    fingerprint: str
    kind: str
    vocab_size: int
    end_of_text: int | None  # stands before each document

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "TokenizerRecord":
        return cls(
            tokenizer.fingerprint, tokenizer.kind, tokenizer.vocab_size, tokenizer.end_of_text
        )


@dataclass(frozen=True)
class SourceRecord:
    """A file that was read: its path as it was found, its size, and a fingerprint of its
    content.
    """

    path: str
    n_bytes: int
    fingerprint: str


@dataclass(frozen=True)
class ShardRecord:
    """A shard: `n_documents` begin in it; `n_bytes` is the text of its tokens in UTF-8, end-of-text
    tokens having none.

    `sha256` is of the file, header and all. A document goes over the end of a shard into the next
    one, and its bytes are divided at that token.
    """

    file: str
    n_tokens: int
    n_documents: int
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class SplitRecord:
    """Training or validation: its shards in order, and their sums.

    `n_unknown` units of the text (of `n_unknown_bytes` bytes) the ids do not carry: see
    `Tokenizer.count_unknown`.
    """

    n_tokens: int
    n_documents: int
    n_bytes: int
    shards: tuple[ShardRecord, ...]
    n_unknown: int = 0
    n_unknown_bytes: int = 0


@dataclass(frozen=True)
class Manifest:
    """All of `manifest.json`. `splits` has "train" and "val"; `notes` are sentences for the
    user.
    """

    tokenizer: TokenizerRecord
    splits: Mapping[str, SplitRecord]
    sources: tuple[SourceRecord, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `folder/manifest.json`, whole or not at all. Raises StorageError."""
    content = {"format": FORMAT, **asdict(manifest)}
    write_json(folder / FILE_NAME, content)  # in ASCII: a path may be no Unicode


def read_manifest(folder: Path) -> Manifest:
    """What `write_manifest` wrote. Raises DataError where it is missing, damaged, or of another
    format.

    The shards are not looked at.
    """
    path = folder / FILE_NAME
    try:
        content = foreign_json.read(path)
    except OSError as error:
        raise DataError(f"the manifest {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}. Prepare the folder again.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else content
        raise DataError(
            f"{path} has format {found!r}; this lmsmith reads format {FORMAT}. Update lmsmith, or "
            f"prepare it again."
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


def _record(kind: type[Record], found: dict[str, Any]) -> Record:
    record = kind(**found)
    for name, wanted in get_type_hints(kind).items():
        if not isinstance(getattr(record, name), wanted):
            raise TypeError(f"{name} is {getattr(record, name)!r}")
    return record


def _split(found: dict[str, Any]) -> SplitRecord:
    split = SplitRecord(
        **{**found, "shards": tuple(_record(ShardRecord, shard) for shard in found["shards"])}
    )
    for name in ("n_tokens", "n_documents", "n_bytes"):
        total = sum(getattr(shard, name) for shard in split.shards)
        if getattr(split, name) != total:
            raise ValueError(f"{name} is {getattr(split, name)!r}, and {total:,} by its shards")
    return split
