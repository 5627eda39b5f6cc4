"""Bits per byte of general-purpose compressors: baselines that anyone can reproduce.

A compressor is a language model too: it predicts each byte from the bytes before it, and the size
of the compressed file is the cost of the text. Each compresses the text alone, as one stream with
everything that a file on disk has (headers and checksums of a few dozen bytes, which matter for
short texts). Unlike a trained model, it has seen no other text: it learns from the text as it goes,
and does better on longer texts.

gzip is DEFLATE at level 9: matches within 32 KiB, Huffman codes. xz is LZMA2 at preset 9e: matches
within 64 MiB, range coding with contexts, about 1 MB/s. The command `xz -9e` gives exactly the same
size; `gzip -9` uses another implementation than the zlib here, and differs by less than 0.1 %.
"""

import gzip
import lzma
from collections.abc import Callable

from lmsmith.errors import DataError

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda text: gzip.compress(text, compresslevel=9, mtime=0),
    "xz": lambda text: lzma.compress(text, preset=9 | lzma.PRESET_EXTREME),
}


def compressed_bits_per_byte(text: bytes) -> dict[str, float]:
    """Compressed bits per byte of `text`: `{"gzip": ..., "xz": ...}`. Raises DataError if it is
    empty.
    """
    if not text:
        raise DataError("nothing to compress: the text is empty. Give a text of at least one byte.")
    return {name: 8 * len(compress(text)) / len(text) for name, compress in COMPRESSORS.items()}
