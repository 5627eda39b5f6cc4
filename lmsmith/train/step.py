"""One update: forward and backward over the micro-batches of a batch, clip, step.

The loss of a batch is the sum over its tokens divided once by how many there are, so the split into micro-batches
changes nothing but rounding.
"""

import numpy as np
import torch
from torch import nn

from lmsmith.config import RunConfig
from lmsmith.data.batches import AnyBatches
from lmsmith.errors import TrainingError
from lmsmith.loss import summed_cross_entropy
from lmsmith.models.gpt import GPT
from lmsmith.optim.groups import Optimisers
from lmsmith.optim.schedule import learning_rate_share


def update(
    model: GPT, optimisers: Optimisers, batches: AnyBatches, config: RunConfig, step: int, n_steps: int
) -> dict[str, float]:
    """Makes update `step` (from 0) of `n_steps` and returns its loss (nats a token), gradient norm, learning rate.

    Raises TrainingError, before anything is updated, where the loss or the gradient is not finite.
    """
    device = next(model.parameters()).device
    n_tokens = batches.n_counted(step)
    loss = 0.0
    with torch.random.fork_rng([device] if device.type == "cuda" else [], enabled=config.model.has_dropout):
        if config.model.has_dropout:  # dropout is a function of (seed, step)
            torch.manual_seed(dropout_seed(config.train.seed, step))
        for rows in micro_batches(config):
            batch = batches.rows(step, *rows)
            x, y = torch.from_numpy(batch.inputs).to(device), torch.from_numpy(batch.targets).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.train.dtype == "bfloat16"):
                hidden = model.hidden(x)
                hidden = hidden.to(products_dtype(config) or hidden.dtype)  # for the head
            total, _ = summed_cross_entropy(
                hidden.flatten(0, 1),
                model.head_weight,
                y.flatten(),
                vocab_size=config.model.vocab_size,
                softcap=config.model.logit_softcap,
            )
            (total / n_tokens).backward()
            loss += float(total.detach()) / n_tokens
    norm = clip(model, config.optim.clip_norm)
    if not (abs(loss) < float("inf") and norm < float("inf")):
        raise TrainingError(
            f"step {step + 1}: the loss is {loss} and the gradient norm {norm}; nothing was updated. Lower "
            "--optim.learning_rate or --optim.muon_learning_rate, or lengthen --schedule.warmup_steps."
        )
    share = learning_rate_share(step, n_steps, config.schedule)
    optimisers.step(share)
    return {"loss": loss, "grad_norm": norm, "learning_rate": share * config.optim.learning_rate}


def micro_batches(config: RunConfig) -> list[tuple[int, int]]:
    """From which row to which each of a batch's micro-batches goes."""
    n_rows = config.train.micro_batch_size or config.train.batch_size
    return [(start, start + n_rows) for start in range(0, config.train.batch_size, n_rows)]


def dropout_seed(seed: int, step: int) -> int:
    """Both numbers, mixed: PyTorch's generator on CPUs takes the lower 32 bits of its seed and leaves the others."""
    return int(np.random.SeedSequence(seed, spawn_key=(step,)).generate_state(1, np.uint64)[0])


def products_dtype(config: RunConfig) -> torch.dtype | None:
    """The precision of matrix products where it is not the parameters' own."""
    return torch.bfloat16 if config.train.dtype == "bfloat16" else None


def clip(model: nn.Module, largest: float) -> float:
    """The global gradient norm; gradients are scaled down to `largest` where it is more (0: never)."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(grads, foreach=True))
    if largest and norm > largest:
        torch._foreach_mul_(grads, largest / norm)
    return norm
