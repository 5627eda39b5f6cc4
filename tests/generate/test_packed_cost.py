"""What packed weights cost a real model, in bits per byte."""

from pathlib import Path

import pytest
import torch

import lmsmith
from lmsmith.generate.decoders import decoder_for

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


def test_rounding_what_int8_matrices_multiply_costs_next_to_nothing(
    smollm2: Path, test_data: Path
) -> None:
    """The decoder against PyTorch with the same int8 weights. int8 itself has a divergence of about
    0.01 nats; this model has activations that are far larger than the rest.
    """
    text = (test_data / "multilingual" / "xquad_en.txt").read_text(encoding="utf-8")[:1_500]
    lm = lmsmith.load(smollm2, weights="int8")
    ids = [int(id) for id in lm.tokenizer.encode(text)]
    with torch.no_grad():
        expected = lm.model.logits(lm.model.hidden(torch.tensor([ids])))[0]
    expected = torch.log_softmax(expected.double(), -1)
    decoder = decoder_for(lm.model, 1)
    decoder.prefill(0, ids[:1])
    found = torch.stack([decoder.step([0], [id])[0].double() for id in ids[1:]]).log_softmax(-1)
    divergence = (expected[1:].exp() * (expected[1:] - found)).sum(1).mean()
    print("nats:", float(divergence))
    assert 0 < divergence < 1e-5
