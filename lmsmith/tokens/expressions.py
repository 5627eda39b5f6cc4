"""Pre-tokenization patterns by name or regular expression, and whether an expression matches the
same text in every regular-expression engine.

Three engines run these expressions: Oniguruma (`tokenizers`), fancy-regex (`tiktoken`) and the
module `regex` (lmsmith, for expressions other than `split.PATTERNS`). They differ in the meaning of
`$`, `^`, `.`, `\\h`, `&&`, nested classes and possessive bounds. lmsmith imports or exports an
expression only if it is a known one, or uses only syntax that has the same meaning in all three.
"""

from __future__ import annotations

import difflib
import re

import regex

from lmsmith.errors import TokenizerError
from lmsmith.tokens.split import PATTERNS, REGEX, Pattern, pattern_of

MARK = "regex:"
_LOOKS_LIKE_ONE = re.compile(r"[\\\[(|+*?{^$]")


def parse_pattern(text: str) -> Pattern:
    """Returns the pattern that a user gave by name or as a regular expression.

    Text is an expression if it starts with `regex:` (which is removed) or contains one of
    \\ [ ( | + * ? { ^ $. Raises TokenizerError, with similar names, if it is neither.
    """
    if text in PATTERNS:
        return PATTERNS[text]
    if text.startswith(MARK):
        return pattern_of(text.removeprefix(MARK))
    if _LOOKS_LIKE_ONE.search(text):
        return pattern_of(text)
    near = difflib.get_close_matches(text, PATTERNS, cutoff=0.4)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    raise TokenizerError(
        f"there is no pattern {text!r}.{meant} Patterns: {', '.join(PATTERNS)}. For a regular "
        f"expression, write {MARK}{text}."
    )


# General categories only: scripts and other properties differ between engines.
_PROPERTY = r"\\[pP]\{(?:L[ultmo]?|M[nce]?|N[dlo]?|P[cdseifo]?|S[mcko]?|Z[slp]?)\}"
_ESCAPE = rf"{_PROPERTY}|\\[sSrnt]|\\[^\w\s]"
_IN_CLASS = rf"(?:{_ESCAPE}|[^\[\]\\&~|^-](?:-[^\[\]\\&~|^-])?)"
_PARTS = re.compile(
    rf"""(?:
      {_ESCAPE}
    | \(\?i:'s\|'t\|'re\|'ve\|'m\|'ll\|'d\) | '\(\?i:\[sdmt\]\|ll\|ve\|re\)   # the only allowed uses of (?i:
    | \(\?(?::|=|!|<=|<!) | \((?!\?) | \) | \|
    | \[\^?{_IN_CLASS}+\]
    | (?:[?*+]|\{{\d+(?:,\d*)?\}})(?![?*+{{])                                # neither lazy nor possessive
    | [^\\^$.\[\](){{}}?*+|]
    )""",
    re.VERBOSE,
)


_PROBE = (
    "".join(map(chr, range(9, 127))) + " é  1a\n\n"
)  # an expression that can match the empty string does so in this text


def first_nonportable_part(expression: str) -> str | None:
    """Returns the first part of an expression whose meaning differs between engines; None if there
    is none.
    """
    done = 0
    while done < len(expression):
        part = _PARTS.match(expression, done)
        if part is None:
            return expression[done : done + 12]
        done = part.end()
    if any(match.start() == match.end() for match in regex.finditer(expression, _PROBE)):
        return "a match of the empty string"
    return None


def check_portable(pattern: Pattern, where: str) -> None:
    """Raises TokenizerError for an expression that can match differently in other programs."""
    if pattern.family == REGEX and (part := first_nonportable_part(pattern.regex)) is not None:
        raise TokenizerError(
            f"{where}: the pattern {pattern.regex!r} may split text differently in lmsmith and in "
            f"the file's own program, because of {part!r}. Use one of {', '.join(PATTERNS)}, or an "
            r"expression without ^ $ . \b \h \w \d, nested classes, &&, and possessive or lazy "
            r"quantifiers."
        )
