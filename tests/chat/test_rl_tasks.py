"""Rewards, and tasks from files."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from lmsmith.chat.rl import rewards
from lmsmith.chat.rl.task import Judge, Problem
from lmsmith.config import REWARDS, RL_TASKS
from lmsmith.errors import ConfigError, DataError, TrainingError


@pytest.mark.parametrize(
    ("name", "truth", "answer", "expected"),
    [
        ("exact", "46", "46", 1),
        ("exact", "46", " 46.\n", 1),
        ("exact", "46", "46 or 47", 0),
        ("exact", "Under the bench.", "under  the bench", 1),
        ("contains", "46", "It is 46, I think", 1),
        ("contains", "46", "It is 146", 0),
        ("contains", "the bench", "It is under the Bench.", 1),
        ("last_number", "1,046", "12 + 34 = 1046", 1),
        ("last_number", "46", "46 = 12 + 34", 0),
        ("last_number", "46", "no idea", 0),
        ("marked_number", "46", "12 + 34 is 46\n#### 46", 1),
        ("marked_number", "46", "46", 0),
        ("digits", "146", "146", 1),
        ("digits", "146", "46", 2 / 3),
        ("digits", "46", "47", 1 / 2),
        ("digits", "46", "", 0),
        ("number_format", "46", " 12", 1),
        ("number_format", "46", "12.", 0),
        ("marked_format", "46", "so\n#### 12", 1),
        ("marked_format", "46", "#### 12 #### 13", 0),
        ("marked_format", "46", "#### 12 is right", 0),
    ],
)
def test_built_in_rewards(name: str, truth: str, answer: str, expected: float) -> None:
    assert REWARDS.get(name)(Problem.of("?", truth), answer) == pytest.approx(expected)


def test_rewards_are_added_with_their_weights() -> None:
    judge = Judge.of(["exact", "number_format=0.5"])
    problem = Problem.of("What is 1 + 1?", "2")
    assert [judge(problem, text) for text in ("2", "3", "x")] == [1.5, 0.5, 0]


def test_every_registered_reward_has_a_line_in_the_list() -> None:
    lines = str(rewards.__doc__).splitlines()
    listed = {line.split()[0] for line in lines if re.match(r"\w+ {3,}", line)}
    assert listed == set(REWARDS)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("exakt", "there is no reward 'exakt'. Did you mean 'exact'?"),
        ("exact=lots", "rl.rewards = 'exact=lots': expected NAME or NAME=WEIGHT"),
        ("exact=nan", "expected NAME or NAME=WEIGHT"),
    ],
)
def test_wrong_names_of_rewards(item: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Judge.of([item])
    assert message in str(raised.value)


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no RL task 'aritmetic'\. Did you mean 'arithmetic'"):
        RL_TASKS.get("aritmetic")


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "raise"])
def test_a_reward_that_fails_is_named_with_prompt_and_answer(value: Any) -> None:
    def broken(problem: Problem, answer: str) -> Any:
        return 1 / 0 if value == "raise" else value

    judge = Judge((("broken", 1.0, broken),))
    with pytest.raises(TrainingError) as raised:
        judge(Problem.of("What is 1 + 1?", "2", "file.jsonl, line 3"), "two")
    said = str(raised.value)
    assert "the reward 'broken' r" in said  # raised, or returned
    assert "the answer 'two' to the prompt 'What is 1 + 1?' (file.jsonl, line 3)" in said
    assert "ZeroDivisionError" in said or "TypeError" in said or f"returned {value}" in said


def test_gsm8k_reads_a_local_file(tmp_path: Path) -> None:
    rows = [{"question": f"How many is {n}?", "answer": f"It is.\n#### {n}"} for n in range(25)]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = RL_TASKS.get("gsm8k").opened(tmp_path)
    train = [task.problem(1, n) for n in range(22)]
    held_out = [task.problem(1, n, held_out=True) for n in range(3)]
    assert {p.truth for p in train} | {p.truth for p in held_out} == {str(n) for n in range(25)}
    assert len({p.truth for p in train}) == 22  # an epoch has each problem once
    again = [task.problem(1, n) for n in range(22, 44)]
    assert {p.truth for p in again} == {p.truth for p in train}
    assert [p.truth for p in again] != [p.truth for p in train]
    assert train[0].question == f"How many is {train[0].truth}?"
    assert train[0].where.startswith(str(tmp_path / "gsm8k.jsonl"))


def test_gsm8k_without_a_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--rl\.data. `lmsmith data download gsm8k` has one"):
        RL_TASKS.get("gsm8k").opened(None)
    with pytest.raises(ConfigError, match="the task arithmetic reads no file"):
        RL_TASKS.get("arithmetic").opened(tmp_path)
