"""Encodes one unit of text and writes its ids to disk. Worker processes run this.

    UNITS/0000012.ids        the ids of the unit's texts, an end-of-text token before each
    UNITS/0000012.records    a `RECORD` per text, several for a long one
    UNITS/0000012.json       counts, messages and checksums; written last, so if it exists the unit
                             is finished

Texts go to the tokenizer in batches, and a `Stream` in parts that are cut between pre-tokens, so
memory does not grow with the text. Nothing is forced to the disk here: if a power cut damages these
files, their checksums differ and the unit is encoded again. `assemble.py` turns them into shards.
"""

import contextlib
import json
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from lmsmith import atomic
from lmsmith.data.prepare.dedup import content_hash
from lmsmith.data.prepare.units import Job, Stream, Unit, fingerprint, read_unit, unit_file, utf8
from lmsmith.errors import DataError, StorageError
from lmsmith.strict_json import to_json
from lmsmith.text.files import Counts
from lmsmith.text.skipping import Skipped, skipping_errors
from lmsmith.tokens.control import SpecialTokens
from lmsmith.tokens.files import load_tokenizer
from lmsmith.tokens.tokenizer import Ids, Tokenizer, ids_dtype

RECORD = np.dtype(
    [
        ("split", "u1"),  # TRAIN or VALIDATION
        ("document", "u1"),  # 1: the first record of a document
        # 1: begins with an end-of-text token, as both halves of a split document do
        ("begins", "u1"),
        ("n_tokens", "<u8"),
        ("n_bytes", "<u8"),  # of the text in UTF-8
        ("n_unknown", "<u8"),
        ("n_unknown_bytes", "<u8"),
        # the document's hash, if needed; zeros: not compared
        ("content", "<u8", (2,)),
    ]
)
BATCH = 1 << 20  # bytes of text per call of the tokenizer
NO_HASH = bytes(16)


def encode_unit(job: Job, number: int, unit: Unit) -> None:
    """Encodes one unit and writes its three files. Raises DataError, StorageError."""
    tokenizer = _tokenizer(job.folder)
    counts, skipped = Counts(), Skipped()
    skip = skipped if job.reading.skip_bad else None
    with _Output(unit_file(job.folder, number, "")) as output:
        batch = _Batch(tokenizer, output, job.reading.special_tokens)
        for document in read_unit(unit, job.reading, counts, skip):
            content = NO_HASH
            if job.hashes and document.whole is not None:
                content = content_hash(utf8(document.whole))
            is_document = document.begins
            for split, text in document.spans:
                if isinstance(text, str):
                    batch.add(text, split, is_document, document.begins, content)
                else:
                    with skipping_errors(skip):
                        batch.add_stream(text, split, is_document, document.begins, content)
                is_document = False
        batch.flush()
        output.finish(
            {
                "counts": vars(counts),
                "skipped": skipped.said,
                "n_skipped": skipped.n,
                "files": {
                    piece.path: _fingerprint(piece.path) for piece in unit if piece.part.start == 0
                },
            }
        )


def is_finished(folder: Path, number: int) -> bool:
    """Returns whether a unit's files exist and match their checksums."""
    try:
        summary = json.loads(unit_file(folder, number, ".json").read_text(encoding="utf-8"))
        return all(
            _checksum(unit_file(folder, number, suffix)) == summary["checksums"][suffix]
            for suffix in (".ids", ".records")
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while data := file.read(BATCH):
            checksum = zlib.crc32(data, checksum)
    return checksum


_tokenizers: dict[str, Tokenizer] = {}  # at most one: that of the folder this process works on


def remember_tokenizer(folder: str, tokenizer: Tokenizer) -> None:
    """Caches the tokenizer, so that this process does not load it."""
    _tokenizers.clear()
    _tokenizers[folder] = tokenizer


def _tokenizer(folder: str) -> Tokenizer:
    tokenizer = _tokenizers.get(folder)
    if tokenizer is None:
        tokenizer = load_tokenizer(Path(folder))
        remember_tokenizer(folder, tokenizer)
    return tokenizer


def _fingerprint(path: str) -> str:
    with contextlib.suppress(DataError):
        return fingerprint(Path(path))
    return "unreadable"


class _Batch:
    """Collects texts for the next call of the tokenizer."""

    def __init__(
        self, tokenizer: Tokenizer, output: "_Output", special_tokens: SpecialTokens
    ) -> None:
        self._tokenizer, self._output, self._special_tokens = tokenizer, output, special_tokens
        kind = ids_dtype(tokenizer.vocab_size)
        first = tokenizer.end_of_text
        self._first: Ids = np.array([] if first is None else [first], dtype=kind)
        self._texts: list[bytes] = []
        self._rows: list[tuple[int, bool, bool]] = []
        self._contents: list[bytes] = []
        self._n_bytes = 0

    def add(
        self, text: str | bytes, split: int, document: bool, begins: bool, content: bytes
    ) -> None:
        data = text if isinstance(text, bytes) else text.encode()
        self._texts.append(data)
        self._rows.append((split, document, begins))
        self._contents.append(content)
        self._n_bytes += len(data)
        if self._n_bytes >= BATCH:
            self.flush()

    def add_stream(
        self, text: Stream, split: int, document: bool, begins: bool, content: bytes
    ) -> None:
        """Adds a long text. Raises DataError if it cannot be read; its document is counted even
        then.
        """
        try:
            for part in _parts(self._tokenizer, text, self._special_tokens):
                self.add(part, split, document, begins, content)
                document = begins = False
        except DataError:
            if begins:
                self.add(b"", split, document, begins, content)
            raise

    def flush(self) -> None:
        if not self._texts:
            return
        ids = _encode(self._tokenizer, self._texts, self._special_tokens)
        parts: list[Ids] = []
        for (_, _, begins), some in zip(self._rows, ids, strict=True):
            if begins:
                parts.append(self._first)
            parts.append(some)
        records = np.zeros(len(ids), RECORD)
        columns = np.array(self._rows, dtype=np.uint8).T
        records["split"], records["document"], records["begins"] = columns
        records["n_tokens"] = columns[2] * len(self._first) + np.fromiter(
            map(len, ids), np.uint64, len(ids)
        )
        records["n_bytes"] = np.fromiter(map(len, self._texts), np.uint64, len(ids))
        if self._tokenizer.kind in ("char", "word", "library", "sentencepiece"):
            texts = [data.decode() for data in self._texts]
            records["n_unknown"] = [self._tokenizer.count_unknown(text) for text in texts]
            records["n_unknown_bytes"] = [self._tokenizer.unknown_bytes(text) for text in texts]
        records["content"] = np.frombuffer(b"".join(self._contents), "<u8").reshape(-1, 2)
        self._output.write(np.concatenate(parts), records)
        self._texts, self._rows, self._contents, self._n_bytes = [], [], [], 0


def _encode(tokenizer: Tokenizer, texts: list[bytes], special_tokens: SpecialTokens) -> list[Ids]:
    if tokenizer.kind == "bpe":
        # Imported here because it imports the compiler, which other kinds do not need.
        from lmsmith.tokens.bpe import BpeTokenizer, Names

        assert isinstance(tokenizer, BpeTokenizer)
        allowed: Names = "all" if special_tokens == "control" else ()
        return tokenizer.encode_batch(texts, allowed_special=allowed, threads=1)
    return [tokenizer.encode(text.decode()) for text in texts]


def _parts(tokenizer: Tokenizer, text: Stream, special_tokens: SpecialTokens) -> Iterator[bytes]:
    """Splits a long text into parts whose ids, concatenated, are the ids of the whole text."""
    if tokenizer.kind == "bpe":
        from lmsmith.tokens.bpe import BpeTokenizer
        from lmsmith.tokens.specials import Specials
        from lmsmith.tokens.split import parts_of_stream

        assert isinstance(tokenizer, BpeTokenizer)
        names = tokenizer.uncuttable_specials.names
        if special_tokens == "control":
            names |= tokenizer.special_tokens.keys()
        yield from parts_of_stream(utf8(text), BATCH // 2, tokenizer.pattern, Specials(names))
    elif tokenizer.kind in ("byte", "char"):
        yield from utf8(text)
    else:
        yield b"".join(utf8(text))


class _Output:
    """A unit's files, under temporary names until they are complete."""

    def __init__(self, path: Path) -> None:
        self._place = path
        temporary = f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial"
        self._partial = {
            suffix: path.with_name(temporary + suffix) for suffix in (".ids", ".records", ".json")
        }
        self._files: dict[str, BinaryIO] = {}
        self._checksums = {".ids": 0, ".records": 0}

    def __enter__(self) -> Self:
        self._files = {suffix: self._partial[suffix].open("wb") for suffix in self._checksums}
        return self

    def write(self, ids: Ids, records: np.ndarray) -> None:
        for suffix, array in ((".ids", ids), (".records", records)):
            data = array.view(np.uint8).data
            self._checksums[suffix] = zlib.crc32(data, self._checksums[suffix])
            self._files[suffix].write(data)

    def finish(self, summary: dict[str, Any]) -> None:
        for file in self._files.values():
            file.close()
        content = to_json({**summary, "checksums": self._checksums})
        self._partial[".json"].write_text(content, encoding="utf-8")
        for suffix, partial in self._partial.items():  # .json last: it marks the unit as finished
            partial.replace(self._place.with_name(self._place.name + suffix))

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()
        for partial in self._partial.values():
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StorageError(atomic.explain(error, self._place)) from error
