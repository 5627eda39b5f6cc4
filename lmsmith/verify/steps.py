"""Training steps against a plain loop of PyTorch: `F.cross_entropy` on the complete batch,
`torch.optim.AdamW` with its parameter groups, and clipping and rates written out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmsmith.config import RunConfig
from lmsmith.config.presets import preset
from lmsmith.data.batches.rows import Rows
from lmsmith.data.batches.windows import Batches
from lmsmith.loss import summed_cross_entropy
from lmsmith.models.gpt import GPT
from lmsmith.optim.scaling import GradientScale
from lmsmith.targets import IGNORED
from lmsmith.train.replica import Replica
from lmsmith.train.step import train_step
from lmsmith.verify.models import T, V, device, random_ids, small_model
from lmsmith.verify.registry import equivalence, relative, unequal

N_STEPS, WARM_UP, PEAK, DECAY, CLIP = 8, 3, 1e-2, 0.3, 0.5


def _config(**changes: Any) -> RunConfig:
    sizes = {"n_layer": 2, "n_head": 4, "d_model": 24, "context_length": T, "vocab_size": V}
    settings = {f"model.{name}": value for name, value in sizes.items()} | {
        "optim.name": "adamw",
        "optim.learning_rate": PEAK,
        "optim.embedding_learning_rate": PEAK,
        "optim.weight_decay": DECAY,
        "optim.clip_norm": CLIP,
        "optim.eps": 1e-4,  # some gradients are zero up to rounding, which AdamW would magnify
        "schedule.shape": "cosine",
        "schedule.warmup_steps": WARM_UP,
        "schedule.final_fraction": 0.1,
        "train.dtype": "float64",
        "train.batch_size": 6,
        "train.steps": N_STEPS,
    }
    return preset("gpt2").changed(settings | changes, where="verify")


def _documents() -> np.ndarray:
    """Documents of very different lengths, each after the boundary 0."""
    rng = np.random.default_rng(5)
    lengths = rng.permutation(np.r_[rng.integers(1, 5, 20), rng.integers(8, T, 20)])
    return np.concatenate([np.r_[0, rng.integers(1, V, n)] for n in lengths]).astype(np.uint16)


def _weights(model: GPT) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _trained(config: RunConfig, n: int, scale: float = 1.0) -> tuple[Tensor, list[list[float]]]:
    """The weights and the numbers of `n` steps on padded rows, with a loss scale."""
    model = small_model("gpt2")
    replica = Replica(model, config)
    replica.scale = GradientScale(scale != 1, scale)
    batches = Rows(_documents(), 0, context_length=T, batch_size=6, seed=3)
    numbers = [train_step(replica, batches, step, N_STEPS) for step in range(n)]
    return _weights(model), [list(step.values()) for step in numbers]


@equivalence(
    "training step",
    "ours; a plain loop of PyTorch",
    bound=1e-9,
    cuda=1e-8,
)
def training_step() -> float:
    """With micro-batches of 6, 4 and 1 rows: averages over micro-batches would differ. And with a
    loss scale, as float16 has."""
    expected, losses = _plain_loop(5)
    worst = 0.0
    for rows, scale in ((6, 1.0), (4, 2.0**16), (1, 1.0)):
        found, numbers = _trained(_config(**{"train.micro_batch_size": rows}), 5, scale)
        worst = max(worst, relative(found, expected))
        worst = max(worst, relative([step[-2:] for step in numbers], losses))
    return worst


def _plain_loop(n: int) -> tuple[Tensor, list[list[float]]]:
    """The weights after `n` steps, and loss and gradient norm of each."""
    model, ids, found = small_model("gpt2"), _documents(), []
    rows = Rows(ids, 0, context_length=T, batch_size=6, seed=3)
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": decayed, "weight_decay": DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    config = _config().optim
    optimizer = torch.optim.AdamW(
        groups, lr=PEAK, betas=(config.beta1, config.beta2), eps=config.eps
    )
    for step in range(n):
        batch = rows.rows(step)
        logits = model(torch.from_numpy(batch.inputs).to(device()))
        targets = torch.from_numpy(batch.targets).to(device()).flatten()
        loss = F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
        for gradient in gradients:
            gradient *= min(1.0, CLIP / norm)
        share = (step + 1) / WARM_UP
        if step >= WARM_UP:
            left = (N_STEPS - step) / (N_STEPS - WARM_UP)
            share = 0.1 + 0.9 * (1 - math.cos(math.pi * left)) / 2
        for group in optimizer.param_groups:
            group["lr"] = PEAK * share
        optimizer.step()
        found.append([float(loss.detach()), norm])
    return _weights(model), found


@equivalence("chunked loss", "chunks of logits; cross_entropy", bound=1e-11, cuda=1e-10)
def chunked_loss() -> float:
    generator = torch.Generator().manual_seed(4)
    hidden, weight = (torch.randn(n, 24, generator=generator, dtype=torch.float64) for n in (50, V))
    targets = random_ids(50)
    targets[::7] = IGNORED
    worst = 0.0
    for softcap in (0.0, 5.0):
        results = []
        for plain in (True, False):
            x, w = (v.clone().to(device()).requires_grad_() for v in (hidden, weight))
            if plain:
                logits = x @ w.T
                logits = softcap * torch.tanh(logits / softcap) if softcap else logits
                total = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
                n_tokens = int((targets != IGNORED).sum())
            else:
                total, n = summed_cross_entropy(x, w, targets, vocab_size=V, softcap=softcap)
                n_tokens = int(n)
            total.backward()
            assert x.grad is not None
            assert w.grad is not None
            results.append([total, torch.tensor(float(n_tokens)), x.grad, w.grad])
        worst = max([worst, *(relative(b, a) for a, b in zip(*results, strict=True))])
    return worst


@equivalence("determinism", "bits of some steps; the same again", bound=0.0, all_threads=True)
def determinism() -> float:
    """In float32, with dropout, with as many threads as training uses."""
    found = []
    for _ in range(2):
        config = _config(**{"model.dropout": 0.2, "train.dtype": "float32"})
        model = small_model("gpt2", torch.float32, dropout=0.2).train()
        replica = Replica(model, config)
        ids = random_ids(500).cpu().numpy().astype(np.uint16)
        batches = Batches(ids, context_length=T, batch_size=6, seed=3)
        for step in range(3):
            train_step(replica, batches, step, N_STEPS)
        found.append(_weights(model))
    return unequal(*found)
