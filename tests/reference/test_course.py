"""The classifier and its SGD, epoch by epoch, against PyTorch's autograd on the same examples."""

import numpy as np
import pytest
import torch

from lmsmith.reference.course import Classifier, sgd
from lmsmith.reference.tape import Tape


def spirals(n, seed):
    """Three arms that no straight line separates."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    r = rng.uniform(0.2, 1, n)
    angle = 2.5 * r + y * 2 * np.pi / 3 + rng.normal(0, 0.1, n)
    return 3 * np.stack([r * np.cos(angle), r * np.sin(angle)], 1), y


def torch_history(classifier, train, test, epochs, learning_rate, rng, batch_size):
    weights = [torch.tensor(p.value, requires_grad=True) for p in classifier.parameters()]
    data = [(torch.tensor(x), torch.tensor(y)) for x, y in (train, test)]

    def loss(x, y):
        w1, b1, w2, b2 = weights
        return torch.nn.functional.cross_entropy(torch.sigmoid(x @ w1.T + b1) @ w2.T + b2, y)

    history = []
    for _ in range(epochs):
        order = torch.tensor(rng.permutation(len(train[0])))
        for batch in order.split(batch_size):
            slopes = torch.autograd.grad(loss(data[0][0][batch], data[0][1][batch]), weights)
            with torch.no_grad():
                for weight, slope in zip(weights, slopes, strict=True):
                    weight -= learning_rate * slope
        history.append([loss(*part).item() for part in data])
    return history


@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_every_epoch_equals_torch(batch_size):
    train, test = spirals(60, 0), spirals(20, 1)
    classifier = Classifier(2, 5, 3, np.random.default_rng(0))
    wanted = torch_history(classifier, train, test, 3, 0.5, np.random.default_rng(5), batch_size)
    history = sgd(
        classifier,
        train,
        test,
        epochs=3,
        learning_rate=0.5,
        rng=np.random.default_rng(5),
        batch_size=batch_size,
    )
    np.testing.assert_allclose([(e.train_loss, e.test_loss) for e in history], wanted, rtol=1e-10)


def test_learns_classes_that_are_not_linearly_separable():
    train, test = spirals(200, 0), spirals(100, 1)
    classifier = Classifier(2, 12, 3, np.random.default_rng(0))
    history = sgd(
        classifier,
        train,
        test,
        epochs=80,
        learning_rate=2.0,
        rng=np.random.default_rng(0),
        batch_size=10,
    )
    assert history[-1].train_loss < 0.2 < history[0].train_loss
    assert (classifier.predict(test[0]) == test[1]).mean() > 0.9


def test_probabilities_are_probabilities():
    classifier = Classifier(4, 3, 5, np.random.default_rng(0))
    p = classifier(Tape().put(np.random.default_rng(1).normal(size=(7, 4)))).value
    assert p.shape == (7, 5)
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-14)
