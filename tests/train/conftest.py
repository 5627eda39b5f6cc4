"""Fixtures for the tests of training: a text, a tiny model, a run."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny import TEXT, TINY

from lmsmith.config import RunConfig
from lmsmith.data.corpus import Corpus, Counts
from lmsmith.machine import products as measure
from lmsmith.tokens.tokenizer import CharTokenizer
from lmsmith.train.hooks import sample
from lmsmith.train.loop import Training


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    n, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, runs of 20 steps would spend nearly all their time on samples and on measuring
    the machine.
    """
    monkeypatch.setattr(sample, "SAMPLE_TOKENS", 5)
    monkeypatch.setattr(measure, "SHAPE", (64, 64, 64))


@pytest.fixture
def corpus() -> Corpus:
    tokenizer = CharTokenizer.learn([TEXT], False)
    ids = tokenizer.encode(TEXT)
    cut = int(0.9 * len(ids))
    n_val = len(ids) - cut
    return Corpus(ids[:cut], ids[cut:], tokenizer, Counts(cut, n_val, n_val, 0, 0, ()))


@pytest.fixture
def config(corpus: Corpus) -> RunConfig:
    return RunConfig().changed(
        TINY | {"model.vocab_size": corpus.tokenizer.vocab_size}, where="a test"
    )


@pytest.fixture
def said() -> io.StringIO:
    """What a run prints."""
    return io.StringIO()


@pytest.fixture
def training(
    config: RunConfig, corpus: Corpus, tmp_path: Path, said: io.StringIO
) -> Callable[..., Training]:
    """`training({"train.steps": 5}, deadline=...)`: a Training in tmp_path / "run"."""

    def make(changes: dict[str, Any] | None = None, run: str = "run", **options: Any) -> Training:
        (tmp_path / run).mkdir(exist_ok=True)
        changed = config.changed(changes or {}, where="a test")
        console = Console(file=said, width=100)
        return Training(
            changed,
            corpus,
            tmp_path / run,
            console,
            device=torch.device("cpu"),
            peak_flops=1e9,
            **options,
        )

    return make


def ids_of(text: str) -> np.ndarray:
    return CharTokenizer.learn([TEXT], False).encode(text)
