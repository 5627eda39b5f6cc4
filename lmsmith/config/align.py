"""Settings of preference training (`lmsmith align`)."""

import math
from dataclasses import dataclass
from typing import Literal

from lmsmith.config.settings import check, setting

BETAS = {"dpo": 0.1, "ipo": 0.1, "simpo": 2.0, "kto": 0.1}
"""Default `align.beta` of each method, from the papers."""


@dataclass(frozen=True)
class AlignConfig:
    """The loss of preference training, and the longest conversation it reads."""

    method: Literal["dpo", "ipo", "simpo", "kto"] = setting(
        "dpo",
        "loss: dpo, ipo or simpo for pairs of answers; kto for single answers with a label, or "
        "pairs",
    )
    beta: float = setting(
        0.0,
        "scale of the rewards: a larger one keeps the model closer to the reference; auto: 0.1, "
        "2 for simpo",
        zero="auto",
    )
    gamma: float = setting(1.0, "simpo: target margin between the two rewards")
    label_smoothing: float = setting(
        0.0, "dpo and simpo: the probability that a pair's label is wrong (conservative DPO)"
    )
    max_length: int = setting(
        0, "longest conversation in tokens; longer ones are cut; auto: the context", zero="auto"
    )

    def __post_init__(self) -> None:
        check(0 <= self.beta < math.inf, "align.beta", self.beta, "auto or more than 0")
        check(0 <= self.gamma < math.inf, "align.gamma", self.gamma, "0 or more")
        smoothing = self.label_smoothing
        good = 0 <= smoothing < 0.5
        check(good, "align.label_smoothing", smoothing, "0 or more and below 0.5")
        check(self.max_length >= 0, "align.max_length", self.max_length, "auto or more than 0")

    @property
    def scale(self) -> float:
        """beta, with auto resolved."""
        return self.beta or BETAS[self.method]
