"""Text that is for training and for validation at once, where the user names both.

A file that is named for both is refused. A document that is in both is told, by name: the
validation loss on it says how well it was learnt by heart.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lmsmith.errors import ConfigError
from lmsmith.text import hub
from lmsmith.text.files import plural

NAMED = 3  # leaks that are named, of all that are counted


def refuse_shared_files(train: Iterable[Path], validation: Iterable[Path]) -> None:
    """Raises ConfigError for a file that is in both, be it by two names: of links, or of other
    folders.
    """
    held_out = {_identity(path): path for path in validation}
    for path in train:
        if other := held_out.get(_identity(path)):
            also = "" if other == path else f", there as {other}"
            raise ConfigError(
                f"{path} is for training and for validation{also}: what is in SOURCE is trained "
                f"on, what is in "
                "--validation is not. Move it out of one of them, or name the other files alone."
            )


def _identity(path: Path) -> object:
    if not hub.is_remote(path):
        try:
            found = os.stat(path)
            return found.st_dev, found.st_ino
        except OSError:  # whoever reads it will say so
            pass
    return str(path)


def shared_documents(
    train: Mapping[int, str], validation: Mapping[int, str]
) -> list[tuple[str, str]]:
    """Documents that are in both: where each is in validation and where in training. By hash ->
    source.
    """
    return [(source, train[number]) for number, source in validation.items() if number in train]


def note(n_shared: int, n_validation: int, named: Sequence[tuple[str, str]]) -> str:
    """What to tell of documents that are in both."""
    pairs = ", ".join(f"{one} is {other}" for one, other in named[:NAMED])
    more = ", ..." if n_shared > NAMED else ""
    return (
        f"{n_shared:,} of {plural(n_validation, 'validation document')} "
        f"{'is' if n_shared == 1 else 'are'} in the "
        f"training text too, word for word ({pairs}{more}): the validation loss is too low by "
        f"them. Remove them from "
        "one side, or use `lmsmith data prepare --dedup exact`."
    )
