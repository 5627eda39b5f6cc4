"""Writes and reads spike records: everything needed to inspect and repeat a step that was not
applied.

    RUN/spikes/step-00000123/
        record.json           the reason; step, seed, loss and gradient norm (also as bits); the
                              batch as ids and text; for each tensor its norm, its gradient's norm
                              and how many gradient values are not finite. A number that is not
                              finite is null
        checkpoints/          the weights before the step, and the states of `train.truncated_bptt`
                              and of the objective

`lmsmith replay RUN/spikes/step-00000123` recomputes loss and gradient and compares them with the
record, bit for bit.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from lmsmith import foreign_json
from lmsmith.checkpoint import load_checkpoint, save_checkpoint
from lmsmith.data.batches.windows import AnyBatches
from lmsmith.distributed.shard import unshard, unshard_all
from lmsmith.errors import DataError
from lmsmith.strict_json import write_json
from lmsmith.tokens.tokenizer import Tokenizer
from lmsmith.train.guard import SpikeError
from lmsmith.train.replica import Replica
from lmsmith.train.state import pack_objective

FORMAT_VERSION = 1
MOST_ROWS = 256  # rows of the batch stored as text


def write_record(
    run: Path,
    replica: Replica,
    batches: AnyBatches,
    tokenizer: Tokenizer,
    step: int,
    spike: SpikeError,
) -> Path:
    """Writes the record of `step` while the parameters still hold its gradients; returns its
    folder. All ranks must call it.
    """
    tensors = {}
    for name, p in replica.model.named_parameters():
        grad = unshard(p.grad) if p.grad is not None else torch.zeros_like(unshard(p))
        tensors[name] = {
            "norm": float(unshard(p.detach()).norm()),
            "gradient_norm": float(grad.norm()),
            "n_not_finite": int((~grad.isfinite()).sum()),
        }
    weights = unshard_all(replica.weights(copy=False), keep=replica.ranks.first)
    place = run / "spikes" / f"step-{step + 1:08d}"
    if not replica.ranks.first:
        return place
    batch = batches.rows(step)
    record = {
        "format_version": FORMAT_VERSION,
        "why": str(spike),
        "step": step,
        "seed": replica.config.train.seed,
        "n_ranks": replica.ranks.world,
        "rows_at_once": replica.rows_at_once,
        "gradient_scale": replica.scale.value,
        "loss": spike.loss,
        "grad_norm": spike.norm,
        "bits": {"loss": spike.loss.hex(), "grad_norm": spike.norm.hex()},
        "tensors": tensors,
        "ids": batch.inputs.tolist(),
        "text": [tokenizer.decode(row) for row in batch.inputs[:MOST_ROWS]],
    }
    if place.exists():
        shutil.rmtree(place)
    place.mkdir(parents=True)
    groups = {"model": weights}
    if replica.carried:
        groups["carried"] = replica.carried.tensors()
    tensors_of_objective, record["objective"] = pack_objective(replica.objective)
    if tensors_of_objective:
        groups["objective"] = tensors_of_objective
    save_checkpoint(place, step, groups, {}, keep=1)
    write_json(place / "record.json", record)
    return place


def read_record(place: Path) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    """Returns a record and its tensor groups: "model", and perhaps "carried" and "objective".
    Raises DataError, CheckpointError.
    """
    try:
        record = foreign_json.read(place / "record.json")
        if record["format_version"] != FORMAT_VERSION:
            raise DataError(
                f"{place} has format version {record['format_version']}, but this lmsmith reads "
                f"version {FORMAT_VERSION}. Install the lmsmith that wrote it."
            )
        return record, load_checkpoint(place, record["step"]).tensors
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{place} is not a spike record ({error}). Name a folder such as "
            "RUN/spikes/step-00000123."
        ) from error
