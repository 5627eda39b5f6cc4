"""Predicted FLOPs of recurrent networks equal PyTorch's count."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from lmsmith.models.rnn import RNN
from lmsmith.models.rnn_config import RNNConfig


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
@pytest.mark.parametrize("tied", [False, True])
def test_predicted_flops_equal_pytorchs_count(cell: str, tied: bool) -> None:
    config = RNNConfig(
        cell=cell, n_layer=2, d_model=8, vocab_size=11, vocab_multiple=4, tied_head=tied
    )
    model = RNN(config)
    for block in model.blocks:
        block.uses_kernel = False  # the counter does not see products inside kernels
    ids = torch.arange(40).view(2, 20) % 11
    with FlopCounterMode(display=False) as counter:
        hidden = model.hidden(ids)
        F.linear(hidden, model.head_weight).sum().backward()
    # The first layer's empty state needs no gradient, so one product of its backward pass is
    # missing.
    missing = 2 * 2 * 8 * 8 * {"elman": 1, "gru": 3, "lstm": 4}[cell] * config.n_layer
    assert counter.get_total_flops() + missing == config.train_flops_per_token() * ids.numel()
    assert config.matrix_parameters() < model.n_parameters() + tied * 12 * 8
