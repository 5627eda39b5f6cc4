"""All ranks decide together when to save and when to stop. The other rank is simulated: it takes
part in each all-reduce with the values that a test gives it.
"""

import json
import signal
from collections.abc import Callable
from typing import Any

import pytest

from lmsmith.checkpoint import available
from lmsmith.distributed.ranks import Ranks
from lmsmith.train.hooks import Context
from lmsmith.train.hooks.checkpoint import Checkpoints
from lmsmith.train.loop import Training

Make = Callable[..., Training]

SIGNAL, STOP, FAILED, SAMPLE, SAVE = range(5)  # the values of the all-reduce in `Hooks.after_step`


def with_other_rank(
    monkeypatch: pytest.MonkeyPatch, run: Training, position: int, step: int, value: float
) -> list[list[float]]:
    """From step `step` on, the other rank has `value` at this position. Returns this rank's
    values in each all-reduce."""
    seen: list[list[float]] = []

    def largest(ranks: Ranks, *values: float) -> list[float]:
        result = [float(one) for one in values]
        if len(result) == 5:
            seen.append(list(result))
            if run.context.step == step:
                result[position] = max(result[position], value)
        return result

    monkeypatch.setattr(Ranks, "max", largest)
    return seen


def test_a_save_that_is_due_on_another_rank(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training({"train.save_every": 10, "train.keep": 9})
    with_other_rank(monkeypatch, run, SAVE, 7, 1.0)
    run.go()
    assert available(run.context.run) == [7, 10, 20]


def test_a_save_that_is_due_here_is_announced(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every save within the loop follows an all-reduce in which this rank asked for it."""
    run, saved = training({"train.save_every": 10, "train.keep": 9}), list[int]()
    seen = with_other_rank(monkeypatch, run, SAVE, -1, 0.0)
    save = Checkpoints.after_step

    def noted(hook: Checkpoints, context: Context) -> None:
        saved.append(context.step)
        save(hook, context)

    monkeypatch.setattr(Checkpoints, "after_step", noted)
    run.go()
    assert saved == [10]
    assert [step for step, values in enumerate(seen) if values[SAVE]] == [10, 20]


def test_a_signal_on_another_rank_stops_this_one(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training()
    with_other_rank(monkeypatch, run, SIGNAL, 7, float(signal.SIGTERM))
    summary = run.go()
    assert (summary["finished"], summary["signal"], summary["steps"]) == ("signal", "SIGTERM", 7)
    assert available(run.context.run) == [7]


def test_a_hook_on_another_rank_stops_this_one(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training()
    with_other_rank(monkeypatch, run, STOP, 7, 1.0)
    summary: dict[str, Any] = run.go()
    assert (summary["finished"], summary["steps"]) == ("requested", 7)
    lines = (run.context.run / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["step"] for line in lines) == 7
