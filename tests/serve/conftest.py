"""Two small runs, a server for them, and a browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lmsmith
from lmsmith import api
from lmsmith.machine import products as measure
from lmsmith.tokens.tokenizer import ByteTokenizer
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
    "model.context_length": 64,
    "train.batch_size": 4,
    "train.threads": 1,
    "train.device": "cpu",
    "train.dtype": "float32",
    "train.matmul": "default",
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs "run" (a Transformer), "ngram", and "gru", which reads bytes and has an
    end token.
    """
    place = tmp_path_factory.mktemp("serve")
    book = place / "book.txt"
    book.write_text(TEXT, encoding="utf-8")
    n = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "SAMPLE_TOKENS", 5)
        patch.setattr(measure, "SHAPE", (64, 64, 64))
        lmsmith.train(book, out=place / "run", steps=20, settings=TINY)
        lmsmith.train(book, out=place / "ngram", preset="ngram")
        ByteTokenizer(end_of_text=True).save(place / "bytes")
        small = {name: value for name, value in TINY.items() if name != "model.n_head"}
        options = {"preset": "gru", "steps": 2, "tokenizer": place / "bytes"}
        lmsmith.train(book, out=place / "gru", settings=small, **options)
    torch.set_num_threads(n)
    return place


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Any]:
    from running import serving  # needs the libraries of lmsmith[serve]

    with serving([folder / "run", folder / "ngram", folder / "gru"]) as started:
        yield started


@pytest.fixture(scope="module")
def lm(folder: Path) -> api.LM:
    return lmsmith.load(folder / "run")


@pytest.fixture(scope="module")
def gru(folder: Path) -> api.LM:
    return lmsmith.load(folder / "gru")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("Chromium is not installed (apt-get install chromium chromium-driver)")
    from selenium.webdriver.chrome.service import Service

    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1000,800"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = selenium.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


@pytest.fixture
def opened(browser: Any, server: Any) -> Any:
    """The page, without anything from earlier tests."""
    from driving import until

    browser.get_log("browser")  # drops what earlier tests caused
    browser.get(f"http://127.0.0.1:{server.port}/")
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    until(lambda: browser.find_element("id", "model").get_attribute("value") == "run")
    return browser
