"""Chooses the text that is held out for validation: one rule for single runs and for prepared
folders.

    split = split_documents(Documents(["books/"]), fraction=0.1)

- Many documents (at least `MANY` distinct ones): complete documents, those whose content hash is
  below a bound. A document stays in its split when others are added, and so do its duplicates.
- Fewer: the last part of each document. Exact duplicates must be dropped first; otherwise the tail
  of one copy would be trained on in another. For a single text this is nanoGPT's split: text[:int(n
  * 0.9)] and the rest.

`held_out_share` computes the share. Texts that fit into memory are split here;
`data/prepare/units.py` splits others with the same functions.
"""

import hashlib
from array import array
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmsmith.errors import DataError
from lmsmith.text.files import plural

if TYPE_CHECKING:
    from lmsmith.text.documents import Document

MANY = 50  # with at least this many distinct documents, complete documents are held out
FRACTION = 0.1  # share of a text that is held out, up to MOST_HELD_OUT
MOST_HELD_OUT = 250_000  # characters: enough for three digits of a loss, and fast to evaluate
PREPARED_SHARE = (
    0.05  # share of the documents of a prepared folder with many documents, regardless of size
)


def held_out_share(
    fraction: float, *, many: bool, n_characters: int, of_many: float | None = None
) -> float:
    """Returns the share of the text that is held out: `fraction` if the user sets it (above 0).

    Otherwise a tenth, reduced for a large text to at most about `MOST_HELD_OUT` characters. For
    many documents the share falls in steps (`default_share`), unless `of_many` sets a fixed share:
    a prepared folder passes `PREPARED_SHARE`, because its sources grow, and a share that changes
    would move documents to the other split. (A run on such a folder need not evaluate on everything
    held out: `data.validation_tokens`.)
    """
    if fraction:
        return fraction
    if not many:
        return min(FRACTION, MOST_HELD_OUT / max(1, n_characters))
    return default_share(n_characters) if of_many is None else of_many


def default_share(n_characters: int) -> float:
    """Returns the share held out of many documents: 0.1, 0.03, 0.01, ..., so that at most
    MOST_HELD_OUT of `n_characters` are held out.

    It falls in steps, so that documents change splits only when the text has grown about threefold.
    """
    exponent = 0
    while (
        share := FRACTION * (0.1 ** (exponent // 2)) * (0.3 if exponent % 2 else 1)
    ) * n_characters > MOST_HELD_OUT:
        exponent += 1
    return round(share, 12)


def split_hash(utf8: Iterable[bytes]) -> int:
    """Returns 64 bits that depend on the text alone. The key makes the hash unique to lmsmith: no
    data set was sorted or filtered by it.
    """
    state = hashlib.blake2b(key=b"lmsmith: training or validation", digest_size=8)
    for part in utf8:
        state.update(part)
    return int.from_bytes(state.digest(), "little")


def hash_bound(fraction: float) -> int:
    """Returns the bound on `split_hash` below which a text is held out, for a share of
    `fraction`.
    """
    return int(fraction * 2**64)


def is_held_out(utf8: Iterable[bytes], fraction: float) -> bool:
    """Returns whether a text is held out, as one of many texts of which `fraction` are held out."""
    return split_hash(utf8) < hash_bound(fraction)


def tail_cut(n_characters: int, fraction: float) -> int:
    """Position at which the last `fraction` of a text begins: nanoGPT's int(n * 0.9)."""
    # Rounded, because 1 - 0.9 is 0.09999999999999998.
    return int(n_characters * round(1 - fraction, 12))


@dataclass(frozen=True)
class Split:
    """Training and validation texts, in reading order.

    `has_boundaries`: the texts come from more than one document, so a text does not continue the
    one before. `train_hashes`, `validation_hashes`: hashes of the full documents that have text in
    that split.
    """

    train: list[str]
    validation: list[str]
    has_boundaries: bool
    n_duplicates: int  # dropped exact duplicates
    description: str
    train_hashes: Collection[int]
    validation_hashes: Collection[int]


def split_documents(documents: Iterable["Document"], fraction: float = 0.0) -> Split:
    """Holds out about `fraction` of the text for validation; 0: a tenth, at most about 250,000
    characters.

    With many documents both splits get at least one: the lowest hash is always held out, the
    highest never. (With fraction 0, some held-out documents move to training when the text has
    grown threefold.)

    Raises DataError if either split would have fewer than two characters.
    """
    assert 0 <= fraction < 1
    texts: list[str] = []
    hashes = array("Q")
    distinct: dict[int, str] = {}  # collected only up to MANY
    for document in documents:
        texts.append(document.text)
        hashes.append(document.hash)
        if len(distinct) < MANY:
            distinct.setdefault(hashes[-1], document.text)
    many = len(distinct) == MANY
    fraction = held_out_share(fraction, many=many, n_characters=sum(map(len, texts)))
    if many:
        split = _split_many(texts, hashes, fraction)
    else:
        split = _split_few(distinct, len(texts) - len(distinct), fraction)
    n_train, n_validation = sum(map(len, split.train)), sum(map(len, split.validation))
    if min(n_train, n_validation) < 2:
        raise DataError(
            f"the text is too short to split: of {plural(n_train + n_validation, 'character')}, "
            f"{n_train} would be for training and {n_validation} for validation; expected at least "
            f"2 for each. Add text, or change --data.validation_fraction ({fraction:.3g})."
        )
    return split


def _split_many(texts: list[str], hashes: "array[int]", fraction: float) -> Split:
    """Splits many documents; each is entirely in one split."""
    bound = min(max(hash_bound(fraction), min(hashes) + 1), max(hashes))
    train = [text for text, number in zip(texts, hashes, strict=True) if number >= bound]
    validation = [text for text, number in zip(texts, hashes, strict=True) if number < bound]
    train_hashes = array("Q", (number for number in hashes if number >= bound))
    validation_hashes = array("Q", (number for number in hashes if number < bound))
    description = (
        f"{len(validation):,} of {len(texts):,} documents, chosen by a hash of their content, are "
        f"held out for validation: {_sizes(train, validation)}"
    )
    return Split(train, validation, True, 0, description, train_hashes, validation_hashes)


def _split_few(distinct: dict[int, str], n_duplicates: int, fraction: float) -> Split:
    """Splits few documents; the tail of each is held out."""
    cuts = [(number, text, tail_cut(len(text), fraction)) for number, text in distinct.items()]
    train = [text[:cut] for _, text, cut in cuts if cut > 0]
    validation = [text[cut:] for _, text, cut in cuts if cut < len(text)]
    train_hashes = array("Q", (number for number, _, cut in cuts if cut > 0))
    validation_hashes = array("Q", (number for number, text, cut in cuts if cut < len(text)))
    several = len(distinct) > 1
    texts = f"each of {len(distinct)} documents" if several else "the text"
    dropped = f"; {plural(n_duplicates, 'exact duplicate')} dropped" if n_duplicates else ""
    description = (
        f"the last {100 * fraction:.4g}% of {texts} is held out for validation: "
        f"{_sizes(train, validation)}{dropped}"
    )
    return Split(
        train, validation, several, n_duplicates, description, train_hashes, validation_hashes
    )


def _sizes(train: list[str], validation: list[str]) -> str:
    n_train, n_validation = sum(map(len, train)), sum(map(len, validation))
    n = max(
        1, n_train + n_validation
    )  # avoids division by zero; `split_documents` rejects an empty text
    return (
        f"{n_train:,} characters for training, {n_validation:,} held out ({n_validation / n:.1%})"
    )
