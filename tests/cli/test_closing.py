"""The closing lines of a run."""

import io
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXT, TINY, Lmsmith
from rich.console import Console

from lmsmith.cli import parse
from lmsmith.cli.runs import _closing

SUMMARY: dict[str, Any] = {
    "finished": "steps",
    "steps": 300,
    "best_val_loss": 2.238,
    "best_val_bits_per_byte": 3.219,
    "best_step": 300,
    "train_seconds": 1234.5,
    "tokens_per_second": 1_234_567.0,
    "seconds_to_target": None,
}


def closing(run: Path, summary: dict[str, Any], *, terminal: bool = False) -> str:
    file = io.StringIO()
    (run / "report.html").write_text("is there")
    (run / "summary.json").touch()
    shutil.copystat(run / "report.html", run / "summary.json")
    console = Console(file=file, width=80, force_terminal=terminal, color_system=None)
    assert _closing(run, SUMMARY | summary, console) == 0
    return file.getvalue()


def test_no_number_is_broken_across_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("run")
    run.mkdir()
    assert closing(run, {}, terminal=True).splitlines()[:2] == [
        "best val loss 2.2380 (3.219 bits per byte) at step 300; 1234.5 s of training,",
        "1,234,567 tokens/s",
    ]
    assert closing(run, {}).count("\n") == 3


def test_a_run_on_conversations_shows_both_rates(tmp_path: Path) -> None:
    tokens = {"tokens_read": 2_469_000_000, "tokens_seen": 123_450}
    shown = closing(tmp_path, tokens).splitlines()[0]
    assert shown.endswith("1,234,567 tokens/s (100 of them learned)")
    same = dict.fromkeys(tokens, 123_450)
    assert closing(tmp_path, same).splitlines()[0].endswith("1,234,567 tokens/s")


@pytest.mark.parametrize(
    ("finished", "steps", "said"), [("time", 19, True), ("time", 20, False), ("steps", 5, False)]
)
def test_a_run_of_a_few_steps_gets_a_note(
    tmp_path: Path, finished: str, steps: int, said: bool
) -> None:
    words = closing(tmp_path, {"finished": finished, "steps": steps})
    assert (
        "note     the run made only 19 steps within its time limit and learned nothing useful. Give it"
        in words
    ) == said
    assert ("learned nothing" in words) == said


def test_the_suggested_command_runs(lmsmith: Lmsmith) -> None:
    done = lmsmith("train", "book.txt", "--steps", 2, *TINY, "--out", "a run")
    assert done.status == 0, done.err
    label, *words = shlex.split(done.out.splitlines()[-1])
    assert (label, words[:2]) == ("try", ["lmsmith", "generate"])
    options = parse(words[1:])
    assert options.run == Path("a run")
    assert options.prompt in TEXT
    done = lmsmith(*words[1:], "--max-tokens", 2)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(options.prompt)
