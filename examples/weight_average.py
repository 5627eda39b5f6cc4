"""A hook: averages the weights over the last part of a run.

Izmailov et al. 2018, "Averaging weights leads to wider optima and better generalization". The
average is saved as a model in RUN/average: `lmsmith eval RUN/average --text other.txt`. Its state
is in the checkpoints, so a run that is killed and resumed has the same average.

    python examples/weight_average.py book.txt
"""

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lmsmith.extend import Context, Hook


class WeightAverage(Hook):
    """Averages the weights after each of the last `share` of the steps."""

    name = "weight_average"

    def __init__(self, share: float = 0.25) -> None:
        self.share = share
        self.n = 0
        self.mean: dict[str, Tensor] = {}

    def after_step(self, context: Context) -> None:
        if context.step < (1 - self.share) * context.n_steps:
            return
        self.n += 1
        for name, weight in context.weights().items():
            if name not in self.mean:
                self.mean[name] = weight.clone()
            else:
                self.mean[name] = self.mean[name].to(weight.device).lerp_(weight, 1 / self.n)

    def on_end(self, context: Context) -> None:
        if self.mean:
            context.save_model("average", self.mean)

    def state_dict(self) -> Mapping[str, Any]:
        return {"n": self.n, **self.mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.n = state["n"]
        self.mean = {name: tensor for name, tensor in state.items() if name != "n"}


if __name__ == "__main__":
    import lmsmith

    lmsmith.train(sys.argv[1:], minutes=1, hooks=[WeightAverage()])
