"""One update: forward and backward over the micro-batches of a batch, clip, step.

The loss of a batch is the sum over its tokens divided once by how many count in all of it, so the split into
micro-batches and among processes changes nothing but rounding. Gradients are averaged over processes on their way
between them, hence the factor.
"""

import math
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from lmsmith.data.batches import AnyBatches, Batch
from lmsmith.errors import TrainingError
from lmsmith.optim.schedule import learning_rate_share
from lmsmith.parallel.process import lost_in_words
from lmsmith.parallel.shard import synchronised, whole
from lmsmith.train.replica import Replica


def update(replica: Replica, batches: AnyBatches, step: int, n_steps: int) -> dict[str, float]:
    """Makes update `step` (from 0) of `n_steps` and returns its loss (nats a token), gradient norm, learning rate.

    Raises TrainingError, before anything is updated and in all processes alike, where the loss or the gradient is not
    finite.
    """
    with lost_in_words() if replica.ranks.world > 1 else nullcontext():
        return _update(replica, batches, step, n_steps)


def _update(replica: Replica, batches: AnyBatches, step: int, n_steps: int) -> dict[str, float]:
    config, ranks, scale = replica.config, replica.ranks, replica.scale
    n_counted = batches.n_counted(step)
    factor = scale.value * ranks.world / n_counted
    total = 0.0
    devices = [replica.device] if replica.device.type == "cuda" else []
    with torch.random.fork_rng(devices, enabled=config.model.has_dropout):
        if config.model.has_dropout:  # dropout is a function of (seed, step, rank)
            torch.manual_seed(dropout_seed(config.train.seed, step, ranks.rank))
        parts = replica.micro_batches()
        for part in parts:
            with synchronised(replica.summed_loss, last=part == parts[-1]):
                with replica.autocast():
                    summed = replica.summed_loss(*_tensors(batches.rows(step, *part), replica.device))
                (summed * factor).backward()
            total += float(summed.detach())
    loss = ranks.sum(total)[0] / n_counted
    norm = clip(replica.model, config.optim.clip_norm, scale.value)
    finite = math.isfinite(loss) and math.isfinite(norm)
    share = learning_rate_share(step, n_steps, config.schedule)
    if scale.found(finite):
        replica.optimisers.clear()
    elif not finite:
        raise TrainingError(
            f"step {step + 1}: the loss is {loss} and the gradient norm {norm}; nothing was updated. Lower "
            "--optim.learning_rate or --optim.muon_learning_rate, or lengthen --schedule.warmup_steps."
        )
    else:
        replica.optimisers.step(share)
    return {"loss": loss, "grad_norm": norm, "learning_rate": share * config.optim.learning_rate}


def _tensors(batch: Batch, device: torch.device) -> list[Tensor]:
    arrays = [batch.inputs, batch.targets] + ([] if batch.documents is None else [batch.documents])
    tensors = [torch.from_numpy(array) for array in arrays]
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    return [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]  # beside the work before it


def dropout_seed(seed: int, step: int, rank: int = 0) -> int:
    """The numbers, mixed: PyTorch's generator on CPUs takes the lower 32 bits of its seed and leaves the others."""
    key = (step, rank) if rank else (step,)
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


def clip(model: nn.Module, largest: float, scale: float = 1.0) -> float:
    """The global norm of gradients, which come times `scale`; they are scaled down to `largest` if more (0: never)."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    if scale != 1:
        torch._foreach_mul_(grads, 1 / scale)
    norm = float(whole(torch.nn.utils.get_total_norm(grads, foreach=True)))
    if largest and norm > largest and math.isfinite(norm):
        torch._foreach_mul_(grads, largest / norm)
    return norm
