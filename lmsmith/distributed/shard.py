"""DDP and FSDP2 applied to a finished model, which knows nothing of them.

| how | each process holds | between processes goes |
|---|---|---|
| `ddp` | all weights, gradients, moments | gradients, once a step, while backward goes on |
| `fsdp` | 1/world of each | weights, a block at a time, in forward and backward; gradients |

Both average gradients over processes; the loss is a sum divided by the global count of tokens, so
it is scaled by the number of processes beforehand (a power of two costs no rounding). Micro-batches
but the last are accumulated without synchronisation; under `fsdp` each process keeps whole
gradients meanwhile.

What goes to a file is always whole (`unshard`), so a checkpoint of any number of processes is one
of any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lmsmith.distributed.ranks import Ranks, lost_in_words
from lmsmith.loss import summed_cross_entropy
from lmsmith.models.interface import NeuralModel


class SummedLoss(nn.Module):
    """Model and loss as one module: what DDP and FSDP2 want to see called."""

    def __init__(
        self, model: NeuralModel, head_dtype: torch.dtype | None = None, *, compiled: bool = False
    ) -> None:
        """`head_dtype`: of the head's products, where not the model's own. `compiled`: the
        passes over logits.
        """
        super().__init__()
        self.model, self.head_dtype, self.compiled = model, head_dtype, compiled

    def forward(
        self, inputs: Tensor, targets: Tensor, documents: Tensor | None = None, state: Any = None
    ) -> Tensor:
        """Sum of the cross-entropy over the targets that count, in nats: ()."""
        hidden = self.model.hidden(inputs, state, documents)
        with torch.autocast(inputs.device.type, enabled=False):
            total, _ = summed_cross_entropy(
                hidden.to(self.head_dtype or hidden.dtype).flatten(0, 1),
                self.model.head_weight,
                targets.flatten(),
                vocab_size=self.model.config.vocab_size,
                softcap=self.model.config.logit_softcap,
                compiled=self.compiled,
            )
        return total

    def log_probabilities(self, ids: Tensor, n_given: int = 1, state: Any = None) -> Tensor:
        """The model's. Under FSDP2 the model itself cannot be called: its root is this module."""
        return self.model.log_probabilities(ids, n_given, state)


class Scored(nn.Module):
    """A parallelized model as `lmsmith.evaluate` wants one."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss: Any = getattr(loss, "module", loss)  # DDP has no part in an evaluation
        model = self.loss.model
        self.vocab_size, self.context_length, self.device = (
            model.vocab_size,
            model.context_length,
            model.device,
        )

    def n_parameters(self) -> int:
        return int(self.loss.model.n_parameters())

    def log_probabilities(self, ids: Tensor, n_given: int = 1, state: Any = None) -> Tensor:
        return self.loss.log_probabilities(ids, n_given, state)


def parallelize(loss: SummedLoss, ranks: Ranks, how: str) -> nn.Module:
    """Wraps `loss` in DDP or FSDP2; under FSDP2 the model's parameters become shards.

    Call it before the optimizers are made: they must see the parameters as they then are.
    """
    if ranks.world == 1:
        return loss
    if how == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = init_device_mesh(ranks.device.type, (ranks.world,))
        for block in loss.model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(loss, mesh=mesh)
        register_fsdp_forward_method(loss, "log_probabilities")
        return loss
    assert how == "ddp", how
    ids = [ranks.device] if ranks.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(loss, device_ids=ids, gradient_as_bucket_view=True)


@contextmanager
def synchronised(module: nn.Module, last: bool) -> Iterator[None]:
    """Around a micro-batch's forward and backward: gradients go between processes in the `last`
    one alone.
    """
    if isinstance(module, nn.parallel.DistributedDataParallel):
        if last:
            yield
        else:
            with module.no_sync():
                yield
        return
    set_sync: Callable[[bool], None] | None = getattr(module, "set_requires_gradient_sync", None)
    if set_sync is not None:
        set_sync(last)
    yield


def reshard(module: nn.Module) -> None:
    """Makes the parameters shards again under FSDP2: after a forward pass alone the root's are
    whole.
    """
    reshard: Callable[[], None] | None = getattr(module, "reshard", None)
    if reshard is not None:
        reshard()


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def unshard(tensor: Tensor) -> Tensor:
    """The whole tensor of a shard: every rank must call it. Any other tensor comes back as it
    is.
    """
    found: Any = tensor
    return found.full_tensor() if is_sharded(tensor) else tensor


def unshard_all(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Whole tensors from shards; every rank must call it. Empty where `keep` is False.

    A whole model may not fit where a shard of it does, so tensors that were sharded go to the CPU.
    """
    found = {}
    for name in sorted(tensors):  # all ranks in one order; a file's order differs between ranks
        full = unshard(tensor := tensors[name])
        if keep:
            found[name] = full.cpu() if is_sharded(tensor) else full
    return found


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """This rank's shard of `full`, laid out as `like` is; `full` itself where `like` is no
    shard.
    """
    if not is_sharded(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    full = full.to(sharded.device)
    return distribute_tensor(full, sharded.device_mesh, sharded.placements, src_data_rank=None)


def split_rows(function: Callable[[Tensor], Tensor], ranks: Ranks) -> Callable[[Tensor], Tensor]:
    """A version of `function` that splits the rows of its stack (N, ...) across ranks.

    `function` must treat each row alone. Every rank must call it, and gets all rows.
    """
    if ranks.world == 1:
        return function

    def shared(stack: Tensor) -> Tensor:
        n = -(-len(stack) // ranks.world)  # rows a process; the last may have fewer
        mine = stack[ranks.rank * n : (ranks.rank + 1) * n]
        found = stack.new_zeros(n, *stack.shape[1:])
        if len(mine):
            found[: len(mine)] = function(mine)
        gathered = stack.new_empty(n * ranks.world, *stack.shape[1:])
        with lost_in_words():
            dist.all_gather(list(gathered.chunk(ranks.world)), found)
        return gathered[: len(stack)]

    return shared
