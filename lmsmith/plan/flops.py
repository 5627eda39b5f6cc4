"""Counts the floating-point operations of a training step: forward, backward, optimizer, by part.

A product of (m, k) and (k, n) counts 2 m k n, as in `torch.utils.flop_counter`. The backward pass
of a product computes two products of the same size: the gradients of both factors. With frozen
weights (LoRA) it computes one. Activation checkpointing repeats the forward pass of the blocks.

Operations on single numbers (norms, activations, softmax) count zero, as in PyTorch's counter.
The optimizer's are listed apart: AdamW costs about 15 per parameter. Muon also multiplies matrices.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lmsmith.config import RunConfig
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.gpt_costs import Counting, products
from lmsmith.plan.parameters import ADAPTERS, Parameter, adapted, muon_maps, parameters

# Operations per learned parameter of one optimizer step, outside matrix products. AdamW: two
# running means (3 and 4), both corrected (2), root, eps, division (3), decay and step (3).
ELEMENTWISE = {"adamw": 15, "muon": 8, "sgd": 6, "other": 15}


@dataclass
class PassFlops:
    """FLOPs per token of one part."""

    forward: float = 0.0
    backward: float = 0.0
    recomputed: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.recomputed


@dataclass
class Flops:
    """FLOPs of a model in training. `parts`: per token; the optimizer: per step."""

    counting: Counting
    parts: dict[str, PassFlops] = field(default_factory=dict)
    optimizer_products: float = 0.0
    optimizer_elementwise: float = 0.0

    @property
    def forward(self) -> float:
        return sum(part.forward for part in self.parts.values())

    @property
    def backward(self) -> float:
        return sum(part.backward for part in self.parts.values())

    @property
    def per_token(self) -> float:
        """Forward, backward and recomputed."""
        return sum(part.total for part in self.parts.values())

    @property
    def optimizer(self) -> float:
        """Per step."""
        return self.optimizer_products + self.optimizer_elementwise

    def per_step(self, n_tokens: int) -> float:
        """FLOPs of a step with `n_tokens` tokens."""
        return n_tokens * self.per_token + self.optimizer


def flops(config: RunConfig, counting: Counting = "causal") -> Flops:
    """FLOPs of the model that `config` trains, in rows of its context length."""
    found = Flops(counting)
    model = config.model
    if isinstance(model, GPTConfig):
        _of_transformer(config, model, found)
    else:
        total = config.neural.train_flops_per_token()
        found.parts["all layers"] = PassFlops(total / 3, total * 2 / 3)
    for parameter in parameters(config):
        if parameter.learned:
            found.optimizer_elementwise += ELEMENTWISE[parameter.optimizer] * parameter.n
            if parameter.optimizer == "muon":
                found.optimizer_products += _muon(config, parameter)
    return found


def _of_transformer(config: RunConfig, model: GPTConfig, found: Flops) -> None:
    """Follows the gradient through the products: `flows` is whether their input needs one."""
    lora, frozen = config.lora, bool(config.lora.rank)
    recomputed = config.train.activation_checkpointing
    flows = not frozen or lora.embeddings == "yes"
    for product in products(model, found.counting):
        part = found.parts.setdefault(product.part, PassFlops())
        part.forward += product.flops
        inside = product.layer >= 0
        if not inside:  # the loss computes both gradients of the head
            part.backward += 2 * product.flops
        elif not product.weight:
            part.backward += 2 * product.flops * flows
        else:
            part.backward += product.flops * (flows + (not frozen))
        part.recomputed += product.flops * (inside and recomputed)
        matrix = ".".join(product.weight.split(".")[2:4])
        rows = adapted(model, matrix, lora) if inside and matrix in MATRICES else []
        if rows:
            n_in = product.flops / product.columns / 2
            low = 2.0 * n_in * len(rows) * lora.rank
            high = 2.0 * lora.rank * sum(rows)
            extra = found.parts.setdefault(ADAPTERS, PassFlops())
            extra.forward += low + high
            extra.backward += low * (1 + flows) + 2 * high
            extra.recomputed += (low + high) * recomputed
            flows = True


MATRICES = ("attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down")


def _muon(config: RunConfig, parameter: Parameter) -> float:
    """Products of Muon's iterations for one matrix, each of its maps by itself."""
    n_in, total = parameter.shape[1], 0.0
    for each in muon_maps(config, parameter):
        r, c = min(each, n_in), max(each, n_in)
        total += 2.0 * r * r * c + 2.0 * r * r * r + 2.0 * r * r * c
    return config.optim.muon_iterations * total
