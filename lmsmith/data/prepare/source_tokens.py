"""One source of a run -> its tokens; and what sources.json says of all of them together.

`run_sources.py` and `named_validation.py` decide which part of a source is on which side.
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
"""Bytes of validation text up to which it is written out, for compressors to be compared on."""

_BLOCK = 2**20  # ids decoded at once


class SourceTokens(NamedTuple):
    """One source of a run. `text` is its validation text, None where that is large or not
    carried by the ids.
    """

    record: dict[str, Any]  # what sources.json says of it
    opened: tuple[Shards, Shards]  # training and validation tokens
    counts: Counts
    text: bytes | None


def of_text(
    found: Corpus, sources: Sequence[str], record: dict[str, Any], place: Path
) -> SourceTokens:
    """The tokens of text that was encoded into `place`.

    Ids stay in memory: nothing is mapped from a run folder that is yet to be renamed.
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
    """What is known of the text of validation shards."""

    n_bytes: int
    n_unknown: int
    n_unknown_bytes: int
    text: bytes | None
    notes: tuple[str, ...]


def validation_text(
    ids: Shards, splits: Sequence[SplitRecord], tokenizer: Tokenizer, place: Path
) -> ValidationText:
    """The text behind the validation tokens of a folder of shards.

    `splits`: what its manifest says of the splits that `ids` are of; where they are not all of
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
            f"{place}: the {n_bytes:,} bytes of validation text are those of its {len(ids):,} "
            f"tokens, decoded",
        )
    text = b"".join(_decoded(ids, tokenizer)) if n_bytes <= MOST_TEXT else None
    whole = text is not None and len(text) == n_bytes  # else the ids do not carry all of it
    return ValidationText(n_bytes, *unknown, text if whole else None, notes)


def trust_note(ready: Ready, place: Path) -> list[str]:
    """What is said of shards without a manifest."""
    if ready.manifest:
        return []
    shards = plural(len(ready.train) + len(ready.validation), "shard")
    return [f"{place} has no manifest: that this tokenizer made its {shards} is taken on trust"]


def one_tokenizer(wanted: str, ready: dict[str, Ready], texts: Sequence[str]) -> Tokenizer:
    """The one tokenizer of all sources, learnt from `texts` where it has to be.

    Raises ConfigError, TokenizerError where they or the user do not agree.
    """
    own = {path: found for path, folder in ready.items() if (found := folder.own_tokenizer())}
    if not ready:
        made = choose_tokenizer(wanted, texts, several=True)
    elif wanted in ("char", "word") or wanted.startswith("bpe:"):
        raise ConfigError(
            f"tokenizer = {wanted!r} would be learnt, and {next(iter(ready))} holds tokens "
            f"already. Leave it out, or "
            "name the tokenizer that made them."
        )
    elif wanted != "auto":
        made = choose_tokenizer(wanted, [], several=True)
    elif own:
        made = next(iter(own.values()))
    else:
        raise ConfigError(
            f"nothing in {next(iter(ready))} says which tokenizer made its shards. Name it: "
            f"--tokenizer gpt2 for those "
            "of llm.c and modded-nanogpt, or a tokenizer's folder."
        )
    for path, found in own.items():
        if found != made:
            whose = f"--tokenizer {wanted}" if wanted != "auto" else f"that of {next(iter(own))}"
            raise TokenizerError(
                f"{path} was made with another tokenizer ({found.kind}, {found.vocab_size:,} ids) "
                f"than {whose} "
                f"({made.kind}, {made.vocab_size:,} ids): its ids would stand for other text. "
                + ("Leave --tokenizer out." if wanted != "auto" else "Prepare both with one.")
            )
    return made


def weigh(data: DataConfig, records: Sequence[dict[str, Any]], counts: Counts) -> Counts:
    """Puts the weight of each training source into its record, and says it."""
    for record, source in zip(records, data.mixture, strict=True):
        record["weight"] = source.weight
    shares = zip(
        Mixture([source.weight for source in data.mixture]).shares, data.mixture, strict=True
    )
    note = "of the training rows " + ", ".join(
        f"{float(share):.4g} are {of.path}" for share, of in shares
    )
    return replace(counts, notes=(*counts.notes, note))


def total(counts: Sequence[Counts]) -> Counts:
    """The counts of all sources together."""
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
    """What `load` reads. `texts`: of the validation parts; None where one was too large."""
    write_json(folder / "sources.json", {"format": format, "sources": records})
    write_json(folder / "corpus.json", asdict(counts))
    found = [text for text in texts if text is not None]
    if len(found) == len(texts):
        atomic.write(folder / "validation.txt", b"".join(found))


def _decoded(ids: Shards, tokenizer: Tokenizer) -> Iterator[bytes]:
    """The text of ids, in parts; ends of text bring no bytes."""
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK]
        yield tokenizer.decode_bytes(
            block if tokenizer.end_of_text is None else block[block != tokenizer.end_of_text]
        )
