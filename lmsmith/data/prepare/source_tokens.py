"""The tokens of one source of a run, and the sources.json of all of them.

`run_sources.py` and `named_validation.py` decide which part of a source is in which split.
`data/corpus.py` describes the files and reads them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmsmith import atomic
from lmsmith.config import DataConfig
from lmsmith.data.batches.mixture import Mixture
from lmsmith.data.corpus import Corpus, Counts
from lmsmith.data.manifest import SplitRecord
from lmsmith.data.ready import Ready
from lmsmith.data.shards import Shards
from lmsmith.errors import ConfigError, TokenizerError
from lmsmith.strict_json import write_json
from lmsmith.text.files import plural
from lmsmith.tokens.choose import choose_tokenizer
from lmsmith.tokens.tokenizer import Tokenizer

MOST_TEXT = 4_000_000
"""Validation text of at most this many bytes is written to a file, for comparison with
compressors.
"""

_BLOCK = 2**20  # ids decoded at a time


class SourceTokens(NamedTuple):
    """One source of a run. `text` is its validation text; None if it is large or the ids do not
    represent all of it.
    """

    record: dict[str, Any]  # its entry in sources.json
    opened: tuple[Shards, Shards]  # training and validation tokens
    counts: Counts
    text: bytes | None


def of_text(
    found: Corpus, sources: Sequence[str], record: dict[str, Any], place: Path
) -> SourceTokens:
    """Returns the tokens of text that was encoded into `place`.

    Ids stay in memory: files are not mapped from a run folder that will be renamed.
    """
    sides = []
    for ids, file in ((found.train, "train.bin"), (found.validation, "val.bin")):
        assert isinstance(ids, np.ndarray)
        sides.append(Shards([ids], [place / file], found.tokenizer.vocab_size))
    notes = tuple(f"{', '.join(sources)}: {note}" for note in found.counts.notes)
    counts = replace(found.counts, notes=notes)
    text = (place / "validation.txt").read_bytes()
    return SourceTokens(record, (sides[0], sides[1]), counts, text)


class ValidationText(NamedTuple):
    """Facts about the text of validation shards."""

    n_bytes: int
    n_unknown: int
    n_unknown_bytes: int
    text: bytes | None
    notes: tuple[str, ...]


def validation_text(
    ids: Shards, splits: Sequence[SplitRecord], tokenizer: Tokenizer, place: Path
) -> ValidationText:
    """Returns the text of the validation tokens of a folder of shards.

    `splits`: the manifest's records of the splits that `ids` are from; if they do not cover exactly
    `ids`, bytes are counted by decoding. `place` names the folder in notes.
    """
    notes: tuple[str, ...] = ()
    if splits and len(ids) == sum(split.n_tokens for split in splits):
        n_bytes = sum(split.n_bytes for split in splits)
        unknown = (
            sum(split.n_unknown for split in splits),
            sum(split.n_unknown_bytes for split in splits),
        )
    else:
        n_bytes, unknown = sum(map(len, _decoded(ids, tokenizer))), (0, 0)
        notes = (
            f"{place}: the validation text has {n_bytes:,} bytes, counted by decoding its "
            f"{len(ids):,} tokens",
        )
    text = b"".join(_decoded(ids, tokenizer)) if n_bytes <= MOST_TEXT else None
    # If the lengths differ, the ids do not represent all of the text.
    is_complete = text is not None and len(text) == n_bytes
    return ValidationText(n_bytes, *unknown, text if is_complete else None, notes)


def trust_note(ready: Ready, place: Path) -> list[str]:
    """Returns a note on shards without a manifest."""
    if ready.manifest:
        return []
    shards = plural(len(ready.train) + len(ready.validation), "shard")
    return [f"{place} has no manifest: lmsmith assumes that this tokenizer made its {shards}"]


def common_tokenizer(wanted: str, ready: dict[str, Ready], texts: Sequence[str]) -> Tokenizer:
    """Returns the tokenizer shared by all sources, learned from `texts` if necessary.

    Raises ConfigError or TokenizerError if the sources, or the user, do not agree on one.
    """
    own = {path: other for path, folder in ready.items() if (other := folder.own_tokenizer())}
    if not ready:
        tokenizer = choose_tokenizer(wanted, texts, several=True)
    elif wanted in ("char", "word") or wanted.startswith("bpe:"):
        raise ConfigError(
            f"tokenizer = {wanted!r} would be learned from text, but {next(iter(ready))} already "
            "contains tokens. Remove it, or name the tokenizer that made them."
        )
    elif wanted != "auto":
        tokenizer = choose_tokenizer(wanted, [], several=True)
    elif own:
        tokenizer = next(iter(own.values()))
    else:
        raise ConfigError(
            f"{next(iter(ready))} does not say which tokenizer made its shards. Name it: "
            "--tokenizer gpt2 for those of llm.c and modded-nanogpt, or a tokenizer's folder."
        )
    for path, other in own.items():
        if other != tokenizer:
            whose = f"--tokenizer {wanted}" if wanted != "auto" else f"that of {next(iter(own))}"
            raise TokenizerError(
                f"{path} was made with another tokenizer ({other.kind}, {other.vocab_size:,} "
                f"ids) than {whose} ({tokenizer.kind}, {tokenizer.vocab_size:,} ids): its ids "
                "would mean other text. "
                + (
                    "Remove --tokenizer."
                    if wanted != "auto"
                    else "Prepare both with the same tokenizer."
                )
            )
    return tokenizer


def weigh(data: DataConfig, records: Sequence[dict[str, Any]], counts: Counts) -> Counts:
    """Writes the weight of each training source into its record, and adds a note."""
    for record, source in zip(records, data.mixture, strict=True):
        record["weight"] = source.weight
    shares = zip(
        Mixture([source.weight for source in data.mixture]).shares, data.mixture, strict=True
    )
    note = "of the training rows, " + ", ".join(
        f"{float(share):.4g} are from {mixed_source.path}" for share, mixed_source in shares
    )
    return replace(counts, notes=(*counts.notes, note))


def total(counts: Sequence[Counts]) -> Counts:
    """Returns the sum of the counts of all sources."""
    numbers = [field.name for field in fields(Counts) if field.name != "notes"]
    sums = {name: sum(getattr(count, name) for count in counts) for name in numbers}
    return Counts(**sums, notes=tuple(note for count in counts for note in count.notes))


def write_sources(
    folder: Path,
    format: int,
    records: Sequence[dict[str, Any]],
    counts: Counts,
    texts: Sequence[bytes | None],
) -> None:
    """Writes the files that `load` reads. `texts`: the validation text of each source; None for one
    that is too large.
    """
    write_json(folder / "sources.json", {"format": format, "sources": records})
    write_json(folder / "corpus.json", asdict(counts))
    found = [text for text in texts if text is not None]
    if len(found) == len(texts):
        atomic.write(folder / "validation.txt", b"".join(found))


def _decoded(ids: Shards, tokenizer: Tokenizer) -> Iterator[bytes]:
    """Decodes ids, in parts; end-of-text tokens give no bytes."""
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK]
        yield tokenizer.decode_bytes(
            block if tokenizer.end_of_text is None else block[block != tokenizer.end_of_text]
        )
