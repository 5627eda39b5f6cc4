"""Which text is held out for validation: one rule for a single run and for prepared folders.

    split = split_documents(Documents(["books/"]), fraction=0.1)

- Many documents (from `MANY` distinct ones on): whole ones, by a hash of their content below a
  bound. A document stays on its side when others are added, and its duplicates are there too.
- Fewer: the last part of each. Exact duplicates have to be dropped before: else one copy's tail
  would be trained on in another. For one text this is nanoGPT's split: text[:int(n * 0.9)] and the
  rest.

`share_held_out` says how much that is. Texts that fit into memory are split here;
`data/prepare/units.py` splits others by the same functions.
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

MANY = 50  # distinct documents from which on whole documents are held out
FRACTION = 0.1  # held out of a text, unless that is
MOST_HELD_OUT = 250_000  # characters: enough for three digits of a loss, and soon evaluated
PREPARED_SHARE = 0.05  # of many documents in a prepared folder, whatever their size


def share_held_out(
    fraction: float, *, many: bool, n_characters: int, of_many: float | None = None
) -> float:
    """The share of the text that is held out: `fraction` where the user gives one, above 0.

    Else a tenth, of a large text less, so that it is at most about `MOST_HELD_OUT` characters. Of
    many documents the share falls in steps (`default_share`). `of_many` is a fixed share of many
    documents instead: a prepared folder passes `PREPARED_SHARE`, because files are added to its
    sources, and with another share some documents would change sides. (A run on such a folder need
    not evaluate on all that is held out: `data.validation_tokens`.)
    """
    if fraction:
        return fraction
    if not many:
        return min(FRACTION, MOST_HELD_OUT / max(1, n_characters))
    return default_share(n_characters) if of_many is None else of_many


def default_share(n_characters: int) -> float:
    """How much of many documents is held out of so much text: 0.1, 0.03, 0.01, ..., no more than
    MOST_HELD_OUT.

    In steps, so that documents change sides only where the text has grown threefold.
    """
    exponent = 0
    while (
        share := FRACTION * (0.1 ** (exponent // 2)) * (0.3 if exponent % 2 else 1)
    ) * n_characters > MOST_HELD_OUT:
        exponent += 1
    return round(share, 12)


def split_hash(utf8: Iterable[bytes]) -> int:
    """64 bits that depend on the text alone. The key makes them ours: no data set was sorted or
    filtered by them.
    """
    state = hashlib.blake2b(key=b"lmsmith: training or validation", digest_size=8)
    for part in utf8:
        state.update(part)
    return int.from_bytes(state.digest(), "little")


def hash_bound(fraction: float) -> int:
    """A text whose `split_hash` is below this is held out where `fraction` of the texts are."""
    return int(fraction * 2**64)


def is_held_out(utf8: Iterable[bytes], fraction: float) -> bool:
    """Whether a text is held out, of many of which `fraction` are."""
    return split_hash(utf8) < hash_bound(fraction)


def tail_cut(n_characters: int, fraction: float) -> int:
    """Where the last `fraction` of a text begins: nanoGPT's int(n * 0.9)."""
    # 1 - 0.9 is 0.09999999999999998: it is rounded to what it means.
    return int(n_characters * round(1 - fraction, 12))


@dataclass(frozen=True)
class Split:
    """Training and validation texts, in the order they were read.

    `has_boundaries`: the texts come from more than one document, so that what follows one of them
    does not continue it. `*_hashes`: of the documents, whole, of which something is on that side.
    """

    train: list[str]
    validation: list[str]
    has_boundaries: bool
    n_duplicates: int  # documents dropped because an equal one was there
    description: str
    train_hashes: Collection[int]
    validation_hashes: Collection[int]


def split_documents(documents: Iterable["Document"], fraction: float = 0.0) -> Split:
    """Holds out about `fraction` of the text for validation; 0: a tenth, at most about 250,000
    characters.

    Of many documents both sides get something, whatever their hashes are: the lowest is always held
    out, the highest never. (Without a fraction some that were held out are so no more where the
    text has grown threefold.)

    Raises DataError if fewer than two characters would be left on either side.
    """
    assert 0 <= fraction < 1
    texts: list[str] = []
    hashes = array("Q")
    distinct: dict[int, str] = {}  # no further than is needed to know whether they are many
    for document in documents:
        texts.append(document.text)
        hashes.append(document.hash)
        if len(distinct) < MANY:
            distinct.setdefault(hashes[-1], document.text)
    many = len(distinct) == MANY
    fraction = share_held_out(fraction, many=many, n_characters=sum(map(len, texts)))
    if many:
        split = _split_whole(texts, hashes, fraction)
    else:
        split = _split_tails(distinct, len(texts) - len(distinct), fraction)
    n_train, n_validation = sum(map(len, split.train)), sum(map(len, split.validation))
    if min(n_train, n_validation) < 2:
        raise DataError(
            f"the text is too short to split: of {plural(n_train + n_validation, 'character')}, "
            f"{n_train} would be for "
            f"training and {n_validation} for validation; wanted at least 2 for each. Add text, "
            f"or change "
            f"--data.validation_fraction ({fraction:.3g})."
        )
    return split


def _split_whole(texts: list[str], hashes: "array[int]", fraction: float) -> Split:
    """Many documents, each on one side."""
    bound = min(max(hash_bound(fraction), min(hashes) + 1), max(hashes))
    train = [text for text, number in zip(texts, hashes, strict=True) if number >= bound]
    validation = [text for text, number in zip(texts, hashes, strict=True) if number < bound]
    train_hashes = array("Q", (number for number in hashes if number >= bound))
    validation_hashes = array("Q", (number for number in hashes if number < bound))
    how = (
        f"{len(validation):,} of {len(texts):,} documents, chosen by a hash of their content, are "
        f"for validation: "
        f"{_sizes(train, validation)}"
    )
    return Split(train, validation, True, 0, how, train_hashes, validation_hashes)


def _split_tails(distinct: dict[int, str], n_duplicates: int, fraction: float) -> Split:
    """Few documents, each with its tail held out."""
    cuts = [(number, text, tail_cut(len(text), fraction)) for number, text in distinct.items()]
    train = [text[:cut] for _, text, cut in cuts if cut > 0]
    validation = [text[cut:] for _, text, cut in cuts if cut < len(text)]
    train_hashes = array("Q", (number for number, _, cut in cuts if cut > 0))
    validation_hashes = array("Q", (number for number, text, cut in cuts if cut < len(text)))
    several = len(distinct) > 1
    whose = f"each of {len(distinct)} documents" if several else "the text"
    dropped = f"; {plural(n_duplicates, 'exact duplicate')} dropped" if n_duplicates else ""
    how = (
        f"the last {100 * fraction:.4g}% of {whose} is for validation: "
        f"{_sizes(train, validation)}{dropped}"
    )
    return Split(train, validation, several, n_duplicates, how, train_hashes, validation_hashes)


def _sizes(train: list[str], validation: list[str]) -> str:
    n_train, n_validation = sum(map(len, train)), sum(map(len, validation))
    n = max(
        1, n_train + n_validation
    )  # of nothing there is no share, and `split_documents` refuses it
    return f"{n_train:,} characters to train on, {n_validation:,} held out ({n_validation / n:.1%})"
