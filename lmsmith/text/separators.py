"""Splits plain text files into documents at a separator, such as `<|endoftext|>` in TinyStories.

    cutter = Cutter("<|endoftext|>")
    for chunk in chunks:
        for document in cutter.push(chunk): ...
    for document in cutter.finish(): ...

The rule, for every plain file: the text is split at each occurrence of the separator, from left to
right. The separator is not part of any document. One line break directly before it and one directly
after it are removed too, unless the separator itself begins or ends with a line break. Blank text
between two separators is not a document.

A large file is divided among processes directly after a separator (`cut_after`), never inside one,
so the documents of the parts are those of the file.
"""

import re
from collections.abc import Callable, Iterator

from lmsmith.errors import ConfigError

END_OF_TEXT = "<|endoftext|>"


def resolve(setting: str) -> str:
    """Returns the separator that `data.document_separator` selects: `auto`, `none` or the text
    itself; "" for none.

    Raises ConfigError for an empty setting.
    """
    if not setting:
        raise ConfigError(
            "data.document_separator is empty: expected auto, none, or the text between documents."
        )
    return {"auto": END_OF_TEXT, "none": ""}.get(setting, setting)


def removes_line_breaks(separator: str) -> bool:
    """Returns whether one line break on each side is removed with the separator."""
    return separator[0] != "\n" and separator[-1] != "\n"


class Cutter:
    """Splits a text that arrives in chunks at each separator. With separator "" it never splits.

    `n_found`: separators found so far. `n_pending`: characters of the document that is still
    incomplete.
    """

    def __init__(self, separator: str) -> None:
        self._separator = separator
        self._takes_breaks = bool(separator) and removes_line_breaks(separator)
        # The last characters may be the start of a separator, or one whose line break is in the
        # next chunk.
        self._n_held = max(0, len(separator) - 1 + self._takes_breaks)
        self._parts: list[str] = []
        self._held = ""
        self.n_found = self.n_pending = 0

    def push(self, chunk: str) -> Iterator[str]:
        """Yields the documents that this chunk completes. Consume all of them before the next
        call.
        """
        if not self._separator:
            self._keep(chunk)
        else:
            yield from self._cut(self._held + chunk, final=False)

    def finish(self) -> Iterator[str]:
        """Yields the last document. A text without any separator is one document, even if blank."""
        if self._separator:
            yield from self._cut(self._held, final=True)
        if ((text := self._taken()) and not text.isspace()) or not self.n_found:
            yield text

    def forget(self) -> None:
        """Drops the pending text, for callers that only search for separators."""
        self._taken()

    def _cut(self, text: str, final: bool) -> Iterator[str]:
        start = 0
        while (at := text.find(self._separator, start)) >= 0:
            stop = at + len(self._separator)
            if self._takes_breaks and stop == len(text) and not final:
                break
            self._keep(text[start:at])
            self.n_found += 1
            document = self._taken()
            if self._takes_breaks:
                document = document.removesuffix("\n")
                stop += text[stop : stop + 1] == "\n"
            start = stop
            if document and not document.isspace():
                yield document
        end = len(text) if final else max(start, len(text) - self._n_held)
        self._keep(text[start:end])
        self._held = text[end:]

    def _keep(self, part: str) -> None:
        if part:
            self._parts.append(part)
            self.n_pending += len(part)

    def _taken(self) -> str:
        text = "".join(self._parts)
        self._parts, self.n_pending = [], 0
        return text


def cut_text(text: str, separator: str) -> list[str]:
    """Splits one text into its documents."""
    cutter = Cutter(separator)
    return [*cutter.push(text), *cutter.finish()]


def can_divide(separator: str) -> bool:
    """Returns whether an occurrence found in the middle of a file is always one that reading from
    its start also finds.

    False if the separator can overlap itself ("----") or contains a line break, which the file may
    write differently.
    """
    overlaps = any(separator.startswith(separator[-n:]) for n in range(1, len(separator)))
    return bool(separator) and not overlaps and "\n" not in separator


def cut_after(separator: str) -> Callable[[bytes], int]:
    """Returns a function that finds an offset directly after a separator and its line break in
    UTF-8 bytes; 0 if there is none.
    """
    pattern = re.compile(re.escape(separator.encode()) + rb"(?:\r\n|\n|\r(?=[^\n])|(?=[^\r\n]))")

    def cut(data: bytes) -> int:
        match = pattern.search(data)
        return match.end() if match else 0

    return cut
