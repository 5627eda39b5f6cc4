"""What a run minimizes: the class `Objective`, chosen by the setting `train.objective`.

    cross-entropy   -ln p of each target token: pre-training and supervised fine-tuning
    preferences     a preferred answer above a rejected one (`lmsmith/chat/align.py`)

An objective supplies the batches of a run, the module that maps a micro-batch to a summed loss, the
number that the sum is divided by, metrics, and perhaps its own evaluation and state. Everything
else is the same for all: gradient accumulation, DDP, checkpoints, the spike guard, hooks, reports.

The base class is cross-entropy. A subclass overrides what differs. For each step the run calls

    before_gradient(replica, batches, step)     once; here batches can be generated
    batches.rows(step, start, end)              for each micro-batch
    loss(*batch.arrays() as tensors)            returns the summed loss, or (loss, summed metrics)
    divisor(batches, step)                      the loss is sum / divisor, over all ranks
    metrics(sums)                               the metrics of the step, from sums over all ranks

Everything random must be a function of (seed, step) and of the weights, so that a resumed run
equals an uninterrupted one. What else a step passes to the next belongs into `state_dict`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lmsmith.config import OBJECTIVES, RunConfig
from lmsmith.data.batches.packing import batches_of
from lmsmith.data.batches.windows import AnyBatches
from lmsmith.data.corpus import Corpus
from lmsmith.distributed.shard import SummedLoss
from lmsmith.errors import ConfigError
from lmsmith.models.interface import NeuralModel

if TYPE_CHECKING:
    from lmsmith.train.hooks.hook import Context
    from lmsmith.train.replica import Replica


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation. The weights with the lowest `loss` are the best ones.

    `bits_per_byte` is infinite if the loss is not a likelihood.
    """

    loss: float
    bits_per_byte: float = math.inf
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Described:
    """How a run's batches are described at its start: "8 pairs"; passes over the data; notes."""

    of: str
    epochs: float
    notes: tuple[str, ...] = ()


class Objective:
    """Summed cross-entropy, and the base class of other objectives. Cheap to create.

    generates   batches depend on the weights, so they cannot be read ahead
    signed      the loss may be zero or negative; the spike guard then watches only the gradient
    shown       names of the evaluation's metrics that are printed
    command     the command that makes such runs
    """

    generates: bool = False
    signed: bool = False
    shown: tuple[str, ...] = ()
    command: str = "lmsmith train"

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    @property
    def is_cross_entropy(self) -> bool:
        return type(self) is Objective

    def check(self, world: int) -> None:
        """Raises ConfigError if `world` processes cannot train with these settings."""
        if self.is_cross_entropy:
            return
        name, train = f"train.objective = {self.config.train.objective!r}", self.config.train
        refused = {
            "train.engine = 'reference', which computes cross-entropy only. Leave it out": (
                train.engine == "reference"
            ),
            "train.truncated_bptt, which reads one continuous text. Leave it out": (
                train.truncated_bptt
            ),
            "train.initial_batch_size (batch-size warm-up). Leave it out": bool(
                train.initial_batch_size
            ),
            "train.parallel = 'fsdp'. Use --train.parallel ddp": (
                world > 1 and train.parallel == "fsdp"
            ),
        }
        for problem, applies in refused.items():
            if applies:
                raise ConfigError(f"{name} is not available with {problem}.")

    def batches(self, corpus: Corpus) -> AnyBatches:
        """The training batches of a run. Raises DataError, ConfigError."""
        return batches_of(self.config, corpus.train, corpus.tokenizer)

    @property
    def rows_that_belong_together(self) -> int:
        """Rows of a batch that cannot be divided; the batch size is a multiple of it."""
        return 1

    def batch_size(self, corpus: Corpus, world: int) -> int | None:
        """The default batch size, a multiple of `world`; None leaves it to the preset."""
        return None

    def describe(self, corpus: Corpus, batches: AnyBatches) -> Described | None:
        """Describes the batches; None if the run's own description fits."""
        return None

    def module(
        self, model: NeuralModel, head_dtype: torch.dtype | None, *, compiled: bool
    ) -> SummedLoss:
        """Returns the module that maps the tensors of a micro-batch to its loss.

        It returns the summed loss, or that and a dict of summed metrics. Under DDP, gradients are
        exchanged in its backward pass, so all parameters must be in its graph.
        """
        return SummedLoss(model, head_dtype, compiled=compiled)

    def start(
        self,
        run: Path,
        corpus: Corpus,
        replica: Replica,
        batches: AnyBatches,
        say: Callable[[str], None],
    ) -> None:
        """Called on all ranks before training starts or resumes, with the weights loaded.

        At step 0 these are the starting weights. Long work here must resume after a kill.
        """

    def before_gradient(self, replica: Replica, batches: AnyBatches, step: int) -> None:
        """Called on all ranks before each gradient, with the weights of that step."""

    def divisor(self, batches: AnyBatches, step: int) -> float:
        """What the summed loss of batch `step` is divided by, the same on all ranks."""
        return batches.n_targets(step)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The metrics of a step. `sums`: the module's, added up over micro-batches and ranks."""
        return dict(sums)

    def evaluate(self, context: Context) -> Evaluation | None:
        """Evaluates the weights on held-out data, on all ranks; None: by likelihood."""
        return None

    def state_dict(self) -> Mapping[str, Any]:
        """The state that a resumed run needs, by name: tensors, and values that JSON can hold."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`. Tensors are copies on the CPU; tuples have become lists."""


def objective_of(config: RunConfig) -> Objective:
    """The objective of a run. Raises ConfigError if it is unknown."""
    return OBJECTIVES.get(config.train.objective)(config)


def loss_and_metrics(
    found: torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]],
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Splits what a loss module returns into the summed loss and the summed metrics."""
    return found if isinstance(found, tuple) else (found, {})


def in_training_mode(model: nn.Module, training: bool) -> bool:
    """Sets the mode of a model (dropout on or off) and returns the one before."""
    before = model.training
    model.train(training)
    return before
