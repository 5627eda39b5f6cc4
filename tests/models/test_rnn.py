"""Recurrent networks: PyTorch's kernels against the equations; states; initial weights."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lmsmith.models.rnn import RNN, Recurrent
from lmsmith.models.rnn_config import RNNConfig

CELLS = [("elman", "tanh"), ("elman", "sigmoid"), ("gru", "tanh"), ("lstm", "tanh")]
IDS = ["elman-tanh", "elman-sigmoid", "gru", "lstm"]
V, D = 11, 6


def config_of(cell: str = "lstm", activation: str = "tanh", **settings: Any) -> RNNConfig:
    sizes = {"n_layer": 2, "d_model": D, "vocab_size": V, "logit_softcap": 0.0}
    return RNNConfig(cell=cell, activation=activation, **sizes | settings)


def random_model(config: RNNConfig, seed: int = 0) -> RNN:
    model = RNN(config).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.data.normal_(0, 0.5, generator=generator)
    return model


def sigma(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def read(model: RNN, tokens: list[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Logits after each token, and the last states, by the equations in NumPy."""
    cell, act = model.config.cell, sigma if model.config.activation == "sigmoid" else np.tanh
    w = {name: p.detach().numpy() for name, p in model.named_parameters()}
    n_layer = model.config.n_layer
    h, c = np.zeros((n_layer, D)), np.zeros((n_layer, D))
    logits = []
    for token in tokens:
        x = w["token_embedding.weight"][token]
        for i in range(n_layer):
            k = f"blocks.{i}.kernel."
            wx, wh = w[k + "weight_ih_l0"], w[k + "weight_hh_l0"]
            bx, bh = w[k + "bias_ih_l0"], w[k + "bias_hh_l0"]
            gate = [slice(j * D, (j + 1) * D) for j in range(len(bx) // D)]
            if cell == "elman":
                h[i] = act(wh @ h[i] + wx @ x + (bx + bh))
            elif cell == "gru":
                r, z = (sigma(wx[g] @ x + bx[g] + wh[g] @ h[i] + bh[g]) for g in gate[:2])
                n = np.tanh(wx[gate[2]] @ x + bx[gate[2]] + r * (wh[gate[2]] @ h[i] + bh[gate[2]]))
                h[i] = (1 - z) * n + z * h[i]
            else:
                a, f, g, o = (wx[s] @ x + bx[s] + wh[s] @ h[i] + bh[s] for s in gate)
                c[i] = sigma(f) * c[i] + sigma(a) * np.tanh(g)
                h[i] = sigma(o) * np.tanh(c[i])
            x = h[i].copy()
        head = w["head.weight"]
        logits.append(head[:V, :-1] @ x + head[:V, -1])
    return logits, [h, c]


@pytest.mark.parametrize(("cell", "activation"), CELLS, ids=IDS)
def test_the_equations(cell: str, activation: str) -> None:
    model = random_model(config_of(cell, activation, vocab_multiple=4))
    tokens = np.random.default_rng(1).integers(0, V, 30).tolist()
    wanted, (h, c) = read(model, tokens)
    ids, state = torch.tensor([tokens]), model.new_state(1)
    found = model(ids, state)
    assert found.shape == (1, 30, V)  # without the padded rows
    assert found[0].detach().numpy() == pytest.approx(np.array(wanted), abs=1e-12)
    for i, layer in enumerate(state.layers):
        assert layer[0][0].detach().numpy() == pytest.approx(h[i], abs=1e-12)
        assert len(layer) == 1 + (cell == "lstm")
        assert layer[-1][0].detach().numpy() == pytest.approx(
            (c if cell == "lstm" else h)[i], abs=1e-12
        )


@pytest.mark.parametrize(("cell", "activation"), CELLS, ids=IDS)
def test_kernels_equal_steps_with_gradients(cell: str, activation: str) -> None:
    config = config_of(cell, activation)
    layer = Recurrent(config).double()
    x = torch.randn(3, 9, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    before = tuple(
        0.5 * torch.randn(3, D, dtype=torch.float64) for _ in range(1 + (cell == "lstm"))
    )

    def by_steps() -> tuple[Tensor, tuple[Tensor, ...]]:
        state, y = before, []
        for t in range(9):
            state = layer.step(x[:, t], state)
            y.append(state[0])
        return torch.stack(y, dim=1), state

    gradients = []
    for y, after in (layer(x, before), by_steps()):
        layer.zero_grad()
        (y.sin().sum() + sum(part.cos().sum() for part in after)).backward()
        gradients.append([y, *after, *(p.grad.clone() for p in layer.parameters())])  # type: ignore[union-attr]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("cell", "activation"), CELLS, ids=IDS)
def test_the_state_is_all_that_the_model_remembers(cell: str, activation: str, tied: bool) -> None:
    model = random_model(config_of(cell, activation, tied_head=tied))
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, V, (2, 20)))
    whole = model(ids)
    for cuts in ((0, 20), (0, 1, 2, 20), (0, 7, 19, 20)):
        state = model.new_state(2)
        parts = [model(ids[:, a:b], state) for a, b in itertools.pairwise(cuts)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-12, atol=1e-12)


def test_every_position_sees_the_first_and_no_later_one() -> None:
    model = random_model(config_of())
    x = model.token_embedding(torch.arange(8)[None] % V).detach().requires_grad_()
    y, _ = model.blocks[0](x, model.new_state(1).layers[0])
    for t in range(8):
        (gradient,) = torch.autograd.grad(y[0, t].sum(), x, retain_graph=True)
        assert (gradient[0, : t + 1].abs().sum(dim=-1) > 0).all()
        assert (gradient[0, t + 1 :] == 0).all()


def test_a_detached_state_stops_the_gradient() -> None:
    model = random_model(config_of("gru"))
    state = model.new_state(1)
    model(torch.tensor([[1, 2]]), state)
    carried = state.detach()
    assert [a.equal(b) for a, b in zip(carried.tensors(), state.tensors(), strict=True)] == [
        True,
        True,
    ]
    model(torch.tensor([[3, 4]]), carried).sum().backward()
    assert model.token_embedding.weight.grad is not None
    assert model.token_embedding.weight.grad.abs().sum(dim=1).nonzero()[:, 0].tolist() == [3, 4]


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
def test_initial_weights(cell: str) -> None:
    model, again = RNN(config_of(cell, d_model=64)), RNN(config_of(cell, d_model=64))
    for made in (model, again):
        made.initialise(torch.Generator().manual_seed(3))
    assert all(a.equal(b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    ids = torch.arange(V)[None]
    assert model(ids).log_softmax(-1).detach().numpy() == pytest.approx(-np.log(V), abs=1e-6)
    kernel = model.blocks[0].kernel
    for gate in kernel.weight_hh_l0.split(64):
        torch.testing.assert_close(gate @ gate.T, torch.eye(64), rtol=0, atol=1e-5)
    assert float(kernel.weight_ih_l0.detach().std()) == pytest.approx(1 / 8, rel=0.03)
    biases = kernel.bias_ih_l0 + kernel.bias_hh_l0
    # gates of an LSTM: input, forget, cell, output
    gates = [0.0, 1.0, 0.0, 0.0] if cell == "lstm" else [0.0] * (len(biases) // 64)
    assert biases.view(-1, 64).tolist() == [[gate] * 64 for gate in gates]
    n_gates = {"elman": 1, "gru": 3, "lstm": 4}[cell]
    assert model.n_parameters() == V * 64 + 2 * n_gates * (2 * 64 * 64 + 2 * 64) + V * 65


def test_dropout_only_in_training() -> None:
    model = random_model(config_of(dropout=0.5))
    ids = torch.arange(V)[None]
    assert model(ids).equal(model(ids))
    model.train()
    assert not model(ids).equal(model(ids))
