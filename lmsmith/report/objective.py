"""What the figures of a run are called, by its objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmsmith.report.reading import Run


@dataclass(frozen=True)
class Shown:
    """`title`: of the learning curves; `training`, `held_out`: their fields in metrics.jsonl;
    `best`: the name of the best held-out value, `unit`: what it is; `falls`: whether lower values
    are better.
    """

    title: str
    training: str = "loss"
    held_out: str = "val_loss"
    best: str = "validation loss"
    unit: str = ""
    falls: bool = True

    def value(self, loss: float | None) -> float | None:
        """The best held-out value, from the loss that chose the best weights."""
        return loss if self.falls or loss is None else 1 - loss


LIKELIHOOD = Shown("Loss in nats per token", unit="nats per token")
_SHOWN = {
    "cross-entropy": LIKELIHOOD,
    "preferences": Shown("Loss of a preference", unit="of a preference"),
    "rl": Shown(
        "Mean reward",
        "reward",
        "val_reward",
        "held-out reward",
        "mean of greedy answers",
        falls=False,
    ),
}


def shown_of(runs: Sequence[Run]) -> Shown:
    """The names for runs of one objective; plain losses for several, or an unknown one."""
    objectives = {str(run.settings.get("train.objective", "cross-entropy")) for run in runs}
    return _SHOWN.get(objectives.pop(), Shown("Loss")) if len(objectives) == 1 else Shown("Loss")
