"""The training loop: intervals, saved weights, deadlines on simulated machines, resuming."""

import io
import itertools
import json
import math
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lmsmith.train.loop
from lmsmith.checkpoint import available, load_checkpoint, load_model
from lmsmith.data.corpus import Corpus
from lmsmith.distributed.ranks import LONG, Ranks
from lmsmith.errors import CheckpointError, TrainingError
from lmsmith.evaluate.likelihood import Score
from lmsmith.tokens.tokenizer import CharTokenizer
from lmsmith.train.hooks import Context, Hook, checkpoint, sample
from lmsmith.train.hooks.evaluate import Evaluate
from lmsmith.train.hooks.sample import sample_texts
from lmsmith.train.loop import Training

Make = Callable[..., Training]


def steps_of(run: Path, kind: str) -> list[int]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["kind"] == kind]


def losses_of(run: Path, kind: str) -> list[list[float]]:
    """The values in metrics.jsonl that do not depend on time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "grad_norm", "learning_rate", "val_loss", "tokens")
    return [
        [line[name] for name in names if name in line] for line in lines if line["kind"] == kind
    ]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def script_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Makes evaluations return these losses in turn."""
    remaining = iter(losses)
    monkeypatch.setattr(
        Evaluate, "score", lambda self, context: Score(next(remaining) * 100, 100, 100)
    )


class StopAt(Hook):
    """Stops a run after `step` steps."""

    def __init__(self, step: int) -> None:
        self.every = step

    def after_step(self, context: Context) -> None:
        context.request_stop("a test")


def test_intervals(training: Make) -> None:
    run = training(
        {"train.steps": 17, "train.log_every": 4, "train.save_every": 6, "train.keep": 9}
    )
    summary = run.go()
    assert steps_of(run.context.run, "train") == [1, 4, 8, 12, 16, 17]
    assert steps_of(run.context.run, "eval") == [5, 10, 15, 17]
    assert available(run.context.run) == [6, 12, 17]
    assert (summary["finished"], summary["steps"], summary["tokens_seen"]) == ("steps", 17, 17 * 64)
    assert summary["mfu"] == pytest.approx(
        summary["tokens_per_second"] * run.context.config.neural.train_flops_per_token() / 1e9
    )


def test_the_best_weights_are_kept(training: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    script_losses(monkeypatch, [3.0, 2.0, 2.5, 2.0])

    class See(Hook):
        every = 5

        def after_step(self, context: Context) -> None:
            seen.append(context.replica.weights(copy=True))

    run = training(hooks=[See()])
    summary = run.go()
    assert (summary["best_step"], summary["best_val_loss"], summary["val_loss"]) == (
        10,
        2.0,
        2.0,
    )  # the first of equals
    found, content = load_model(run.context.run / "model")
    assert same(found, seen[1])
    assert content["step"] == 10
    checkpoint = load_checkpoint(run.context.run)
    assert same(checkpoint.tensors["best"], seen[1])
    assert same(checkpoint.tensors["model"], seen[3])


def test_evaluating_sampling_and_saving_change_nothing(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that does them after every step has the weights of one that does them at the end."""
    often = training(
        {"train.eval_every": 1, "train.save_every": 1, "model.dropout": 0.2}, run="often"
    )
    monkeypatch.setattr(sample, "SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(sample, "SAMPLE_SHARE", 1e9)
    rarely = training({"train.eval_every": 100, "model.dropout": 0.2}, run="rarely")
    often.go(), rarely.go()
    assert same(
        often.context.replica.weights(copy=False), rarely.context.replica.weights(copy=False)
    )
    assert same(often.context.replica.optimizers.state(), rarely.context.replica.optimizers.state())


def test_target(training: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    script_losses(monkeypatch, [3.0, 2.0, 1.0])
    run = training({"train.stop_at_val_loss": 2.0})
    summary = run.go()
    assert (summary["finished"], summary["steps"]) == ("target", 10)
    assert summary["seconds_to_target"] == summary["train_seconds"] < summary["wall_seconds"]
    assert available(run.context.run) == [10]


def test_without_a_target_the_run_makes_all_steps(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_losses(monkeypatch, [0.0] * 4)
    summary = training().go()
    assert (summary["finished"], summary["seconds_to_target"]) == ("steps", None)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite(
    training: Make, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    script_losses(monkeypatch, [3.0, value])
    run = training()
    with pytest.raises(
        TrainingError, match=f"step 10: the validation loss is {value}, .* Lower --learning-rate"
    ):
        run.go()
    assert steps_of(run.context.run, "eval") == [5]
    assert available(run.context.run) == []


@pytest.mark.parametrize(
    ("where", "call", "number"),
    [
        pytest.param(
            where,
            call,
            number,
            marks=[pytest.mark.slow] if (call == 1) == (number == signal.SIGTERM) else [],
        )
        for where in ("train_step", "score", "save_checkpoint", "sample_texts")
        for call in (1, 3)
        for number in (signal.SIGINT, signal.SIGTERM)
    ],
)
def test_after_a_signal_anywhere_the_resumed_run_equals_an_uninterrupted_one(
    training: Make, monkeypatch: pytest.MonkeyPatch, where: str, number: signal.Signals, call: int
) -> None:
    changes = {"model.dropout": 0.2, "train.save_every": 4, "train.eval_every": 6}
    oracle = training(changes, run="oracle")
    expected = oracle.go()
    if where == "sample_texts":
        call = 1  # the only call is at the end
    owners = {"score": Evaluate, "save_checkpoint": checkpoint, "sample_texts": sample}
    owner: Any = owners.get(where, lmsmith.train.loop)
    original, n_calls = getattr(owner, where), itertools.count(1)

    def signalled(*arguments: Any, **options: Any) -> Any:
        if next(n_calls) == call:
            signal.raise_signal(number)
        return original(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(owner, where, signalled)
        first = training(changes).go()
    assert (first["finished"], first["signal"]) == ("signal", number.name)
    again = training(changes)
    assert again.restore()
    assert again.state.step == first["steps"] == max(available(again.context.run))
    summary = again.go()
    for kind in ("train", "eval"):
        assert losses_of(again.context.run, kind) == losses_of(oracle.context.run, kind)
    assert same(
        again.context.replica.weights(copy=False), oracle.context.replica.weights(copy=False)
    )
    assert same(again.context.replica.optimizers.state(), oracle.context.replica.optimizers.state())
    assert same(*(load_model(place.context.run / "model")[0] for place in (again, oracle)))
    for name in ("steps", "tokens_seen", "val_loss", "best_val_loss", "best_step", "finished"):
        assert summary[name] == expected[name], name


def test_a_checkpoint_holds_the_full_state_of_a_run(training: Make) -> None:
    run = training({"train.steps": 7})
    run.go()
    again = training({"train.steps": 7})
    assert again.restore()
    assert again.state.numbers() == run.state.numbers() | {"wall_seconds": again.state.wall_seconds}
    assert math.isinf(again.state.seconds_to_target)
    state = load_checkpoint(run.context.run).state
    json.dumps(state, allow_nan=False)  # standard JSON


def test_before_the_first_evaluation_there_are_no_best_weights(training: Make) -> None:
    run = training({"train.eval_every": 100, "train.save_every": 2}, hooks=[StopAt(7)])
    run.go()
    assert "best" not in load_checkpoint(run.context.run).tensors
    again = training()
    assert again.restore(without_hooks=["StopAt"])
    assert again.state.best == {}


def test_rank_zero_waits_while_other_ranks_read_a_checkpoint(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They start when rank 0 has read it, which for a large one takes longer than the usual
    timeout.
    """
    training().go()
    again, waited = training(), list[Any]()
    monkeypatch.setattr(
        Ranks, "wait", lambda self, patience: waited.append((again.state.step, patience))
    )
    assert again.restore()
    assert waited == [(again.context.config.train.steps, LONG)]


def test_nothing_to_restore(training: Make, tmp_path: Path) -> None:
    run = training()
    assert not run.restore()
    (tmp_path / "run" / "checkpoints").mkdir()
    assert not run.restore()
    (tmp_path / "run" / "checkpoints" / "step-00000005").mkdir()  # damaged: it holds nothing
    with pytest.raises(CheckpointError, match=r"No checkpoint .* is complete"):
        run.restore()


class SimulatedMachine:
    """A clock that advances by the duration of each simulated operation; nothing is computed."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, step_seconds: Callable[[int], float]
    ) -> None:
        self.now, self.evaluation, self.save, self.sample = 1000.0, 2.0, 1.0, 0.5
        self.saves: list[float] = []

        def train_step(*arguments: Any) -> dict[str, float]:
            self.now += step_seconds(arguments[2])
            return {"loss": 1.0, "grad_norm": 1.0, "learning_rate": 0.1}

        def score(self_: Evaluate, context: Context, ids: Any = None) -> Score:
            n = len(context.corpus.validation)
            self.now += self.evaluation * (n if ids is None else len(ids)) / n
            return Score(100.0, 100, 100)

        def save_checkpoint(*_: Any, **__: Any) -> None:
            self.now += self.save
            self.saves.append(self.now)

        def sample_texts(*arguments: Any) -> list[str]:
            self.now += min(self.sample, arguments[3])
            return []

        monkeypatch.setattr("time.monotonic", self.monotonic)
        monkeypatch.setattr("time.perf_counter", self.monotonic)
        monkeypatch.setattr(lmsmith.train.loop, "train_step", train_step)
        monkeypatch.setattr(Evaluate, "score", score)
        monkeypatch.setattr(checkpoint, "save_checkpoint", save_checkpoint)
        monkeypatch.setattr(checkpoint, "save_model", lambda *_: None)
        monkeypatch.setattr(checkpoint, "save_tokenizer", lambda *_: None)
        monkeypatch.setattr(sample, "sample_texts", sample_texts)

    def monotonic(self) -> float:
        return self.now


def test_a_fast_machine_does_not_read_the_text_more_often_than_max_epochs(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SimulatedMachine(monkeypatch, lambda step: 0.2)
    run = training(
        {"train.steps": 500, "train.eval_every": 100, "train.max_epochs": 12.0},
        deadline=machine.now + 600,
    )
    n_tokens, tokens_a_step = len(run.context.corpus.train), 4 * 16
    wanted = int(12 * n_tokens / tokens_a_step)
    assert 500 < wanted < 2000  # 3000 steps fit
    assert run.go()["steps"] == wanted


def test_the_evaluation_of_averaged_weights_fits_before_the_deadline(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SimulatedMachine(monkeypatch, lambda step: 0.2)
    machine.evaluation = 20.0
    run = training(
        {"train.steps": 5000, "train.eval_every": 1000, "train.average_fraction": 0.2},
        deadline=machine.now + 600,
    )
    assert run.go()["finished"] == "time"
    assert run.state.n_averaged > 10
    assert 1000 + 600 * 0.95 < machine.saves[-1] < 1600.001


@pytest.mark.parametrize("planned", [20, 500, 5000, 100_000])
@pytest.mark.parametrize("kind", ["steady", "noisy", "slower", "faster", "first is slow"])
def test_a_run_ends_before_its_deadline_with_an_evaluation(
    training: Make, monkeypatch: pytest.MonkeyPatch, planned: int, kind: str
) -> None:
    """In ten minutes at 0.2 s per step, 3000 steps fit, less the time of evaluations, whatever the
    plan.
    """
    rng = random.Random(planned)
    machine = SimulatedMachine(
        monkeypatch,
        {
            "steady": lambda step: 0.2,
            "noisy": lambda step: 0.2 * rng.lognormvariate(-0.125, 0.5),
            "slower": lambda step: 0.2 if step < 1000 else 0.4,
            "faster": lambda step: 0.2 if step < 1000 else 0.1,
            "first is slow": lambda step: 0.2 if step else 20.0,
        }[kind],
    )
    run = training(
        {"train.steps": planned, "train.eval_every": max(1, planned // 10)},
        deadline=machine.now + 600,
    )
    if planned == 20:
        machine.evaluation = 0.1  # there will be many
    if planned == 100_000:
        machine.evaluation = 0.4  # there is only one, at the end, as long as estimated
    summary = run.go()
    assert summary["finished"] == "time"
    last_save = machine.saves[-1]
    assert last_save < 1600.001  # sums of floats
    if kind != "faster":
        assert last_save > 1000 + 600 * 0.95
    else:
        assert last_save > 1000 + 600 * 0.8
    assert (
        steps_of(run.context.run, "eval")[-1]
        == steps_of(run.context.run, "train")[-1]
        == summary["steps"]
    )
    # At the last step, the learning rate has nearly reached its final value.
    assert summary["steps"] >= 0.97 * summary["planned_steps"] or kind == "slower"
    assert summary["first_planned_steps"] == planned
    assert summary["n_corrections"] <= 16
    if kind in ("steady", "noisy"):
        each = 0.2 + machine.evaluation / run.context.config.train.eval_every
        assert summary["steps"] == pytest.approx(600 / each, rel=0.1)


def test_one_slow_step_does_not_end_a_run(
    training: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first step stalls so long that by estimate no time is left for the evaluation."""
    machine = SimulatedMachine(monkeypatch, lambda step: 4.7 if step == 0 else 0.2)
    run = training({"train.steps": 26, "train.eval_every": 100}, deadline=machine.now + 16)
    context = run.context
    n_tokens = 60 * context.batches.tokens_per_batch
    validation = np.resize(context.corpus.validation, n_tokens)
    context.corpus = replace(context.corpus, validation=validation)
    machine.evaluation, machine.save = 3.0, 0.0
    summary = run.go()
    assert machine.saves[-1] < 1016.001
    assert 26 < summary["steps"] == summary["planned_steps"]
    assert machine.now > 1014
    assert "there was time for only" in caplog.text


def test_a_run_that_ends_early_continues(training: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first evaluation stalls, so there seems to be no time for the last one."""
    machine = SimulatedMachine(monkeypatch, lambda step: 0.1)
    machine.save, seconds = 0.0, iter([30.0])

    def score(*_: Any) -> Score:
        machine.now += next(seconds, 1.0)
        return Score(100.0, 100, 100)

    monkeypatch.setattr(Evaluate, "score", score)
    summary = training({"train.steps": 500, "train.eval_every": 50}, deadline=machine.now + 60).go()
    assert 1055 < machine.saves[-1] < 1060.001
    assert summary["steps"] == summary["planned_steps"] > 180


@pytest.mark.parametrize(
    ("seconds", "quiet", "words", "logged"),
    [
        (0.5, False, "has learned nothing useful", False),  # the closing lines of the command do
        (0.5, True, "has learned nothing useful", True),
        (0.16, False, "has learned little", True),
        (0.01, False, "", False),
    ],
)
def test_a_run_of_few_steps_warns(
    training: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    seconds: float,
    quiet: bool,
    words: str,
    logged: bool,
) -> None:
    machine = SimulatedMachine(monkeypatch, lambda step: seconds)
    machine.evaluation = 0.0
    run = training({"train.steps": 100, "train.eval_every": 1000}, deadline=machine.now + 7)
    run.context.console.quiet = quiet
    run.go()
    events = (run.context.run / "metrics.jsonl").read_text()
    assert words in events
    assert ("there was time for only" in events) is bool(words)
    assert ("there was time for only" in caplog.text) is logged
    assert not logged or words in caplog.text


def test_time_for_a_long_evaluation_and_save_is_reserved(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SimulatedMachine(monkeypatch, lambda step: 0.1)
    machine.evaluation, machine.save = 20.0, 10.0
    run = training(
        {"train.steps": 5000, "train.eval_every": 100, "train.save_every": 90},
        deadline=machine.now + 200,
    )
    run.go()
    assert 1100 < machine.saves[-1] <= 1200


def test_corrections_are_printed_and_logged(
    training: Make, monkeypatch: pytest.MonkeyPatch, said: io.StringIO
) -> None:
    machine = SimulatedMachine(monkeypatch, lambda step: 0.2)
    run = training({"train.steps": 1000}, deadline=machine.now + 100)
    run.go()
    events = [
        json.loads(line) for line in (run.context.run / "metrics.jsonl").read_text().splitlines()
    ]
    events = [event for event in events if event["kind"] == "event"]
    assert events
    assert events[0]["message"] in said.getvalue()
    assert "steps instead of 1,000 (200 ms per step)" in events[0]["message"]


def test_a_past_deadline_leaves_one_step_and_its_evaluation(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SimulatedMachine(monkeypatch, lambda step: 0.2)
    run = training(deadline=machine.now - 50)
    summary = run.go()
    assert (summary["steps"], summary["finished"]) == (1, "time")
    assert steps_of(run.context.run, "eval") == [1]


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_run_stopped_after_its_last_step_finishes(training: Make, evaluated: bool) -> None:
    """A signal in the last evaluation or samples leaves no step to measure."""
    run = training({"train.steps": 4, "train.eval_every": 10})
    run.go()
    if not evaluated:
        run.state.evaluated_step = 0
        run.rewrite_checkpoint()
    again = training({"train.steps": 4, "train.eval_every": 10}, deadline=time.monotonic() + 600)
    assert again.restore()
    assert again.state.evaluated_step == (4 if evaluated else 0)
    summary = again.go()
    assert (summary["finished"], summary["steps"]) == ("time", 4)


def test_a_hook_sees_the_end_of_a_continued_run_once(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AtEnd(Hook):
        every, at_end, steps = 0, True, list[int]()

        def after_step(self, context: Context) -> None:
            self.steps.append(context.step)

    machine = SimulatedMachine(monkeypatch, lambda step: 0.1)
    machine.save, seconds = 0.0, iter([30.0])

    def score(*_: Any) -> Score:
        machine.now += next(seconds, 1.0)
        return Score(100.0, 100, 100)

    monkeypatch.setattr(Evaluate, "score", score)
    changes, hook = {"train.steps": 500, "train.eval_every": 50}, AtEnd()
    summary = training(changes, deadline=machine.now + 60, hooks=[hook]).go()
    assert hook.steps == [summary["steps"]]


def test_without_a_deadline_the_clock_does_not_matter(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    SimulatedMachine(monkeypatch, lambda step: 1e6)
    assert training({"train.steps": 30}).go()["steps"] == 30


def test_checkpoints_are_saved_about_every_minute(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SimulatedMachine(monkeypatch, lambda step: 1.0)
    training({"train.steps": 200, "train.eval_every": 1000}).go()
    assert len(machine.saves) == 4
    assert machine.saves[0] == pytest.approx(1062, abs=2)


def test_samples_take_a_small_share_of_the_time(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SimulatedMachine(monkeypatch, lambda step: 1.0)
    machine.sample, machine.evaluation = 10.0, 0.0
    run = training({"train.steps": 2000, "train.eval_every": 1})
    run.go()
    assert 30 <= run.context.took.total["sample"] < 0.03 * (machine.now - 1000)


def test_sample_texts_have_the_requested_length(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "SAMPLE_TOKENS", 40)
    run = training()
    run.go()
    texts = sample_texts(run.context.model, run.context.corpus.tokenizer, 2, math.inf, seed=1)
    assert [len(text) for text in texts] == [40, 40]
    assert texts == sample_texts(
        run.context.model, run.context.corpus.tokenizer, 2, math.inf, seed=1
    )
    assert [
        len(text)
        for text in sample_texts(run.context.model, run.context.corpus.tokenizer, 2, 0.0, seed=1)
    ] == [
        1,
        1,
    ]
    assert (
        sample_texts(run.context.model, CharTokenizer("ab", False), 2, math.inf, seed=1) == []
    )  # no token can start a text


def test_sample_texts_end_at_the_end_of_text_token(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = CharTokenizer("ab", True)
    rows = iter([[0, 2], [1, 2], [2, 2]])
    monkeypatch.setattr(
        sample, "generate", lambda model, ids, **_: rows if ids == [2] else pytest.fail("prompt")
    )
    assert sample_texts(training().context.model, tokenizer, 2, math.inf, seed=1) == ["ab", ""]


def test_evaluation_uses_bfloat16(training: Make, corpus: Corpus) -> None:
    losses = {}
    for dtype in ("float32", "bfloat16"):
        run = training({"train.dtype": dtype}, run=dtype)
        with torch.no_grad():
            for p in run.context.model.parameters():
                p.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
        losses[dtype] = Evaluate(1).score(run.context).nats_per_token
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bfloat16"] != losses["float32"]


def test_the_summary_is_standard_json(training: Make) -> None:
    run = training({"train.steps": 1})
    shutil.rmtree(run.context.run / "checkpoints", ignore_errors=True)
    summary = run.go()
    json.dumps(summary, allow_nan=False)
    assert summary["peak_memory_bytes"] > 1e6
    assert np.isfinite(summary["best_val_loss"])


def test_a_run_with_batch_warmup_resumes_to_the_same_weights(
    training: Make, said: io.StringIO
) -> None:
    """Each step sees all tokens of its batch, also if the last micro-batch is smaller."""
    changes = {
        "train.batch_size": 8,
        "train.initial_batch_size": 2,
        "train.micro_batch_size": 3,
        "train.steps": 12,
    }
    changes |= {"train.save_every": 5, "train.keep": 9}
    plain, cut = training(changes, run="plain"), training(changes, run="cut")
    seen, rows = [], plain.context.batches.rows

    def read(step: int, start: int = 0, end: int | None = None) -> Any:
        batch = rows(step, start, end)
        seen.append((step, len(batch.inputs)))
        return batch

    plain.context.batches.rows = read  # type: ignore[method-assign]
    summary = plain.go()
    wanted = [plain.context.config.train.rows_of(step) for step in range(12)]
    assert (min(wanted), max(wanted)) == (2, 8)
    assert [sum(n for at, n in seen if at == step) for step in range(12)] == wanted
    assert summary["tokens_seen"] == 16 * sum(wanted)
    cut.go()
    for step in available(cut.context.run)[1:]:
        shutil.rmtree(cut.context.run / f"checkpoints/step-{step:08d}")
    again = training(changes, run="cut")
    assert again.restore()
    assert again.state.step == 5
    again.go()
    for name, weight in plain.context.replica.weights(copy=False).items():
        assert torch.equal(again.context.replica.weights(copy=False)[name], weight), name
