"""One training step: forward and backward over the micro-batches of a batch, clip, optimizer step.

The loss of a batch is the sum over its tokens divided once by how many count in all of it, so the
split into micro-batches and among processes changes nothing but rounding. Gradients are averaged
over processes on their way between them, hence the factor.
"""

import logging
import math
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from lmsmith.data.batches.windows import AnyBatches, Batch
from lmsmith.distributed.ranks import LONG, lost_in_words
from lmsmith.distributed.shard import synchronised, unshard
from lmsmith.optim.rates import peak_rates
from lmsmith.optim.schedule import learning_rate_share
from lmsmith.train.guard import Guard
from lmsmith.train.replica import Replica

log = logging.getLogger(__name__)


def train_step(
    replica: Replica, batches: AnyBatches, step: int, n_steps: int, guard: Guard | None = None
) -> dict[str, float]:
    """Makes `step` (from 0) of `n_steps`; returns its loss (nats a token), gradient norm and each
    group's learning rate by the name of its setting.

    Raises SpikeError on every rank before the weights change, where the `guard` finds a spike, or
    where the loss or the gradient is not finite. The gradients are then still in the parameters.
    """
    config, scale = replica.config, replica.scale
    share = learning_rate_share(step, n_steps, config.schedule)
    result = {name: share * peak for name, peak in peak_rates(config.optim).items()}
    with lost_in_words() if replica.ranks.world > 1 else nullcontext():
        result["loss"], result["grad_norm"] = gradient(replica, batches, step)
        if scale.found(math.isfinite(result["grad_norm"])):
            replica.optimizers.clear()
            return result
        (guard or Guard("no", math.inf)).judge(step, result["loss"], result["grad_norm"])
        clip(replica.model, result["grad_norm"], config.optim.clip_norm)
        replica.optimizers.step(share)
    return result


def gradient(replica: Replica, batches: AnyBatches, step: int) -> tuple[float, float]:
    """The loss of batch `step` over all processes, and the norm of its gradient, which is left in
    the parameters.

    Where memory does not suffice, micro-batches are halved (`Replica.rows_at_once`) and the batch
    begun anew. Several processes cannot begin anew once they talk, in the last backward pass: they
    try a micro-batch beforehand (`_fits`).
    """
    several = replica.ranks.world > 1
    while several and not replica.carried and not _fits(replica, batches, step):
        _halve(replica)
    while True:
        try:
            return _gradient(replica, batches, step)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if (
                not is_out_of_memory(error)
                or replica.rows_at_once == 1
                or several
                or replica.carried
            ):
                raise
        _halve(replica)


def _fits(replica: Replica, batches: AnyBatches, step: int) -> bool:
    """Whether a micro-batch fits into the memory of every process; all come to the same answer.

    Each size is tried twice: before the optimizers have their state, and with it there. Under FSDP2
    nothing is tried, for its forward passes talk.
    """
    part = replica.micro_batches(step)[0]
    n_rows = part[1] - part[0]
    known = sum(rows >= n_rows for rows in replica.rows_that_fitted) > 1
    if known or not isinstance(replica.summed_loss, nn.parallel.DistributedDataParallel):
        return True
    short = False
    try:
        batch = batches.rows(step, *part)
        with (
            torch.random.fork_rng(_devices(replica)),
            synchronised(replica.summed_loss, last=False),
        ):
            with replica.autocast():
                summed = replica.summed_loss(*to_device(batch, replica.device))
            (summed * 0).backward()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or n_rows == 1:
            raise
        short = True
    replica.optimizers.clear()
    replica.ranks.wait(LONG)  # what was compiled here took one of them longer than another
    if replica.ranks.max(short)[0]:
        return False
    replica.rows_that_fitted.append(n_rows)
    return True


def _halve(replica: Replica) -> None:
    replica.optimizers.clear()
    replica.rows_at_once = -(-replica.rows_at_once // 2)
    if replica.ranks.first:
        log.warning(
            "memory does not suffice: micro-batches of %d rows from here on", replica.rows_at_once
        )
    if replica.device.type == "cuda":  # what the failed one held is free only behind its `except`
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is one of the ways in which memory runs out; of PyTorch's many RuntimeErrors,
    its allocators'.
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(
        error
    )


def _gradient(replica: Replica, batches: AnyBatches, step: int) -> tuple[float, float]:
    config, ranks, scale = replica.config, replica.ranks, replica.scale
    n_counted = batches.n_counted(step)
    factor = scale.value * ranks.world / n_counted
    total = torch.zeros(
        (), device=replica.device, dtype=torch.float64 if replica.device.type != "mps" else None
    )
    with torch.random.fork_rng(_devices(replica), enabled=config.model.has_dropout):
        if config.model.has_dropout:  # dropout is a function of (seed, step, rank)
            torch.manual_seed(dropout_seed(config.train.seed, step, ranks.rank))
        parts = replica.micro_batches(step)
        for part in parts:
            batch = batches.rows(step, *part)
            carried = (
                {"state": replica.carried.before(part, batch.goes_on)} if replica.carried else {}
            )
            with synchronised(replica.summed_loss, last=part == parts[-1]):
                with replica.autocast():
                    summed = replica.summed_loss(*to_device(batch, replica.device), **carried)
                (summed * factor).backward()
            total += summed.detach()
    norm = norm_of(replica.model, scale.value)
    loss, grad_norm = torch.stack(
        [total, norm.to(total.dtype)]
    ).tolist()  # what the device has is waited for once
    return ranks.sum(loss)[0] / n_counted, grad_norm


def _devices(replica: Replica) -> list[torch.device]:
    """Whose generators PyTorch does not save unasked."""
    return [replica.device] if replica.device.type == "cuda" else []


def to_device(batch: Batch, device: torch.device) -> list[Tensor]:
    """Inputs and targets (rows, T) of a batch, and its documents where it has them."""
    arrays = [batch.inputs, batch.targets] + ([] if batch.documents is None else [batch.documents])
    tensors = [
        torch.from_numpy(np.ascontiguousarray(array)) for array in arrays
    ]  # strided ones are not copied beside
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    return [
        tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors
    ]  # beside the work before it


def dropout_seed(seed: int, step: int, rank: int = 0) -> int:
    """The numbers, mixed: PyTorch's generator on CPUs takes the lower 32 bits of its seed and
    leaves the others.
    """
    key = (step, rank) if rank else (step,)
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


def norm_of(model: nn.Module, scale: float = 1.0) -> Tensor:
    """The global norm of the gradients, which come times `scale` and are divided by it."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    if scale != 1:
        torch._foreach_mul_(grads, 1 / scale)
    return unshard(torch.nn.utils.get_total_norm(grads, foreach=True))


def clip(model: nn.Module, norm: float, largest: float) -> None:
    """Scales gradients of global norm `norm` down to `largest`, where they are more (0: never)."""
    if largest and norm > largest:
        torch._foreach_mul_(
            [p.grad for p in model.parameters() if p.grad is not None], largest / norm
        )
