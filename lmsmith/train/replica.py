"""Prepares a model for training on this rank: precision, compilation, activation checkpointing, DDP
or FSDP2.

The model knows nothing of this. The wrapping happens in this order: compile the blocks, checkpoint
their activations, wrap the model in its loss, and wrap that in DDP or FSDP2. The optimizers come
last, because they must see the final parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmsmith.config import RunConfig
from lmsmith.distributed.ranks import Ranks
from lmsmith.distributed.shard import parallelize, reshard, shard_like, split_rows
from lmsmith.errors import CheckpointError
from lmsmith.models.gpt import GPT
from lmsmith.models.interface import NeuralModel
from lmsmith.models.rnn import RNN
from lmsmith.optim.groups import Optimizers
from lmsmith.optim.scaling import GradientScale
from lmsmith.train.by_hand import ReferenceEngine
from lmsmith.train.objective import objective_of
from lmsmith.train.truncated_bptt import RecurrentStates

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Replica:
    """The objects that a training step uses: model, loss, objective, optimizers, gradient scale.

    `rows_at_once`: rows per micro-batch. `rows_that_fitted`: micro-batch sizes that fitted into
    memory in trials. `metrics`: the objective's, of the latest gradient.
    """

    def __init__(self, model: NeuralModel, config: RunConfig, ranks: Ranks | None = None) -> None:
        """Takes over `model`, which is on its device (under FSDP2: anywhere). With several ranks,
        all must call this together.
        """
        self.model, self.config, self.ranks = model, config, ranks or Ranks()
        products = products_dtype(config)
        if compiled := config.train.compile == "yes":
            torch._dynamo.config.recompile_limit = (
                64  # window sizes, lengths, training and evaluation each compile a graph
            )
        for block in model.blocks:
            if compiled:
                block.forward = torch.compile(block.forward)
            if config.train.activation_checkpointing:
                block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        self.objective, self.metrics = objective_of(config), dict[str, float]()
        self.summed_loss: nn.Module
        self.optimizers: Optimizers | ReferenceEngine
        if config.train.engine == "reference":
            assert isinstance(model, GPT)
            self.summed_loss = self.optimizers = ReferenceEngine(model, config)
        else:
            loss = self.objective.module(model, products, compiled=compiled)
            self.summed_loss = parallelize(loss, self.ranks, config.train.parallel)
            distribute = (
                functools.partial(split_rows, ranks=self.ranks) if self.ranks.world > 1 else None
            )
            self.optimizers = Optimizers(model, config.optim, products, distribute)
        self.device = next(model.parameters()).device
        self.carried = (
            RecurrentStates(model)
            if config.train.truncated_bptt and isinstance(model, RNN)
            else None
        )
        self.scale = GradientScale(config.train.dtype == "float16")
        start, end = self.ranks.rows(config.train.batch_size)
        self.rows_at_once = min(config.train.micro_batch_size or end - start, end - start)
        self.rows_that_fitted: list[int] = []

    def autocast(self) -> torch.autocast:
        """Returns the autocast context of forward passes."""
        dtype = products_dtype(self.config)
        return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def micro_batches(self, step: int, rows_at_once: int = 0) -> list[tuple[int, int]]:
        """First and end row of each of this rank's micro-batches of batch `step`; the last one may
        be shorter.
        """
        start, end = self.ranks.rows(self.config.train.rows_of(step))
        n = rows_at_once or self.rows_at_once
        return [(row, min(row + n, end)) for row in range(start, end, n)]

    def weights(self, *, copy: bool) -> dict[str, Tensor]:
        """Returns the parameters by name; under FSDP2 their shards."""
        reshard(self.summed_loss)
        return {
            n: p.detach().clone() if copy else p.detach() for n, p in self.model.named_parameters()
        }

    @torch.no_grad()
    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies the full tensors of a checkpoint into the parameters or their shards.

        Raises CheckpointError if names or shapes differ from the model's.
        """
        reshard(self.summed_loss)
        named = dict(self.model.named_parameters())
        for name in [*named, *tensors]:
            expected, found = (
                tuple(group[name].shape) if name in group else None for group in (named, tensors)
            )
            if expected != found:
                raise CheckpointError(
                    f"the checkpoint does not belong to this config: {name} has shape {found}, "
                    f"expected {expected}. Restore the config.toml that the run was trained with."
                )
        for name, p in named.items():
            assert p.shape == tensors[name].shape, name
            p.copy_(shard_like(tensors[name].to(p.dtype), p))


def uncompiled(config: RunConfig) -> AbstractContextManager[Any]:
    """A context in which compiled blocks run uncompiled: torch.compile would compile them again for
    each length of a text. Without compiled blocks it does nothing, because `set_stance` imports the
    compiler.
    """
    if config.train.compile != "yes":
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def products_dtype(config: RunConfig) -> torch.dtype | None:
    """Returns the precision of matrix products, or None if it is that of the parameters."""
    return AUTOCAST.get(config.train.dtype)
