"""Applies DDP or FSDP2 to a finished model, which contains no code for them.

| how | each process holds | processes exchange |
|---|---|---|
| `ddp` | all weights, gradients, moments | gradients, once per step, during the backward pass |
| `fsdp` | 1/world of each | weights, block by block, in forward and backward; gradients |

Both average gradients over processes. The loss is a sum divided by the global token count, so it is
scaled by the world size beforehand (exact for a power of two). During gradient accumulation only
the last micro-batch synchronises; under `fsdp` each process keeps unsharded gradients until then.

Files always hold unsharded tensors (`unshard`), so a checkpoint does not depend on the world size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lmsmith.distributed.ranks import Ranks, explain_lost_process
from lmsmith.loss import summed_cross_entropy
from lmsmith.models.interface import NeuralModel


class SummedLoss(nn.Module):
    """Model and loss as one module, so that DDP and FSDP2 see a single forward call."""

    def __init__(
        self, model: NeuralModel, head_dtype: torch.dtype | None = None, *, compiled: bool = False
    ) -> None:
        """`head_dtype`: dtype of the output head's matrix products, if not the model's own.
        `compiled`: use compiled passes over the logits.
        """
        super().__init__()
        self.model, self.head_dtype, self.compiled = model, head_dtype, compiled

    def forward(
        self, inputs: Tensor, targets: Tensor, documents: Tensor | None = None, state: Any = None
    ) -> Tensor:
        """Cross-entropy summed over all targets that are not ignored, in nats: ()."""
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
        """Calls the model's `log_probabilities`. Under FSDP2 this module is the root, so the model
        cannot be called directly.
        """
        return self.model.log_probabilities(ids, n_given, state)


class Scored(nn.Module):
    """A parallelized model with the interface that `lmsmith.evaluate` expects."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss: Any = getattr(loss, "module", loss)  # evaluation does not go through DDP
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

    Call it before creating the optimizers, which must see the final parameters.
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
    """Context for a micro-batch's forward and backward pass: gradients are exchanged only in the
    `last` one.
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
    """Reshards parameters under FSDP2: a forward pass alone leaves the root's parameters
    unsharded.
    """
    reshard: Callable[[], None] | None = getattr(module, "reshard", None)
    if reshard is not None:
        reshard()


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def unshard(tensor: Tensor) -> Tensor:
    """Returns the full tensor of a shard; every rank must call it. Returns any other tensor
    unchanged.
    """
    sharded: Any = tensor
    return sharded.full_tensor() if is_sharded(tensor) else tensor


def unshard_all(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Returns full tensors from shards; every rank must call it. Returns an empty dict if `keep` is
    False.

    Sharded tensors are gathered to the CPU, because a device may not have room for the full model.
    """
    full_tensors = {}
    for name in sorted(tensors):  # sorted, so that all ranks have the same order
        full = unshard(tensor := tensors[name])
        if keep:
            full_tensors[name] = full.cpu() if is_sharded(tensor) else full
    return full_tensors


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """This rank's shard of `full`, with the layout of `like`; `full` itself if `like` is not
    sharded.
    """
    if not is_sharded(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    full = full.to(sharded.device)
    return distribute_tensor(full, sharded.device_mesh, sharded.placements, src_data_rank=None)


def split_rows(function: Callable[[Tensor], Tensor], ranks: Ranks) -> Callable[[Tensor], Tensor]:
    """Returns a version of `function` that splits the rows of its argument (N, ...) across ranks.

    `function` must treat each row independently. Every rank must call it, and gets all rows.
    """
    if ranks.world == 1:
        return function

    def split_function(stack: Tensor) -> Tensor:
        n = -(-len(stack) // ranks.world)  # rows per rank; the last may have fewer
        mine = stack[ranks.rank * n : (ranks.rank + 1) * n]
        result = stack.new_zeros(n, *stack.shape[1:])
        if len(mine):
            result[: len(mine)] = function(mine)
        gathered = stack.new_empty(n * ranks.world, *stack.shape[1:])
        with explain_lost_process():
            dist.all_gather(list(gathered.chunk(ranks.world)), result)
        return gathered[: len(stack)]

    return split_function
