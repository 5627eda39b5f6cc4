"""The files and progress lines of a run, read back."""

import io
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from rich.console import Console

from lmsmith.errors import StorageError
from lmsmith.report.reading import split_samples
from lmsmith.train.log import MetricsFile, Progress, add_samples, clock, say


def test_metrics_are_json_lines_flushed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as metrics:
        metrics.write(kind="train", step=1, loss=0.1 + 0.2)
        assert [json.loads(line) for line in path.read_text().splitlines()] == [
            {"kind": "train", "step": 1, "loss": 0.1 + 0.2}
        ]
        metrics.write(kind="eval", step=1, val_loss=math.nan, best=math.inf)
    second = path.read_text().splitlines()[1]
    assert json.loads(second, parse_constant=pytest.fail) == {
        "kind": "eval",
        "step": 1,
        "val_loss": None,
        "best": None,
    }


def test_a_resumed_run_drops_the_lines_it_repeats(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as metrics:
        for step in range(1, 8):
            metrics.write(kind="train", step=step)
            if step % 2 == 0:
                metrics.write(kind="eval", step=step)
        metrics.write(kind="event", step=7, message="late")
    with path.open("a") as file:
        file.write('[1]\n5\n"step"\n{"step": 1}\n\n{"kind": "train", "step": 8, "lo')
    # The checkpoint is of step 6, saved before that step was evaluated.
    with MetricsFile(path, step=6, evaluated_step=4) as metrics:
        metrics.write(kind="eval", step=6)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [2, 4, 6]
    assert len(lines) == 9


def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics._file.close()
    metrics._file = full.open("w")
    with (
        pytest.raises(StorageError, match=r"No space left on the disk for .*metrics\.jsonl"),
        metrics,
    ):
        metrics.write(kind="train", step=1)
    with pytest.raises(StorageError, match="no folder"):
        MetricsFile(tmp_path / "missing" / "metrics.jsonl")


def test_samples_are_read_back_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "samples.md"
    texts = ["plain", "```\n## step 2\n\n```\ncode\n````", "", "#\n\n## step 3\nlast"]
    add_samples(path, 10, texts[:2])
    add_samples(path, 20, texts[2:])
    assert split_samples(path.read_text()) == [("step 10", texts[:2]), ("step 20", texts[2:])]


@settings(deadline=None)  # disks may be slow
@given(
    some.lists(
        some.lists(some.text("`#\n ab12step", max_size=30), min_size=1, max_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_any_samples_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, sections: list[list[str]]
) -> None:
    path = tmp_path_factory.mktemp("samples") / "samples.md"
    for number, texts in enumerate(sections, start=1):
        add_samples(path, number * 100, texts)
    found = split_samples(path.read_text(encoding="utf-8"))
    assert found == [
        (f"step {number * 100}", [t.strip() for t in texts])
        for number, texts in enumerate(sections, 1)
    ]


def test_samples_of_a_repeated_step_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "samples.md"
    for step, text in ((10, "a"), (20, "killed"), (20, "b"), (30, "c")):
        add_samples(path, step, [text])
    assert split_samples(path.read_text()) == [
        ("step 10", ["a"]),
        ("step 20", ["b"]),
        ("step 30", ["c"]),
    ]


class Clock:
    """A clock that tests set."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def fake_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("lmsmith.train.log.time", made)
    return made


def test_plain_lines_come_every_few_seconds_with_rate_and_time_left(fake_clock: Clock) -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=20)
    with Progress(console, 1000, 10, step=100, share_per_token=0.0042) as progress:  # a resumed run
        for step in range(101, 401):
            fake_clock.now += 0.1
            progress.update(step, 2.0)
    lines = shown.getvalue().splitlines()
    assert len(lines) == 6  # at once, and every five seconds
    assert re.fullmatch(
        r"step    35\d/1,000  loss 2.000  100 tokens/s  42% MFU  1:05 left", lines[-1]
    )


def test_the_displayed_loss_is_smoothed_and_an_evaluation_has_a_line(fake_clock: Clock) -> None:
    shown = io.StringIO()
    with Progress(Console(file=shown), 3, 10) as progress:
        progress.update(1, 4.0)
        progress.evaluated(1, 3.5, 5.05)
        progress.update(2, 2.0)
        fake_clock.now += 6
        progress.update(3, 2.0)
    first, evaluation, last = shown.getvalue().splitlines()
    assert "loss 4.000" in first
    assert evaluation == "step      1  val loss 3.5000  5.050 bits per byte"
    assert "loss 3.805  val 3.500" in last  # 0.95 (0.95 4 + 0.05 2) + 0.05 2


def test_the_displayed_remaining_time_ends_at_the_deadline(fake_clock: Clock) -> None:
    shown = io.StringIO()
    with Progress(Console(file=shown), 10**6, 1, deadline=fake_clock.now + 66) as progress:
        for step in (1, 2):
            fake_clock.now += 5
            progress.update(step, 1.0)
    assert shown.getvalue().splitlines()[-1].endswith("0:56 left")


@pytest.mark.parametrize(("width", "bar"), [(120, 40), (80, 17), (60, 0), (30, 0), (5, 0)])
def test_the_bar_fits_the_terminal(fake_clock: Clock, width: int, bar: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    progress = Progress(console, 2000, 10)
    progress.step, progress.loss = 1000, 2.0
    text = progress._bar("loss 2.000  val 1.900  12,345 tokens/s  1:23 left")
    ((*segments,),) = console.render_lines(
        text, pad=False
    )  # as a live display renders it; one line
    line = "".join(segment.text for segment in segments)
    assert len(line) <= width
    assert abs(line.count("━") - bar) <= (0 if bar in (0, 40) else 5)
    assert text.plain.startswith("1,000/2,000 ")
    if bar:
        done = [span for span in text.spans if span.style == "green"]
        assert done[0].end - done[0].start == line.count("━") // 2


def test_a_dumb_terminal_gets_plain_lines(
    fake_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    monkeypatch.setenv("TERM", "dumb")
    with Progress(Console(file=shown, force_terminal=True), 10, 1) as progress:
        progress.update(1, 1.0)
    assert re.fullmatch(r"step      1/10  loss 1.000  \S+ tokens/s  \S+ left\n", shown.getvalue())


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        (0, "0:00"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3599.4, "59:59"),
        (86399, "23:59:59"),
        (math.inf, "?"),
    ],
)
def test_clock(seconds: float, wanted: str) -> None:
    assert clock(seconds) == wanted


def test_messages_wrap_at_words_but_commands_do_not() -> None:
    file = io.StringIO()
    console = Console(file=file, width=40, force_terminal=True, color_system=None)
    say(
        console,
        "best val loss 2.2380 (3.219 bits per byte) at step 300; 1,234,567 tokens/s",
        indent=2,
    )
    say(
        console,
        "it is saved; `lmsmith resume 'a long name' --train.keep 5 --train.threads 12` continues it",
    )
    lines = file.getvalue().splitlines()
    assert lines[:2] == [
        "best val loss 2.2380 (3.219 bits per",
        "  byte) at step 300; 1,234,567 tokens/s",
    ]
    assert "`lmsmith resume 'a long name' --train.keep 5 --train.threads 12`" in lines
    assert "\0" not in file.getvalue()
