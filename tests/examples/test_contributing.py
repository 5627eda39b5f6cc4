"""CONTRIBUTING.md: its commands run, and its code is that of the examples."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmsmith.config import SCHEDULES, ScheduleConfig
from lmsmith.config.presets import PRESETS, preset

PROJECT = Path(__file__).resolve().parents[2]
TEXT = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")

# Settings with which a run of the guide ends in a second, by the kind of model.
QUICK = ["--tokenizer=char", "--steps=2", "--train.threads=1", "--train.matmul=default"]
QUICK += ["--train.dtype=float32", "--train.batch_size=2", "--model.context_length=16"]
NPLM = ["--model.d_embedding=4", "--model.d_hidden=4"]
GPT = ["--model.n_layer=1", "--model.d_model=16", "--model.n_head=2"]
GPT += ["--model.ngram_table_size=64"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def with_commands() -> Iterator[tuple[dict[str, str], list[list[str]]]]:
    """For each sh block with lmsmith in it: the variables it exports, and its commands."""
    for block in blocks("sh"):
        lines = [shlex.split(line, comments=True) for line in block.splitlines()]
        exports = [word.split("=", 1) for line in lines if line[0] == "export" for word in line[1:]]
        commands = [line[1:] for line in lines if line[0] == "lmsmith"]
        if commands:
            assert len(commands) == len(lines) - 1
            yield dict(exports), commands


@pytest.mark.slow
@pytest.mark.parametrize(
    ("exported", "commands"), list(with_commands()), ids=["nplm", "lion", "corpus"]
)
def test_its_commands_run(
    lmsmith: Any, exported: dict[str, str], commands: list[list[str]]
) -> None:
    (lmsmith.cwd / "examples").symlink_to(PROJECT / "examples")
    (lmsmith.cwd / "lab").mkdir()
    notes = "".join(json.dumps({"text": f"Note {n}."}) + "\n" for n in range(200))
    (lmsmith.cwd / "lab/notes.jsonl").write_text(notes, encoding="utf-8")
    exported = {"LMSMITH_DATA": str(lmsmith.cwd / "store")} | exported
    if "LAB_CORPORA" in exported:
        exported["LAB_CORPORA"] = str(lmsmith.cwd / exported["LAB_CORPORA"])
    for words in commands:
        small = [*QUICK, *(NPLM if "nplm" in words else GPT)]
        done = lmsmith(*words, *(small if words[:1] == ["train"] else []), environment=exported)
        assert done.status == 0, (words, done.err)


def test_its_make_targets_exist() -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    wanted = set(re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE))
    assert wanted == {"test", "slow", "lint"}
    for target in wanted:
        assert f"\n{target}:" in makefile


def test_its_code_is_in_the_examples_or_runs() -> None:
    examples = [path.read_text(encoding="utf-8") for path in (PROJECT / "examples").glob("*.py")]
    others = [block for block in blocks("python") if not any(block in text for text in examples)]
    assert len(others) == 2
    for block in others:
        exec(block, {"__name__": __name__})
    assert SCHEDULES.get("sqrt-decay")(25, 100, ScheduleConfig()) == 0.5
    assert preset("small-llama").to_dict()["model"]["n_layer"] == 4


def test_the_entry_point_groups_it_names() -> None:
    from lmsmith.config import MODEL_KINDS, OPTIMIZERS
    from lmsmith.text.corpora import CORPORA

    for registry in (MODEL_KINDS, OPTIMIZERS, SCHEDULES, PRESETS, CORPORA):
        assert f"`{registry.group}`" in TEXT
