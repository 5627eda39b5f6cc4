"""What packed weights cost a real model, in bits per byte."""

from pathlib import Path

import pytest

import lmsmith

pytestmark = pytest.mark.slow


def test_packed_weights_cost_a_real_model_little(smollm2: Path, test_data: Path) -> None:
    text = (test_data / "multilingual" / "xquad_en.txt").read_text(encoding="utf-8")[:4_000]
    bits = {
        weights: lmsmith.load(smollm2, weights=weights).score(text).bits_per_byte
        for weights in ("fp32", "bf16", "int8")
    }
    print("bits per byte:", bits)
    assert bits["bf16"] - bits["fp32"] < 0.001
    assert bits["int8"] - bits["fp32"] < 0.005
