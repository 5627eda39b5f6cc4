"""The model card of an exported model, read as the Hub reads it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from test_runs import lmsmith, trained

from lmsmith.strict_json import write_json
from lmsmith.tokens.tokenizer import ByteTokenizer

CONFIG = """
preset = "llama"
[data]
sources = ["/home/somebody/books/novels.txt", "tinystories"]
[optim]
learning_rate = 0.002
"""


def exported(tmp_path: Path, name: str, *words: str) -> str:
    run = tmp_path / "run"
    trained(run, ByteTokenizer(True), name)
    (run / "config.toml").write_text(CONFIG)
    (run / "tokens").mkdir()
    write_json(run / "tokens" / "corpus.json", {"notes": ["the last 10% is held out"]})
    write_json(run / "summary.json", {"steps": 1200, "val_loss": 1.23456, "tokens_seen": 40960})
    assert lmsmith("export", run, "--to", "hf", "--out", tmp_path / "my-model", *words) == 0
    return (tmp_path / "my-model" / "README.md").read_text(encoding="utf-8")


def test_the_card_says_what_the_run_recorded(tmp_path: Path, capsys: Any) -> None:
    text = exported(tmp_path, "llama", "--dtype", "float16")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "unknown",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["lmsmith"],
    }
    for row in (
        "| architecture | LlamaForCausalLM |",
        "| precision | float16 |",
        "| context length | 64 |",
        "| vocabulary | 257 tokens |",
        "| validation loss, nats per token | 1.2346 |",
        "| steps | 1,200 |",
        "| tokens seen | 40,960 |",
        "| optim.learning_rate | 0.002 |",
        "- source: `novels.txt`",
        "- source: `tinystories`",
        "- the last 10% is held out",
    ):
        assert row in body
    assert "somebody" not in body
    assert "trust_remote_code" not in body
    told = capsys.readouterr().out
    assert f"upload   hf upload YOUR-NAME/my-model {tmp_path / 'my-model'}" in told
    assert "fill in the licence" in told
    assert "trust_remote_code" not in told


def test_the_lines_of_code_work(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    text = exported(tmp_path, "modern")
    assert "load it with trust_remote_code=True" in capsys.readouterr().out
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out.startswith("Once upon a time")


def test_a_run_without_records(tmp_path: Path) -> None:
    trained(tmp_path / "run", ByteTokenizer(True), "llama")
    assert lmsmith("export", tmp_path / "run", "--to", "hf", "--out", tmp_path / "out") == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Fill in: the training text." in text
    assert "Fill in: the run recorded no scores." in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "hf", "--shard-size", "5"], "expected at least 100KB"),
        (["--to", "hf", "--shard-size", "many"], "expected a number with a unit"),
        (["--to", "llmc", "--shard-size", "5GB"], "--shard-size 5GB is for --to hf"),
        (["--to", "gguf", "--dtype", "float32"], "--dtype float32 is not for --to gguf"),
        (["--to", "hf", "--type", "q8_0"], "--type q8_0 is for --to gguf"),
        (["--to", "onnx", "--dtype", "float16"], "--dtype float16: the ONNX graph"),
        (["--to", "hf", "--dtype", "float8"], "float8"),
        (["--to", "llmc", "--dtype", "float16"], "llm.c does not support float16"),
    ],
)
def test_bad_arguments(words: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    trained(tmp_path / "run", ByteTokenizer(True), "gpt2")
    assert lmsmith("export", tmp_path / "run", "--out", tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
