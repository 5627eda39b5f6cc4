"""Operations of recurrent networks, as predicted, are those PyTorch counts."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from lmsmith.models.rnn import RNN
from lmsmith.models.rnn_config import RNNConfig


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
@pytest.mark.parametrize("tied", [False, True])
def test_operations_are_those_pytorch_counts(cell: str, tied: bool) -> None:
    config = RNNConfig(
        cell=cell, n_layer=2, d_model=8, vocab_size=11, vocab_multiple=4, tied_head=tied
    )
    model = RNN(config)
    for block in model.blocks:
        block.in_kernel = False  # the kernels' products are hidden from the counter
    ids = torch.arange(40).view(2, 20) % 11
    with FlopCounterMode(display=False) as counter:
        hidden = model.hidden(ids)
        F.linear(hidden, model.head_weight).sum().backward()
    # No gradient is asked for of the first layer's empty state, so one product of its backward pass
    # is missing.
    missing = 2 * 2 * 8 * 8 * {"elman": 1, "gru": 3, "lstm": 4}[cell] * config.n_layer
    assert counter.get_total_flops() + missing == config.train_flops_per_token() * ids.numel()
    assert config.matrix_parameters() < model.n_parameters() + tied * 12 * 8
