"""What a run stores about its cost after training, and the warning that it will not end in time."""

import datetime
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from a_machine import SPEEDS

from lmsmith.config import RunConfig
from lmsmith.config.presets import preset
from lmsmith.plan import here
from lmsmith.plan.devices import of_machine
from lmsmith.plan.flops import flops
from lmsmith.plan.forecast import forecast, predicted_step, time_warning
from lmsmith.plan.memory import memory
from lmsmith.plan.time import step_time
from lmsmith.strict_json import write_json
from lmsmith.train import outcome as module
from lmsmith.train.outcome import counted_flops, outcome

CPU = torch.device("cpu")
HERE = replace(
    SPEEDS, name=here.name(), threads=2, date=datetime.date.today().isoformat()
)  # as if this machine had been measured today


def config_of(name: str = "gpt2", **changes: Any) -> RunConfig:
    small = {
        "model.n_layer": 2,
        "model.n_head": 2,
        "model.d_model": 32,
        "model.context_length": 24,
        "model.vocab_size": 29,
        "train.batch_size": 4,
        "train.dtype": "float32",
        "train.threads": 2,
        "train.steps": 1000,
    }
    return preset(name).changed({**small, **changes}, where="here")


@pytest.fixture
def known_speeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMSMITH_CACHE", str(tmp_path))
    write_json(tmp_path / "machine.json", asdict(HERE))


def test_measured_after_training_beside_the_forecast() -> None:
    config = config_of(
        **{
            "model.n_layer": 3,
            "model.d_model": 64,
            "model.context_length": 64,
            "model.vocab_size": 300,
        }
    )
    found = outcome(config, CPU, n_params=7, steps=1000, train_seconds=5000.0)
    expected = forecast(config, gpu=False)
    assert (
        found["flops_per_token"] == expected["flops_per_token"] == flops(config, "full").per_token
    )
    assert found["peak_tensor_bytes"] == pytest.approx(memory(config).n_bytes, rel=0.05)
    assert found["seconds_per_step"] == 5.0
    assert found["notes"] == []


def test_activation_checkpointing_is_counted() -> None:
    config = config_of("llama", **{"train.activation_checkpointing": True})
    # PyTorch stops the recomputation before the last product of a block, whose output it does not
    # need; the formula repeats the complete forward pass.
    skipped = 2 * config.model.n_layer * config.model.width_ff * config.model.d_model
    assert counted_flops(config) == flops(config, "full").per_token - skipped


def test_what_would_take_long_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(module, "peak_of_steps", fails)
    monkeypatch.setattr(module, "counted_flops", fails)
    found = outcome(config_of(), CPU, n_params=7, steps=100, train_seconds=50.0)
    assert found["flops_per_token"] is None
    assert found["peak_tensor_bytes"] is None
    assert [note.partition(":")[0] for note in found["notes"]] == [
        "FLOPs",
        "peak memory of tensors",
    ]
    lstm = preset("lstm").changed({"model.vocab_size": 100}, where="here")
    assert outcome(lstm, CPU, n_params=7, steps=0, train_seconds=0.0)["seconds_per_step"] is None


@pytest.mark.parametrize("objective", ["preferences", "rl"])
def test_other_objectives_are_not_measured_as_text(objective: str) -> None:
    """Their losses need other batches, so a step on text would raise after hours of training."""
    config = config_of(**{"train.objective": objective, "data.sources": ("arithmetic",)})
    found = outcome(config, CPU, n_params=7, steps=10**6, train_seconds=10.0**6)
    expected = forecast(config, gpu=False)
    for key in ("flops_per_token", "peak_tensor_bytes"):
        assert found[key] is None
        assert expected[key] is None
    assert found["seconds_per_step"] == 1
    assert predicted_step(config, gpu=False)[0] is None
    for of in (found, expected):
        assert "plan --method" in of["notes"][0]


@pytest.mark.usefixtures("known_speeds")
def test_seconds_are_predicted_from_measured_speeds() -> None:
    config = config_of()
    expected = step_time(config, of_machine(HERE)).seconds
    found = forecast(config, gpu=False)
    assert found["seconds_per_step"] == expected
    assert found["seconds"] == 1000 * expected
    other = config.changed({"train.threads": 1}, where="here")
    found = forecast(other, gpu=False)  # other speeds
    assert found["seconds_per_step"] is None
    assert "--device here" in found["notes"][0]


@pytest.mark.usefixtures("known_speeds")
def test_a_warning_offers_lengths_that_end_in_time() -> None:
    config = config_of(**{"train.minutes": 0.1, "train.batch_size": 256})
    step, _ = predicted_step(config, gpu=False)
    assert step is not None
    needed = 1000 * step.seconds
    assert time_warning(config, needed, gpu=False) == ""
    text = time_warning(config, needed / 2, gpu=False)
    steps = int(text.partition("--steps ")[2].split()[0])
    assert steps * step.seconds <= needed / 2 < (steps + 1) * step.seconds
    minutes = float(text.partition("--minutes ")[2].split()[0])
    assert math.isclose(minutes, math.ceil(10 * (0.1 + needed / 2 / 60)) / 10)
    rows = int(text.partition("batch_size ")[2].split()[0])
    smaller = config.changed({"train.batch_size": rows}, where="here")
    assert forecast(smaller, gpu=False)["seconds"] <= needed / 2
    assert time_warning(config, needed / 2, gpu=True) == ""
