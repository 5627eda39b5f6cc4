"""Compares many models on one text, in bits per byte.

N-gram models, recurrent networks, Transformers, compressors and a uniform guess all encode the same
text, so bits per byte compares them whatever their tokenizers. The bytes are those of the file
without a byte-order mark and with LF line ends, as everywhere in lmsmith. Bytes that are not valid
UTF-8 are kept (`texts.py`) for compressors and for byte-level tokenizers. Text that a tokenizer
does not know costs 8 bits per byte and the bits to encode its positions (`likelihood.py`). A
uniform guess over bytes needs exactly 8 bits per byte.

Compressors learn from the text itself; models were trained on another text, for `train_seconds`.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmsmith.config import ModelConfig
from lmsmith.errors import DataError
from lmsmith.evaluate.compressors import COMPRESSORS
from lmsmith.evaluate.differences import Difference, text_differences, untested
from lmsmith.evaluate.likelihood import Score
from lmsmith.evaluate.texts import (
    Encoded,
    encode_documents,
    read_documents,
    score_encoded,
    to_bytes,
)
from lmsmith.evaluate.units import FEWEST, LEAST_BLOCK, Units, unit_bits, units_of
from lmsmith.models.interface import LanguageModel
from lmsmith.tokens.tokenizer import Tokenizer, unused_ids

UNIFORM = "uniform"


@dataclass(frozen=True)
class Text:
    """The text that all models are scored on: its bytes, and the same as documents (`texts.py`)."""

    name: str
    data: bytes
    documents: tuple[str, ...]

    @property
    def n_invalid(self) -> int:
        """Number of bytes that are not valid UTF-8."""
        return len(self.data) - len(self.data.decode("utf-8", "ignore").encode())

    @cached_property
    def units(self) -> Units | None:
        """The units on which models are compared; None if the text is too short for a test."""
        return units_of(self.documents)


@dataclass(frozen=True)
class Entry:
    """One row of the table. None: not applicable, or unknown."""

    name: str
    what: str  # type of model: "lstm, 1 layer of 256", "compressor"
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
    not_comparable: str = ""  # the reason, if any
    # Bits of each of `Text.units` (n,), for tests of differences.
    unit_bits: npt.NDArray[np.float64] | None = field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """The fields without `unit_bits`."""
        names = (one.name for one in fields(self) if one.name != "unit_bits")
        return {name: getattr(self, name) for name in names}


def read_text(
    path: Path,
    *,
    text_field: str = "text",
    encoding: str = "auto",
    document_separator: str = "auto",
) -> Text:
    """Reads the text of a file. Raises DataError if it cannot be read or has no text."""
    documents = read_documents(
        [path],
        text_field=text_field,
        encoding=encoding,
        errors="replace",
        document_separator=document_separator,
    )
    texts = tuple(documents)
    if not texts:
        raise DataError(
            f"{path} is empty, or only white space: give a file with text to compare models on."
        )
    return Text(path.resolve().name, b"".join(map(to_bytes, texts)), texts)


def baselines(text: Text) -> list[Entry]:
    """The entries of a uniform guess and the compressors."""
    entries = [Entry(UNIFORM, "every byte equally likely", 8.0)]
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
    """Scores a model on the text.

    `boundaries`: the `data.documents` that the model was trained with. `begin`: the id before each
    document; by default the end-of-text token. `summary`: summary of its run, for the training
    time.

    The measured time includes tokenization and scoring, but not compilation at the first call.
    """
    _score(model, tokenizer, [document[:64] for document in text.documents[:1]], boundaries, begin)
    began = time.perf_counter()
    encoded, score, nats = _score(model, tokenizer, text.documents, boundaries, begin)
    seconds = time.perf_counter() - began
    units = text.units
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
        unit_bits=None if units is None else unit_bits(units, tokenizer, encoded, nats, score),
    )


def differences(entries: Iterable[Entry], text: Text) -> list[Difference]:
    """Tests whether the models among `entries` differ on the text, pair by pair.

    Compressors and the uniform guess have no cost per document and are not tested.
    """
    models = {entry.name: entry.unit_bits for entry in entries if entry.n_params is not None}
    if text.units is None:
        least = FEWEST * LEAST_BLOCK
        return untested(
            list(models),
            f"a test needs {FEWEST} documents or {least:,} bytes of text; this text has "
            f"{len(text.documents):,} and {len(text.data):,}",
        )
    known = {name: bits for name, bits in models.items() if bits is not None}
    return text_differences(known, text.units.n_bytes, text.units.kind)


def _score(
    model: LanguageModel,
    tokenizer: Tokenizer,
    documents: Iterable[str],
    boundaries: str,
    begin: int | None,
) -> tuple[Encoded, Score, npt.NDArray[np.float64]]:
    """The tokenized documents, their score, and the nats of each of their ids."""
    encoded = encode_documents(tokenizer, documents, begin)
    nats = np.zeros(len(encoded.ids))
    if len(encoded.ids) > encoded.starts_with_end_of_text:
        score = score_encoded(model, tokenizer, encoded, boundaries=boundaries, per_token=nats)
        return encoded, score, nats
    # The tokenizer knows no part of the text.
    n_unknown = encoded.n_unknown
    none = Score(0.0, 0, encoded.n_bytes, n_unknown, encoded.n_unknown_bytes, left_out=True)
    return encoded, none, nats
