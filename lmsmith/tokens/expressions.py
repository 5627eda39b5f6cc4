"""Expressions that cut text into pieces: which text names one, and what an expression means in
which engine.

Three engines run them: Oniguruma (`tokenizers`), fancy-regex (`tiktoken`) and the module `regex`
(here, where the expression is none of `split.PATTERNS`). They differ in what `$`, `^`, `.`, `\\h`,
`&&`, nested classes and possessive bounds mean. An expression is taken from another program only if
it is one that is known, or has nothing in it but what means the same in all three.
"""

from __future__ import annotations

import difflib
import re

import regex

from lmsmith.errors import TokenizerError
from lmsmith.tokens.split import PATTERNS, REGEX, Pattern, pattern_of

MARK = "regex:"
_LOOKS_LIKE_ONE = re.compile(r"[\\\[(|+*?{^$]")


def chosen_pattern(text: str) -> Pattern:
    """The pattern that a user named, or wrote as an expression.

    Text is an expression if it starts with `regex:`, which is taken away, or has one of \\ [ ( | + * ? { ^ $ in it.
    Raises TokenizerError, with the nearest names, for what is neither.
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
        f"there is no pattern {text!r}.{meant} Patterns: {', '.join(PATTERNS)}. If it is meant as "
        f"a regular expression,"
        f" write {MARK}{text}."
    )


# Names of general categories; scripts and others are not the same in all engines.
_PROPERTY = r"\\[pP]\{(?:L[ultmo]?|M[nce]?|N[dlo]?|P[cdseifo]?|S[mcko]?|Z[slp]?)\}"
_ESCAPE = rf"{_PROPERTY}|\\[sSrnt]|\\[^\w\s]"
_IN_CLASS = rf"(?:{_ESCAPE}|[^\[\]\\&~|^-](?:-[^\[\]\\&~|^-])?)"
_PARTS = re.compile(
    rf"""(?:
      {_ESCAPE}
    | \(\?i:'s\|'t\|'re\|'ve\|'m\|'ll\|'d\) | '\(\?i:\[sdmt\]\|ll\|ve\|re\)   # case matters not: in these alone
    | \(\?(?::|=|!|<=|<!) | \((?!\?) | \) | \|
    | \[\^?{_IN_CLASS}+\]
    | (?:[?*+]|\{{\d+(?:,\d*)?\}})(?![?*+{{])                                # neither lazy nor possessive
    | [^\\^$.\[\](){{}}?*+|]
    )""",
    re.VERBOSE,
)


_PROBE = (
    "".join(map(chr, range(9, 127))) + " é  1a\n\n"
)  # an expression that can match nothing does it here


def what_differs(expression: str) -> str | None:
    """The first part of an expression that means different things in different engines; None if
    there is none.
    """
    done = 0
    while done < len(expression):
        part = _PARTS.match(expression, done)
        if part is None:
            return expression[done : done + 12]
        done = part.end()
    if any(match.start() == match.end() for match in regex.finditer(expression, _PROBE)):
        return "a match of no character"
    return None


def check_portable(pattern: Pattern, where: str) -> None:
    """Raises TokenizerError for an expression of which another program can make something else."""
    if pattern.family == REGEX and (part := what_differs(pattern.regex)) is not None:
        raise TokenizerError(
            f"{where}: the expression {pattern.regex!r} cuts text in one way in lmsmith and "
            f"perhaps in another way in"
            f" the program that the file is of, because of {part!r} in it. Wanted one of "
            f"{', '.join(PATTERNS)}, or an"
            r" expression without ^ $ . \b \h \w \d, classes in classes, &&, and possessive or "
            r"lazy repeats."
        )
