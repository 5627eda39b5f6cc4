"""One training step: forward and backward over the micro-batches of a batch, clipping, optimizer.

The loss of a batch is the sum over its tokens, divided once by the number of counted tokens in the
complete batch (other objectives: `train/objective.py`). So the split into micro-batches and ranks
changes only rounding. DDP and FSDP2 average gradients over ranks, and a factor of the world size
undoes that.
"""

import logging
import math
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from lmsmith.data.batches.windows import AnyBatches, Batch
from lmsmith.distributed.ranks import LONG, explain_lost_process
from lmsmith.distributed.shard import synchronised, unshard
from lmsmith.optim.rates import peak_rates
from lmsmith.optim.schedule import learning_rate_share
from lmsmith.train.guard import Guard
from lmsmith.train.objective import loss_and_metrics
from lmsmith.train.replica import Replica

log = logging.getLogger(__name__)


def train_step(
    replica: Replica, batches: AnyBatches, step: int, n_steps: int, guard: Guard | None = None
) -> dict[str, float]:
    """Makes step number `step` (from 0) of `n_steps`. Returns its loss (nats per token), gradient
    norm, the objective's metrics, and the learning rate of each group by the name of its setting.

    Raises SpikeError on all ranks, before the weights change, if `guard` detects a spike, or if
    loss or gradient are not finite. The parameters then still hold the gradients.
    """
    config, scale = replica.config, replica.scale
    share = learning_rate_share(step, n_steps, config.schedule)
    result = {name: share * peak for name, peak in peak_rates(config.optim).items()}
    with explain_lost_process() if replica.ranks.world > 1 else nullcontext():
        result["loss"], result["grad_norm"] = gradient(replica, batches, step)
        result |= replica.metrics
        if scale.found(math.isfinite(result["grad_norm"])):
            replica.optimizers.clear()
            return result
        (guard or Guard("no", math.inf)).judge(step, result["loss"], result["grad_norm"])
        clip(replica.model, result["grad_norm"], config.optim.clip_norm)
        replica.optimizers.step(share)
    return result


def gradient(replica: Replica, batches: AnyBatches, step: int) -> tuple[float, float]:
    """Returns the loss of batch `step` over all ranks and the norm of its gradient; leaves the
    gradient in the parameters and the objective's metrics in `replica.metrics`.

    If memory runs out, halves the micro-batches (`Replica.rows_at_once`) and starts the batch
    again. Several ranks cannot start again once they communicate, in the last backward pass. So
    they try one micro-batch beforehand (`_fits`).
    """
    several = replica.ranks.world > 1
    replica.objective.before_gradient(replica, batches, step)
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
    """Returns whether a micro-batch fits into the memory of all ranks; all return the same answer.

    Each size is tried twice: before the optimizers have their state, and after. Nothing is tried
    under FSDP2, because its forward passes communicate.
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
                summed, _ = loss_and_metrics(replica.summed_loss(*to_device(batch, replica.device)))
            (summed * 0).backward()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or n_rows == 1:
            raise
        short = True
    replica.optimizers.clear()
    replica.ranks.wait(LONG)  # compilation may have taken longer on one rank
    if replica.ranks.max(short)[0]:
        return False
    replica.rows_that_fitted.append(n_rows)
    return True


def _halve(replica: Replica) -> None:
    replica.optimizers.clear()
    replica.rows_at_once = -(-replica.rows_at_once // 2)
    if replica.ranks.first:
        log.warning(
            "out of memory: continuing with micro-batches of %d rows (the results stay the same up "
            "to rounding)",
            replica.rows_at_once,
        )
    if replica.device.type == "cuda":  # here the failed attempt no longer holds its memory
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error means that memory ran out, including the RuntimeErrors of PyTorch's
    allocators.
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(
        error
    )


def _gradient(replica: Replica, batches: AnyBatches, step: int) -> tuple[float, float]:
    config, ranks, scale = replica.config, replica.ranks, replica.scale
    divisor = replica.objective.divisor(batches, step)
    factor = scale.value * ranks.world / divisor
    sums: dict[str, Tensor] = {}
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
                {"state": replica.carried.before(part, batch.continues)} if replica.carried else {}
            )
            with synchronised(replica.summed_loss, last=part == parts[-1]):
                with replica.autocast():
                    summed, metrics = loss_and_metrics(
                        replica.summed_loss(*to_device(batch, replica.device), **carried)
                    )
                (summed * factor).backward()
            total += summed.detach()
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0) + value.detach().to(total.dtype)
    norm = norm_of(replica.model, scale.value)
    loss, grad_norm, *values = torch.stack(
        [total, norm.to(total.dtype), *sums.values()]
    ).tolist()  # one synchronization with the device for all numbers
    loss, *values = ranks.sum(loss, *values)
    replica.metrics = replica.objective.metrics(dict(zip(sums, values, strict=True)))
    return loss / divisor, grad_norm


def _devices(replica: Replica) -> list[torch.device]:
    """Devices whose random state must be saved besides the CPU's."""
    return [replica.device] if replica.device.type == "cuda" else []


def to_device(batch: Batch, device: torch.device) -> list[Tensor]:
    """The arguments of the loss for a batch: inputs and targets (rows, T), and so on."""
    tensors = [
        torch.from_numpy(np.ascontiguousarray(array)) for array in batch.arrays()
    ]  # strided arrays cannot be copied asynchronously
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    return [
        tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors
    ]  # overlaps with earlier work


def dropout_seed(seed: int, step: int, rank: int = 0) -> int:
    """Mixes (seed, step, rank) into one seed, because PyTorch's CPU generator uses only the lower
    32 bits of a seed.
    """
    key = (step, rank) if rank else (step,)
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


def norm_of(model: nn.Module, scale: float = 1.0) -> Tensor:
    """Divides the gradients by `scale` and returns their global norm."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    if scale != 1:
        torch._foreach_mul_(grads, 1 / scale)
    return unshard(torch.nn.utils.get_total_norm(grads, foreach=True))


def clip(model: nn.Module, norm: float, largest: float) -> None:
    """Scales gradients of global norm `norm` down to norm `largest` (0: no clipping)."""
    if largest and norm > largest:
        torch._foreach_mul_(
            [p.grad for p in model.parameters() if p.grad is not None], largest / norm
        )
