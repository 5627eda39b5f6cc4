"""muP, the maximal update parametrization: how initial weights and learning rates depend on width.

Yang et al. 2022, "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter
Transfer" (arXiv:2203.03466). With m = d_model / base_width, relative to the base width, where both
parametrizations are equal (table 3, without multipliers in the forward pass; table 8 is equivalent
for Adam and moves the head's factors into a multiplier):

| parameters | initial standard deviation | AdamW, Adam | SGD | Muon |
|---|---|---|---|---|
| embedding tables | 1 | 1 | m | 1 |
| matrices inside blocks | 1 / sqrt(m) | 1 / m | 1 | 1 |
| head (untied) | 1 / m | 1 / m | 1 / m | 1 / m |
| biases, gains | 1 | 1 | m | 1 |

(factors of the learning rate from the third column on). Weight decay is divided by the same factor,
so that lr * decay, by which a step shrinks the weights, does not depend on the width.

- The model grows by more heads of the same width, so attention's 1 / sqrt(d_head) is a constant.
- With Muon, AdamW trains the tables, gains and head. Muon's own step has a spectral norm that does
  not depend on the width, which is what muP asks of matrices inside blocks (Yang, Simon and
  Bernstein 2023, arXiv:2310.17813), so its rate stays.
- A tied head would need a multiplier of the logits, which other programs do not know, so muP
  refuses it (`models/gpt_checks.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lmsmith.config import OptimConfig
from lmsmith.errors import ConfigError

ADAMS = ("adamw", "adam", "muon")


def rate_factor(name: str, parameter: Tensor, optimizer: str, m: float) -> float:
    """The factor of the learning rate of a parameter, by its name. `m`: width / base width."""
    if name.startswith("head."):
        return 1 / m
    hidden = is_hidden(name, parameter)
    if optimizer == "sgd":
        return 1.0 if hidden else m
    return 1 / m if hidden else 1.0


def is_hidden(name: str, parameter: Tensor) -> bool:
    """Whether both dimensions of a parameter grow with the width. A gate of value embeddings reads
    a part of its input whose size is fixed."""
    inside = name.startswith("blocks.") and not name.endswith("value_gate.weight")
    return inside and parameter.dim() == 2


def by_width(
    groups: list[dict[str, Any]], named: Mapping[str, Tensor], config: OptimConfig, m: float
) -> list[dict[str, Any]]:
    """Splits parameter groups by their factors. At m = 1 they are unchanged.

    Raises ConfigError for an optimizer whose factors are not known.
    """
    if m == 1:
        return groups
    if config.name not in (*ADAMS, "sgd"):
        raise ConfigError(
            "model.parametrization = 'mup' has rules for adamw, adam, sgd and muon, but "
            f"optim.name is {config.name!r}. Set model.parametrization to 'standard'."
        )
    names = {parameter: name for name, parameter in named.items()}
    found = []
    for group in groups:
        parts: dict[float, list[Tensor]] = {}
        for parameter in group["params"]:
            factor = rate_factor(names[parameter], parameter, config.name, m)
            parts.setdefault(factor, []).append(parameter)
        found += [
            {
                "params": params,
                "lr": group["lr"] * factor,
                "weight_decay": group["weight_decay"] / factor,
            }
            for factor, params in parts.items()
        ]
    return found
