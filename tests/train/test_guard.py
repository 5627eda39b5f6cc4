"""The spike guard: detection against plain statistics, the verdicts, spike records and replay."""

import itertools
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lmsmith.train.loop
import lmsmith.train.step
from lmsmith.config import RunConfig
from lmsmith.data.corpus import Corpus
from lmsmith.errors import CheckpointError, DataError, TrainingError
from lmsmith.train.guard import LEAST, MOST_IN_A_ROW, Guard, Running, SpikeError
from lmsmith.train.loop import Training
from lmsmith.train.replay import replay
from lmsmith.train.spike_record import read_record

Make = Callable[..., Training]


def test_running_mean_and_deviation_start_as_the_plain_ones() -> None:
    values, running = [0.3, 1.2, -0.7, 2.5, 0.1], Running()
    for value in values:
        running.add(value)
    assert running.mean == pytest.approx(statistics.fmean(values))
    assert running.variance == pytest.approx(statistics.pvariance(values))


def warm(mode: str) -> Guard:
    guard = Guard(mode, 6.0)
    for step in range(LEAST + 10):
        guard.judge(step, 2.0 + 0.1 * math.sin(step), 0.5 + 0.05 * math.cos(step))
    return guard


@pytest.mark.parametrize("mode", ["stop", "skip", "rewind"])
def test_a_spike_is_detected_and_does_not_move_the_mean(mode: str) -> None:
    guard = warm(mode)
    before = guard.state()["loss"]
    for loss, norm, name in ((4.0, 0.5, "loss"), (2.0, 5.0, "gradient norm")):
        with pytest.raises(
            SpikeError, match=f"the {name} of .* standard deviations above"
        ) as caught:
            guard.judge(99, loss, norm)
        assert caught.value.verdict == mode
    assert guard.state()["loss"] == before
    assert guard.left_out == ([99, 99] if mode == "rewind" else [])
    guard.judge(100, 2.1, 0.5)


def test_no_spikes_if_switched_off_or_in_the_first_steps() -> None:
    guard = warm("no")
    guard.judge(99, 400.0, 500.0)
    young = Guard("stop", 6.0)
    for step, loss in enumerate((9.0, 1.0, 300.0)):
        young.judge(step, loss, 1.0)


@pytest.mark.parametrize(
    ("mode", "verdict"), [("no", "stop"), ("stop", "stop"), ("skip", "skip"), ("rewind", "rewind")]
)
@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (1.0, math.inf)])
def test_values_that_are_not_finite(mode: str, verdict: str, loss: float, norm: float) -> None:
    guard = Guard(mode, 6.0)
    with pytest.raises(SpikeError, match="the step was not applied") as caught:
        guard.judge(3, loss, norm)
    assert caught.value.verdict == verdict


def test_too_many_spikes_in_a_row_stop_the_run() -> None:
    guard = warm("skip")
    for k in range(MOST_IN_A_ROW + 1):
        with pytest.raises(SpikeError) as caught:
            guard.judge(100 + k, math.nan, 1.0)
        assert caught.value.verdict == ("skip" if k < MOST_IN_A_ROW else "stop")


def test_a_restored_guard_judges_the_same() -> None:
    guard, other = warm("rewind"), Guard("rewind", 6.0)
    other.left_out = [7]
    other.load_state(json.loads(json.dumps(guard.state())))
    assert (other.loss, other.norm, other.left_out) == (guard.loss, guard.norm, [7])


@pytest.fixture
def spike_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`spike_at({60})` makes the gradient norm of those steps 1000 times as large, always or
    once.
    """
    gradient = lmsmith.train.step.gradient

    def make(steps: set[int], *, once: bool = False) -> None:
        left = set(steps)

        def spiking(replica: Any, batches: Any, step: int) -> tuple[float, float]:
            loss, norm = gradient(replica, batches, step)
            if step not in left:
                return loss, norm
            if once:
                left.discard(step)
            return loss, norm * 1000

        monkeypatch.setattr(lmsmith.train.step, "gradient", spiking)

    return make


LONG = {"train.steps": 70, "train.eval_every": 35, "train.save_every": 20, "train.keep": 9}


def events(run: Training) -> list[str]:
    lines = map(
        json.loads, (run.context.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    )
    return [line["message"] for line in lines if line["kind"] == "event"]


def test_skip_skips_the_step(training: Make, spike_at: Callable[..., None]) -> None:
    spike_at({60})
    run = training(LONG | {"train.on_spike": "skip"})
    assert run.go()["steps"] == 70
    assert len(events(run)) == 1
    assert "step 61: the gradient norm of" in events(run)[0]


def test_rewind_gives_the_weights_of_a_run_that_skipped_the_step(
    training: Make, spike_at: Callable[..., None]
) -> None:
    """After returning to the checkpoint, the run reaches the weights of one that skipped directly."""
    spike_at({63})
    wanted = training(LONG | {"train.on_spike": "skip"}, run="skip")
    wanted.go()
    back = training(LONG | {"train.on_spike": "rewind"}, run="rewind")
    began = time.monotonic()
    summary = back.go()
    assert summary["wall_seconds"] <= time.monotonic() - began, "the rewound time is counted once"
    assert [message.split(". ")[-1] for message in events(back)] == [
        "Returning to step 60.",
        "It is skipped.",
    ]
    for name, weight in wanted.context.replica.weights(copy=False).items():
        assert torch.equal(weight, back.context.replica.weights(copy=False)[name]), name
    lines = map(
        json.loads, (back.context.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    )
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == [step for step in range(1, 71) if step != 64]


def test_stop_writes_a_record_and_a_checkpoint(
    training: Make, spike_at: Callable[..., None], tmp_path: Path
) -> None:
    spike_at({60})
    run = training(LONG | {"train.on_spike": "stop"})
    with pytest.raises(
        TrainingError,
        match=r"step 61: the gradient norm .* Step 60 is saved\. `lmsmith replay .*step-00000061`",
    ):
        run.go()
    record, tensors = read_record(run.context.run / "spikes" / "step-00000061")
    assert record["step"] == 60
    assert record["ids"] == run.context.batches.rows(60).inputs.tolist()
    assert record["text"] == [run.context.corpus.tokenizer.decode(row) for row in record["ids"]]
    for name, weight in run.context.replica.weights(copy=False).items():
        assert torch.equal(tensors["model"][name], weight)
        assert record["tensors"][name]["norm"] == pytest.approx(float(weight.norm()))
    assert (run.context.run / "checkpoints" / "step-00000060").is_dir()


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_replay_is_bit_identical(
    config: RunConfig,
    corpus: Corpus,
    training: Make,
    monkeypatch: pytest.MonkeyPatch,
    dropout: float,
) -> None:
    """An ordinary step replays to the same bits; another batch does not."""
    changes = {"train.steps": 9, "model.dropout": dropout, "train.save_every": 4}
    run = training(changes)

    def judge(self: Guard, step: int, loss: float, norm: float) -> None:
        if step == 6:
            raise SpikeError("step 7: a test.", "stop", loss, norm)

    monkeypatch.setattr(Guard, "judge", judge)
    with pytest.raises(TrainingError, match=r"step 7: a test\."):
        run.go()
    changed = config.changed(changes, where="a test")
    monkeypatch.setattr("lmsmith.train.replay.open_run", lambda place: (changed, corpus))
    place = run.context.run / "spikes" / "step-00000007"
    found = replay(place)
    assert found.same
    assert 1 < found.loss < 10
    monkeypatch.setattr(
        "lmsmith.train.replay.gradient",
        lambda replica, batches, step: lmsmith.train.step.gradient(replica, batches, step + 1),
    )
    other = replay(place)
    assert not other.same
    assert other.loss != found.loss
    assert other.grad_norm != found.grad_norm


def test_replay_of_values_that_are_not_finite(
    config: RunConfig, corpus: Corpus, training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss really overflows, from a huge float32 weight."""
    changes = {"train.steps": 9, "model.logit_softcap": 0.0, "train.save_every": 4}
    run = training(changes)
    train_step = lmsmith.train.loop.train_step

    def spoil(replica: Any, batches: Any, step: int, *rest: Any) -> dict[str, float]:
        if step == 6:
            with torch.no_grad():
                replica.model.get_parameter("head.weight").fill_(3e38)
        return train_step(replica, batches, step, *rest)

    monkeypatch.setattr(lmsmith.train.loop, "train_step", spoil)
    with pytest.raises(TrainingError, match="step 7: the loss is nan"):
        run.go()
    changed = config.changed(changes, where="a test")
    monkeypatch.setattr("lmsmith.train.replay.open_run", lambda place: (changed, corpus))
    found = replay(run.context.run / "spikes" / "step-00000007")
    assert found.same
    assert math.isnan(found.loss)
    assert any(tensor["n_not_finite"] for tensor in found.record["tensors"].values())
    assert found.record["tensors"]["head.weight"]["norm"] is None  # it overflows
    assert found.record["loss"] is None
    record = run.context.run / "spikes" / "step-00000007" / "record.json"
    content = json.loads(record.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    content["bits"]["loss"] = (2.5).hex()
    record.write_text(json.dumps(content), encoding="utf-8")
    assert not replay(run.context.run / "spikes" / "step-00000007").same


def test_a_diverged_run_is_not_resumed(training: Make) -> None:
    """Its newest checkpoint holds NaN, which no step can repair."""
    length = {"train.steps": 4, "train.save_every": 2, "train.keep": 9}
    run = training(length)
    run.go()
    with torch.no_grad():
        run.context.model.get_parameter("head.weight")[0, :3] = math.nan
    run.rewrite_checkpoint()
    place = run.context.run / "checkpoints" / "step-00000004"
    with pytest.raises(CheckpointError) as caught:
        training(length).restore()
    message = str(caught.value)
    assert message.startswith(
        f"The checkpoint of step 4 in {run.context.run} has weights that are not finite numbers: "
    )
    assert "head.weight (3 NaN of" in message
    assert "start again with a lower --learning-rate" in message
    assert f"remove {place}; there are also checkpoints of training 2" in message
    shutil.rmtree(place)
    again = training(length)
    assert again.restore()
    assert again.state.step == 2


def test_a_folder_that_is_not_a_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a spike record"):
        read_record(tmp_path)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("most", [1, 3])
def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(
    training: Make, monkeypatch: pytest.MonkeyPatch, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    """With room for only `most` rows, the steps and, up to rounding, the losses stay the same."""
    steps = {"train.steps": 6, "train.dtype": "float64", "train.batch_size": 8}
    plain, tight = training(steps, run="plain"), training(steps, run="tight")
    plain.go()
    forward = tight.context.replica.summed_loss.forward

    def cramped(inputs: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        if len(inputs) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        found: torch.Tensor = forward(inputs, *rest, **named)
        return found

    monkeypatch.setattr(tight.context.replica.summed_loss, "forward", cramped)
    tight.go()
    assert tight.context.replica.rows_at_once == (1 if most == 1 else 2)
    assert "continuing with micro-batches of 4 rows" in caplog.text
    for name, weight in plain.context.replica.weights(copy=False).items():
        torch.testing.assert_close(
            tight.context.replica.weights(copy=False)[name], weight, rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("where", ["second micro-batch", "backward pass"])
def test_out_of_memory_after_gradients_were_added(
    training: Make, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The retry starts from cleared gradients: the weights are those of a run with enough memory."""
    steps = {"train.steps": 3, "train.dtype": "float64", "train.batch_size": 8}
    plain = training(steps, run="plain")
    tight = training(steps | {"train.micro_batch_size": 4}, run="tight")
    plain.go()
    replica, failed = tight.context.replica, list[bool]()
    forward, calls = replica.summed_loss.forward, itertools.count()

    def fail(*_: Any) -> None:
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory")

    def cramped(*arguments: Any, **named: Any) -> torch.Tensor:
        if where == "second micro-batch" and next(calls) == 3:
            fail()
        found: torch.Tensor = forward(*arguments, **named)
        return found

    monkeypatch.setattr(replica.summed_loss, "forward", cramped)
    if where == "backward pass":  # after the head's gradient, and before all others
        model: Any = replica.model
        model.blocks[0].attention.qkv.weight.register_post_accumulate_grad_hook(fail)
    tight.go()
    assert failed
    assert replica.rows_at_once == 2
    for name, weight in plain.context.replica.weights(copy=False).items():
        torch.testing.assert_close(replica.weights(copy=False)[name], weight, rtol=1e-9, atol=1e-12)


def test_out_of_memory_with_one_row_is_an_error(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training({"train.steps": 6})

    def full(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run.context.replica.summed_loss, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        run.go()
    assert run.context.replica.rows_at_once == 1
