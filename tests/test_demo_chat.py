"""The ladder of `lmsmith demo --chat`: runs that know their parent, a table, a section of the report."""

import io
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lmsmith import demo_chat
from lmsmith.chat.conversations import Conversations
from lmsmith.demo_chat import Rung, Stage, climb, shown
from lmsmith.errors import DataError
from lmsmith.report.runs import write_report
from lmsmith.text.stories import write_stories
from lmsmith.train.start import train

TINY: dict[str, Any] = {
    "model.n_layer": 1,
    "model.d_model": 16,
    "model.n_head": 2,
    "model.context_length": 256,
    "model.ngram_table_size": 64,
    "train.threads": 1,
    "train.steps": 2,
    "train.batch_size": 2,
    "tokenizer": "bpe:512",
}


@pytest.mark.slow
def test_the_stages_start_from_each_other_and_the_report_has_their_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = Console(quiet=True)
    write_stories(tmp_path / "stories.jsonl", 40_000, 1)
    base, _ = train([str(tmp_path / "stories.jsonl")], TINY, out=tmp_path / "run-1", console=quiet)
    short = {"train.batch_size": 4}
    for name, value in {
        "N_CONVERSATIONS": 20,
        "N_HELD_OUT": 4,
        "LIMIT": 10,
        "SETTINGS": short,
        "N_PAIRS": 20,
        "ALIGN_SETTINGS": short,
        "RL_SETTINGS": short | {"rl.group_size": 2, "rl.eval_problems": 4},
        "_length": lambda deadline: {"train.steps": 2},
    }.items():
        monkeypatch.setattr(demo_chat, name, value)
    run, summary, ladder = climb(base, tmp_path, console=quiet)
    assert [one.stage for one in ladder] == ["base", *(s.name for s in demo_chat.STAGES)]
    assert summary["finished"] != "signal"
    parents = [base.name, *(one.run for one in ladder[1:-1])]
    for one, parent in zip(ladder[1:], parents, strict=True):
        config = tomllib.loads((tmp_path / one.run / "config.toml").read_text())
        assert Path(config["train"]["init_from"]).name == parent
        assert one.loss is not None
        assert set(one.accuracy) == {"who", "what", "where", "continue", "sum", "all"}
    assert ladder[0].loss is None
    assert len(list(Conversations([str(tmp_path / "chats.jsonl")]))) == 20
    assert json.loads((run / "ladder.json").read_text())["rungs"][0]["stage"] == "base"
    page = write_report([run], tmp_path / "report.html").read_text()
    assert "From base to chat" in page
    assert ladder[-1].samples[0]["expected"] in page


def test_the_table_has_a_row_for_each_stage() -> None:
    chance = {"who": 0.5, "all": 0.25}
    table = shown(
        [
            Rung("base", "run-1", {"who": 0.0, "all": 0.1}, chance),
            Rung("SFT", "chat", {"who": 0.875, "all": 0.5}, chance, 0.25),
        ]
    )
    assert [line.split() for line in table.splitlines()] == [
        ["right", "answers", "who", "all", "loss"],
        ["chance", "50%", "25%"],
        ["base", "0%", "10%"],
        ["SFT", "88%", "50%", "0.250"],
    ]


def test_stages_share_the_time_and_find_free_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Path, Path, float]] = []

    def make(base: Path, folder: Path, deadline: float, console: Console) -> Any:
        made.append((base, folder, deadline))
        folder.mkdir()
        return folder, {"finished": "time"}

    monkeypatch.setattr(
        demo_chat, "STAGES", (Stage("a", "x", 0.75, make), Stage("b", "y", 0.25, make))
    )
    monkeypatch.setattr(demo_chat, "rung", lambda stage, run, *_: Rung(stage, run.name, {}, {}))
    monkeypatch.setattr(demo_chat, "write_report", lambda *_: None)
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    (tmp_path / "x").mkdir()
    climb(tmp_path, tmp_path, console=Console(quiet=True), minutes=1)
    assert made == [
        (tmp_path, tmp_path / "x-2", pytest.approx(145 - demo_chat.EVALUATION_SECONDS)),
        (tmp_path / "x-2", tmp_path / "y", pytest.approx(160 - demo_chat.EVALUATION_SECONDS)),
    ]


def test_an_optional_stage_that_fails_or_has_no_time_is_skipped_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0

    def make(base: Path, folder: Path, deadline: float, console: Console) -> Any:
        nonlocal now
        if folder.name == "fails":
            raise DataError("no pairs")
        folder.mkdir()
        now += 50
        return folder, {"finished": "time"}

    stages = [
        Stage(name, name, 0.25, make, optional=name != "first")
        for name in ("first", "fails", "works", "late")
    ]
    monkeypatch.setattr(demo_chat, "STAGES", stages)
    monkeypatch.setattr(demo_chat, "rung", lambda stage, run, *_: Rung(stage, run.name, {}, {}))
    monkeypatch.setattr(demo_chat, "write_report", lambda *_: None)
    monkeypatch.setattr("time.monotonic", lambda: now)
    console = Console(file=io.StringIO(), width=100)
    run, _, ladder = climb(tmp_path, tmp_path, console=console, minutes=115 / 60)
    assert run.name == "works"
    assert [one.stage for one in ladder] == ["base", "first", "works"]
    assert "fails is skipped: no pairs" in console.file.getvalue()
    assert "late is skipped: 7 s left" in console.file.getvalue()


def test_the_first_stage_must_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(*_: Any) -> Any:
        raise DataError("no chats")

    monkeypatch.setattr(demo_chat, "STAGES", [Stage("SFT", "chat", 1.0, make)])
    monkeypatch.setattr(demo_chat, "rung", lambda stage, run, *_: Rung(stage, run.name, {}, {}))
    with pytest.raises(DataError, match="no chats"):
        climb(tmp_path, tmp_path, console=Console(quiet=True))
