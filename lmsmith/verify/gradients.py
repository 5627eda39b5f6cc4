"""Gradients of GPT-2 by four engines and by finite differences.

lmsmith has four independent implementations of GPT-2: scalar autograd, NumPy modules on a tape,
NumPy with each gradient written out by hand, and PyTorch, which trains. All get the same weights
and the same batch in float64. The implementation by hand is the standard: every other gradient is
compared with it, and so are finite differences of the loss, which need no gradient code.

A difference is relative to the largest gradient of its tensor. Relative differences of single
numbers would be meaningless: the gradient of a key's bias, for example, is zero up to rounding,
because softmax ignores a constant added to all scores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from lmsmith.config.presets import preset
from lmsmith.loss import summed_cross_entropy
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.reference.blocks import Sizes, by_layer
from lmsmith.reference.gpt2 import GPT2
from lmsmith.reference.language_models import Transformer
from lmsmith.reference.scalar_gpt2 import gpt2_loss, gradients, scalars
from lmsmith.reference.tape import Tape
from lmsmith.verify.models import device
from lmsmith.verify.registry import equivalence

TOLERANCE = 1e-9
DIFFERENCES_TOLERANCE = 1e-6
"""Central differences of step h have an error of h² times the third derivative, plus rounding / h:
about 1e-8 at best.
"""

SIZES = Sizes(n_layer=2, n_head=3, d_model=9, vocab_size=11, padded_vocab_size=13, context_length=7)
"""Sizes without powers of two, so that padded rows, unused positions and heads of width three are
covered.
"""

ENGINES = ("scalar", "modules", "torch", "differences")
Gradients = dict[str, np.ndarray]


@dataclass(frozen=True)
class Compared:
    """One engine compared with GPT-2 by hand: the relative difference of the loss, and the largest
    relative difference of each named gradient.
    """

    engine: str
    loss: float
    gradients: dict[str, float]
    tolerance: float

    @property
    def agrees(self) -> bool:
        return all(
            difference <= self.tolerance for difference in (self.loss, *self.gradients.values())
        )


@equivalence("gradients", "three engines; written by hand", bound=TOLERANCE, cuda=1e-8)
def three_engines() -> float:
    return _worst(compare_gradients(engines=("scalar", "modules", "torch")))


@equivalence("finite differences", "of the loss; gradients by hand", bound=DIFFERENCES_TOLERANCE)
def finite_differences() -> float:
    return _worst(compare_gradients(engines=("differences",)))


def _worst(found: list[Compared]) -> float:
    return float(np.max([[one.loss, *one.gradients.values()] for one in found]))


def compare_gradients(
    sizes: Sizes = SIZES, seed: int = 1, engines: Sequence[str] = ENGINES
) -> list[Compared]:
    """Compares `engines` with GPT-2 by hand, on a batch of two sequences.

    The weights are large enough to leave the linear range of each part: N(0, 0.3), gains near one.
    """
    rng = np.random.default_rng(seed)
    model = GPT2(sizes, np.float64)
    for name, values in model.params.items():
        values[...] = rng.normal(float(name in ("ln1w", "ln2w", "lnfw")), 0.3, values.shape)
    ids = rng.integers(0, sizes.vocab_size, (2, max(1, sizes.context_length - 1)))
    targets = rng.integers(0, sizes.vocab_size, ids.shape)
    loss = model.forward(ids, targets)
    model.zero_grad()
    model.backward()
    compute: dict[str, Callable[..., tuple[float, Gradients]]] = {
        "scalar": by_scalars,
        "modules": by_modules,
        "torch": by_torch,
        "differences": by_differences,
    }
    results = []
    for engine in engines:
        its_loss, its_gradients = compute[engine](model, ids, targets)
        results.append(
            Compared(
                engine,
                abs(its_loss - loss) / abs(loss),
                {
                    name: _difference(its_gradients[name], expected)
                    for name, expected in model.grads.items()
                },
                DIFFERENCES_TOLERANCE if engine == "differences" else TOLERANCE,
            )
        )
    return results


def by_scalars(model: GPT2, ids: np.ndarray, targets: np.ndarray) -> tuple[float, Gradients]:
    """Loss and gradients by scalar autograd."""
    params = scalars(model.params)
    loss = gpt2_loss(params, model.sizes, ids, targets)
    loss.backward()
    return loss.value, gradients(params)


def by_modules(model: GPT2, ids: np.ndarray, targets: np.ndarray) -> tuple[float, Gradients]:
    """Loss and gradients by NumPy modules on a tape."""
    transformer = Transformer(model.sizes, np.random.default_rng(0))
    transformer.load(model.params)
    tape = Tape()
    loss = transformer.loss(tape, ids, targets)
    tape.backward(loss)
    return float(loss.value), transformer.gradients()


def by_torch(model: GPT2, ids: np.ndarray, targets: np.ndarray) -> tuple[float, Gradients]:
    """Loss and gradients by PyTorch's autograd, with the model that lmsmith trains."""
    sizes = model.sizes
    config = replace(
        GPTConfig.of(preset("gpt2").model),
        n_layer=sizes.n_layer,
        n_head=sizes.n_head,
        d_model=sizes.d_model,
        vocab_size=sizes.vocab_size,
        vocab_multiple=sizes.padded_vocab_size,
        context_length=sizes.context_length,
    )
    gpt = GPT(config).double().to(device())
    gpt.load_state_dict(
        {name: torch.from_numpy(values) for name, values in by_layer(model.params).items()}
    )
    hidden = gpt.hidden(torch.from_numpy(ids).to(device())).flatten(0, 1)
    goal = torch.from_numpy(targets).flatten().to(device())
    total, n_tokens = summed_cross_entropy(
        hidden, gpt.head_weight, goal, vocab_size=sizes.vocab_size
    )
    loss = total / n_tokens
    loss.backward()
    taken = {name: np.zeros_like(values) for name, values in model.grads.items()}
    for name, values in by_layer(taken).items():
        gradient = gpt.get_parameter(name).grad
        assert gradient is not None
        values[...] = gradient.cpu().numpy()
    return loss.item(), taken


def by_differences(model: GPT2, ids: np.ndarray, targets: np.ndarray) -> tuple[float, Gradients]:
    """Loss, and (loss(w + h) - loss(w - h)) / 2h for each weight w."""
    h = 1e-5
    taken = {name: np.zeros_like(values) for name, values in model.params.items()}
    loss = partial(model.forward, ids, targets)
    for name, values in model.params.items():
        for at in np.ndindex(values.shape):
            was = values[at]
            values[at] = was + h
            above = loss()
            values[at] = was - h
            taken[name][at] = (above - loss()) / (2 * h)
            values[at] = was
    return loss(), taken


def _difference(gradient: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference, relative to the largest number of `expected`. It is NaN,
    which is above every tolerance, if a number of either tensor is NaN.
    """
    difference = np.abs(gradient.reshape(expected.shape) - expected)
    return float(np.max(difference) / np.max(np.abs(expected)))
