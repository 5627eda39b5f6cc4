"""Promises checked on this machine: that the gradients are right.

GPT-2 is here four times, written independently: of scalars, of modules on a tape, by hand in one
block of memory, and in PyTorch, which trains. They are given the same weights and the same batch in
float64, and every named gradient of each is held against that by hand; beside them, against finite
differences of the loss, which know nothing of gradients.

Differences are relative to a tensor's largest gradient. (Number by number they would say nothing:
the gradient by a key's bias, for one, is zero but for rounding, since softmax does not see what is
added to all scores.)
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from lmsmith.config.presets import preset
from lmsmith.loss import summed_cross_entropy
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.reference.blocks import Sizes, unstacked
from lmsmith.reference.gpt2 import GPT2
from lmsmith.reference.language_models import Transformer
from lmsmith.reference.scalar_gpt2 import gpt2_loss, gradients, scalars
from lmsmith.reference.tape import Tape

TOLERANCE = 1e-9
DIFFERENCES_TOLERANCE = 1e-6
"""Finite differences of step h are off by h² times the third derivative and by rounding / h:
1e-8 or so at best.
"""

SIZES = Sizes(n_layer=2, n_head=3, d_model=9, vocab_size=11, padded_vocab_size=13, context_length=7)
"""Odd everywhere: padded rows, positions that are not reached, heads of three."""

Gradients = dict[str, np.ndarray]


@dataclass(frozen=True)
class Compared:
    """One engine against `gpt2`: the loss's relative difference, and each named gradient's
    largest.
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


def compare_gradients(sizes: Sizes = SIZES, seed: int = 1) -> list[Compared]:
    """Scalars, modules, PyTorch and finite differences, each against GPT-2 by hand, on a batch of
    two texts.

    The weights are large enough for every part to bend: N(0, 0.3), gains about one.
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
    engines: dict[str, Callable[..., tuple[float, Gradients]]] = {
        "scalar": by_scalars,
        "modules": by_modules,
        "torch": by_torch,
        "differences": by_differences,
    }
    found = []
    for engine, take in engines.items():
        its_loss, its_gradients = take(model, ids, targets)
        found.append(
            Compared(
                engine,
                abs(its_loss - loss) / abs(loss),
                {
                    name: _difference(its_gradients[name], wanted)
                    for name, wanted in model.grads.items()
                },
                DIFFERENCES_TOLERANCE if engine == "differences" else TOLERANCE,
            )
        )
    return found


def by_scalars(model: GPT2, ids: np.ndarray, targets: np.ndarray) -> tuple[float, Gradients]:
    params = scalars(model.params)
    loss = gpt2_loss(params, model.sizes, ids, targets)
    loss.backward()
    return loss.value, gradients(params)


def by_modules(model: GPT2, ids: np.ndarray, targets: np.ndarray) -> tuple[float, Gradients]:
    transformer = Transformer(model.sizes, np.random.default_rng(0))
    transformer.load(model.params)
    tape = Tape()
    loss = transformer.loss(tape, ids, targets)
    tape.backward(loss)
    return float(loss.value), transformer.gradients()


def by_torch(model: GPT2, ids: np.ndarray, targets: np.ndarray) -> tuple[float, Gradients]:
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
    gpt = GPT(config).double()
    gpt.load_state_dict(
        {name: torch.from_numpy(values) for name, values in unstacked(model.params).items()}
    )
    hidden = gpt.hidden(torch.from_numpy(ids)).flatten(0, 1)
    total, n_tokens = summed_cross_entropy(
        hidden, gpt.head_weight, torch.from_numpy(targets).flatten(), vocab_size=sizes.vocab_size
    )
    loss = total / n_tokens
    loss.backward()
    taken = {name: np.zeros_like(values) for name, values in model.grads.items()}
    for name, values in unstacked(taken).items():
        gradient = gpt.get_parameter(name).grad
        assert gradient is not None
        values[...] = gradient.numpy()
    return loss.item(), taken


def by_differences(model: GPT2, ids: np.ndarray, targets: np.ndarray) -> tuple[float, Gradients]:
    """(loss(w + h) - loss(w - h)) / 2h for each single weight w."""
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


def _difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest, relative to the largest number of the tensor; NaN, which agrees with nothing,
    if one of them is.
    """
    return float(np.max(np.abs(found.reshape(wanted.shape) - wanted)) / np.max(np.abs(wanted)))
