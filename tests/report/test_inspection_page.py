"""The page of `lmsmith inspect`: what it shows, and that it stands alone."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lmsmith.inspect.inspection import Inspection
from lmsmith.inspect.losses import Group
from lmsmith.inspect.trace import Lens, Trace
from lmsmith.inspect.weights import Neighbours
from lmsmith.report.inspection import _sharpest, inspection_sections, write_inspection

T = 4
LENS = Lens(
    ("embedding", "layer 1"),
    np.array([[1, 1, 2, 0], [1, 2, 0, 0]]),
    np.array([[0.1, 0.2, 0.3, 0.4], [0.9, 0.8, 0.7, 0.6]], np.float32),
)
ATTENTION = np.tril(np.ones((1, 2, T, T), np.float32))
ATTENTION /= ATTENTION.sum(-1, keepdims=True)
ATTENTION[0, 1] = np.eye(T, k=-1)
ATTENTION[0, 1, 0, 0] = 1


def inspection(attention: np.ndarray | None = ATTENTION) -> Inspection:
    sizes = {"attention.qkv": np.array([0.5], np.float32)}
    return Inspection(
        "a<b", "Transformer, 1 layer of 8", ("<s>", "x", "·y", "x"), np.array([0, 1, 2, 1]),
        Trace(LENS, attention, sizes if attention is not None else {}),
        (np.arange(3), np.eye(3, dtype=np.float32)), sizes, [Neighbours(1, ((2, 0.5),))], 1.5, 100,
        [Group(1, 1, 40, 3.0), Group(2, 4, 60, 0.5)], [Group(0, 0, 10, 5.0), Group(1, 9, 90, 1.1)],
        ("a note",), {0: "<s>", 1: "x", 2: "·y"},
    )  # fmt: skip


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.policy = ""
        self.without_words = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.sources += [found[name] or "" for name in ("src", "href") if name in found]
        if tag == "meta" and "http-equiv" in found:
            self.policy = found["content"] or ""
        self.without_words += tag == "img" and not found.get("alt")


def test_the_page_stands_alone_and_every_picture_has_a_caption(tmp_path: Path) -> None:
    html = write_inspection(inspection(), tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(html)
    assert page.policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert len(page.sources) >= 5
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert page.without_words == 0
    assert "a<b" not in html
    assert re.findall("<h2>(.*?)</h2>", html) == [
        "Loss by position and by frequency", "Logit lens", "Attention",
        "Size of activations and weights by layer", "Position embeddings", "Nearest tokens",
    ]  # fmt: skip
    assert "layer 1, head 2" in html
    assert "Layer 1, head 2, enlarged" in html
    assert "A note." in html
    assert "60.0% of tokens" in html


def test_a_prediction_that_comes_true_is_marked() -> None:
    (lens,) = [part for part in inspection_sections(inspection()) if "Logit lens" in part]
    marked = re.findall(r'<td class=right title="probability ([\d.]+)">', lens)
    assert marked == ["0.100", "0.900", "0.800"]  # x after <s>, twice; ·y after x


def test_what_does_not_apply_is_absent() -> None:
    html = "".join(inspection_sections(inspection(None)))
    assert "Attention" not in html
    assert "residual stream" not in html.partition("Size of")[2]


def test_the_enlarged_head_is_the_sharpest() -> None:
    assert _sharpest(ATTENTION) == (0, 1)
    first = np.zeros((1, 2, T, T), np.float32)
    first[..., 0] = 1
    first[0, 0] = np.tril(np.ones((T, T))) / np.arange(1, T + 1)[:, None]
    assert _sharpest(first) == (0, 0)  # attention to the first token does not count


@pytest.mark.parametrize("n_head", [100, 300])
def test_of_a_large_model_some_layers_are_shown(n_head: int) -> None:
    large = np.tile(ATTENTION[:, :1], (4, n_head, 1, 1))
    html = "".join(inspection_sections(inspection(large)))
    assert "1 of 4 layers are shown" in html
    assert html.count("<figcaption>layer") == n_head
