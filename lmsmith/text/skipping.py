"""Skips unreadable text, keeping a count and the first messages (`--skip-bad`)."""

import contextlib
from collections.abc import Iterator

from lmsmith.errors import DataError
from lmsmith.text.files import Skip, plural

NAMED = 20  # error messages kept per unit; all errors are counted


class Skipped:
    """The skipped errors: their number, and the first messages."""

    def __init__(self) -> None:
        self.n, self.said = 0, list[str]()

    def __call__(self, error: DataError) -> None:
        self.n += 1
        if len(self.said) < NAMED:
            self.said.append(str(error))

    def notes(self) -> list[str]:
        return [skipped_note(self.n, self.said)] if self.n else []


def skipped_note(n: int, said: list[str]) -> str:
    return f"{plural(n, 'bad item')} skipped: {' '.join(said)}"


@contextlib.contextmanager
def skipping_errors(skip: Skip | None) -> Iterator[None]:
    """Passes a DataError to `skip`; without `skip`, raises it with a mention of the option
    `--skip-bad`.
    """
    try:
        yield
    except DataError as error:
        if skip is None:
            raise DataError(
                f"{error} `--skip-bad` skips bad files, lines and rows, and reports them."
            ) from error
        skip(error)


def ignore(error: DataError) -> None:
    """Ignores an error, for a first pass over text: the second pass counts the errors."""
