"""Log-probabilities of sampled answers, with gradients, under the distribution sampled from.

A sampler divides logits by a temperature and removes ids (top-k, top-p, min-p, ids without a
token). The policy that drew an answer is this distribution, not the model's softmax. So its
log-probabilities here use the same temperature, and the ids that the sampler kept at each token,
which rollouts record. The kept ids are those of the sampling policy also for steps after it: the
ratio then compares two distributions over the same ids.

Shapes: B rows, T tokens, n tokens of answers (of all rows, in order), V vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from lmsmith.models.interface import LOGITS_AT_ONCE, NeuralModel
from lmsmith.targets import IGNORED


def log_probabilities(
    model: NeuralModel,
    inputs: Int[Tensor, "B T"],
    targets: Int[Tensor, "B T"],
    temperature: float,
    kept: UInt8[Tensor, "n bytes"] | None = None,
    forbidden: Int[Tensor, " F"] | None = None,
) -> Float[Tensor, " n"]:
    """ln p of each target that is not IGNORED, row by row.

    `kept`: the ids that were not removed, as bits (`numpy.packbits` of (V,) bool for each token);
    None: all but `forbidden`.
    """
    answer = targets != IGNORED
    hidden = model.hidden(inputs)[answer]
    goal = targets[answer]
    n_rows = max(1, LOGITS_AT_ONCE // model.vocab_size)
    found = []
    for start in range(0, len(goal), n_rows):
        part = slice(start, start + n_rows)
        logits = model.logits(hidden[None, part])[0] / temperature
        if kept is not None:
            logits = logits.masked_fill(~unpacked(kept[part], model.vocab_size), -torch.inf)
        elif forbidden is not None and len(forbidden):
            logits = logits.index_fill(1, forbidden, -torch.inf)
        found.append(logits.log_softmax(1).gather(1, goal[part, None])[:, 0])
    return torch.cat(found) if found else hidden.new_zeros(0)


def unpacked(bits: UInt8[Tensor, "n bytes"], V: int) -> Bool[Tensor, "n V"]:
    """The inverse of `numpy.packbits` along rows."""
    places = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=bits.device)
    return ((bits[:, :, None] & places) != 0).flatten(1)[:, :V]


def packed(kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """(n, V) bool -> (n, bytes)."""
    return np.packbits(kept, axis=1)
