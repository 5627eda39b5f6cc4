"""Reads .zst: with pyarrow, or with the package zstandard if a file needs a window of more than 128
MiB.

`zstd --long=28` and above write such files, and most programs reject them unless told to allow the
memory; pyarrow has no such option. Format: RFC 8878, section 3.1.1.1.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lmsmith.errors import DataError

MOST = 1 << 27  # largest window of pyarrow's decoder, in bytes
MAGIC = b"\x28\xb5\x2f\xfd"
PIECE = 1 << 12  # compressed bytes read at once: they can expand 32,000-fold
REFUSED = "requires too much memory"  # libzstd's message for a frame with a larger window


@contextlib.contextmanager
def open_zstd(file: BinaryIO, path: Path) -> Iterator[Any]:
    """Opens the decompressed content as a stream. Raises DataError if the required decoder is not
    installed.
    """
    window = window_of(file.read(18))
    file.seek(0)
    if window <= MOST:
        import pyarrow  # imported here: it is slow, and most text is not compressed

        with pyarrow.CompressedInputStream(file, "zstd") as stream:
            yield stream
        return
    try:
        import zstandard
    except ImportError as error:
        raise too_wide(path, window) from error
    yield _Stream(file, zstandard)


def too_wide(path: Path, window: int = 0) -> DataError:
    """Returns the error for a file whose window is too large for pyarrow. `window`: in bytes, 0 if
    unknown.
    """
    size = f"{window >> 20:,} MiB" if window else "the size of its window"
    return DataError(
        f"{path} was compressed with a large window (`zstd --long`): {size} is more than the 128 "
        f"MiB that pyarrow supports. `pip install 'lmsmith[zstd]'` adds support; or compress it "
        f"again: `zstd -dc --long=31 {path.name} | zstd -o NEW.zst`."
    )


def window_of(head: bytes) -> int:
    """Returns the window size of the first frame of a file, in bytes; 0 if these bytes do not show
    it.
    """
    if not head.startswith(MAGIC) or len(head) < 6:
        return 0
    descriptor = head[4]
    if descriptor & 0x20:  # single segment: the window is the content size
        skipped = 5 + (0, 1, 2, 4)[descriptor & 3]
        length = (1, 2, 4, 8)[descriptor >> 6]
        return int.from_bytes(head[skipped : skipped + length], "little")
    base = 1 << (10 + (head[5] >> 3))
    return base + base // 8 * (head[5] & 7)


class _Stream:
    """Reads through zstandard, whose own reader treats a truncated file as complete."""

    def __init__(self, file: BinaryIO, zstandard: Any) -> None:
        self._file, self._library = file, zstandard
        self._frame = self._new_frame()
        self._begun = False
        self._ready = bytearray()

    def read(self, n_bytes: int = -1) -> bytes:
        while n_bytes < 0 or len(self._ready) < n_bytes:
            data = self._file.read(PIECE)
            if not data:
                if self._begun:
                    raise EOFError("the file ends within a frame")
                break
            self._push(data)
        result = bytes(self._ready if n_bytes < 0 else self._ready[:n_bytes])
        del self._ready[: len(result)]
        return result

    def _push(self, data: bytes) -> None:
        while data:
            try:
                self._ready += self._frame.decompress(data)
            except self._library.ZstdError as error:
                raise OSError(str(error)) from error
            self._begun, data = not self._frame.eof, self._frame.unused_data
            if self._frame.eof:
                self._frame = self._new_frame()

    def _new_frame(self) -> Any:
        return self._library.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
