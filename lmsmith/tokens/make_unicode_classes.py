"""Writes `unicode_classes.py`: the characters that are letters, numbers, marks and white space in
tiktoken's regular expressions.

    python -m lmsmith.tokens.make_unicode_classes

Queries tiktoken itself, with one-class patterns on every code point, so that `scanner.py` follows
the Unicode version of tiktoken's engine, which differs from those of Python and of the `regex`
module. Run it again when tiktoken's Unicode version changes; the test of the table fails then.
"""

import base64
import textwrap
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lmsmith.tokens.unicode_classes import (
    CASELESS,
    LOWER,
    MARK,
    N_CODE_POINTS,
    NUMBER,
    SPACE,
    UPPER,
)

CLASSES = {
    r"\p{N}": NUMBER,
    r"\s": SPACE,
    r"\p{M}": MARK,
    r"[\p{Lu}\p{Lt}]": UPPER,
    r"\p{Ll}": LOWER,
    r"[\p{Lm}\p{Lo}]": CASELESS,
}


def ask_tiktoken() -> npt.NDArray[np.uint8]:
    """Returns the class of every code point in tiktoken; 0 if it is in none of `CLASSES`."""
    import tiktoken

    every = "".join(chr(c) for c in range(N_CODE_POINTS) if not 0xD800 <= c < 0xE000)
    table = np.zeros(N_CODE_POINTS, dtype=np.uint8)
    for pattern, number in CLASSES.items():
        engine = tiktoken.Encoding(
            pattern,
            pat_str=pattern,
            mergeable_ranks={bytes([b]): b for b in range(256)},
            special_tokens={},
        )
        matched = engine.decode(engine.encode_ordinary(every))  # drops characters that do not match
        members = np.frombuffer(matched.encode("utf-32-le"), dtype="<u4")
        assert not table[members].any(), "classes overlap"
        table[members] = number
    return table


def runs_of(table: npt.NDArray[np.uint8]) -> bytes:
    """Returns the table run-length encoded: three bytes of length and one byte of class per run."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(table)) + 1])
    lengths = np.diff(np.append(starts, len(table)))
    return (lengths.astype("<u4") | table[starts].astype("<u4") << 24).tobytes()


def main() -> None:
    path = Path(__file__).with_name("unicode_classes.py")
    source = path.read_text(encoding="utf-8")
    head, _, tail = source.partition("_RUNS = (\n")
    text = base64.b85encode(zlib.compress(runs_of(ask_tiktoken()), 9)).decode("ascii")
    lines = "".join(f'    "{line}"\n' for line in textwrap.wrap(text, 110, break_on_hyphens=False))
    path.write_text(
        head + "_RUNS = (\n" + lines + ")\n" + tail.partition("\n)\n")[2], encoding="utf-8"
    )


if __name__ == "__main__":
    main()
