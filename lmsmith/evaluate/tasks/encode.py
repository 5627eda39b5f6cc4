"""Context and ending as ids, as lm-evaluation-harness encodes them.

Spaces at the end of the context belong to the ending, where a BPE tokenizer joins them with the
next word. The ending's ids are those of context + ending behind as many ids as the context alone
has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from lmsmith.evaluate.tasks.task import Item
from lmsmith.tokens.tokenizer import Tokenizer

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""The ids of a context, with the begin token, and of an ending."""


class PairEncoder:
    """Encodes pairs for one model. Each context is encoded once."""

    def __init__(self, tokenizer: Tokenizer, begin: int | None) -> None:
        """`begin`: the id before each text, if there is one."""
        self.first = () if begin is None else (begin,)
        encode: Callable[[str], tuple[int, ...]] = lambda text: tuple(  # noqa: E731
            tokenizer.encode(text).tolist()
        )
        self._encode = encode
        self._context = lru_cache(maxsize=256)(encode)

    def pair(self, context: str, ending: str) -> Pair:
        """The ids of a context and of the ending behind it."""
        kept = context.rstrip()
        ending = context[len(kept) :] + ending
        if not kept:
            return self.first, self._encode(ending)
        before, both = self._context(kept), self._encode(kept + ending)
        return self.first + before, both[len(before) :]

    def item(self, item: Item, prefix: str = "") -> list[Pair]:
        """One pair for each choice. `prefix`: the few-shot examples."""
        texts = [item.pair(index) for index in range(item.n_choices)]
        if item.scored == "ending":
            return [self.pair(prefix + context, ending) for context, ending in texts]
        whole = [self.first + self._encode(prefix + context + ending) for context, ending in texts]
        if len(item.contexts) > 1:
            n = _n_common([ids[::-1] for ids in whole])
            return [(ids[: len(ids) - n], ids[len(ids) - n :]) for ids in whole]
        n = _n_common(whole)
        return [(ids[:n], ids[n:]) for ids in whole]


def _n_common(rows: Sequence[tuple[int, ...]]) -> int:
    """The length of the common beginning."""
    n = 0
    for column in zip(*rows, strict=False):  # up to the shortest
        if len(set(column)) > 1:
            break
        n += 1
    return n
