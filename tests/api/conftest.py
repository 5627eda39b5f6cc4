"""A run of a second, made by the API."""

import io
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from small_run import TEXT, TINY

import lmsmith
from lmsmith import api
from lmsmith.machine import products as measure
from lmsmith.train.hooks import sample


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    n, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(scope="session")
def quick() -> Iterator[None]:
    """Short samples, and small matrices to measure the machine's speed."""
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
    """Checks that neither runs nor warnings print anything."""
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
