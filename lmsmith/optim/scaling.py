"""Gradient scaling for float16, whose smallest numbers would swallow small gradients (Micikevicius
et al. 2018).

The loss is multiplied by a power of two before backward, and gradients divided by it after. Where a
gradient overflows that update is left out and the scale halved; after many updates without, it is
doubled. PyTorch's scaler does the same behind the optimizer's back; this one is two numbers that a
checkpoint can hold.
"""

from dataclasses import dataclass

LARGEST, START, PATIENCE = 2.0**24, 2.0**16, 2000


@dataclass
class GradientScale:
    """`value` is 1 and stays 1 where it is not `wanted`."""

    wanted: bool
    value: float = 0.0
    n_good: int = 0  # updates since the last change

    def __post_init__(self) -> None:
        self.value = self.value or (START if self.wanted else 1.0)

    def found(self, finite: bool) -> bool:
        """Takes note of an update's gradient; whether the update is to be left out and training
        goes on.
        """
        if not self.wanted:
            return False
        if not finite:
            self.value, self.n_good = self.value / 2, 0
            return self.value >= 1  # below, it is not the scale that makes them overflow
        self.n_good += 1
        if self.n_good >= PATIENCE:
            self.value, self.n_good = min(LARGEST, self.value * 2), 0
        return False
