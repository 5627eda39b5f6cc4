"""What cannot be read, left out: named and counted (`--skip-bad`)."""

import contextlib
from collections.abc import Iterator

from lmsmith.errors import DataError
from lmsmith.text.files import Skip, plural

NAMED = 20  # of what is skipped in a unit so much is kept word for word


class Skipped:
    """What is left out because it is bad: how often, and the first of it."""

    def __init__(self) -> None:
        self.n, self.said = 0, list[str]()

    def __call__(self, error: DataError) -> None:
        self.n += 1
        if len(self.said) < NAMED:
            self.said.append(str(error))

    def notes(self) -> list[str]:
        return [skipped_note(self.n, self.said)] if self.n else []


def skipped_note(n: int, said: list[str]) -> str:
    return f"{plural(n, 'bad place')} skipped: {' '.join(said)}"


@contextlib.contextmanager
def tolerating(skip: Skip | None) -> Iterator[None]:
    """What cannot be read goes to `skip`; where there is none, what is raised names the option
    that makes one.
    """
    try:
        yield
    except DataError as error:
        if skip is None:
            raise DataError(
                f"{error} `--skip-bad` leaves out what is bad, names and counts it."
            ) from error
        skip(error)


def ignore(error: DataError) -> None:
    """For who reads what is read once more later, and counted then."""
