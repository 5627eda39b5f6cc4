"""A run that lm-evaluation-harness can evaluate, and our results on real items."""

from pathlib import Path
from typing import Any

import pytest
from random_models import random_model, saved

import lmsmith
from lmsmith.tokens.tokenizer import ByteTokenizer

N = 12
TASKS = ("hellaswag", "piqa", "lambada")


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> lmsmith.LM:
    """A GPT-2 shape that reads bytes; its context is shorter than some items."""
    folder = tmp_path_factory.mktemp("harness")
    theirs = random_model("gpt2", vocab_size=257)
    saved(theirs, folder / "hf")
    ByteTokenizer(end_of_text=True).save(folder / "bytes")
    run = lmsmith.import_model(folder / "hf", out=folder / "run", tokenizer=folder / "bytes")
    return lmsmith.load(run)


@pytest.fixture(scope="module")
def ours(lm: lmsmith.LM, test_data: Path) -> Any:
    options: dict[str, Any] = {"task_data": test_data / "tasks", "limit": N, "bos": False}
    return lmsmith.evaluate(lm, tasks=TASKS, **options)
