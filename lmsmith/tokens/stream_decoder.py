"""Decodes ids that arrive one at a time: text appears when its characters are complete."""

from __future__ import annotations

import codecs

import numpy as np

from lmsmith.tokens.tokenizer import IdsLike, Tokenizer


class StreamDecoder:
    """Decodes a stream of ids. Incomplete characters wait for the next id.

    The strings from all calls to `push`, followed by that from `flush`, join to `tokenizer.decode`
    of all ids. If the tokenizer does not stream (`Tokenizer.streams` is False), `flush` returns all
    of the text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._ids: list[int] = []  # the last ids that returned text, and all ids after them
        self._n_read = 0  # number of ids in `_ids` whose text was returned
        self._n_given = 0  # number of characters of the text of `_ids` that were returned

    def push(self, ids: IdsLike | int) -> str:
        """Returns the text that these ids complete; often empty."""
        new_ids = [ids] if isinstance(ids, int | np.integer) else ids
        if self._tokenizer.decodes_bytes:
            return self._decoder.decode(self._tokenizer.decode_bytes(new_ids))
        if not len(new_ids):
            return ""
        self._tokenizer.decode(new_ids)  # raises for an id outside the vocabulary
        self._ids += map(int, new_ids)
        if not self._tokenizer.streams or self._ids[-1] in self._tokenizer.open_ids:
            return ""
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\ufffd"):  # may be an incomplete character
            return ""
        new = text[self._n_given :]
        # The text of an id can begin differently if ids with text precede it: keep some of these.
        last = self._tokenizer.decode(self._ids[self._n_read :])
        if last.strip():
            self._ids = self._ids[self._n_read :]
            text = last
        self._n_read, self._n_given = len(self._ids), len(text)
        return new

    def flush(self) -> str:
        """Returns the remaining text: usually empty, or U+FFFD for an incomplete character. All of
        the text if the tokenizer does not stream.
        """
        if self._tokenizer.decodes_bytes:
            return self._decoder.decode(b"", final=True)
        rest = self._tokenizer.decode(self._ids)[self._n_given :]
        self._ids, self._n_read, self._n_given = [], 0, 0
        return rest
