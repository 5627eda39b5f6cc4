"""`lmsmith train`: lengths, recipes, given and chosen settings, its output and its files."""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import LINUX, TEXT, TINY, Done, Lmsmith, Process


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def config_of(run: Path) -> dict[str, Any]:
    return tomllib.loads((run / "config.toml").read_text())


def lines_of(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def weights(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def trained(
    lmsmith: Lmsmith, *words: object, out: str = "run", tiny: list[str] = TINY
) -> tuple[Path, Done]:
    done = lmsmith("train", *words, *tiny, "--out", out)
    assert (done.status, done.err) == (0, "")
    return lmsmith.cwd / out, done


def without(*names: str) -> list[str]:
    return [word for word in TINY if not any(name in word for name in names)]


def test_steps_and_the_files_of_a_run(lmsmith: Lmsmith) -> None:
    run, done = trained(lmsmith, "book.txt", "--steps", 20)
    assert sorted(os.listdir(run)) == [
        ".lock",
        "checkpoints",
        "config.toml",
        "metrics.jsonl",
        "model",
        "report.html",
        "samples.md",
        "summary.json",
        "tokens",
    ]
    summary = summary_of(run)
    promised = {
        "n_params",
        "steps",
        "tokens_seen",
        "val_loss",
        "val_bits_per_byte",
        "train_seconds",
        "wall_seconds",
    }
    promised |= {
        "seconds_to_target",
        "tokens_per_second",
        "mfu",
        "peak_memory_bytes",
        "device",
        "dtype",
        "finished",
    }
    promised |= {
        "baselines",
        "tokenizer",
        "n_train_tokens",
        "n_val_tokens",
        "n_val_bytes",
        "best_val_loss",
        "best_step",
    }
    assert promised <= summary.keys()
    assert (summary["finished"], summary["steps"], summary["tokens_seen"]) == (
        "steps",
        20,
        20 * 4 * 16,
    )
    assert summary["seconds_to_target"] is None
    assert (summary["n_train_tokens"], summary["n_val_tokens"]) == (
        int(len(TEXT) * 0.9),
        len(TEXT) - int(len(TEXT) * 0.9),
    )
    assert summary["baselines"].keys() == {"gzip", "xz"}
    assert [line["step"] for line in lines_of(run, "eval")] == list(range(2, 21, 2))
    assert [line["step"] for line in lines_of(run, "train")] == list(range(1, 21))
    assert lines_of(run, "eval")[-1]["val_loss"] == summary["val_loss"]
    assert "best val loss" in done.out
    assert "lmsmith generate run" in done.out
    assert sorted(os.listdir(run / "tokens")) == [
        "corpus.json",
        "tokenizer.json",
        "train.bin",
        "val.bin",
        "validation.txt",
    ]


def test_tokens(lmsmith: Lmsmith) -> None:
    run, _ = trained(lmsmith, "book.txt", "--tokens", 1000)
    assert (summary_of(run)["steps"], summary_of(run)["tokens_seen"]) == (
        15,
        960,
    )  # of 64 tokens each


def test_a_seed_repeats_a_run_and_another_does_not(lmsmith: Lmsmith) -> None:
    hashes = [
        weights(trained(lmsmith, "book.txt", "--steps", 5, "--seed", seed, out=f"run-{i}")[0])
        for i, seed in enumerate([1, 1, 2])
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_stop_at_val_loss_stops_at_the_first_evaluation_that_reaches_it(lmsmith: Lmsmith) -> None:
    run, _ = trained(lmsmith, "book.txt", "--steps", 100)
    evals = lines_of(run, "eval")
    target = (evals[3]["val_loss"] + evals[4]["val_loss"]) / 2
    stopped, done = trained(
        lmsmith, "book.txt", "--steps", 100, "--stop-at-val-loss", target, out="stopped"
    )
    summary = summary_of(stopped)
    assert (summary["finished"], summary["steps"]) == ("target", evals[4]["step"])
    assert [line["val_loss"] for line in lines_of(stopped, "eval")] == [
        line["val_loss"] for line in evals[:5]
    ]
    assert (
        summary["seconds_to_target"]
        == summary["train_seconds"]
        == lines_of(stopped, "eval")[-1]["seconds"]
    )
    assert f"target reached after {summary['seconds_to_target']:.1f} s" in done.out
    assert lmsmith("resume", "stopped").out.startswith(
        f"stopped is finished at step {summary['steps']}"
    )
    missed, _ = trained(
        lmsmith, "book.txt", "--steps", 20, "--stop-at-val-loss", 0.01, out="missed"
    )
    assert (summary_of(missed)["finished"], summary_of(missed)["seconds_to_target"]) == (
        "steps",
        None,
    )


def test_minutes(lmsmith: Lmsmith) -> None:
    began = time.monotonic()
    run, done = trained(lmsmith, "book.txt", "--minutes", 0.15)
    took = time.monotonic() - began
    summary = summary_of(run)
    assert summary["finished"] == "time"
    assert lines_of(run, "eval")[-1]["step"] == summary["steps"]
    assert took < 9 + 3, f"{took:.1f} s for 9"  # the machine may be busy
    assert re.search(r"^training [\d,]+ steps of 4 x 16", done.out, re.MULTILINE)
    assert config_of(run)["train"]["steps"] == summary["steps"]
    again = lmsmith("resume", "run")
    assert (again.status, "run is finished at step" in again.out) == (0, True)


def test_without_a_length_it_trains_for_ten_minutes(lmsmith: Lmsmith) -> None:
    process = lmsmith.start("train", "book.txt", *TINY, "--out", "run")
    process.until(lambda: (lmsmith.cwd / "run" / "metrics.jsonl").exists())
    process.send(signal.SIGTERM)
    assert process.wait().status == 143
    assert config_of(lmsmith.cwd / "run")["train"]["minutes"] == 10


def test_a_recipe_followed_by_files(lmsmith: Lmsmith) -> None:
    (lmsmith.cwd / "r.toml").write_text(
        '[train]\nsteps = 7\nseed = 3\n[data]\nsources = ["missing.txt"]\n'
    )
    (lmsmith.cwd / "other.txt").write_text(TEXT)
    run, _ = trained(lmsmith, "r.toml", "book.txt", "other.txt")
    config = config_of(run)
    assert (config["data"]["sources"], config["train"]["seed"]) == (["book.txt", "other.txt"], 3)
    assert summary_of(run)["steps"] == 7
    # The command line overrides the recipe, also the run's length.
    run, _ = trained(lmsmith, "r.toml", "book.txt", "--tokens", 128, "--seed", 4, out="another")
    assert (config_of(run)["train"]["seed"], summary_of(run)["steps"]) == (4, 2)


def test_a_recipe_alone(lmsmith: Lmsmith) -> None:
    (lmsmith.cwd / "r.toml").write_text(
        'preset = "llama"\n[train]\nsteps = 2\n[data]\nsources = ["book.txt"]\n'
    )
    run, _ = trained(lmsmith, "r.toml", tiny=without("qk"))
    assert (config_of(run)["preset"], config_of(run)["model"]["feed_forward"]) == (
        "llama",
        "swiglu",
    )


@pytest.mark.parametrize(
    "length", [["--steps", 12], ["--tokens", 768], ["--steps", 12, "--model.dropout", 0.3]]
)
def test_the_config_of_a_run_repeats_it(lmsmith: Lmsmith, length: list[object]) -> None:
    run, _ = trained(lmsmith, "book.txt", *length)
    done = lmsmith("train", "run/config.toml", "--out", "again")
    assert (done.status, done.err) == (0, "")
    assert weights(lmsmith.cwd / "again") == weights(run)
    assert (lmsmith.cwd / "again" / "config.toml").read_text() == (run / "config.toml").read_text()


def test_the_config_of_a_run_with_minutes_repeats_its_steps(lmsmith: Lmsmith, run: Path) -> None:
    config = run / "config.toml"
    config.write_text(
        config.read_text().replace("minutes = 0.0", "minutes = 5.0")
    )  # as such a run writes it
    done = lmsmith("train", "run/config.toml", "--out", "again")
    assert (done.status, done.err) == (0, "")
    assert summary_of(lmsmith.cwd / "again")["finished"] == "steps"
    assert weights(lmsmith.cwd / "again") == weights(run)
    other = lmsmith("train", "run/config.toml", "--minutes", 0.01, "--out", "other")
    assert (
        "train.minutes = 0.01 leaves no time" in other.err
    )  # from the command line, not from the file


def test_the_config_of_a_run_with_another_text(lmsmith: Lmsmith, run: Path) -> None:
    (lmsmith.cwd / "greek.txt").write_text("alpha beta gamma delta\n" * 100)
    done = lmsmith("train", "run/config.toml", "greek.txt", "--out", "again")
    assert done.status == 2
    assert "model.vocab_size = " in done.err
    done = lmsmith(
        "train", "run/config.toml", "greek.txt", "--model.vocab_size", 0, "--out", "again"
    )
    assert done.status == 0, done.err


def test_given_settings_are_kept_and_others_are_chosen_to_fit(lmsmith: Lmsmith) -> None:
    run, _ = trained(
        lmsmith, "book.txt", "--steps", 2, "--model.d_model", 24, tiny=without("d_model", "n_head")
    )
    model = config_of(run)["model"]
    assert model["d_model"] == 24
    assert 24 % model["n_head"] == 0
    run, _ = trained(
        lmsmith,
        "book.txt",
        "--steps",
        2,
        "--model.n_head",
        5,
        out="b",
        tiny=without("d_model", "n_head"),
    )
    model = config_of(run)["model"]
    assert model["n_head"] == 5
    assert model["d_model"] % 5 == 0
    run, _ = trained(
        lmsmith, "book.txt", "--steps", 2, "--model.n_layer", 2, "--model.ngram_tables", "2,3", "--model.bias", "yes",
        out="c", tiny=without("n_layer"),
    )  # fmt: skip
    model = config_of(run)["model"]
    assert (model["n_layer"], model["ngram_tables"], model["bias"]) == (2, [2, 3], True)
    (lmsmith.cwd / "narrow.toml").write_text("[model]\nd_model = 24\n")
    trained(
        lmsmith,
        "narrow.toml",
        "book.txt",
        "--steps=2",
        "--model.n_head=4",
        out="d",
        tiny=without("d_model", "n_head"),
    )
    assert config_of(lmsmith.cwd / "d")["model"]["d_model"] == 24


def test_zero_and_auto_are_accepted(lmsmith: Lmsmith) -> None:
    auto = [
        "--train.threads=0",
        "--train.matmul=auto",
        "--train.dtype=auto",
        "--train.device=auto",
        "--model.vocab_size=0",
    ]
    run, _ = trained(
        lmsmith, "book.txt", "--steps", 2, *auto, tiny=without("threads", "matmul", "dtype")
    )
    train = config_of(run)["train"]
    assert train["threads"] > 0
    assert not {"auto"} & {train["matmul"], train["dtype"], train["device"]}


@pytest.mark.parametrize("preset", ["llama", "modern", "gpt2", "babygpt"])
def test_presets(lmsmith: Lmsmith, preset: str) -> None:
    tiny = [*without("ngram"), "--model.ngram_table_size=64"]
    run, _ = trained(lmsmith, "book.txt", "--steps", 2, "--preset", preset, tiny=tiny)
    config = config_of(run)
    assert config["preset"] == preset
    assert config["model"]["positions"] == ("learned" if "gpt" in preset else "rope")
    assert config["optim"]["name"] == ("muon" if preset == "modern" else "adamw")
    assert (config["model"]["d_model"], config["model"]["context_length"]) == (16, 16)


@pytest.mark.parametrize("kind", ["byte", "char", "word", "auto"])
def test_tokenizers(lmsmith: Lmsmith, kind: str) -> None:
    run, _ = trained(lmsmith, "book.txt", "--steps", 2, "--tokenizer", kind)
    summary = summary_of(run)
    assert summary["tokenizer"] == ("char" if kind == "auto" else kind)
    if kind == "byte":
        assert (summary["vocab_size"], summary["n_val_tokens"]) == (256, summary["n_val_bytes"])
        assert summary["val_bits_per_byte"] == pytest.approx(
            summary["val_loss"] / 0.6931471805599453
        )


def test_a_tokenizer_from_another_run(lmsmith: Lmsmith, run: Path) -> None:
    (lmsmith.cwd / "other.txt").write_text("The hat is black; \u00e9t\u00e9.\n" * 50)
    done = lmsmith(
        "train", "other.txt", "--tokenizer", "run/model", "--steps", 2, *TINY, "--out", "other"
    )
    assert done.status == 0, done.err
    one, other = (
        json.loads((place / "model" / "tokenizer.json").read_text())
        for place in (run, lmsmith.cwd / "other")
    )
    assert one == other
    assert re.search("note .*unknown", done.out)  # nothing is dropped silently


def test_runs_are_numbered_and_named_after_their_text(lmsmith: Lmsmith) -> None:
    (lmsmith.cwd / "books of old").mkdir()
    (lmsmith.cwd / "books of old" / "a.txt").write_text(TEXT)
    for source in ("book.txt", "book.txt", "books of old", "*.txt", "books of old/*.txt"):
        done = lmsmith("train", source, "--steps", 1, *TINY)
        assert done.status == 0, done.err
    assert sorted(os.listdir(lmsmith.cwd / "runs")) == [
        "book-1",
        "book-2",
        "books-of-old-1",
        "text-1",
        "text-2",
    ]


def test_brackets_in_a_name_are_not_read_as_markup(lmsmith: Lmsmith) -> None:
    _, done = trained(lmsmith, "book.txt", "--steps", 1, out="[red]run :smile:")
    assert "report   [red]run :smile:/report.html" in done.out
    assert "lmsmith generate '[red]run :smile:'" in done.out


def test_output_to_a_file_is_plain_lines(lmsmith: Lmsmith) -> None:
    _, done = trained(lmsmith, "book.txt", "--steps", 20)
    assert "\x1b" not in done.out
    assert "\r" not in done.out
    assert re.search(
        r"^step +1/20  loss \d\.\d{3}  [\d,]+ tokens/s  \d+% MFU  \S+ left$", done.out, re.MULTILINE
    )
    assert re.search(
        r"^step +20  val loss \d\.\d{4}  \d\.\d{3} bits per byte$", done.out, re.MULTILINE
    )


class Terminal:
    """A pseudo-terminal, and the output of a process on it."""

    def __init__(self) -> None:
        import pty

        self._ours, self._theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        self.path, self._shown = Path(os.ttyname(self._theirs)), b""

    def shown(self) -> str:
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self._ours, 1 << 16):
                self._shown += more
        return self._shown.decode(errors="replace")

    def read_until_ended(self, process: Process) -> None:
        """Or it would wait for us once the terminal's buffer is full."""
        while not process.ended():
            self.shown()
            time.sleep(0.005)

    def lines(self) -> list[str]:
        """Without the sequences that move the cursor or colour."""
        return re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", self.shown()))

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def close(self) -> None:
        os.close(self._ours)
        os.close(self._theirs)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    if not LINUX:
        pytest.skip("pseudo-terminals are read on Linux alone")
    made = Terminal()
    yield made
    made.close()


@pytest.mark.parametrize("width", [pytest.param(120, marks=pytest.mark.slow), 80, 40, 20])
def test_the_bar_on_a_terminal(lmsmith: Lmsmith, terminal: Terminal, width: int) -> None:
    environment = {"TERM": "xterm-256color", "COLUMNS": str(width)}
    words = ["train", "book.txt", "--steps", 60, *TINY]
    process = lmsmith.start(*words, stdout=terminal.path, environment=environment)
    terminal.read_until_ended(process)
    assert process.status == 0, process.err()
    bars = [line for line in terminal.lines() if "━" in line]
    numbers = [line for line in terminal.lines() if re.match(r" *[\d,]+/60 ", line)]
    assert numbers
    assert bool(bars) == (width >= 80)
    assert all(len(line) <= width for line in numbers)
    assert ("\x1b[32m" in terminal.shown()) == (width >= 80)
    assert terminal.shown().count("\x1b[?25l") == terminal.shown().count(
        "\x1b[?25h"
    )  # the cursor is shown again
    plan = [
        line
        for line in terminal.lines()
        if line.startswith(("text ", "model ", "training ", "         "))
    ]
    assert width < 40 or max(map(len, plan)) <= width


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1", "TERM": "xterm"}, {"TERM": "dumb"}])
def test_a_terminal_without_colours(
    lmsmith: Lmsmith, terminal: Terminal, environment: dict[str, str]
) -> None:
    words = ["train", "book.txt", "--steps", 40, *TINY]
    process = lmsmith.start(*words, stdout=terminal.path, environment=environment)
    terminal.read_until_ended(process)
    assert process.status == 0, process.err()
    assert not re.search(r"\x1b\[[\d;]*m", re.sub(r"\x1b\[0?m", "", terminal.shown()))
    assert ("\x1b" in terminal.shown()) == (environment["TERM"] != "dumb")
    assert any(re.match(r"step +40  val loss", line) for line in terminal.lines())


def test_ctrl_c_typed_on_a_terminal(lmsmith: Lmsmith, terminal: Terminal) -> None:
    words = ["train", "book.txt", "--steps", 10**6, *TINY, "--out", "run"]
    environment = {"TERM": "xterm-256color"}
    process = lmsmith.start(
        *words, stdin=terminal.path, stdout=terminal.path, environment=environment
    )
    process.until(lambda: "tokens/s" in terminal.shown())
    terminal.type(b"\x03")
    terminal.read_until_ended(process)
    assert (process.status, process.err()) == (130, "")
    assert "`lmsmith resume run` continues it" in terminal.shown()
    assert terminal.shown().count("\x1b[?25l") == terminal.shown().count("\x1b[?25h")


def test_a_closed_pipe_does_not_end_a_run(lmsmith: Lmsmith) -> None:
    if not LINUX:
        pytest.skip("needs a named pipe")
    pipe = lmsmith.cwd / "pipe"
    os.mkfifo(pipe)
    holding = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    process = lmsmith.start("train", "book.txt", "--steps", 60, *TINY, "--out", "run", stdout=pipe)
    process.until(lambda: (lmsmith.cwd / "run" / "metrics.jsonl").exists())
    os.close(holding)
    done = process.wait()
    assert done.status == 0
    assert "standard output cannot be written (Broken pipe). Training continues" in done.err
    assert done.err.count("\n") == 1
    assert summary_of(lmsmith.cwd / "run")["steps"] == 60


def test_a_process_of_its_own_from_a_shell(lmsmith: Lmsmith) -> None:
    """The one test here whose process imports torch itself. Stopped by SIGTERM, the run is saved."""
    shell = "exec {} -m lmsmith train book.txt --steps 1000000 --out run {}"
    command = shell.format(sys.executable, " ".join(TINY))
    process = subprocess.Popen(
        command,
        shell=True,
        cwd=lmsmith.cwd,
        env=lmsmith.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    metrics = lmsmith.cwd / "run" / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "`lmsmith resume run` continues it" in out
