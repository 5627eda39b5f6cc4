"""Activation checkpointing: the same gradients, less memory."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY

from lmsmith.config import RunConfig
from lmsmith.data.batches.windows import Batches
from lmsmith.models.gpt import GPT
from lmsmith.train.replica import Replica
from lmsmith.train.step import gradient

T, B = 32, 6


def prepared(**changes: Any) -> tuple[Replica, Batches]:
    """A model without zero weights, and batches for it."""
    sizes = {
        "model.vocab_size": 50,
        "model.n_layer": 3,
        "model.context_length": T,
        "train.batch_size": B,
    }
    config = RunConfig().changed(TINY | sizes | changes, where="a test")
    model = GPT(config.model).to(
        torch.float64 if config.train.dtype == "float64" else torch.float32
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.2, generator=generator)
    ids = np.random.default_rng(0).integers(0, 50, 4000).astype(np.uint16)
    return Replica(model.train(), config), Batches(ids, context_length=T, batch_size=B, seed=1)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_activation_checkpointing_gives_the_same_gradient_and_stores_less(dropout: float) -> None:
    """Measures the tensors that autograd stores in a forward pass, without the parameters."""
    found, kept = [], []
    for recompute in (False, True):
        replica, batches = prepared(
            **{
                "train.activation_checkpointing": recompute,
                "train.dtype": "float64",
                "model.dropout": dropout,
            }
        )
        own = {p.untyped_storage().data_ptr() for p in replica.model.parameters()}
        sizes: dict[int, int] = {}

        def pack(
            tensor: torch.Tensor, own: set[int] = own, sizes: dict[int, int] = sizes
        ) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        batch = batches.rows(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = replica.summed_loss(
                torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)
            )
        kept.append(sum(sizes.values()))
        del loss
        loss, norm = gradient(replica, batches, 0)
        found.append((loss, norm, [p.grad for p in replica.model.parameters()]))
    (loss, norm, gradients), (loss_again, norm_again, gradients_again) = found
    assert (loss, norm) == (loss_again, norm_again)
    for wanted, again in zip(gradients, gradients_again, strict=True):
        assert wanted is not None
        assert torch.equal(wanted, again)
    assert kept[1] < 0.5 * kept[0]
