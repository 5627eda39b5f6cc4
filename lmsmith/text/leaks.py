"""Detects text that is in both the training and the validation set, when the user names both.

A file named for both is an error. A document in both is reported by name: the validation loss on it
measures memorization.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lmsmith.errors import ConfigError
from lmsmith.text import hub
from lmsmith.text.files import plural

NAMED = 3  # leaks named in the note; all are counted


def refuse_shared_files(train: Iterable[Path], validation: Iterable[Path]) -> None:
    """Raises ConfigError for a file in both training and validation, also if it has two names
    (links, other folders).
    """
    held_out = {_identity(path): path for path in validation}
    for path in train:
        if other := held_out.get(_identity(path)):
            also = "" if other == path else f" (for validation as {other})"
            raise ConfigError(
                f"{path} is named for both training and validation{also}: files in SOURCE are "
                f"trained on, files in --validation are not. Remove it from one of them, or name "
                f"only the other files."
            )


def _identity(path: Path) -> object:
    if not hub.is_remote(path):
        try:
            status = os.stat(path)
            return status.st_dev, status.st_ino
        except OSError:  # reported when the file is read
            pass
    return str(path)


def shared_documents(
    train: Mapping[int, str], validation: Mapping[int, str]
) -> list[tuple[str, str]]:
    """Returns the documents in both training and validation, as (validation source, training
    source). `train` and `validation`: hash -> source.
    """
    return [(source, train[number]) for number, source in validation.items() if number in train]


def note(n_shared: int, n_validation: int, named: Sequence[tuple[str, str]]) -> str:
    """Returns a note to the user about documents in both training and validation."""
    pairs = ", ".join(f"{one} is {other}" for one, other in named[:NAMED])
    more = ", ..." if n_shared > NAMED else ""
    return (
        f"{n_shared:,} of {plural(n_validation, 'validation document')} "
        f"{'is' if n_shared == 1 else 'are'} also in the training text, word for word "
        f"({pairs}{more}): they make the validation loss too low. Remove them from one split, or "
        f"use `lmsmith data prepare --dedup exact`."
    )
