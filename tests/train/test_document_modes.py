"""Training on separate documents (`data.documents` packed and rows): step, loop, resume, score."""

import itertools
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lmsmith.checkpoint import load_model
from lmsmith.config import RunConfig
from lmsmith.data.batches.packing import batches_of
from lmsmith.data.corpus import Corpus, Counts
from lmsmith.models.gpt import GPT
from lmsmith.targets import IGNORED
from lmsmith.tokens.tokenizer import CharTokenizer
from lmsmith.train.hooks.evaluate import Evaluate
from lmsmith.train.loop import Training
from lmsmith.train.replica import Replica
from lmsmith.train.step import train_step

TEXTS = [
    f"{name} {verb}.\n" * n
    for name in ("Ann", "Bo", "Christopher")
    for verb in ("ran", "slept")
    for n in (1, 2, 5)
]
MODES = ["packed", "rows"]


@pytest.fixture
def corpus() -> Corpus:
    tokenizer = CharTokenizer.learn(TEXTS, True)
    end = tokenizer.end_of_text
    assert end is not None
    texts = [text for _ in range(6) for text in TEXTS]
    ids = [np.concatenate([[end], tokenizer.encode(text)]).astype(np.uint16) for text in texts]
    train, validation = np.concatenate(ids[:90]), np.concatenate(ids[90:])
    counts = Counts(len(train), len(validation), sum(map(len, texts[90:])), 0, 0, ())
    return Corpus(train, validation, tokenizer, counts)


def alone(model: GPT, ids: np.ndarray, boundary: int) -> tuple[torch.Tensor, int]:
    """Summed loss and number of targets, with each document scored alone in its own windows."""
    T, total, n = model.config.context_length, torch.zeros((), dtype=torch.float64), 0
    places = [*np.flatnonzero(ids == boundary).tolist(), len(ids) - 1]
    for begin, end in itertools.pairwise(places):
        for start in range(begin, end, T):
            stop = min(start + T, end)
            piece = torch.from_numpy(ids[start : stop + 1].astype(np.int64))
            total = total + F.cross_entropy(
                model(piece[None, :-1])[0].double(), piece[1:], reduction="sum"
            )
            n += stop - start
    return total, n


def prepared(config: RunConfig, mode: str, **changes: Any) -> tuple[RunConfig, GPT]:
    sizes = {
        "train.dtype": "float64",
        "optim.name": "adamw",
        "data.documents": mode,
        "train.batch_size": 6,
    }
    config = config.changed(sizes | changes, where="a test")
    model = GPT(config.model).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.3, generator=generator)
    return config, model


@pytest.mark.parametrize("mode", MODES)
def test_a_step_equals_one_over_single_documents(
    config: RunConfig, corpus: Corpus, mode: str
) -> None:
    """Loss and gradient norm are divided once by the targets of the full batch, for any split."""
    config, model = prepared(config, mode, **{"model.ngram_tables": (2, 3)})
    batch = batches_of(config, corpus.train, corpus.tokenizer).rows(2)
    total, n = torch.zeros((), dtype=torch.float64), 0
    for number, (inputs, targets) in enumerate(zip(batch.inputs, batch.targets, strict=True)):
        keep = targets != IGNORED
        documents = (
            np.zeros(len(inputs), int) if batch.documents is None else batch.documents[number]
        )
        for document in np.unique(documents[keep]):
            x, y = (
                torch.from_numpy(part[keep & (documents == document)]) for part in (inputs, targets)
            )
            total = total + F.cross_entropy(model(x[None])[0], y, reduction="sum")
            n += len(x)
    gradients = torch.autograd.grad(total / n, list(model.parameters()))
    norm = torch.stack([g.norm() for g in gradients]).norm()
    for rows in (0, 1, 3):
        parts, model = prepared(config, mode, **{"train.micro_batch_size": rows})
        found = train_step(
            Replica(model, parts), batches_of(parts, corpus.train, corpus.tokenizer), 2, 10
        )
        assert found["loss"] == pytest.approx(float(total.detach()) / n, rel=1e-9)
        assert found["grad_norm"] == pytest.approx(float(norm), rel=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_a_run_learns_resumes_and_scores_separate_documents(
    training: Callable[..., Training], corpus: Corpus, config: RunConfig, mode: str
) -> None:
    changes: dict[str, Any] = {
        "data.documents": mode,
        "model.vocab_size": corpus.tokenizer.vocab_size,
    }
    changes |= {"train.steps": 40, "train.save_every": 20, "train.eval_every": 20, "train.keep": 9}
    full = training(changes, run="full")
    summary = full.go()
    assert summary["tokens_seen"] == sum(full.context.batches.n_targets(step) for step in range(40))
    assert summary["val_loss"] < 0.9 * np.log(corpus.tokenizer.vocab_size)
    end = corpus.tokenizer.end_of_text
    assert end is not None
    with torch.no_grad():
        total, n = alone(full.context.model.eval(), corpus.validation, end)
    assert n == len(corpus.validation) - 1
    assert Evaluate(1).score(full.context).nats == pytest.approx(float(total), rel=1e-5)
    assert load_model(full.context.run / "model")[1]["data"] == {"documents": mode}

    (shorter := training(changes, run="parts")).state.n_steps = 40
    shutil.copytree(full.context.run / "checkpoints", shorter.context.run / "checkpoints")
    shutil.rmtree(shorter.context.run / "checkpoints" / "step-00000040")
    assert shorter.restore()
    assert shorter.state.step == 20
    shorter.go()
    weights = shorter.context.model.state_dict()
    assert all(
        torch.equal(weight, weights[name])
        for name, weight in full.context.model.state_dict().items()
    )
