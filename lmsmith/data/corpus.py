"""What a run is trained on: training and validation ids, and the tokenizer that made them.

    corpus = load(RUN / "tokens")

Text alone that is not mixed by weight (`prepare/run_text.py` writes it):

    RUN/tokens/train.bin, val.bin     ids in llm.c's format
    RUN/tokens/validation.txt         the validation text, for compressors and other models to be
                                      scored on
    RUN/tokens/tokenizer.json
    RUN/tokens/corpus.json            `Counts`

Several sources, or ready shards (`prepare/run_sources.py` writes it):

    RUN/tokens/sources.json           which sources, in order, with their weights
    RUN/tokens/source-1/ ...          train.bin and val.bin of each source that is text
    RUN/tokens/corpus.json, tokenizer.json, and validation.txt where the text is small

Ready shards (`ready.py`) stay where they are. A record in sources.json has their place, and the
hash of their manifest or, without one, the names and sizes of the shards. A run whose shards have
changed is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmsmith import foreign_json
from lmsmith.data.batches.windows import Sources
from lmsmith.data.ready import Ready, open_ready
from lmsmith.data.shards import Shards, read_shard
from lmsmith.errors import CheckpointError
from lmsmith.tokens.files import load_tokenizer
from lmsmith.tokens.tokenizer import Tokenizer

FORMAT, WITH_ROLES = 1, 2  # of sources.json; the latter where records have a role


@dataclass(frozen=True)
class Counts:
    """What the token files hold. Bytes are those of the text in UTF-8; `val_` counts the
    validation split alone.
    """

    n_train_tokens: int
    n_val_tokens: int
    n_val_bytes: int
    n_val_unknown: int
    n_val_unknown_bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    """A text as ids, split, with the tokenizer that made them."""

    train: np.ndarray | Shards | Sources
    validation: np.ndarray | Shards
    tokenizer: Tokenizer
    counts: Counts

    @property
    def first_given(self) -> bool:
        """Whether the validation ids begin with an end-of-text token, which is context and costs
        nothing.
        """
        end_of_text = self.tokenizer.end_of_text
        return end_of_text is not None and self.validation[:1].tolist() == [end_of_text]


def load(folder: Path) -> Corpus:
    """The corpus in RUN/tokens, ids memory-mapped. Raises CheckpointError, also where shards
    have changed; DataError.
    """
    path = folder / "sources.json"
    if not path.exists():
        return _load_text(folder)
    try:
        content = foreign_json.read(path)
        if content["format"] not in (FORMAT, WITH_ROLES):
            raise CheckpointError(
                f"{path} has format {content['format']!r}; this lmsmith reads up to {WITH_ROLES}. "
                f"Update lmsmith."
            )
        records = content["sources"]
        tokenizer, counts = load_tokenizer(folder), load_counts(folder)
        opened = [open_source(record, folder, tokenizer.vocab_size) for record in records]
        return join_sources(opened, records, tokenizer, counts)
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); start the run anew.") from error


def _load_text(folder: Path) -> Corpus:
    counts = load_counts(folder)
    return Corpus(
        read_shard(folder / "train.bin"),
        read_shard(folder / "val.bin"),
        load_tokenizer(folder),
        counts,
    )


def load_counts(folder: Path) -> Counts:
    """The counts in RUN/tokens. Raises CheckpointError."""
    try:
        found = foreign_json.read(folder / "corpus.json")
        return Counts(**{**found, "notes": tuple(found["notes"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{folder} does not hold a run's tokens ({error}); start the run anew."
        ) from error


def join_sources(
    opened: Sequence[tuple[Shards, Shards]],
    records: Sequence[dict[str, Any]],
    tokenizer: Tokenizer,
    counts: Counts,
) -> Corpus:
    """One corpus of the training and validation tokens of each source and its record in
    sources.json.
    """
    both = list(zip(opened, records, strict=True))
    train = [part for (part, _), record in both if record.get("role") != "validation"]
    validation = [part for (_, part), record in both if record.get("role") != "train"]
    weights = [record["weight"] for record in records if "weight" in record]
    mixed = Sources(train, weights) if weights else Shards.join(train)
    return Corpus(mixed, Shards.join(validation), tokenizer, counts)


def open_source(record: dict[str, Any], folder: Path, vocab_size: int) -> tuple[Shards, Shards]:
    """Training and validation tokens of one source. Raises CheckpointError where shards are
    missing or changed.
    """
    if "text" in record:
        place = folder / record["text"]
        return Shards.open([place / "train.bin"], vocab_size), Shards.open(
            [place / "val.bin"], vocab_size
        )
    place = Path(record["shards"])
    if not place.exists():
        raise CheckpointError(
            f"the run was trained on the shards in {place}, and there is no such folder. Put it "
            f"back, or write where "
            f"it is now into {folder / 'sources.json'}."
        )
    role = record.get("role")
    ready = open_ready(place, one_sided=role is not None)
    if changed := _changes(record, ready):
        raise CheckpointError(
            f"the shards in {place} are not those that the run began with: {changed}. Put them "
            f"back, or start anew."
        )
    if role is not None:
        everything, nothing = ready.open_all(vocab_size), Shards([], (), vocab_size)
        limit = record["validation_tokens"] or len(everything)
        return (everything, nothing) if role == "train" else (nothing, everything.first(limit))
    validation = ready.open_validation(vocab_size)
    limit = record["validation_tokens"] or len(validation)
    return ready.open_train(vocab_size), validation.first(limit)


def _changes(record: dict[str, Any], ready: Ready) -> str:
    """What is different now; empty where nothing is."""
    now = ready.identity()
    if "manifest_sha256" in record:
        return (
            ""
            if now == {"manifest_sha256": record["manifest_sha256"]}
            else "their manifest is another one"
        )
    if "shards_bytes" not in now:
        return "there is a manifest now"
    before, now = record["shards_bytes"], now["shards_bytes"]
    for name in sorted({**before, **now}):
        if before.get(name) != now.get(name):
            sizes = [
                f"{size:,} bytes" if size is not None else "not there"
                for size in (before.get(name), now.get(name))
            ]
            return f"{name} was {sizes[0]} and is {sizes[1]}"
    return ""
