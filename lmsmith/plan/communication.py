"""Bytes that each device sends in a training step, under DDP and FSDP2, and how long that takes.

Ring algorithms send (n - 1) / n of a buffer from each of n devices for an all-gather or a
reduce-scatter, and twice that for an all-reduce (Patarasuk and Yuan 2009).

    DDP     one all-reduce of the gradients per step
    FSDP2   an all-gather of the weights in each forward and in each backward pass of a micro-batch,
            one reduce-scatter of the gradients per step; block by block, in float32

Both overlap with the backward pass: only what exceeds its time is added to the step.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmsmith.config import RunConfig
from lmsmith.plan.parameters import parameters


@dataclass(frozen=True)
class Communication:
    """Bytes that each device sends in a step, by collective."""

    by_collective: dict[str, float]

    @property
    def n_bytes(self) -> float:
        return sum(self.by_collective.values())

    def seconds(self, link: float) -> float:
        """Time over a link of `link` bytes/s; 0 if the link's speed is unknown."""
        return self.n_bytes / link if link else 0.0


def communication(config: RunConfig, world: int, n_micro_batches: int = 1) -> Communication:
    """What `world` devices exchange in a step of `config`."""
    if world == 1:
        return Communication({})
    full = 8 if config.train.dtype == "float64" else 4
    found = parameters(config)
    learned, every = (
        sum(p.n for p in found if p.learned or all_of) * full for all_of in (False, True)
    )
    share = (world - 1) / world
    if config.train.parallel == "ddp":
        return Communication({"all-reduce of gradients": 2 * share * learned})
    return Communication(
        {
            "all-gather of weights": 2 * share * every * n_micro_batches,
            "reduce-scatter of gradients": share * learned,
        }
    )
