"""GPT-2's encoding of bytes as printable characters: b" the" is "Ġthe".

Bytes that are printable in Latin-1 become that character; the others, including the space, become
the characters from U+0100 on (openai/gpt-2, `bytes_to_unicode`). The vocabulary files of GPT-2,
Hugging Face and lmsmith use it.
"""

from __future__ import annotations

import functools


@functools.cache
def gpt2_byte_order() -> tuple[int, ...]:
    """Returns the bytes in the order of their characters, which is the order of their ids in
    GPT-2.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    return (*printable, *(byte for byte in range(256) if byte not in printable))


def to_printable(token: bytes) -> str:
    """Returns the bytes as printable characters."""
    return "".join(map(_characters().__getitem__, token))


def from_printable(text: str) -> bytes:
    """Inverse of `to_printable`. Raises KeyError with the first character that does not represent
    a byte.
    """
    return bytes(map(_bytes().__getitem__, text))


@functools.cache
def _characters() -> tuple[str, ...]:
    order = gpt2_byte_order()
    n_printable = order.index(0)
    character_of = {
        byte: chr(byte) if k < n_printable else chr(256 + k - n_printable)
        for k, byte in enumerate(order)
    }
    return tuple(character_of[byte] for byte in range(256))


@functools.cache
def _bytes() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(_characters())}
