"""What can be read from a model's weights: their size by layer, similar positions, similar tokens.

All similarities are cosines. Shapes: T positions, D d_model, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lmsmith.models.interface import LanguageModel

MOST_POSITIONS = 256  # rows of the picture of position embeddings

_RECURRENT = {"kernel.weight_ih_l0": "input to hidden", "kernel.weight_hh_l0": "hidden to hidden"}

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Neighbours:
    """The tokens whose embeddings are most similar to that of token `id`, most similar first."""

    id: int
    nearest: tuple[tuple[int, float], ...]  # id and cosine


def weight_sizes(model: LanguageModel) -> dict[str, Floats]:
    """The root mean square of each matrix in the layers: name -> (L,). Empty for other models."""
    found: dict[str, dict[int, float]] = {}
    if not isinstance(model, nn.Module):
        return {}
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and (match := re.match(r"blocks\.(\d+)\.(.+)", name)):
            size = float(weight.detach().float().pow(2).mean().sqrt())
            short = match[2].removesuffix(".weight")
            short = _RECURRENT.get(short, short)
            found.setdefault(short, {})[int(match[1])] = size
    n_layer = 1 + max((layer for sizes in found.values() for layer in sizes), default=0)
    return {
        name: np.array([sizes.get(layer, np.nan) for layer in range(n_layer)], np.float32)
        for name, sizes in found.items()
    }


def position_similarity(model: LanguageModel) -> tuple[npt.NDArray[np.int64], Floats] | None:
    """The similarity of learned position embeddings: positions (n,) and cosines (n, n).

    None for models without them: rotary embeddings are computed, not learned. Of more than 256
    positions, every k-th is taken.
    """
    table = getattr(model, "position_embedding", None)
    if not isinstance(table, nn.Embedding):
        return None
    every = -(-table.num_embeddings // MOST_POSITIONS)
    positions = np.arange(0, table.num_embeddings, every)
    rows = _unit(table.weight.detach()[torch.from_numpy(positions)])
    return positions, (rows @ rows.T).cpu().numpy()


def neighbours(
    model: LanguageModel, ids: Sequence[int], n: int, unused: npt.NDArray[Any]
) -> list[Neighbours]:
    """The `n` nearest neighbours of each token in the embedding table; empty for models without
    one. `unused`: ids without a token.
    """
    table = getattr(model, "token_embedding", None)
    if not isinstance(table, nn.Embedding):
        return []
    rows = _unit(table.weight.detach()[: model.vocab_size])
    cosines = rows[torch.tensor(list(ids))] @ rows.T
    cosines[:, torch.from_numpy(unused).long()] = -2.0
    found = []
    for one, row in zip(ids, cosines, strict=True):
        row[one] = -2.0
        best = row.topk(min(n, model.vocab_size - 1))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        found.append(Neighbours(one, tuple(pair for pair in pairs if pair[1] > -2)))
    return found


def _unit(rows: Tensor) -> Tensor:
    """The rows, each divided by its length."""
    return torch.nn.functional.normalize(rows.float(), dim=-1)
