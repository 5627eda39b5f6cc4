"""Many models on one text: what each needs for it, in bits per byte.

N-grams, recurrent networks and Transformers, compressors and a uniform guess are all codes for the same text, so one
number compares them, whatever their tokenizers: the bits they need, over the bytes that the text has. The bytes are
those of the file, with line ends made LF and without a byte-order mark, as everywhere in lmsmith. Bytes that are no
UTF-8 stay what they are for compressors; no tokenizer knows them, so to a model each of them costs 8 bits, like the
bytes of unknown characters. Where those stand is not charged: a line with unknowns is a lower bound. A uniform guess
over bytes needs exactly 8 for any text.

Compressors learn from the text itself, models from another one before: `train_seconds` says how long.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsmith.config import ModelConfig
from lmsmith.data.packing import boundary_of
from lmsmith.errors import DataError
from lmsmith.evaluate.compressors import COMPRESSORS
from lmsmith.evaluate.likelihood import Score, score_ids
from lmsmith.evaluate.texts import encode_documents
from lmsmith.models.interface import LanguageModel
from lmsmith.text.documents import Documents
from lmsmith.text.files import COMPRESSED, JSON_LINES, MARKS, PARQUET, inner_suffix, read_errors
from lmsmith.tokens.tokenizer import Tokenizer, to_utf8

_UTF8_MARK = b"\xef\xbb\xbf"
_NO_TEXT = re.compile("[\udc80-\udcff]+")  # what bytes that are no UTF-8 become under "surrogateescape"


@dataclass(frozen=True)
class Text:
    """What all are scored on. `documents` are without the `n_invalid` bytes of it that are no UTF-8."""

    name: str
    data: bytes
    documents: tuple[str, ...]
    n_invalid: int = 0


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


def read_text(path: Path, *, text_field: str = "text", encoding: str = "auto") -> Text:
    """The text of a file. Raises DataError for what cannot be read, and for a file without text."""
    plain = inner_suffix(path) not in JSON_LINES + PARQUET and path.suffix.lower() not in COMPRESSED
    if plain and encoding == "auto":
        with read_errors(path):
            raw = path.read_bytes()
        marked = next((name for mark, name in MARKS if raw.startswith(mark)), "utf-8")
        if marked == "utf-8":
            data = raw.removeprefix(_UTF8_MARK).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            if not data:
                raise DataError(f"{path} is empty: there is nothing to compare models on.")
            text = _NO_TEXT.sub("", data.decode("utf-8", "surrogateescape"))
            n_invalid = len(data) - len(text.encode("utf-8"))
            return Text(path.name, data, (text,) if text else (), n_invalid)
    documents = tuple(d.text for d in Documents([path], text_field=text_field, encoding=encoding))
    return Text(path.name, b"".join(map(to_utf8, documents)), documents)


def baselines(text: Text) -> list[Entry]:
    """A uniform guess and the compressors."""
    entries = [Entry("uniform", "every byte alike", 8.0)]
    for name, compress in COMPRESSORS.items():
        began = time.perf_counter()
        bits = 8 * len(compress(text.data)) / len(text.data)
        seconds = time.perf_counter() - began
        speed = len(text.data) / seconds
        entries.append(Entry(name, "compressor", bits, score_seconds=seconds, bytes_per_second=speed))
    return entries


def score_entry(
    name: str,
    model: LanguageModel,
    tokenizer: Tokenizer,
    config: ModelConfig,
    text: Text,
    *,
    boundaries: str = "stream",
    summary: Mapping[str, Any] | None = None,
) -> Entry:
    """A model's line. `boundaries`: its `data.documents`. `summary`: of its run, which may say how long it took.

    The clock runs for reading ids and scoring them, not for what is compiled at the first call.
    """
    _score(model, tokenizer, Text("", b" ", tuple(document[:64] for document in text.documents[:1])), boundaries)
    began = time.perf_counter()
    score = _score(model, tokenizer, text, boundaries)
    seconds = time.perf_counter() - began
    trained = (summary or {}).get("train_seconds")
    return Entry(
        name,
        describe(config),
        score.bits_per_byte,
        model.n_parameters(),
        score.n_tokens,
        score.n_unknown,
        score.n_impossible,
        float(trained) if isinstance(trained, int | float) else None,
        seconds,
        len(text.data) / seconds,
    )


def _score(model: LanguageModel, tokenizer: Tokenizer, text: Text, boundaries: str) -> Score:
    encoded, first_given = encode_documents(tokenizer, text.documents), tokenizer.end_of_text is not None
    n_bytes, n_unknown = len(text.data), encoded.n_unknown + text.n_invalid
    n_unknown_bytes = encoded.n_unknown_bytes + text.n_invalid
    if len(encoded.ids) <= first_given:  # the tokenizer knows nothing of it
        return Score(0.0, 0, n_bytes, n_unknown, n_unknown_bytes)
    return score_ids(
        model,
        encoded.ids,
        n_bytes=n_bytes,
        n_unknown=n_unknown,
        n_unknown_bytes=n_unknown_bytes,
        first_given=first_given,
        boundary=boundary_of(boundaries, tokenizer),
    )


def describe(config: ModelConfig) -> str:
    """A model in some words."""
    if config.kind == "ngram":
        return f"{config.ngram_order}-gram, {config.smoothing}"
    layers = f"{config.n_layer} layer{'s' * (config.n_layer > 1)} of {config.d_model}"
    return f"{config.cell}, {layers}" if config.kind == "rnn" else f"Transformer, {layers}"
