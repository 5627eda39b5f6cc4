"""Trains or resumes RUN with hooks, on each of several processes. HOW is ddp or fsdp. Command line:
(train TEXT HOW | resume) RUN [fail]
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lmsmith.errors import LmsmithError
from lmsmith.train.hooks import Context, Hook
from lmsmith.train.start import resume, train

STEPS = 8
TINY = {
    "model.n_layer": 1,
    "model.d_model": 16,
    "model.n_head": 2,
    "model.context_length": 16,
    "model.ngram_table_size": 64,
    "train.batch_size": 4,
    "train.threads": 1,
    "train.dtype": "float64",
    "train.matmul": "default",
    "train.save_every": 3,
    "train.eval_every": 4,
    "train.steps": STEPS,
}


class Average(Hook):
    """The mean of the weights, on every rank; of shards under FSDP2."""

    name = "average"
    collective = True

    def __init__(self) -> None:
        self.n, self.mean, self.loaded = 0, dict[str, torch.Tensor](), dict[str, torch.Tensor]()

    def after_step(self, context: Context) -> None:
        from lmsmith.distributed.shard import shard_like

        self.n += 1
        weights = context.replica.weights(copy=True)
        for name, full in self.loaded.items():
            self.mean[name] = shard_like(full, weights[name])
        self.loaded = {}
        for name, weight in weights.items():
            mean = self.mean.setdefault(name, torch.zeros_like(weight))
            mean += (weight - mean) / self.n

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n, **(self.loaded or self.mean)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.n = state["n"]
        self.loaded = {name: value for name, value in state.items() if name != "n"}


class Count(Hook):
    """On rank 0 only; with `fail`, raises in its fifth call."""

    name = "count"

    def __init__(self, fail: bool) -> None:
        self.n, self.fail = 0, fail

    def after_step(self, context: Context) -> None:
        assert context.ranks.first
        if self.fail and self.n == 4:
            raise ValueError("the fifth")
        self.n += 1

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.n = state["n"]


def main() -> None:
    words = [word for word in sys.argv[1:] if word != "fail"]
    hooks, console = [Average(), Count("fail" in sys.argv)], Console(width=300)
    try:
        if words[0] == "train":
            changes = TINY | {"train.parallel": words[2]}
            train([words[1]], changes, out=Path(words[3]), console=console, hooks=hooks)
        else:
            resume(Path(words[1]), console=console, hooks=hooks)
    except LmsmithError as error:
        sys.exit(f"lmsmith: {error}")


if __name__ == "__main__":
    main()
