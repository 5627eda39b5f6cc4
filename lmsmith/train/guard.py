"""Detects loss spikes before a step is applied, by the loss and the gradient norm of the whole
batch.

Both are the same on all ranks, so all come to the same verdict. Where they are not finite, training
stops, or `train.on_spike` says what becomes of the step. A spike is a loss or a norm whose
logarithm lies more than `train.spike_z` standard deviations above its running mean; spikes do not
move the mean.

    stop      as for what is not finite: a spike record, and an end
    skip      the step is left out
    rewind    back to the last checkpoint; when the run comes to that step again, it is left out
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from lmsmith.checkpoint import Checkpoint, available, check_finite
from lmsmith.errors import TrainingError

MEMORY = 100.0  # steps over which means are taken
LEAST = 50  # steps before anything is a spike
LEAST_DEVIATION = (
    0.02  # of a logarithm: 2%. A loss that hardly moves would make a spike of everything
)
MOST_IN_A_ROW = 20


def check_not_diverged(run: Path, found: Checkpoint) -> None:
    """Raises CheckpointError for a checkpoint with weights that are not finite: no step from
    there helps.
    """
    others = [step for step in available(run) if step != found.step]
    earlier = (
        f" To resume from an earlier step, remove "
        f"{run / 'checkpoints' / f'step-{found.step:08d}'}: there are "
        f"checkpoints of {', '.join(map(str, others))}."
        if others
        else ""
    )
    check_finite(
        found.tensors["model"],
        f"the checkpoint of step {found.step} in {run}",
        f"The run cannot be resumed from it: begin anew with a lower --learning-rate.{earlier}",
    )


class SpikeError(TrainingError):
    """A step that was not applied, and what is to become of it: "stop", "skip" or "rewind"."""

    def __init__(self, message: str, verdict: str, loss: float, norm: float) -> None:
        super().__init__(message)
        self.verdict, self.loss, self.norm = verdict, loss, norm


@dataclass
class Running:
    """Mean and variance of a logarithm, old values fading (West 1979, with weights that fall off
    exponentially).
    """

    n: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def add(self, value: float) -> None:
        self.n += 1
        weight = max(1 / self.n, 1 / MEMORY)
        away = value - self.mean
        self.mean += weight * away
        self.variance = (1 - weight) * (self.variance + weight * away * away)

    def z(self, value: float) -> float:
        """Standard deviations above the mean; zero while too little is known."""
        if self.n < LEAST:
            return 0.0
        return (value - self.mean) / max(math.sqrt(self.variance), LEAST_DEVIATION)


@dataclass
class Guard:
    """Judges steps. `state` and `load_state`: what a checkpoint carries of it."""

    on_spike: str
    spike_z: float
    loss: Running = field(default_factory=Running)
    norm: Running = field(default_factory=Running)
    left_out: list[int] = field(default_factory=list)  # steps that must not be made
    n_in_a_row: int = 0

    def judge(self, step: int, loss: float, norm: float) -> None:
        """Raises SpikeError for a step that must not be applied; else remembers it."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            why = f"step {step + 1}: the loss is {loss} and the gradient norm {norm}"
            raise SpikeError(
                f"{why}; nothing was updated.", self._verdict(step, "stop"), loss, norm
            )
        logs = math.log(max(loss, 1e-30)), math.log(max(norm, 1e-30))
        if self.on_spike != "no":
            for name, value, running, log in zip(
                ("loss", "gradient norm"), (loss, norm), (self.loss, self.norm), logs, strict=True
            ):
                if (z := running.z(log)) > self.spike_z:
                    message = (
                        f"step {step + 1}: a {name} of {value:.4g} is {z:.1f} standard deviations "
                        f"above "
                        f"{math.exp(running.mean):.4g}; nothing was updated."
                    )
                    raise SpikeError(message, self._verdict(step, self.on_spike), loss, norm)
        self.n_in_a_row = 0
        self.loss.add(logs[0])
        self.norm.add(logs[1])

    def _verdict(self, step: int, plain: str) -> str:
        verdict = plain if self.on_spike == "no" else self.on_spike
        if verdict == "rewind":
            self.left_out.append(step)
        self.n_in_a_row += 1
        return verdict if self.n_in_a_row <= MOST_IN_A_ROW else "stop"

    def state(self) -> dict[str, object]:
        return {
            "loss": vars(self.loss).copy(),
            "norm": vars(self.norm).copy(),
            "left_out": self.left_out.copy(),
            "n_in_a_row": self.n_in_a_row,
        }

    def load_state(self, state: dict[str, object]) -> None:
        """What was left out since stays so: a run that goes back remembers why."""
        loss, norm = dict(state["loss"]), dict(state["norm"])  # type: ignore[call-overload]
        self.loss, self.norm = Running(**loss), Running(**norm)
        self.left_out = sorted({*self.left_out, *state["left_out"]})  # type: ignore[misc]
        self.n_in_a_row = max(self.n_in_a_row, int(state["n_in_a_row"]))  # type: ignore[call-overload]
