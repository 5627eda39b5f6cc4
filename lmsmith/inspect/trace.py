"""What a model computes on a prompt: attention weights, activations, and predictions by layer.

A Transformer's residual stream is read after each block by hooks. The **logit lens**
(nostalgebraist 2020, "interpreting GPT: the logit lens") sends it through the final norm and the
head, as if the layers above were absent: it shows at which layer a prediction appears. At the last
layer it is the model's prediction.

Activations are measured by their root mean square over the numbers of a vector, averaged over the
positions of the prompt.

Shapes: T tokens of the prompt, L layers, H heads, D d_model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lmsmith.evaluate.likelihood import inference
from lmsmith.models.attention import Attention
from lmsmith.models.gpt import GPT, Block
from lmsmith.models.interface import LanguageModel, NeuralModel
from lmsmith.models.rnn import RNN

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Lens:
    """The most likely next token by depth and position: its id and its probability."""

    depths: tuple[str, ...]  # "embedding", "layer 1", ...; the last is the model's prediction
    ids: npt.NDArray[np.int64]  # (depths, T)
    probabilities: Floats  # (depths, T)


@dataclass(frozen=True)
class Trace:
    """What a model computes on a prompt. Empty fields do not apply to its kind."""

    lens: Lens
    attention: Floats | None = None  # (L, H, T, T): queries, then keys
    activations: Mapping[str, Floats] = field(default_factory=dict)  # name -> (L,)


def trace(model: LanguageModel, ids: npt.NDArray[np.int64], unused: npt.NDArray[Any]) -> Trace:
    """Runs `model` on the tokens (T,) of a prompt, T at most the context length. `unused`: ids that
    are never predicted.
    """
    rows = torch.from_numpy(ids[None]).to(model.device)
    with inference(model):
        if isinstance(model, GPT):
            return _of_gpt(model, rows, unused)
        if isinstance(model, RNN):
            return _of_rnn(model, rows, unused)
        if isinstance(model, NeuralModel):
            logits = model(rows)[0]
        else:
            state = model.new_state(1)
            steps = [model.next_logits(rows[:, i : i + 1], state)[0] for i in range(len(ids))]
            logits = torch.stack(steps)
    return Trace(_lens(["model"], lambda _: logits, unused))


def _of_gpt(model: GPT, rows: Tensor, unused: npt.NDArray[Any]) -> Trace:
    """Attention, activations and logit lens of a Transformer."""
    stream: list[Tensor] = []
    attention: list[Tensor] = []
    added: dict[str, list[float]] = {"attention output": [], "feed-forward output": []}

    def see_attention(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, rotary, _, _, layout, _ = inputs
        assert isinstance(module, Attention)
        attention.append(module.weights(x, rotary, layout)[0])
        added["attention output"].append(_rms(output))

    with ExitStack() as hooks:
        for block in model.blocks:
            assert isinstance(block, Block)
            for part, hook in (
                (block, lambda _, inputs, output: stream.append(output)),
                (block.attention, see_attention),
                (
                    block.feed_forward,
                    lambda _, inputs, output: added["feed-forward output"].append(_rms(output)),
                ),
            ):
                hooks.callback(part.register_forward_hook(hook).remove)
        model.hidden(rows)
    stream.insert(0, model._embed(rows, None, None))
    norm = model.final_norm or (lambda x: x)
    depths = ["embedding", *(f"layer {i + 1}" for i in range(len(model.blocks)))]
    activations = {"residual stream": [_rms(x) for x in stream[1:]], **added}
    return Trace(
        _lens(depths, lambda i: model.logits(norm(stream[i]))[0], unused),
        torch.stack(attention).float().cpu().numpy(),
        {name: np.array(values, np.float32) for name, values in activations.items()},
    )


def _of_rnn(model: RNN, rows: Tensor, unused: npt.NDArray[Any]) -> Trace:
    """Hidden states of a recurrent network, whose layers have no common residual stream."""
    states: list[float] = []
    with ExitStack() as hooks:
        for block in model.blocks:
            handle = block.register_forward_hook(
                lambda _, i, output: states.append(_rms(output[0]))
            )
            hooks.callback(handle.remove)
        logits = model(rows)[0]
    lens = _lens([f"layer {len(model.blocks)}"], lambda _: logits, unused)
    return Trace(lens, None, {"hidden state": np.array(states, np.float32)})


def _lens(depths: list[str], logits_at: Callable[[int], Tensor], unused: npt.NDArray[Any]) -> Lens:
    ids, probabilities = [], []
    for depth in range(len(depths)):
        p = torch.softmax(logits_at(depth).double(), dim=-1)
        p[:, torch.from_numpy(unused).long()] = 0.0  # they count in the sum, as in evaluation
        best = p.max(dim=-1)
        ids.append(best.indices.cpu().numpy())
        probabilities.append(best.values.float().cpu().numpy())
    return Lens(tuple(depths), np.stack(ids), np.stack(probabilities))


def _rms(x: Tensor) -> float:
    """Root mean square of each vector, averaged over positions."""
    return float(x.float().pow(2).mean(dim=-1).sqrt().mean())
