"""Many models on one text: what each needs for it, in bits per byte.

N-grams, recurrent networks and Transformers, compressors and a uniform guess are all codes for the
same text, so one number compares them, whatever their tokenizers: the bits they need, over the
bytes that the text has. The bytes are those of the file, with line ends made LF and without a
byte-order mark, as everywhere in lmsmith. Bytes that are no UTF-8 stay what they are (`texts.py`),
for compressors and for all whose tokens are bytes. What a tokenizer does not know costs 8 bits a
byte, and bits for where it stands (`likelihood.py`). A uniform guess over bytes needs exactly 8 for
any file.

Compressors learn from the text itself, models from another one before: `train_seconds` says how
long.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsmith.config import ModelConfig
from lmsmith.errors import DataError
from lmsmith.evaluate.compressors import COMPRESSORS
from lmsmith.evaluate.likelihood import Score
from lmsmith.evaluate.texts import encode_documents, read_documents, score_encoded, to_bytes
from lmsmith.models.interface import LanguageModel
from lmsmith.tokens.tokenizer import Tokenizer, unused_ids

UNIFORM = "uniform"


@dataclass(frozen=True)
class Text:
    """What all are scored on: bytes, and the documents that they are of, as `texts.py` reads
    them.
    """

    name: str
    data: bytes
    documents: tuple[str, ...]

    @property
    def n_invalid(self) -> int:
        """Bytes that are no UTF-8."""
        return len(self.data) - len(self.data.decode("utf-8", "ignore").encode())


@dataclass(frozen=True)
class Entry:
    """One line of the table. None: does not apply, or is not known."""

    name: str
    what: str  # "lstm, 1 layer of 256", "compressor"
    bits_per_byte: float
    n_params: int | None = None
    n_tokens: int | None = None
    n_unknown: int = 0
    n_impossible: int = 0
    train_seconds: float | None = None
    score_seconds: float | None = None
    bytes_per_second: float | None = None
    unknown_bits: float = 0.0
    n_ids_without_token: int = 0
    not_comparable: str = ""  # why


def read_text(
    path: Path,
    *,
    text_field: str = "text",
    encoding: str = "auto",
    document_separator: str = "auto",
) -> Text:
    """The text of a file. Raises DataError for what cannot be read, and for a file without text."""
    found = read_documents(
        [path],
        text_field=text_field,
        encoding=encoding,
        errors="replace",
        document_separator=document_separator,
    )
    documents = tuple(found)
    if not documents:
        raise DataError(
            f"{path} is empty, or white space alone: there is nothing to compare models on."
        )
    return Text(path.resolve().name, b"".join(map(to_bytes, documents)), documents)


def baselines(text: Text) -> list[Entry]:
    """A uniform guess and the compressors."""
    entries = [Entry(UNIFORM, "every byte alike", 8.0)]
    for name, compress in COMPRESSORS.items():
        began = time.perf_counter()
        bits = 8 * len(compress(text.data)) / len(text.data)
        seconds = time.perf_counter() - began
        speed = len(text.data) / seconds
        entries.append(
            Entry(name, "compressor", bits, score_seconds=seconds, bytes_per_second=speed)
        )
    return entries


def score_entry(
    name: str,
    model: LanguageModel,
    tokenizer: Tokenizer,
    config: ModelConfig,
    text: Text,
    *,
    boundaries: str = "stream",
    begin: int | None = None,
    summary: Mapping[str, Any] | None = None,
) -> Entry:
    """A model's line. `boundaries`: its `data.documents`; `begin`: what stands before its texts, if
    not an end of one.

    `summary`: of its run, which may say how long it took.

    The clock runs for reading ids and scoring them, not for what is compiled at the first call.
    """
    _score(model, tokenizer, [document[:64] for document in text.documents[:1]], boundaries, begin)
    began = time.perf_counter()
    score = _score(model, tokenizer, text.documents, boundaries, begin)
    seconds = time.perf_counter() - began
    trained = (summary or {}).get("train_seconds")
    return Entry(
        name,
        config.in_brief(),
        score.bits_per_byte,
        model.n_parameters(),
        score.n_tokens,
        score.n_unknown,
        score.n_impossible,
        float(trained) if isinstance(trained, int | float) else None,
        seconds,
        len(text.data) / seconds,
        score.unknown_bits,
        len(unused_ids(tokenizer, model.vocab_size)),
    )


def _score(
    model: LanguageModel,
    tokenizer: Tokenizer,
    documents: Iterable[str],
    boundaries: str,
    begin: int | None,
) -> Score:
    encoded = encode_documents(tokenizer, documents, begin)
    if len(encoded.ids) > encoded.first_given:
        return score_encoded(model, tokenizer, encoded, boundaries=boundaries)
    return Score(
        0.0, 0, encoded.n_bytes, encoded.n_unknown, encoded.n_unknown_bytes, left_out=True
    )  # knows nothing
