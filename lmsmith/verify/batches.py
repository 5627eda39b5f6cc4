"""Batches against the text itself, and packed documents against each document alone."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from pathlib import Path

import numpy as np
import torch

from lmsmith.config import RunConfig
from lmsmith.data.batches.packing import Packed
from lmsmith.data.batches.rows import Rows
from lmsmith.data.batches.windows import Batches
from lmsmith.data.prepare.run_sources import prepare_run
from lmsmith.loss import summed_cross_entropy
from lmsmith.models.gpt import GPT
from lmsmith.targets import IGNORED
from lmsmith.verify.models import VARIANTS, T, V, device, small_model
from lmsmith.verify.registry import equivalence, relative, unequal


@equivalence("windows", "targets; next tokens, once an epoch", bound=0.0)
def windows() -> float:
    """All ids differ, so that a target names its position. Two ranks read the two halves."""
    ids = np.arange(1, 900, dtype=np.uint16)
    batches = Batches(ids, context_length=T, batch_size=4, seed=1)
    n_windows, seen = 0, list[int]()
    for step in range((len(ids) - 1) // T // 4):
        batch = batches.rows(step)
        n_windows += len(batch.inputs)
        if not np.array_equal(batch.targets, batch.inputs + 1):
            return float("inf")
        parts = [batches.rows(step, start, start + 2).inputs for start in (0, 2)]
        if not np.array_equal(np.concatenate(parts), batch.inputs):
            return float("inf")
        seen += batch.targets.flatten().tolist()
    return unequal(len(set(seen)), n_windows * T)


@equivalence("rows", "padded rows; each document once", bound=0.0)
def rows() -> float:
    rng = np.random.default_rng(2)
    documents = [rng.integers(1, V, n).tolist() for n in rng.integers(1, T - 1, 40)]
    ids = np.concatenate([[0, *document] for document in documents]).astype(np.uint16)
    batches = Rows(ids, 0, context_length=T, batch_size=5, seed=1)
    found = []
    for step in range(int(batches.n_batches)):
        batch = batches.rows(step)
        for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
            kept = [(i, t) for i, t in zip(inputs, targets, strict=True) if t != IGNORED]
            found.append([kept[0][0], *(t for _, t in kept)])
            if [i for i, _ in kept][1:] != [t for _, t in kept][:-1]:
                return float("inf")
    expected = [
        [0, *document, *([0] if number + 1 < len(documents) else [])]
        for number, document in enumerate(documents)
    ]
    return unequal(sorted(found), sorted(expected))


@equivalence("held-out text", "two splits; all text, no overlap", bound=0.0)
def held_out_text() -> float:
    documents = [f"Document {n} says {n * n}.\n" for n in range(200)]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "text.jsonl"
        path.write_text("".join(f'{{"text": "{text[:-1]}"}}\n' for text in documents), "utf-8")
        data = dataclasses.replace(RunConfig().data, sources=(str(path),))
        corpus = prepare_run(data, "byte", Path(place) / "tokens")
        sides = [
            corpus.tokenizer.decode(np.asarray(ids)).split("<|endoftext|>")
            for ids in (corpus.train, corpus.validation)
        ]
    train, validation = ({text.strip() for text in side} - {""} for side in sides)
    if train & validation or not validation:
        return float("inf")
    return unequal(train | validation, {text.strip() for text in documents})


@equivalence("packed documents", "packed rows; each document alone", bound=1e-10, cuda=1e-9)
def packed_documents() -> float:
    """Loss and every gradient, with windows, tables and rotary positions."""
    rng, worst = np.random.default_rng(3), 0.0
    ids = rng.integers(1, V, 600).astype(np.uint16)
    ids[rng.choice(600, 60, replace=False)] = 0
    batch = Packed(Batches(ids, context_length=T, batch_size=4, seed=1), 0).rows(0)
    assert batch.documents is not None
    inputs, targets, documents = (
        torch.from_numpy(array).to(device())
        for array in (batch.inputs, batch.targets, batch.documents)
    )
    for variant in VARIANTS:
        model, alone = small_model(variant), small_model(variant)
        total = _loss(model, inputs, targets, documents)
        total.backward()
        pieces = []
        for row in range(4):
            starts = [0, *(np.flatnonzero(batch.inputs[row, 1:] == 0) + 1), T]
            for start, end in itertools.pairwise(starts):
                if end > start:
                    piece = slice(start, end)
                    pieces.append(
                        _loss(alone, inputs[row : row + 1, piece], targets[row : row + 1, piece])
                    )
        expected = torch.stack(pieces).sum()
        expected.backward()
        worst = max(worst, relative(total, expected))
        for p, q in zip(model.parameters(), alone.parameters(), strict=True):
            if q.grad is not None:
                worst = max(worst, relative(p.grad, q.grad))
    return worst


def _loss(
    model: GPT, ids: torch.Tensor, targets: torch.Tensor, documents: torch.Tensor | None = None
) -> torch.Tensor:
    total, _ = summed_cross_entropy(
        model.hidden(ids, documents=documents).flatten(0, 1),
        model.head_weight,
        targets.flatten(),
        vocab_size=V,
        softcap=model.config.logit_softcap,
    )
    return total
