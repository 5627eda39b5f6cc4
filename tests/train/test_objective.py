"""Another objective in a run: generated batches, its loss, metrics, evaluation and state."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lmsmith.config import OBJECTIVES, RunConfig
from lmsmith.data.corpus import Corpus
from lmsmith.distributed.shard import SummedLoss
from lmsmith.errors import ConfigError, UsageError
from lmsmith.train.guard import Guard, SpikeError
from lmsmith.train.loop import Training
from lmsmith.train.objective import Evaluation, Objective
from lmsmith.train.spike_record import read_record, write_record
from lmsmith.train.start import gather_text
from lmsmith.train.step import gradient, train_step

Make = Callable[..., Training]
T = 8
BASELINE = 0.25


@dataclass(frozen=True)
class Weighted:
    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    continues: bool = False

    def arrays(self) -> list[np.ndarray]:
        return [self.inputs, self.targets, self.weights]


class Rollouts:
    """The batch that was generated last."""

    tokens_per_batch = 4 * T

    def __init__(self) -> None:
        self.ids = np.zeros((4, T + 1), np.int64)

    def rows(self, step: int, start: int = 0, end: int | None = None) -> Weighted:
        ids = self.ids[start:end]
        weights = (ids[:, 1:] % 3 - 1).astype(np.float32)
        return Weighted(ids[:, :-1], ids[:, 1:], weights)

    def n_targets(self, step: int) -> int:
        return 4 * T


class WeightedLoss(SummedLoss):
    """-sum of (w - baseline) ln p, and the sum of the weights."""

    def forward(self, inputs: Any, targets: Any, weights: Any, state: Any = None) -> Any:
        logits = self.model.logits(self.model.hidden(inputs))
        log_p = -F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        loss = -((weights.flatten() - BASELINE) * log_p).sum()
        return loss, {"reward": weights.sum(), "n": torch.ones_like(weights).sum()}


class Reinforce(Objective):
    """Samples texts from the current weights, and learns from each sample in two steps."""

    generates = signed = True
    shown = ("reward",)
    command = "lmsmith reinforce"

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.rollouts, self.made, self.places = Rollouts(), -1, list[str]()

    def batches(self, corpus: Corpus) -> Rollouts:
        return self.rollouts

    def module(self, model: Any, head_dtype: Any, *, compiled: bool) -> WeightedLoss:
        return WeightedLoss(model, head_dtype)

    def start(self, run: Path, corpus: Any, replica: Any, batches: Any, say: Any) -> None:
        self.places.append(run.name)

    def before_gradient(self, replica: Any, batches: Any, step: int) -> None:
        assert batches.__class__ is Rollouts  # not read ahead
        if step // 2 == self.made:
            return
        self.made = step // 2
        generator = torch.Generator().manual_seed(1000 * self.config.train.seed + step)
        ids = torch.zeros((4, 1), dtype=torch.int64)
        with torch.no_grad():
            for _ in range(T):
                p = replica.model.logits(replica.model.hidden(ids))[:, -1].softmax(-1)
                ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator)], dim=1)
        self.rollouts.ids = ids.numpy()

    def divisor(self, batches: Any, step: int) -> float:
        return 4 * 100.0  # a constant, as in Dr. GRPO

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"reward": sums["reward"] / sums["n"]}

    def evaluate(self, context: Any) -> Evaluation:
        reward = float(np.mean(self.rollouts.ids % 3 - 1))
        return Evaluation(1 - reward, metrics={"reward": reward})

    def state_dict(self) -> dict[str, Any]:
        return {"ids": torch.from_numpy(self.rollouts.ids), "made": self.made}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            self.rollouts.ids, self.made = state["ids"].numpy(), state["made"]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    OBJECTIVES.register("reinforce", Reinforce)
    yield
    OBJECTIVES.known.pop("reinforce")


OURS = {"train.objective": "reinforce", "train.steps": 9, "train.eval_every": 3}


def weights_of(run: Any) -> str:
    digest = hashlib.sha256()
    for tensor in run.context.replica.weights(copy=False).values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def lines(run: Any, kind: str) -> list[dict[str, Any]]:
    text = (run.context.run / "metrics.jsonl").read_text(encoding="utf-8")
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == kind]


def test_the_loss_is_divided_once_and_micro_batches_change_only_rounding(training: Make) -> None:
    found = []
    for size in (0, 3, 1):
        run = training(OURS | {"train.micro_batch_size": size})
        replica, batches = run.context.replica, run.context.batches
        loss, norm = gradient(replica, batches, 4)
        grads = torch.cat([p.grad.flatten() for p in replica.model.parameters()])
        found.append((loss, norm, grads))
        assert replica.metrics == {"reward": pytest.approx(np.mean(batches.ids[:, 1:] % 3 - 1))}
    ids = torch.from_numpy(batches.ids)
    log_p = replica.model.log_probabilities(ids).double()
    wanted = -((ids[:, 1:] % 3 - 1 - BASELINE) * log_p).sum() / 400
    for loss, norm, grads in found:
        assert loss == pytest.approx(wanted.item(), rel=1e-5)
        assert norm == pytest.approx(found[0][1], rel=1e-5)
        torch.testing.assert_close(grads, found[0][2], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("stop", [4, 5])
def test_a_resumed_run_with_generated_batches_is_bit_identical(
    training: Make, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = training(OURS)
    whole.go()
    first = training(OURS, run="first")
    monkeypatch.setattr(
        type(first.hooks), "_finished",
        lambda self, *_: "signal" if self.context.step == stop else None,
    )  # fmt: skip
    first.go()
    monkeypatch.undo()
    second = training(OURS, run="first")
    assert second.restore()
    assert second.context.replica.objective.made == (stop - 1) // 2
    summary = second.go()
    assert weights_of(second) == weights_of(whole)
    ours, theirs = lines(whole, "train"), lines(second, "train")
    assert [line["reward"] for line in ours] == [line["reward"] for line in theirs]
    assert len({line["reward"] for line in ours}) > 3
    evaluations = lines(second, "eval")
    assert summary["val_metrics"] == {"reward": evaluations[-1]["reward"]}
    best = min(evaluations, key=lambda line: line["val_loss"])
    assert summary["best_step"] == best["step"]
    assert summary["best_val_metrics"] == {"reward": best["reward"]}
    assert summary["val_bits_per_byte"] is None


def test_a_recorded_step_is_repeated_with_its_generated_batch(training: Make) -> None:
    run = training(OURS)
    replica, batches, tokenizer = (
        run.context.replica, run.context.batches, run.context.corpus.tokenizer
    )  # fmt: skip
    train_step(replica, batches, 4, 9)  # the batch of steps 4 and 5
    loss, norm = gradient(replica, batches, 5)
    spike = SpikeError("a spike", "stop", loss, norm)
    record, tensors = read_record(
        write_record(run.context.run, replica, batches, tokenizer, 5, spike)
    )
    assert record["objective"] == {"made": 2}
    other = training(OURS, run="other").context.replica
    other.load_weights(tensors["model"])
    other.objective.load_state_dict(record["objective"] | tensors["objective"])
    again = gradient(other, other.objective.batches(run.context.corpus), 5)
    assert [number.hex() for number in again] == list(record["bits"].values())


def test_the_guard_does_not_judge_a_signed_loss(training: Make) -> None:
    assert training(OURS).context.guard.signed
    guard = Guard("stop", 6.0, signed=True)
    for step in range(100):
        guard.judge(step, -0.5 if step % 2 else 0.5, 1.0 + 0.01 * (step % 3))
    guard.judge(100, 1e3, 1.0)
    with pytest.raises(SpikeError, match="gradient norm"):
        guard.judge(101, 0.1, 100.0)


def test_settings_that_only_cross_entropy_has_are_refused(
    training: Make, config: RunConfig, tmp_path: Path
) -> None:
    objective = Reinforce(config.changed({"train.objective": "reinforce"}, where="here"))
    objective.check(1)
    for name, value, world in (
        ("train.initial_batch_size", 2, 1),
        ("train.engine", "reference", 1),
        ("train.parallel", "fsdp", 2),
    ):
        changed = objective.config.changed({name: value}, where="here")
        with pytest.raises(ConfigError, match=name):
            Reinforce(changed).check(world)
    with pytest.raises(UsageError, match="lmsmith reinforce"):
        gather_text(objective.config, tmp_path, None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="reinforce"):
        config.changed({"train.objective": "reinforced"}, where="here")
