"""The README: its Python, executed with a model that trains in a second, and what scripts write
into it.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

import lmsmith
from lmsmith.machine import products as measure
from lmsmith.text.stories import write_stories
from lmsmith.train.hooks import sample

PROJECT = Path(__file__).resolve().parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
spec = importlib.util.spec_from_file_location("make_readme", PROJECT / "docs" / "make_readme.py")
make: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)

SMALLER = {
    'steps=300, tokenizer="bpe:2048"': "steps=5, settings=TINY",
    "max_tokens=25": "max_tokens=5",
}
TINY: dict[str, Any] = {
    "model.n_layer": 1,
    "model.d_model": 16,
    "model.n_head": 2,
    "model.n_kv_head": 2,
    "model.context_length": 16,
    "train.batch_size": 4,
    "train.device": "cpu",
    "train.dtype": "float32",
    "train.matmul": "default",
    "tokenizer": "bpe:270",
}


def test_the_readmes_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sample, "SAMPLE_TOKENS", 5)
    monkeypatch.setattr(measure, "SHAPE", (64, 64, 64))
    Path("demo").mkdir()
    write_stories(Path("demo/stories.jsonl"), 30_000, seed=1)
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert block == make.PYTHON
    for large, small in SMALLER.items():
        assert large in block
        block = block.replace(large, small)
    names: dict[str, Any] = {"TINY": TINY}
    exec(compile(block, "README.md", "exec"), names)
    assert names["run"] == lmsmith.Run("runs/stories-1")
    assert "bits per byte" in capsys.readouterr().out


def test_what_the_readme_shows_is_there() -> None:
    for name in ("demo", "story", "python"):
        (content,) = re.findall(rf"<!-- {name} -->(.*?)<!-- /{name} -->", README, re.DOTALL)
        assert "```text\n" in content
    assert len(re.findall(r"<!-- story -->\n\n```text\n(?:.+\n){8}```", README)) == 1
    picture = PROJECT / "docs" / "report.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 150_000


def test_text_goes_between_its_markers() -> None:
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    new = make.insert(text, "x", "new \\1")
    assert new == "a\n<!-- x -->\n\nnew \\1\n\n<!-- /x -->\nb\n"
    assert make.insert(new, "x", "new \\1") == new
    with pytest.raises(ValueError, match="<!-- y -->"):
        make.insert(text, "y", "")


def test_the_excerpt_has_the_choices_and_the_first_and_last_losses() -> None:
    printed = (
        "text     1,000 tokens\nmachine  cpu\nstep     1/9  loss 7\nstep      1  val loss 7.0  x\n"
        f"step      5  val loss 5.0  x\nstep  1,009  val loss 3.0  x\nbest {'long ' * 40}\n"
    )
    lines = make.excerpt(printed).splitlines()
    assert lines[:5] == [
        "text     1,000 tokens",
        "machine  cpu",
        "step      1  val loss 7.0  x",
        "...",
        "step  1,009  val loss 3.0  x",
    ]
    assert lines[5].endswith("long ...")
    assert len(lines[5]) <= make.WIDTH + 10
