"""What general-purpose compressors make of a text, in bits per byte: the baselines that everyone
can check.

A compressor is a language model too: it predicts each byte from those before it, and its file's
length is what the text cost. Here each gets the text alone, as one stream of its own, with
everything a file on disk would have (headers and checksums: some dozens of bytes, which matters for
short texts). So unlike a trained model it has seen nothing before: it learns from the text as it
goes, and does better the longer the text is.

gzip is DEFLATE at level 9: matches within 32 KiB, Huffman codes. xz is LZMA2 at preset 9e: matches
within 64 MiB, range coding with contexts; it reads about one megabyte a second. `xz -9e` gives the
same size to the byte; `gzip -9` is another program than the zlib used here, and within a per mille
of it.
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
    """`{"gzip": ..., "xz": ...}`: compressed bits per byte of `text`. Raises DataError for an
    empty one.
    """
    if not text:
        raise DataError("nothing to compress: the text is empty.")
    return {name: 8 * len(compress(text)) / len(text) for name, compress in COMPRESSORS.items()}
