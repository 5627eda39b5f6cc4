"""The language models against PyTorch and gpt2.py; both learn."""

import numpy as np
import pytest
import torch

from lmsmith.reference.gpt2 import GPT2, Sizes
from lmsmith.reference.language_models import AdamW, Elman, Transformer
from lmsmith.reference.tape import Tape

SIZES = Sizes(
    n_layer=2, n_head=3, d_model=15, vocab_size=11, padded_vocab_size=13, context_length=9
)


def batch(seed, B=4, T=7):
    """Random ids, and the ids that follow them."""
    ids = np.random.default_rng(seed).integers(0, 11, (B, T + 1))
    return ids[:, :-1], ids[:, 1:]


def test_an_elman_network_has_torchs_loss_and_gradients():
    model = Elman(11, 4, 6, np.random.default_rng(0))
    ids, targets = batch(0)
    targets[1, 4:] = -1  # a padded text
    tape = Tape()
    loss = model.loss(tape, ids, targets)
    tape.backward(loss)
    names = [name for name, _ in model.named_parameters()]
    assert names == [
        *("embedding.table", "cell.w_h", "cell.w_x", "cell.bias"),
        *("head.weight", "head.bias"),
    ]
    table, w_h, w_x, b, head, head_b = (
        torch.tensor(p.value, requires_grad=True) for p in model.parameters()
    )
    h, total = torch.zeros(4, 6, dtype=torch.float64), 0
    for t in range(7):
        h = torch.sigmoid(h @ w_h.T + table[torch.tensor(ids[:, t])] @ w_x.T + b)
        logits, goal = h @ head.T + head_b, torch.tensor(targets[:, t])
        total = total + torch.nn.functional.cross_entropy(
            logits, goal, ignore_index=-1, reduction="sum"
        )
    mean = total / (targets >= 0).sum()
    mean.backward()
    assert float(loss.value) == pytest.approx(mean.item(), rel=1e-13)
    for parameter, other in zip(
        model.parameters(), (table, w_h, w_x, b, head, head_b), strict=True
    ):
        np.testing.assert_allclose(parameter.grad, other.grad, rtol=1e-10, atol=1e-14)


def test_the_transformer_is_gpt2():
    gpt2 = GPT2(SIZES, np.float64)
    gpt2.params_block[:] = np.random.default_rng(1).normal(0, 0.3, gpt2.params_block.shape)
    model = Transformer(SIZES, np.random.default_rng(0))
    model.load(gpt2.params)
    ids, targets = batch(1)
    tape = Tape()
    loss = model.loss(tape, ids, targets)
    tape.backward(loss)
    assert float(loss.value) == pytest.approx(gpt2.forward(ids, targets), rel=1e-13)
    gpt2.backward()
    assert list(model.tensors()) == list(gpt2.params)
    for name, found in model.gradients().items():
        np.testing.assert_allclose(
            found.ravel(), gpt2.grads[name].ravel(), rtol=0, atol=1e-14, err_msg=name
        )


def test_the_transformer_has_gpt2s_initial_weights():
    tensors = Transformer(
        Sizes(
            n_layer=2,
            n_head=4,
            d_model=64,
            vocab_size=500,
            padded_vocab_size=512,
            context_length=300,
        ),
        np.random.default_rng(0),
    ).tensors()
    for name, parameters in tensors.items():
        values = np.stack([parameter.value for parameter in parameters])
        if name.endswith("b"):
            assert not values.any()
        elif name.startswith("ln"):
            assert (values == 1).all()
        else:
            assert values.std() == pytest.approx(
                0.01 if name in ("attprojw", "fcprojw") else 0.02, rel=0.03
            )


def verse(rng, B=16, T=8):
    """a b a c, repeated, from a random start: the token before an `a` determines the token after
    it.
    """
    starts = rng.integers(0, 4, (B, 1))
    ids = np.array([4, 5, 4, 6])[(starts + np.arange(T + 1)) % 4]
    return ids[:, :-1], ids[:, 1:]


@pytest.mark.parametrize("kind", ["elman", "transformer"])
def test_learn_dependencies_longer_than_a_bigram(kind):
    """A model of one token is left with ln(2) / 2 = 0.35; an `a` at the start costs ln(2) / 16 =
    0.04.
    """
    rng = np.random.default_rng(0)
    model = Elman(11, 8, 16, rng) if kind == "elman" else Transformer(SIZES, rng)
    optimizer = AdamW(model, 0.01)
    for _ in range(200):
        tape = Tape()
        loss = model.loss(tape, *verse(rng))
        tape.backward(loss)
        optimizer.update()
    assert loss.value < 0.12


def test_samples_follow_the_model():
    model = Elman(3, 4, 6, np.random.default_rng(0))
    model.head.bias.value[:] = np.log([0.7, 0.3, 1e-30])
    model.head.weight.value[:], model.context_length = 0, 3
    ids = model.sample([0], 2000, np.random.default_rng(1))
    assert len(ids) == 2001
    np.testing.assert_allclose(np.bincount(ids[1:], minlength=3) / 2000, [0.7, 0.3, 0], atol=0.04)
    assert (
        len(
            Transformer(SIZES, np.random.default_rng(0)).sample(
                [1, 2], 12, np.random.default_rng(0)
            )
        )
        == 14
    )
