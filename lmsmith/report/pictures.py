"""Heat maps as PNG files in data: addresses, in the colours of viridis.

Viridis (van der Walt and Smith 2015, CC0) goes evenly from dark blue to yellow. It is readable with
colour-blind eyes and in grey. A pixel is one byte, an index into 255 colours; NaN is transparent.
"""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]

_ANCHORS = np.array(
    [
        (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141), (39, 173, 129),
        (92, 200, 99), (170, 220, 50), (253, 231, 37),
    ]
)  # fmt: skip
_N_COLOURS = 255
_DARK_INK = 0.435  # above it black text has more contrast than white


def colour(value: float) -> tuple[int, int, int]:
    """The colour of a value from 0 to 1: red, green and blue, 0 to 255."""
    at = np.clip(value, 0, 1) * (len(_ANCHORS) - 1)
    red, green, blue = (
        round(float(np.interp(at, range(len(_ANCHORS)), channel))) for channel in _ANCHORS.T
    )
    return red, green, blue


def ink_on(value: float) -> str:
    """The colour of text that is readable on the colour of a value from 0 to 1."""
    return "#000" if value > _DARK_INK else "#fff"


def heat_map(values: Floats, low: float = 0.0, high: float = 1.0) -> str:
    """A picture (H, W) with one pixel per value, as a data: address. Values beyond `low` and `high`
    have the colours of the ends.
    """
    scaled = (np.asarray(values, np.float64) - low) / (high - low)
    hidden = np.isnan(scaled)
    index = 1 + np.round(np.clip(np.where(hidden, 0, scaled), 0, 1) * (_N_COLOURS - 1))
    pixels = np.where(hidden, 0, index).astype(np.uint8)
    return f"data:image/png;base64,{base64.b64encode(_png(pixels)).decode('ascii')}"


def colour_bar(low: str, high: str) -> str:
    """A legend: the colours between the values of their ends."""
    bar = heat_map(np.linspace(0, 1, 64)[None])
    return (
        f'<span class="colours"><i>{low}</i><img src="{bar}" alt="colours from {low} to {high}">'
        f"<i>{high}</i></span>"
    )


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """An indexed PNG; index 0 is transparent, 1 to 255 are the colours."""
    height, width = pixels.shape
    palette = [(0, 0, 0), *(colour(i / (_N_COLOURS - 1)) for i in range(_N_COLOURS))]
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels], axis=1)  # filter type 0
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", bytes(np.array(palette, np.uint8).tobytes())),
        (b"tRNS", b"\0"),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
