"""Repeats the step of a spike record, without applying it (`lmsmith replay RECORD`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmsmith.run_folder import open_run
from lmsmith.train.device import set_up_process, survey
from lmsmith.train.replica import Replica
from lmsmith.train.spike_record import read_record
from lmsmith.train.step import gradient


@dataclass(frozen=True)
class Replay:
    """The recorded and the recomputed loss and gradient norm; `same` if they are bit-identical."""

    record: dict[str, Any]
    loss: float
    grad_norm: float

    @property
    def same(self) -> bool:
        found = {"loss": self.loss.hex(), "grad_norm": self.grad_norm.hex()}
        return bool(found == self.record["bits"])


def replay(place: Path) -> Replay:
    """Repeats the step in RUN/spikes/step-N. Raises DataError, CheckpointError, UsageError."""
    record, tensors = read_record(place)
    config, corpus = open_run(place.absolute().parent.parent)
    machine = survey(config)
    set_up_process(machine)
    model = config.neural.build()
    model.to(machine.device, torch.float64 if config.train.dtype == "float64" else torch.float32)
    replica = Replica(model, config)
    replica.load_weights(tensors["model"])
    if replica.carried:
        replica.carried.load(tensors["carried"])
    replica.rows_at_once, replica.scale.value = record["rows_at_once"], record["gradient_scale"]
    model.train()
    objective, run = replica.objective, place.absolute().parent.parent
    objective.load_state_dict(record.get("objective", {}) | tensors.get("objective", {}))
    batches = objective.batches(corpus)
    objective.start(run, corpus, replica, batches, lambda message: None)
    loss, norm = gradient(replica, batches, record["step"])
    return Replay(record, loss, norm)
