"""Reads SentencePiece's `tokenizer.model`, and converts it to the content of a `tokenizer.json`.

SentencePiece normalizes a text (a table of replacements, white space), writes spaces as U+2581, and
segments it by a unigram language model (Kudo 2018) or by merges in order of their scores (Sennrich
et al. 2016). A character without a piece is `<unk>`, or its UTF-8 bytes with byte fallback. The
library `tokenizers` has the same steps; `spm.py` runs the result, with a normalizer of its own.

The file is a protocol buffer. Source: SentencePiece 0.2, `sentencepiece_model.proto`,
`normalizer.cc`, `unigram_model.cc` and `bpe_model.cc`.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmsmith.errors import TokenizerError

SPACE = "\u2581"
_UNIGRAM, _BPE = 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_MODELS = {3: "word", 4: "char"}


@dataclass
class Model:
    """What a `tokenizer.model` says."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)  # text, score, type
    model_type: int = _UNIGRAM
    byte_fallback: bool = False
    space_as_suffix: bool = False
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


def read(path: Path) -> Model:
    """Reads a `tokenizer.model`. Raises TokenizerError if it is damaged or another kind of file."""
    model = Model()
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                model.pieces.append(_piece(value))
            elif number == 2:
                trainer = dict(_fields(value))
                model.model_type = trainer.get(3, _UNIGRAM)
                model.space_as_suffix = bool(trainer.get(24, 0))
                model.byte_fallback = bool(trainer.get(35, 0))
            elif number == 3:
                normalizer = dict(_fields(value))
                model.charsmap = normalizer.get(2, b"")
                model.add_dummy_prefix = bool(normalizer.get(3, 1))
                model.remove_extra_whitespaces = bool(normalizer.get(4, 1))
                model.escape_whitespaces = bool(normalizer.get(5, 1))
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror}.") from error
    except (ValueError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise TokenizerError(
            f"{path} is not a complete SentencePiece model: copy it again."
        ) from error
    if not model.pieces:
        raise TokenizerError(f"{path} is not a SentencePiece model: it has no pieces.")
    return model


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer message: number, and an integer, 4 bytes or bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    while at < len(data):
        key = varint()
        number, wire = key >> 3, key & 7
        if wire == 0:
            yield number, varint()
            continue
        size = {1: 8, 2: 0, 5: 4}[wire] if wire in (1, 2, 5) else -1
        if wire == 2:
            size = varint()
        if size < 0 or at + size > len(data):
            raise ValueError("a field that ends after the message")
        yield number, data[at : at + size]
        at += size


def _piece(data: bytes) -> tuple[str, float, int]:
    parts = dict(_fields(data))
    (score,) = struct.unpack("<f", parts.get(2, bytes(4)))
    return parts.get(1, b"").decode("utf-8"), score, parts.get(3, _NORMAL)


def content_of(path: Path) -> dict[str, Any]:
    """The content of a `tokenizer.json` with the ids of the `tokenizer.model` at `path`.

    Raises TokenizerError for damaged files, and for models that `tokenizers` cannot run exactly.
    """
    model = read(path)
    reason = _unsupported(model)
    if reason:
        raise TokenizerError(f"{path} {reason}, which lmsmith does not support.")
    kinds = {_CONTROL: True, _USER_DEFINED: False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": i, "content": text, "special": kinds[kind]} | flags
        for i, (text, _, kind) in enumerate(model.pieces)
        if kind in kinds
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(model)},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": _decoders(model)},
        "model": _unigram(model) if model.model_type == _UNIGRAM else _bpe(model),
    }


def _unsupported(model: Model) -> str | None:
    """Why `tokenizers` cannot run a model exactly, in words that follow its path."""
    if model.model_type not in (_UNIGRAM, _BPE):
        name = _MODELS.get(model.model_type, f"number {model.model_type}")
        return f"has a model of type {name} (expected unigram or bpe)"
    if model.space_as_suffix:
        return "puts spaces after words (treat_whitespace_as_suffix)"
    if not model.escape_whitespaces:
        return "keeps spaces (escape_whitespaces is false)"
    if sum(kind == _UNKNOWN for _, _, kind in model.pieces) != 1:
        return "does not have exactly one unknown piece"
    if any(kind == _UNUSED for _, _, kind in model.pieces):
        return "has unused pieces"
    if len({text for text, _, _ in model.pieces}) < len(model.pieces):
        return "has a piece twice"
    if any(kind == _USER_DEFINED and {" ", SPACE} & set(text) for text, _, kind in model.pieces):
        return "has user-defined symbols with spaces"
    return None


def _replace(pattern: str, by: str, kind: str = "Regex") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": by}


def _normalizers(model: Model) -> list[dict[str, Any]]:
    steps = []
    if model.charsmap:
        table = base64.b64encode(model.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": table})
    if model.remove_extra_whitespaces:
        steps += [
            _replace(rf"\A +|[ {SPACE}]+\z", ""),
            _replace(" {2,}", " "),
        ]
    if model.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    return [*steps, _replace(" ", SPACE, "String")]


def _decoders(model: Model) -> list[dict[str, Any]]:
    steps = [_replace(SPACE, " ", "String")]
    if model.byte_fallback:
        steps.append({"type": "ByteFallback"})
    steps.append({"type": "Fuse"})
    if model.add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return steps


def _unigram(model: Model) -> dict[str, Any]:
    unknown = next(i for i, (_, _, kind) in enumerate(model.pieces) if kind == _UNKNOWN)
    vocabulary = [[text, score] for text, score, _ in model.pieces]
    return {
        "type": "Unigram",
        "unk_id": unknown,
        "vocab": vocabulary,
        "byte_fallback": model.byte_fallback,
    }


def _bpe(model: Model) -> dict[str, Any]:
    """Merges in order of the scores of what they make; SentencePiece knows only pieces."""
    ids = {text: i for i, (text, _, kind) in enumerate(model.pieces) if kind == _NORMAL}
    merges = []
    for text in sorted(ids, key=lambda text: -model.pieces[ids[text]][1]):
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ids and right in ids:
                merges.append([left, right])
    unknown = next(text for text, _, kind in model.pieces if kind == _UNKNOWN)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": {text: i for i, (text, _, _) in enumerate(model.pieces)},
        "merges": merges,
    }
