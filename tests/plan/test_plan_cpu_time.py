"""Seconds of a step on a CPU, against measured steps of the configs of `lmsmith plan --grade`."""

import dataclasses
import json
from pathlib import Path

import pytest

import lmsmith
from lmsmith.config import RunConfig
from lmsmith.config.presets import preset
from lmsmith.plan.cpu_time import FACTORS, HIGH, LOW, cpu_parts, primitives
from lmsmith.plan.devices import of_machine
from lmsmith.plan.grade import Grade, cases, summary
from lmsmith.plan.here import Measured
from lmsmith.plan.time import step_time

# Written by `python benchmarks/step_times.py grade --write`: no fit of FACTORS used these configs.
GRADED = Path(__file__).parent / "data" / "graded_steps.jsonl"
PAGE = Path(lmsmith.__file__).parent.parent / "docs" / "accounting.md"


def graded() -> list[tuple[list, RunConfig, Measured, float]]:
    """Case, config, the machine at that time, and the measured seconds."""
    found = []
    for line in map(json.loads, GRADED.read_text(encoding="utf-8").splitlines()):
        if "speeds" in line:
            speeds = Measured(**line["speeds"])
        else:
            name, settings = line["case"]
            config = preset(name).changed(settings, where="here")
            found.append((line["case"], config, speeds, line["seconds"]))
    return found


CASES = graded()
SPEEDS = CASES[0][2]


def test_measured_steps() -> None:
    """The figures of docs/accounting.md, and the goals: 7%, 15%, and 70 to 90% of the intervals."""
    assert [(name, settings) for (name, settings), *_ in CASES] == cases()
    grades = []
    for case, config, speeds, seconds in CASES:
        step = step_time(config, of_machine(speeds))
        grades.append(Grade(case, "time", step.seconds, step.low, step.high, seconds))
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert summary(grades, "time") in text
    assert f"{LOW:.2f} to {HIGH:.2f} times the prediction" in text
    assert 0.7 <= sum(grade.inside for grade in grades) / len(grades) <= 0.9
    assert LOW < 1 < HIGH


def test_checkpointing_repeats_the_forward_pass_of_blocks() -> None:
    settings = {"train.activation_checkpointing": False, "train.micro_batch_size": 0}
    config = preset("gpt2").changed(
        {**settings, "model.n_layer": 3, "model.d_model": 64, "model.n_head": 2}
        | {"model.context_length": 256, "model.vocab_size": 300, "train.batch_size": 2}
        | {"model.dropout": 0.1, "model.window": 9, "model.window_pattern": "SSL"},
        where="here",
    )
    again = config.changed({"train.activation_checkpointing": True}, where="here")
    one, two = (primitives(each, each.model, SPEEDS) for each in (config, again))
    ratio = {name: two[name] / one[name] for name in one if one[name]}
    assert ratio.pop("dropout") == pytest.approx((2 * 6 + 1) / (6 + 1))  # not of the embeddings
    assert ratio.pop("blocks of attention") == pytest.approx(4 / 3)
    for name in ("softmax of attention", "tanh GELU", "windows"):
        assert ratio.pop(name) == pytest.approx(2), name
    for name in ("operations", "passes over memory"):  # those outside of blocks are not repeated
        assert 1.2 < ratio.pop(name) < 4 / 3, name
    assert ratio.pop("products of blocks") == pytest.approx(4 / 3)
    assert ratio.pop("attention") == pytest.approx(4 / 3)
    assert set(ratio.values()) == {1.0}
    assert one["windows"] == 2 * SPEEDS.overhead  # layers with a window
    assert one["blocks of attention"] == 3 * 3 * 2 * SPEEDS.overhead  # 256 tokens are two blocks


def test_a_machine_twice_as_fast_takes_half_the_time() -> None:
    faster = dataclasses.replace(
        SPEEDS,
        by_width={width: 2 * rate for width, rate in SPEEDS.by_width.items()},
        attention=2 * SPEEDS.attention,
        copy=2 * SPEEDS.copy,
        small=2 * SPEEDS.small,
        exponential=2 * SPEEDS.exponential,
        overhead=SPEEDS.overhead / 2,
    )
    for _, config, *_ in CASES:
        slow, fast = (sum(cpu_parts(config, speeds).values()) for speeds in (SPEEDS, faster))
        assert fast == pytest.approx(slow / 2)


def test_each_part_has_a_factor_and_micro_batches_repeat_the_passes() -> None:
    config = CASES[0][1].changed(
        {"train.batch_size": 4, "train.micro_batch_size": 0, "optim.name": "muon"}, where="here"
    )
    found = primitives(config, config.model, SPEEDS)
    assert found.keys() == FACTORS.keys()
    single = config.changed({"train.batch_size": 2}, where="here")
    twice = config.changed({"train.micro_batch_size": 2}, where="here")
    one, two = (primitives(each, each.model, SPEEDS) for each in (single, twice))
    for name in found:
        of_optimizer = name in ("AdamW, bytes", "Muon, bytes", "Muon, products", "tensors")
        of_optimizer = of_optimizer or name in ("Muon, matrices", "SGD, tensors")
        assert two[name] == pytest.approx(one[name] * (1 if of_optimizer else 2)), name
