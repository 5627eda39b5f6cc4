"""Trackers: TensorBoard and Weights & Biases get the numbers of metrics.jsonl."""

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmsmith.errors import ConfigError
from lmsmith.train import trackers as module
from lmsmith.train.loop import Training
from lmsmith.train.trackers import check_installed

Make = Callable[..., Training]


def lines(run: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def test_tensorboard_has_the_numbers_of_metrics(training: Make) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = training({"train.track": ("tensorboard",), "train.steps": 10})
    run.go()
    found = EventAccumulator(str(run.context.run / "tensorboard"))
    found.Reload()
    for kind, name in (("train", "loss"), ("train", "learning_rate"), ("eval", "val_loss")):
        wanted = [
            (line["step"], pytest.approx(line[name]))
            for line in lines(run.context.run)
            if line["kind"] == kind
        ]
        assert [(event.step, event.value) for event in found.Scalars(f"{kind}/{name}")] == wanted
        assert wanted


def test_wandb_gets_the_numbers(training: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[dict[str, float], int]] = []
    made: dict[str, Any] = {}
    run_of = types.SimpleNamespace(
        log=lambda values, step: logged.append((values, step)),
        finish=lambda: made.update(finished=True),
    )
    fake = types.ModuleType("wandb")
    fake.init = lambda **options: made.update(options) or run_of  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = training({"train.track": ("wandb",), "train.steps": 5})
    run.go()
    assert made["finished"]
    assert made["dir"] == str(run.context.run)
    assert made["config"]["train.steps"] == 5
    losses = [
        (line["loss"], line["step"]) for line in lines(run.context.run) if line["kind"] == "train"
    ]
    assert [
        (values["train/loss"], step) for values, step in logged if "train/loss" in values
    ] == losses


def test_a_tracker_that_is_not_installed_is_refused_before_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'lmsmith\[track\]'"):
        check_installed(["wandb"])
    check_installed([])


def test_unknown_trackers_are_refused(training: Make) -> None:
    with pytest.raises(
        ConfigError, match=r"train\.track = .neptune. .*: expected one of tensorboard, wandb"
    ):
        training({"train.track": ("neptune",)})
