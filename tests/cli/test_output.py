"""Standard output that cannot be written: a run continues, other commands fail with a sentence."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import LINUX, PROJECT, TINY, Lmsmith

FULL = Path("/dev/full")  # every write fails: no space left

pytestmark = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def test_a_run_survives_a_full_disk_for_its_output(lmsmith: Lmsmith) -> None:
    done = lmsmith(
        "train",
        "book.txt",
        "--steps",
        20,
        *TINY,
        "--train.log_every",
        1,
        "--out",
        "run",
        stdout=FULL,
    )
    assert done.status == 0, done.err
    assert done.err.count("\n") == 1
    assert (
        "standard output cannot be written (No space left on device). Training continues without it"
        in done.err
    )
    run = lmsmith.cwd / "run"
    assert json.loads((run / "summary.json").read_text())["steps"] == 20
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 20
    assert (run / "report.html").exists()
    done = lmsmith("resume", "run", "--steps", 22, stdout=FULL, stderr=FULL)
    assert done.status == 0
    assert json.loads((run / "summary.json").read_text())["steps"] == 22


def test_a_run_survives_a_pipe_that_closes(lmsmith: Lmsmith) -> None:
    log = lmsmith.cwd / "log"
    order = ["train", "book.txt", "--steps", 20, *TINY, "--train.eval_every", 1, "--out", "run"]
    probe = lmsmith(*order[:-1], "probe", stdout=log)
    assert probe.status == 0
    assert log.stat().st_size > 1000
    pipe = lmsmith.cwd / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    process = lmsmith.start(*order, stdout=pipe)
    process.until(lambda: (lmsmith.cwd / "run").exists())
    os.close(reading)  # as `| head` does
    done = process.wait()
    assert done.status == 0
    assert "Broken pipe" in done.err
    assert "Traceback" not in done.err
    assert json.loads((lmsmith.cwd / "run" / "summary.json").read_text())["steps"] == 20


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["train", "--help"],
        ["eval", "run"],
        ["generate", "run", "The cat", "--max-tokens", 3],
        ["data", "list"],
        ["tokenizer", "encode", "run", "The cat"],
        ["report", "run"],
        ["data", "prepare", "book.txt", "--tokenizer", "byte", "--out", "shards"],
    ],
)
def test_other_commands_fail_with_one_sentence(
    lmsmith: Lmsmith, run: Path, command: list[object]
) -> None:
    done = lmsmith(*command, stdout=FULL)
    assert done.status == 1
    assert done.err == (
        "lmsmith: standard output cannot be written: No space left on device. The command stops "
        "here; redirect its output to another place.\n"
    )


@pytest.mark.skipif(not LINUX, reason="a shell, and the system's own errors")
def test_python_itself_does_not_complain_when_it_exits() -> None:
    for redirected in (">/dev/full", ">&-", ">/dev/full 2>/dev/full"):
        command = f"'{sys.executable}' -m lmsmith --version {redirected}"
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        done = subprocess.run(
            ["sh", "-c", command], capture_output=True, text=True, env=environment, timeout=100
        )
        assert done.returncode == 1
        assert done.stderr.count("\n") == (0 if "2>" in redirected else 1), done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.skipif(not LINUX, reason="terminals are each system's own")
def test_a_run_survives_its_closed_terminal(lmsmith: Lmsmith) -> None:
    master, terminal = os.openpty()
    process = lmsmith.start(
        "train", "book.txt", "--steps", 10**6, *TINY, "--train.log_every", 1, "--out", "run",
        stdin=Path(os.ttyname(terminal)), stdout=Path(os.ttyname(terminal)), stderr=Path(os.ttyname(terminal)),
    )  # fmt: skip
    os.close(terminal)
    metrics = lmsmith.cwd / "run" / "metrics.jsonl"
    process.until(lambda: metrics.exists() and metrics.stat().st_size > 1000)
    os.close(master)  # a hang-up for the process, whose writes now fail
    time.sleep(0.3)
    size = metrics.stat().st_size
    process.until(lambda: metrics.stat().st_size > size + 1000)
    process.send(signal.SIGTERM)
    assert process.wait().status == 128 + signal.SIGTERM
    summary = json.loads((lmsmith.cwd / "run" / "summary.json").read_text())
    assert summary["signal"] == "SIGTERM"
