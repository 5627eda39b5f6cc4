"""A user's own task, from a file and without one."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lmsmith.evaluate.tasks.run import Subject, run_tasks
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.tokens.tokenizer import ByteTokenizer

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/rhymes.py"


def test_the_example_runs_like_a_task_of_ours(
    example: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    example("rhymes")
    model: Any = GPTConfig(
        vocab_size=257, n_layer=1, n_head=1, d_model=8, context_length=64
    ).build()
    model.initialise(torch.Generator().manual_seed(1))
    subject = Subject(model.eval(), ByteTokenizer(end_of_text=True), 256, lambda *_: [])
    (found,) = run_tasks(subject, ["rhymes"], shots=1)
    assert (found.n_items, found.chance) == (4, 0.5)
    rows = [{"line": "The fox sat on a", "words": ["box", "stone"], "rhyme": 0}] * 2
    (tmp_path / "rhymes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = run_tasks(subject, ["rhymes"], folder=tmp_path)
    # Zero projections: every byte is equally likely, so the shorter word wins.
    assert found.metrics["acc"] == 1.0
    assert found.items[0].answers[0].log_likelihood == pytest.approx(-4 * 5.5491, abs=1e-3)


def test_the_command_line_knows_it(lmsmith: Any) -> None:
    environment = {"LMSMITH_EXTENSIONS": str(EXAMPLE)}
    done = lmsmith("eval", "no-run", "--tasks", "rhymes", environment=environment)
    assert "no-run is not a run" in " ".join(done.err.split())
