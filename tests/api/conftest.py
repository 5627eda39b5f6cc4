"""A run of a second, made by the API."""

import io
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

import lmsmith
from lmsmith import api
from lmsmith.machine import products as measure
from lmsmith.train.hooks import sample

TEXT = (
    "".join(
        f"{a} {b} {c}.\n"
        for a in ("The cat", "A bird", "Nobody", "It was")
        for b in ("saw", "hid", "lost")
        for c in "xyz"
    )
    * 20
)

TINY: dict[str, Any] = {
    "model.n_layer": 1,
    "model.d_model": 16,
    "model.n_head": 2,
    "model.context_length": 16,
    "train.batch_size": 4,
    "train.threads": 1,
    "train.device": "cpu",
    "train.dtype": "float32",
    "train.matmul": "default",
    "train.eval_every": 10,
    "train.log_every": 5,
}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    n, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(scope="session")
def quick() -> Iterator[None]:
    """Short samples; the machine's speed is measured on small matrices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "SAMPLE_TOKENS", 5)
        patch.setattr(measure, "SHAPE", (64, 64, 64))
        yield


@pytest.fixture(scope="session")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("api") / "book.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def run(quick: None, book: Path) -> api.Run:
    """Nothing is printed: neither by the run nor by its warnings."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        found = lmsmith.train(book, out=book.parent / "run", steps=20, settings=TINY)
    assert (out.getvalue(), err.getvalue()) == ("", "")
    return found


@pytest.fixture(scope="session")
def ngram(quick: None, book: Path) -> api.Run:
    return lmsmith.train(book, out=book.parent / "ngram", preset="ngram")


@pytest.fixture(scope="session")
def lm(run: api.Run) -> api.LM:
    return lmsmith.load(run)
