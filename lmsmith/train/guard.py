"""Detects loss and gradient-norm spikes before the step is applied.

The guard judges the loss and the gradient norm of the whole batch. Both are identical on all ranks,
so all ranks reach the same verdict. If one of them is not finite, training stops, or continues as
`train.on_spike` says. A spike is a loss or a norm whose logarithm lies more than `train.spike_z`
standard deviations above its running mean; spikes do not change the mean.

    stop      write a spike record and end the run
    skip      skip the step
    rewind    return to the last checkpoint, and skip the step when the run reaches it again
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from lmsmith.checkpoint import Checkpoint, available
from lmsmith.errors import TrainingError
from lmsmith.weights_file import check_finite

MEMORY = 100.0  # steps over which the running means are taken
LEAST = 50  # steps before anything counts as a spike
# Lower limit of the standard deviation of the logarithm (2%). Without it, every step of a nearly
# constant loss would be a spike.
LEAST_DEVIATION = 0.02
MOST_IN_A_ROW = 20  # more spikes in a row than this stop the run


def check_not_diverged(run: Path, found: Checkpoint) -> None:
    """Raises CheckpointError if the weights of a checkpoint are not finite, because no step can
    repair them.
    """
    others = [step for step in available(run) if step != found.step]
    earlier = (
        f" To resume from an earlier step, remove "
        f"{run / 'checkpoints' / f'step-{found.step:08d}'}; there are also "
        f"checkpoints of training {', '.join(map(str, others))}."
        if others
        else ""
    )
    check_finite(
        found.tensors["model"],
        f"the checkpoint of step {found.step} in {run}",
        f"The run cannot be resumed from it: start again with a lower --learning-rate.{earlier}",
    )


class SpikeError(TrainingError):
    """A step that was not applied, and what to do about it: "stop", "skip" or "rewind"."""

    def __init__(self, message: str, verdict: str, loss: float, norm: float) -> None:
        super().__init__(message)
        self.verdict, self.loss, self.norm = verdict, loss, norm


@dataclass
class Running:
    """Mean and variance of a logarithm, with exponentially decaying weights (West 1979)."""

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
        """Standard deviations above the mean; 0 before LEAST values are known."""
        if self.n < LEAST:
            return 0.0
        return (value - self.mean) / max(math.sqrt(self.variance), LEAST_DEVIATION)


@dataclass
class Guard:
    """Judges steps. A checkpoint stores `state`; `load_state` restores it.

    `signed`: the loss may be negative, so only the gradient norm is judged.
    """

    on_spike: str
    spike_z: float
    signed: bool = field(default=False, kw_only=True)
    loss: Running = field(default_factory=Running)
    norm: Running = field(default_factory=Running)
    left_out: list[int] = field(default_factory=list)  # steps to skip
    n_in_a_row: int = 0

    def judge(self, step: int, loss: float, norm: float) -> None:
        """Raises SpikeError if the step must not be applied; otherwise adds its loss and norm to
        the running means.
        """
        if not (math.isfinite(loss) and math.isfinite(norm)):
            why = f"step {step + 1}: the loss is {loss} and the gradient norm {norm}"
            raise SpikeError(
                f"{why}; the step was not applied.", self._verdict(step, "stop"), loss, norm
            )
        logs = math.log(max(loss, 1e-30)), math.log(max(norm, 1e-30))
        if self.on_spike != "no":
            for name, value, running, log in zip(
                ("loss", "gradient norm"), (loss, norm), (self.loss, self.norm), logs, strict=True
            ):
                judged = not (self.signed and running is self.loss)
                if judged and (z := running.z(log)) > self.spike_z:
                    message = (
                        f"step {step + 1}: the {name} of {value:.4g} is {z:.1f} standard "
                        f"deviations above its running mean of {math.exp(running.mean):.4g}; the "
                        f"step was not applied."
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
        """Restores `state`. Steps skipped after the checkpoint stay skipped: a rewind must not
        repeat them.
        """
        loss, norm = dict(state["loss"]), dict(state["norm"])  # type: ignore[call-overload]
        self.loss, self.norm = Running(**loss), Running(**norm)
        self.left_out = sorted({*self.left_out, *state["left_out"]})  # type: ignore[misc]
        self.n_in_a_row = max(self.n_in_a_row, int(state["n_in_a_row"]))  # type: ignore[call-overload]
