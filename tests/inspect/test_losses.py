"""Losses by position and by frequency: they average to the loss of the text."""

import numpy as np
import pytest
import torch

from lmsmith.evaluate.likelihood import score_ids
from lmsmith.inspect.losses import (
    Group,
    TokenLosses,
    by_frequency,
    by_position,
    token_counts,
    token_losses,
)
from lmsmith.inspect.weights import neighbours, position_similarity, weight_sizes
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.rnn import RNN
from lmsmith.models.rnn_config import RNNConfig

V, T = 13, 8
rng = np.random.default_rng(0)
IDS = rng.integers(0, V, 203).astype(np.uint16)
CONFIG = GPTConfig(
    n_layer=2, n_head=1, d_model=8, context_length=T, vocab_size=V, positions="learned"
)


def gpt() -> GPT:
    torch.manual_seed(0)
    model = GPT(CONFIG)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 0, 0.4)
    return model.eval()


def mean_of(groups: list[Group]) -> float:
    return sum(group.n * group.nats for group in groups) / sum(group.n for group in groups)


@pytest.mark.parametrize("boundary", [None, 0])
def test_they_average_to_the_loss_of_the_text(boundary: int | None) -> None:
    model = gpt()
    losses = token_losses(model, IDS, boundary, T)
    options = {"n_bytes": 1, "starts_with_end_of_text": True, "boundary": boundary}
    wanted = score_ids(model, IDS, **options).nats_per_token  # type: ignore[arg-type]
    assert losses.mean == pytest.approx(wanted, rel=1e-6)
    counts = token_counts(IDS, V)
    assert (counts == [(one == IDS).sum() for one in range(V)]).all()
    for groups in (by_position(losses), by_frequency(losses, counts)):
        assert sum(group.n for group in groups) == len(IDS) - 1
        assert mean_of(groups) == pytest.approx(wanted, rel=1e-6)


def test_a_position_is_the_number_of_tokens_before_it_in_the_window() -> None:
    """One token at a time, with exactly the context that its position says."""
    model = gpt()
    for boundary in (None, 0):
        losses = token_losses(model, IDS, boundary, T)
        assert losses.positions.max() <= T
        for k in range(0, len(losses.ids), 7):
            context = IDS[k + 1 - losses.positions[k] : k + 2].astype(np.int64)
            assert boundary is None or 0 not in context[1:-1]
            with torch.no_grad():
                log_p = model.log_probabilities(torch.from_numpy(context)[None], len(context) - 1)
            assert losses.nats[k] == pytest.approx(-float(log_p), rel=1e-4)


def test_models_without_a_context_length_begin_again() -> None:
    model = RNN(RNNConfig(n_layer=1, d_model=8, vocab_size=V))
    model.initialise(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.head_weight)
    losses = token_losses(model, IDS, None, 50)
    assert losses.positions.max() == 50
    window = torch.from_numpy(IDS[50:101].astype(np.int64))[None]
    with torch.no_grad():
        wanted = -model.log_probabilities(window)[0].numpy()
    assert losses.nats[50:100] == pytest.approx(wanted, rel=1e-5)


def test_groups() -> None:
    losses = TokenLosses(np.array([0, 1, 2, 1]), np.array([1, 2, 3, 4]), np.array([4.0, 3, 2, 1]))
    assert by_position(losses) == [Group(1, 1, 1, 4.0), Group(2, 2, 1, 3.0), Group(3, 4, 2, 1.5)]
    assert by_frequency(losses, np.array([0, 9, 10])) == [
        Group(0, 0, 1, 4.0), Group(1, 9, 2, 2.0), Group(10, 10, 1, 2.0),
    ]  # fmt: skip


def test_sizes_and_similarities_of_weights() -> None:
    model = gpt()
    sizes = weight_sizes(model)
    assert {"attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down"} <= set(sizes)
    up = model.blocks[1].feed_forward.up.weight.detach().numpy()
    assert sizes["feed_forward.up"][1] == pytest.approx(np.sqrt((up**2).mean()), rel=1e-5)
    found = position_similarity(model)
    assert found is not None
    assert model.position_embedding is not None
    table = model.position_embedding.weight.detach().numpy()
    wanted = table @ table.T / np.outer(*[np.linalg.norm(table, axis=1)] * 2)
    assert found[1] == pytest.approx(wanted, abs=1e-5)
    assert position_similarity(RNN(RNNConfig(n_layer=1, d_model=8, vocab_size=V))) is None
    (near,) = neighbours(model, [3], 4, np.array([5]))
    rows = model.token_embedding.weight.detach().numpy()
    rows = rows / np.linalg.norm(rows, axis=1)[:, None]
    order = [one for one in np.argsort(-(rows @ rows[3])) if one not in (3, 5)][:4]
    assert [one for one, _ in near.nearest] == order
    assert [cosine for _, cosine in near.nearest] == pytest.approx(rows[order] @ rows[3], abs=1e-5)
