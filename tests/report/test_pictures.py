"""Heat maps: the PNG is decoded with zlib alone and compared with the numbers."""

import base64
import struct
import zlib

import numpy as np
import pytest

from lmsmith.report.pictures import colour, colour_bar, heat_map, ink_on


def decoded(address: str) -> tuple[np.ndarray, list[tuple[int, ...]], bytes]:
    """The indices of the pixels, the palette and its transparency."""
    kind, _, data = address.partition(",")
    assert kind == "data:image/png;base64"
    raw, chunks, at = base64.b64decode(data), {}, 8
    while at < len(raw):
        (length,) = struct.unpack(">I", raw[at : at + 4])
        name, content = raw[at + 4 : at + 8], raw[at + 8 : at + 8 + length]
        assert struct.unpack(">I", raw[at + 8 + length : at + 12 + length])[0] == zlib.crc32(
            name + content
        )
        chunks[name], at = content, at + 12 + length
    width, height, bits, form, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (bits, form) == (8, 3)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert (rows[:, 0] == 0).all()
    palette = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
    return rows[:, 1:], [tuple(map(int, one)) for one in palette], chunks[b"tRNS"]


def test_a_pixel_has_the_colour_of_its_number() -> None:
    values = np.array([[0.0, 0.5, 1.0], [np.nan, -3.0, 7.0]])
    pixels, palette, transparency = decoded(heat_map(values))
    assert pixels.tolist() == [[1, 128, 255], [0, 1, 255]]
    assert transparency == b"\0"
    assert palette[1] == colour(0) == (68, 1, 84)
    assert palette[128] == colour(0.5) == (33, 144, 141)
    assert palette[255] == colour(1) == (253, 231, 37)
    assert (decoded(heat_map(2 * values - 1, -1, 1))[0] == pixels).all()


def test_brightness_rises_with_the_number() -> None:
    """So it is readable without colours; text on it has a contrast of at least 4.5 (WCAG)."""

    def luminance(rgb: tuple[int, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in
                  (part / 255 for part in rgb)]  # fmt: skip
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    shades = [luminance(colour(value)) for value in np.linspace(0, 1, 101)]
    assert (np.diff(shades) > 0).all()
    for value, shade in zip(np.linspace(0, 1, 101), shades, strict=True):
        ink = luminance(tuple(int(c * 2, 16) for c in ink_on(value)[1:]))
        bright, dark = max(ink, shade), min(ink, shade)
        assert (bright + 0.05) / (dark + 0.05) > 4.5


def test_a_legend_names_its_ends() -> None:
    assert "<i>0</i>" in colour_bar("0", "1")
    assert pytest.approx(64) == decoded(colour_bar("0", "1").split('"')[3])[0].shape[1]
