"""The baselines against the programs of the same name, and on texts with a known answer."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lmsmith.errors import DataError
from lmsmith.evaluate.compressors import compressed_bits_per_byte


@pytest.mark.skipif(
    not (shutil.which("gzip") and shutil.which("xz")), reason="gzip and xz are not installed"
)
def test_sizes_are_those_of_the_programs(test_data: Path) -> None:
    text = (test_data / "tinyshakespeare" / "input.txt").read_bytes()[:200_000]
    bits = compressed_bits_per_byte(text)
    xz = subprocess.run(["xz", "-9ec"], input=text, capture_output=True, check=True).stdout
    gzip = subprocess.run(["gzip", "-9nc"], input=text, capture_output=True, check=True).stdout
    assert bits["xz"] == 8 * len(xz) / len(text)
    assert bits["gzip"] == pytest.approx(8 * len(gzip) / len(text), rel=2e-3)


def test_noise_costs_eight_bits_and_repetition_nearly_none() -> None:
    noise = os.urandom(100_000)
    for bits in compressed_bits_per_byte(noise).values():
        assert 8 < bits < 8.02
    for bits in compressed_bits_per_byte(b"a" * 100_000).values():
        assert 0 < bits < 0.02


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(DataError, match="empty"):
        compressed_bits_per_byte(b"")
