"""Scores of documents: they add up to that of the text, and each is that of its own tokens."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lmsmith.evaluate.per_document import score_each_document
from lmsmith.evaluate.texts import score_texts
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer

DOCUMENTS = ["A bird.", "My aunt saw the old boat by the sea.", "é", "Nobody took it."]
T = 12


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    config = GPTConfig(vocab_size=257, d_model=16, n_layer=1, n_head=2, context_length=T)
    model = config.build()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data.normal_(0, 0.4, generator=generator)
    return model.eval()


@pytest.fixture
def source(tmp_path: Path) -> str:
    place = tmp_path / "documents.jsonl"
    place.write_text("".join(json.dumps({"text": one}) + "\n" for one in DOCUMENTS))
    return str(place)


def costs(model: torch.nn.Module, ids: list[int]) -> list[float]:
    """Nats of ids[1:], in adjacent windows."""
    found = []
    with torch.no_grad():
        for start in range(0, len(ids) - 1, T):
            window = ids[start : start + T + 1]
            logs = model(torch.tensor([window[:-1]]))[0].double().log_softmax(-1)
            found += [-float(logs[at, id]) for at, id in enumerate(window[1:])]
    return found


@pytest.mark.parametrize("boundaries", ["stream", "packed"])
def test_documents_add_up_to_the_text(model: torch.nn.Module, source: str, boundaries: str) -> None:
    tokenizer = ByteTokenizer(end_of_text=True)
    score, lines = score_each_document(model, tokenizer, [source], boundaries=boundaries)
    assert score == score_texts(model, tokenizer, [source], boundaries=boundaries)
    coded = [[256, *text.encode()] for text in DOCUMENTS]
    if boundaries == "stream":
        each = np.array(costs(model, [id for one in coded for id in one]))
    else:
        ends = [[256], [256], [256], []]
        each = np.concatenate([costs(model, a + b) for a, b in zip(coded, ends, strict=True)])
    cuts = np.cumsum([len(one) for one in coded[:-1]])
    for line, wanted, text in zip(lines, np.split(each, cuts), DOCUMENTS, strict=True):
        assert line["nats"] == pytest.approx(wanted.sum(), rel=1e-5)
        assert (line["n_tokens"], line["n_bytes"]) == (len(wanted), len(text.encode()))
        bits = line["nats"] / math.log(2) / line["n_bytes"]
        assert line["bits_per_byte"] == pytest.approx(bits)
        assert line["text"] == text
    assert math.fsum(line["nats"] for line in lines) == pytest.approx(score.nats, rel=1e-6)
    assert sum(line["n_tokens"] for line in lines) == score.n_tokens
    assert sum(line["n_bytes"] for line in lines) == score.n_bytes


def test_unknown_characters_and_no_end_of_text(source: str) -> None:
    """Bits of the documents add up, too, and a document may have no token at all."""
    tokenizer = CharTokenizer.learn(
        ["".join(DOCUMENTS).replace("é", "").replace("y", "")], end_of_text=False
    )
    model = GPTConfig(
        vocab_size=tokenizer.vocab_size, d_model=16, n_layer=1, n_head=2, context_length=T
    ).build()
    score, lines = score_each_document(model.eval(), tokenizer, [source])
    assert [line["n_unknown"] for line in lines] == [0, 2, 1, 1]
    bits = math.fsum(line["bits_per_byte"] * line["n_bytes"] for line in lines)
    assert bits / score.n_bytes == pytest.approx(score.bits_per_byte, rel=1e-6)
    assert lines[2]["n_tokens"] == lines[2]["nats"] == 0
