"""Evaluation against a direct computation: one window and one token at a time, in float64."""

from __future__ import annotations

import math

import numpy as np
import torch

from lmsmith.evaluate.likelihood import score_ids
from lmsmith.evaluate.texts import score_documents
from lmsmith.models.gpt import GPT
from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer
from lmsmith.verify.models import T, device, log_softmax, random_ids, small_model
from lmsmith.verify.registry import equivalence, relative


@torch.no_grad()
def _nats(model: GPT, ids: list[int], stride: int) -> float:
    """Every token after the first, once: from the first window that reaches it."""
    total, done = 0.0, 0
    for start in range(0, len(ids) - 1, stride):
        window = ids[start : start + T]
        targets = ids[start + 1 : start + T + 1]
        p = log_softmax(model(torch.tensor([window[: len(targets)]], device=device()))[0])
        for i, target in enumerate(targets):
            if start + i >= done:
                total -= p[i, target]
                done += 1
    return total


@equivalence("likelihood", "windows, strides; token by token", bound=1e-11, cuda=1e-10)
def likelihood() -> float:
    worst = 0.0
    ids = random_ids(3 * T + 5, seed=8)
    for variant in ("gpt2", "modern"):
        model = small_model(variant, dropout=0.3)
        model.train()  # scoring must turn dropout off by itself
        for stride in (T, T // 3):
            array = ids.cpu().numpy().astype(np.uint16)
            found = score_ids(model, array, n_bytes=1, stride=stride, starts_with_end_of_text=True)
            expected = _nats(small_model(variant), ids.tolist(), stride)
            worst = max(worst, relative(found.nats, expected), abs(found.n_tokens - len(ids) + 1))
    return worst


@equivalence("bits per byte", "beyond ASCII; nats / ln 2 / bytes", bound=1e-11, cuda=1e-10)
def bits_per_byte() -> float:
    text = "Ein Maß für Größe: 雪が降る. " * 3
    worst = 0.0
    for tokenizer in (ByteTokenizer(True), CharTokenizer.learn([text], True)):
        model = small_model("gpt2", vocab_size=tokenizer.vocab_size)
        score = score_documents(model, tokenizer, [text])
        assert tokenizer.end_of_text is not None
        ids = [tokenizer.end_of_text, *tokenizer.encode(text).tolist()]
        expected = _nats(model, ids, T) / math.log(2) / len(text.encode("utf-8"))
        worst = max(worst, relative(score.bits_per_byte, expected))
    return worst
