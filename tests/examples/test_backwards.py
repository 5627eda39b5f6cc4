"""A user's own task of reinforcement learning and its reward."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import lmsmith
from lmsmith.config import REWARDS, RL_TASKS

HERE: dict[str, Any] = {
    "train.threads": 1,
    "train.device": "cpu",
    "train.dtype": "float32",
    "train.matmul": "default",
    "train.batch_size": 8,
    "train.log_every": 1,
}
MODEL = {"model.n_layer": 1, "model.d_model": 16, "model.n_head": 2, "model.context_length": 64}


def test_the_example_trains_on_its_own_reward(
    example: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    example("backwards")
    task, reward = RL_TASKS.get("backwards"), REWARDS.get("letters_in_place")
    problem = task.problem(1, 0)
    word = problem.question.split()[1]
    assert [reward(problem, text) for text in (word[::-1], "", "?")] == [1, 0, 0]
    held_out = {task.problem(1, n, held_out=True).truth for n in range(9)}
    assert held_out == {"tac", "god"}
    assert not held_out & {task.problem(1, n).truth for n in range(99)}
    draw = random.Random(1)
    lines = ["".join(draw.choices("abcdefg ", k=20)) for _ in range(200)]
    (tmp_path / "book.txt").write_text("\n".join(lines))
    solved = [task.problem(1, n) for n in range(40)]
    rows = [{"prompt": p.question, "completion": p.truth} for p in solved]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = lmsmith.train(
        tmp_path / "book.txt",
        out=tmp_path / "base",
        steps=2,
        preset="llama",
        tokenizer="byte",
        settings=HERE | MODEL,
    )
    tuned = lmsmith.tune(
        base.path, tmp_path / "chats.jsonl", out=tmp_path / "tuned", steps=4, settings=HERE
    )
    run = lmsmith.rl(
        tuned.path,
        "backwards",
        out=tmp_path / "rl",
        steps=2,
        rewards=["letters_in_place", "exact=2"],
        settings=HERE | {"rl.eval_problems": 2},
    )
    names = {
        one["name"] for one in json.loads((run.path / "extensions.json").read_text())["extensions"]
    }
    assert names == {"backwards", "letters_in_place"}
    assert 0 <= run.summary["best_val_metrics"]["val_reward"] <= 3
    assert "Spell cat backwards." in (run.path / "samples.md").read_text()
    assert "Mean reward" in (run.path / "report.html").read_text()
