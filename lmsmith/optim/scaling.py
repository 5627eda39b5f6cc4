"""Loss scaling for float16 (Micikevicius et al. 2018).

Small gradients would underflow to zero in float16. So the loss is multiplied by a power of two
before the backward pass, and gradients are divided by it afterwards. If a gradient overflows, the
step is skipped and the scale halved; after many steps without overflow it is doubled. PyTorch's
GradScaler does the same but hides it in the optimizer; this one is two numbers that a checkpoint
can hold.
"""

from dataclasses import dataclass

LARGEST, START, PATIENCE = 2.0**24, 2.0**16, 2000


@dataclass
class GradientScale:
    """The current scale `value`. `wanted`: whether to scale the loss; otherwise `value` stays 1."""

    wanted: bool
    value: float = 0.0
    n_good: int = 0  # steps since the last change

    def __post_init__(self) -> None:
        self.value = self.value or (START if self.wanted else 1.0)

    def found(self, finite: bool) -> bool:
        """Records whether the gradients were finite. Returns whether to skip this step.

        It returns False on overflow at a scale below 1, because then the scale is not the cause.
        """
        if not self.wanted:
            return False
        if not finite:
            self.value, self.n_good = self.value / 2, 0
            return self.value >= 1
        self.n_good += 1
        if self.n_good >= PATIENCE:
            self.value, self.n_good = min(LARGEST, self.value * 2), 0
        return False
