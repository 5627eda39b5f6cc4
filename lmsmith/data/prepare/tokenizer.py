"""The tokenizer of a prepared folder: given, or learned from the training text of the units.

`tokens/choose.py` resolves names and learns tokenizers. This module supplies the texts, and decides
where a long text may be cut.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from lmsmith.data.prepare.dedup import content_hash
from lmsmith.data.prepare.plan import Plan
from lmsmith.data.prepare.units import TRAIN, Text, read_unit, utf8
from lmsmith.text.files import Counts
from lmsmith.text.parts import Cut
from lmsmith.text.skipping import ignore, skipping_errors
from lmsmith.tokens.choose import learn_tokenizer
from lmsmith.tokens.files import FILE_NAME as TOKENIZER_FILE
from lmsmith.tokens.files import load_tokenizer, save_tokenizer
from lmsmith.tokens.tokenizer import Tokenizer

Tell = Callable[[str, int, int], None]
"""Progress callback: (task, bytes of the sources done, bytes in total)."""


def cut_for(wanted: str, given: Tokenizer | None) -> Cut | None:
    """Returns a function that finds where a text may be cut so that the parts have the ids of the
    whole; None if there is none for this tokenizer.
    """
    kind = given.kind if given else wanted.partition(":")[0]
    if kind == "bpe" and given is not None:
        from lmsmith.tokens.bpe import BpeTokenizer
        from lmsmith.tokens.split import REGEX

        assert isinstance(given, BpeTokenizer)
        if given.pattern.family == REGEX or given.uncuttable_specials.names:
            return None
    elif kind not in ("byte", "char", "bpe"):
        return None
    from lmsmith.tokens.split import last_cut  # imports the compiler

    return last_cut


def tokenizer_in(
    work: Path, given: Tokenizer | None, wanted: str, plan: Plan, hashes: bool, tell: Tell
) -> Tokenizer:
    """Returns the tokenizer, saved in `work` for all encoding processes: `given`, or learned once.

    `hashes`: learn from the first of exact duplicates only. Raises TokenizerError, DataError.
    """
    if (work / TOKENIZER_FILE).exists():
        return load_tokenizer(work)
    if given is None:
        given = learn_tokenizer(wanted, _training_texts(plan, hashes, tell))
    save_tokenizer(given, work)
    return given


def _training_texts(plan: Plan, hashes: bool, tell: Tell) -> Iterator[Iterator[bytes]]:
    """`hashes`: skip exact duplicates."""
    skip = ignore if plan.reading.skip_bad else None

    def as_bytes(text: Text) -> Iterator[bytes]:
        with skipping_errors(skip):  # errors in a stream are raised when it is read
            yield from utf8(text)

    seen: set[bytes] = set()
    done = 0
    for unit in plan.units:
        tell("reading to learn the tokenizer", done, plan.n_bytes)
        for document in read_unit(unit, plan.reading, Counts(), skip):
            if hashes and document.whole is not None:
                content = content_hash(utf8(document.whole))
                if content in seen:
                    continue
                seen.add(content)
            yield from (as_bytes(text) for split, text in document.spans if split == TRAIN)
        done += sum(piece.n_bytes for piece in unit)
