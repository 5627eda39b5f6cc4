"""The classifier of introductory courses, trained by stochastic gradient descent.

It has one hidden layer: p = softmax(W2 sigmoid(W1 x + b1) + b2), trained to minimize cross-entropy
(Rumelhart, Hinton and Williams 1986). Softmax and cross-entropy are separate layers here, to show
each one's gradient.
"""

from dataclasses import dataclass

import numpy as np

from lmsmith.reference.modules import CrossEntropy, Linear, Sigmoid, Softmax
from lmsmith.reference.tape import Module, Tape, Variable


class Classifier(Module):
    """`n_in` numbers -> probabilities of `n_classes` classes, with `n_hidden` sigmoid units."""

    def __init__(self, n_in: int, n_hidden: int, n_classes: int, rng: np.random.Generator) -> None:
        self.hidden = Linear(n_in, n_hidden, rng)
        self.sigmoid = Sigmoid()
        self.out = Linear(n_hidden, n_classes, rng)
        self.softmax = Softmax()
        self.cross_entropy = CrossEntropy()

    def __call__(self, x: Variable) -> Variable:
        """x (B, n_in) -> probabilities (B, n_classes)."""
        return self.softmax(self.out(self.sigmoid(self.hidden(x))))

    def loss(self, tape: Tape, x: np.ndarray, y: np.ndarray) -> Variable:
        """The mean cross-entropy in nats per example; x (B, n_in), y (B,) class numbers."""
        return self.cross_entropy(self(tape.put(x)), y)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The most likely class of each row."""
        return self(Tape().put(x)).value.argmax(axis=-1)


@dataclass(frozen=True)
class Epoch:
    """Mean cross-entropy after an epoch, in nats per example."""

    train_loss: float
    test_loss: float


def sgd(
    classifier: Classifier,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    epochs: int,
    learning_rate: float,
    rng: np.random.Generator,
    batch_size: int = 1,
) -> list[Epoch]:
    """Mini-batch stochastic gradient descent (Robbins and Monro 1951). A batch size of 1 is plain
    SGD.

    An epoch visits each example (x (N, n_in), y (N,)) once, in a new random order. Each step
    follows the negative mean gradient of `batch_size` examples (the last step of an epoch: of the
    rest). After each epoch, both losses are computed with the current weights.
    """
    x, y = train
    history = []
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x), batch_size):
            batch = order[start : start + batch_size]
            tape = Tape()
            tape.backward(classifier.loss(tape, x[batch], y[batch]))
            classifier.descend(learning_rate)
        history.append(
            Epoch(*(float(classifier.loss(Tape(), *data).value) for data in (train, test)))
        )
    return history
