"""Mutants that make no difference to any result, with the reason.

Keys are (file, the line's text, what is replaced, by what), so that they survive changes elsewhere.
"""

EQUIVALENTS: dict[tuple[str, str, str, str], str] = {}
