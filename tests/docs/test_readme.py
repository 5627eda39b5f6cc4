"""The README's Python, executed with a model that trains in a second."""

import re
from pathlib import Path
from typing import Any

import pytest

import lmsmith
from lmsmith.machine import products as measure
from lmsmith.train.hooks import sample

README = Path(__file__).resolve().parents[2] / "README.md"
SMALLER = {
    "minutes=1": "steps=5, settings=TINY",
    "vocab_size=4096": "vocab_size=270",
    "max_tokens=100": "max_tokens=10",
    "n=4)": "n=2, max_tokens=10)",
    "tokenizer=tok)": "tokenizer=tok, workers=1)",
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


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sample, "SAMPLE_TOKENS", 5)
    monkeypatch.setattr(measure, "SHAPE", (64, 64, 64))
    text = "".join(f"{who} was {how}.\n" for who in ("It", "He", "Nobody") for how in "xyz")
    Path("book.txt").write_text(text * 60, encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    for large, small in SMALLER.items():
        assert large in block
        block = block.replace(large, small)
    names: dict[str, Any] = {"TINY": TINY}
    exec(compile(block, "README.md", "exec"), names)
    run = names["run"]
    assert run.path == Path("runs/book-1")
    assert Path("runs/book-1-hf/model.safetensors").is_file()
    assert lmsmith.Tokenizer.load("tok") == names["tok"]
