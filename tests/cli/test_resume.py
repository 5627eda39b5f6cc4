"""Interrupt, kill, resume: nothing is lost.

The oracle is a run that nobody disturbed: the same weights and optimizer state, bit for bit, and
the same losses.
"""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXT, TINY, Lmsmith, Process

if not hasattr(signal, "SIGKILL"):
    pytest.skip("Windows has no signals to other processes", allow_module_level=True)

# Dropout makes every step random. The validation text runs backwards, so its loss soon rises and
# the best weights are not the last ones.
BACKWARDS = TEXT + TEXT[: len(TEXT) // 9 + 1][::-1]
STEPS, N_KILLS = 120, 12
LONG = [
    *TINY,
    "--model.dropout=0.1",
    "--train.save_every=5",
    "--train.eval_every=12",
    "--train.log_every=1",
]


@pytest.fixture(scope="module")
def undisturbed(_lmsmith: Lmsmith, tmp_path_factory: pytest.TempPathFactory) -> Path:
    _lmsmith.cwd = place = tmp_path_factory.mktemp("undisturbed")
    (place / "book.txt").write_text(BACKWARDS, encoding="utf-8")
    done = _lmsmith("train", "book.txt", "--steps", STEPS, *LONG, "--out", "run")
    assert done.status == 0, done.err
    summary = json.loads((place / "run" / "summary.json").read_text())
    assert summary["best_step"] < STEPS, (
        "the best weights are the last: best-so-far would not be tested"
    )
    return place / "run"


def test_a_run_killed_at_any_moment_resumes_to_the_same_weights(
    lmsmith: Lmsmith, undisturbed: Path
) -> None:
    (lmsmith.cwd / "book.txt").write_text(BACKWARDS, encoding="utf-8")
    run = lmsmith.cwd / "run"
    choose = random.Random(1)
    moments = ["beginning", "training", "saving", "training", "asked", "saving"]
    n_within_a_save = 0
    for number in range(N_KILLS):
        moment = moments[number % len(moments)]
        begun = (run / "config.toml").exists()
        command = (
            ["resume", "run"]
            if begun
            else ["train", "book.txt", "--steps", STEPS, *LONG, "--out", "run"]
        )
        before = metrics_file(run)
        process = lmsmith.start(*command, slow={"os:fsync": 0.01} if moment == "saving" else {})
        if moment == "beginning":
            time.sleep(choose.uniform(0, 0.2))
        elif moment == "saving":
            within_a_save(process, run)
        else:
            past_step(process, run, before, newest_step(run) + choose.randint(3, 9))
        process.send(
            choose.choice([signal.SIGINT, signal.SIGTERM]) if moment == "asked" else signal.SIGKILL
        )
        done = process.wait()
        if moment == "asked":
            assert done.status in (130, 143), done.err
        else:
            assert done.status == -signal.SIGKILL, (
                f"it ended before the kill, with {done.status}: {done.err}"
            )
        n_within_a_save += bool(partials(run / "checkpoints", process))
    assert n_within_a_save > 0
    done = lmsmith("resume", "run")
    assert done.status == 0, done.err
    assert_same(run, undisturbed)
    assert not partials(run / "checkpoints")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_prints_how_to_resume(
    lmsmith: Lmsmith, number: signal.Signals
) -> None:
    run = lmsmith.cwd / "my run"
    process = lmsmith.start(
        "train", "book.txt", "--steps", 10**6, *TINY, "--train.log_every", 1, "--out", "my run"
    )
    process.until(lambda: last_step(run) >= 20)
    process.send(number)
    done = process.wait()
    assert done.status == 128 + number
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["finished"], summary["signal"]) == ("signal", number.name)
    assert newest_step(run) == summary["steps"] >= 20
    assert (
        f"saved my run at step {summary['steps']}; `lmsmith resume 'my run'` continues it\n"
        in done.out
    )
    assert f"stopped by {'Ctrl-C' if number == signal.SIGINT else number.name}" in done.out
    assert "Traceback" not in done.err
    again = lmsmith.start("resume", "my run")
    again.until(lambda: last_step(run) > summary["steps"] + 20)
    again.send(signal.SIGKILL)
    assert f"resuming my run at step {summary['steps']} of 1,000,000\n" in again.wait().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_skips_an_evaluation_and_the_resumed_run_makes_it(
    lmsmith: Lmsmith, number: signal.Signals
) -> None:
    run = lmsmith.cwd / "run"
    process = lmsmith.start(
        "train",
        "book.txt",
        "--steps",
        2,
        *TINY,
        "--train.eval_every=1",
        "--out",
        "run",
        slow={"lmsmith.train.hooks.evaluate:score_ids": 60.0},
    )
    process.until(lambda: last_step(run) == 1)
    process.send(number)
    assert process.wait().status == 128 + number
    assert steps_of(run, "eval") == []
    assert newest_step(run) == 1
    done = lmsmith("resume", "run")
    assert done.status == 0, done.err
    assert steps_of(run, "eval") == [1, 2]
    assert steps_of(run, "train") == [1, 2]


def test_a_second_interrupt_does_not_wait_for_the_save(lmsmith: Lmsmith, run: Path) -> None:
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints")
    config = run / "config.toml"
    config.write_text(config.read_text().replace("steps = 30", "steps = 1000000"))
    before = metrics_file(run)
    process = lmsmith.start("resume", "run", slow={"os:fsync": 0.5})
    past_step(process, run, before, 5)
    process.send(signal.SIGINT)
    within_a_save(process, run)
    process.send(signal.SIGINT)
    done = process.wait()
    assert done.status == 130
    assert "run has no checkpoint yet: starting at step 0" in done.out
    assert "`lmsmith resume run` continues from the last checkpoint" in done.out
    assert done.err == "lmsmith: stopped by SIGINT\n"
    assert os.listdir(run / "checkpoints") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_reading_text_leaves_no_files(
    lmsmith: Lmsmith, number: signal.Signals
) -> None:
    pipe = lmsmith.cwd / "endless.txt"
    os.mkfifo(pipe)
    process = lmsmith.start("train", "endless.txt", "--steps", 5, *TINY, "--out", "runs/mine")
    writing = process.until(lambda: opened_for_writing(pipe))  # a process reads at the other end
    time.sleep(
        0.1
    )  # a signal now interrupts the read; just before it, Python would miss the signal
    process.send(number)
    done = process.wait()
    os.close(writing)
    assert (done.status, done.err) == (128 + number, f"lmsmith: stopped by {number.name}\n")
    assert not (lmsmith.cwd / "runs").exists()


def test_a_signal_while_planning_leaves_no_files(lmsmith: Lmsmith) -> None:
    large = [
        "--model.n_layer=2",
        "--model.n_head=4",
        "--model.d_model=256",
        "--model.context_length=128",
    ]
    large += [
        "--train.batch_size=32",
        "--train.threads=1",
        "--train.dtype=float32",
        "--train.matmul=default",
    ]
    (lmsmith.cwd / "book.txt").write_text(TEXT * 10, encoding="utf-8")
    process = lmsmith.start("train", "book.txt", "--minutes", 9, *large, "--out", "runs/mine")
    process.until(lambda: list(lmsmith.cwd.glob("runs/.mine.*.partial/tokens/corpus.json")))
    process.send(signal.SIGINT)  # five steps of about 0.3 s each are being timed
    assert process.wait().status == 130
    assert not (lmsmith.cwd / "runs").exists()


def test_files_of_a_run_killed_early_are_removed_by_the_next_run(
    lmsmith: Lmsmith,
) -> None:
    (lmsmith.cwd / "runs").mkdir()
    process = lmsmith.start("train", "book.txt", "--steps", 5, *TINY, slow={"os:fsync": 0.1})
    process.until(lambda: partials(lmsmith.cwd / "runs", process))
    process.send(signal.SIGKILL)
    process.wait()
    assert partials(lmsmith.cwd / "runs", process) == os.listdir(lmsmith.cwd / "runs")
    assert lmsmith("train", "book.txt", "--steps", 5, *TINY).status == 0
    assert os.listdir(lmsmith.cwd / "runs") == ["book-1"]


def test_resuming_a_finished_run_changes_nothing(lmsmith: Lmsmith, run: Path) -> None:
    before = content(run)
    done = lmsmith("resume", "run")
    assert (done.status, done.err) == (0, "")
    assert "run is finished at step 30; to train further, set a new length" in done.out
    assert content(run) == before


@pytest.mark.parametrize("n_steps_left", [30, 10, 0])
def test_each_stage_of_a_run_can_be_resumed(lmsmith: Lmsmith, run: Path, n_steps_left: int) -> None:
    finished = shutil.copytree(run, lmsmith.cwd / "finished")
    (run / "summary.json").unlink()  # written last
    if n_steps_left == 30:  # only the files that `create` writes
        for name in ("checkpoints", "model"):
            shutil.rmtree(run / name)
        for name in ("metrics.jsonl", "samples.md", "report.html"):
            (run / name).unlink()
        (run / "checkpoints" / ".step-00000010.99999999.partial").mkdir(
            parents=True
        )  # the first save was killed
    elif n_steps_left == 10:  # killed before the last save
        shutil.rmtree(run / "checkpoints" / "step-00000030")
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"kind": "train", "step": 3')
    else:  # killed after the checkpoint, before the model
        shutil.rmtree(run / "model")
    done = lmsmith("resume", "run")
    assert done.status == 0, done.err
    assert_same(run, finished)
    assert (run / "report.html").exists()
    assert (run / "samples.md").read_text() == (finished / "samples.md").read_text()


def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_used(
    lmsmith: Lmsmith, run: Path
) -> None:
    finished = shutil.copytree(run, lmsmith.cwd / "finished")
    (run / "summary.json").unlink()
    damage(run / "checkpoints" / "step-00000030" / "optimizer.safetensors")
    done = lmsmith("resume", "run")
    assert done.status == 0, done.err
    assert re.search(
        r"step-00000030 is damaged: optimizer.safetensors has SHA-256 \w+..., expected \w+",
        done.err,
    )
    assert "resuming run at step 20 of 30" in done.out
    assert_same(run, finished)


def test_a_run_without_a_complete_checkpoint_names_the_damaged_ones(
    lmsmith: Lmsmith, run: Path
) -> None:
    (run / "summary.json").unlink()
    for step in (20, 30):
        damage(run / "checkpoints" / f"step-000000{step}" / "model.safetensors")
    before = content(run)
    done = lmsmith("resume", "run")
    assert done.status == 1
    assert "step-00000030: model.safetensors has SHA-256" in done.err
    assert "step-00000020: model.safetensors has SHA-256" in done.err
    assert "Traceback" not in done.err
    assert content(run) == before


def test_a_checkpoint_of_a_newer_version_is_not_read(lmsmith: Lmsmith, run: Path) -> None:
    (run / "summary.json").unlink()
    newer(run / "checkpoints" / "step-00000030" / "manifest.json")
    newer(run / "model" / "config.json")
    before = content(run)
    for command in (["resume", "run"], ["generate", "run", "The cat"], ["eval", "run"]):
        done = lmsmith(*command)
        assert (done.status, done.out) == (1, "")
        assert re.search("written by lmsmith .* in format 99, .* Upgrade it", done.err), command
        assert done.err.count("\n") == 1
    assert content(run) == before


@pytest.mark.parametrize("keep", [1, 3])
def test_keep(lmsmith: Lmsmith, keep: int) -> None:
    options = [*TINY, "--train.save_every", 2, "--train.eval_every", 12, "--keep", keep]
    assert lmsmith("train", "book.txt", "--steps", 12, *options, "--out", "run").status == 0
    kept = sorted(
        int(name.removeprefix("step-")) for name in os.listdir(lmsmith.cwd / "run" / "checkpoints")
    )
    assert kept == [8, 10, 12][-keep:]


def assert_same(run: Path, oracle: Path) -> None:
    """Checks that weights, optimizer state, losses and best loss equal those of an uninterrupted run."""
    for name in ("model/model.safetensors", f"checkpoints/{newest(oracle).name}/model.safetensors"):
        assert sha256(run / name) == sha256(oracle / name), name
    assert newest(run).name == newest(oracle).name
    hashes = [
        json.loads((newest(place) / "manifest.json").read_text())["files"]
        for place in (run, oracle)
    ]
    assert hashes[0].keys() == hashes[1].keys()
    assert all(hashes[0][name] == hashes[1][name] for name in hashes[0] if name != "state.json")
    assert losses(run) == losses(oracle)
    same = (
        "finished",
        "steps",
        "tokens_seen",
        "val_loss",
        "best_val_loss",
        "best_step",
        "best_val_bits_per_byte",
    )
    summaries = [json.loads((place / "summary.json").read_text()) for place in (run, oracle)]
    assert [summaries[0][name] for name in same] == [summaries[1][name] for name in same]


def losses(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times."""
    clock = {"seconds", "tokens_per_second", "mfu"}
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in clock} for line in lines]


def steps_of(run: Path, kind: str) -> list[int]:
    return [line["step"] for line in losses(run) if line["kind"] == kind]


def last_step(run: Path) -> int:
    """The last step in metrics.jsonl; 0 without the file."""
    try:
        text = (run / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return 0
    return max((int(step) for step in re.findall(r'"step": (\d+),', text)), default=0)


def past_step(process: Process, run: Path, before: int | None, step: int) -> None:
    """Waits until the process reaches a step. `before`: the inode of metrics.jsonl when it began."""
    process.until(lambda: metrics_file(run) != before and last_step(run) >= step)


def within_a_save(process: Process, run: Path) -> None:
    process.until(lambda: partials(run / "checkpoints", process))


def metrics_file(run: Path) -> int | None:
    """The inode of metrics.jsonl: each process writes a new file."""
    try:
        return (run / "metrics.jsonl").stat().st_ino
    except FileNotFoundError:
        return None


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def newest_step(run: Path) -> int:
    return max(
        (
            int(path.name.removeprefix("step-"))
            for path in (run / "checkpoints").glob("step-????????")
        ),
        default=0,
    )


def partials(place: Path, process: Process | None = None) -> list[str]:
    """Incomplete files in a folder, written by this process if one is given."""
    end = f".{process.id}.partial" if process else ".partial"
    try:
        return [name for name in os.listdir(place) if name.endswith(end)]
    except FileNotFoundError:
        return []


def opened_for_writing(pipe: Path) -> int | None:
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # not open for reading yet
        return None


def content(place: Path) -> dict[str, tuple[str, int]]:
    """Each file with its hash and modification time."""
    files = [path for path in sorted(place.rglob("*")) if path.is_file()]
    return {str(path.relative_to(place)): (sha256(path), path.stat().st_mtime_ns) for path in files}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def newer(path: Path) -> None:
    signed = json.loads(path.read_text())
    signed["format_version"] = 99
    path.write_text(json.dumps(signed))


def test_a_run_is_trained_by_one_process(lmsmith: Lmsmith) -> None:
    run = lmsmith.cwd / "run"
    process = lmsmith.start(
        "train", "book.txt", "--steps", 10**6, *TINY, "--train.log_every", 1, "--out", "run"
    )
    process.until(lambda: last_step(run) >= 3)
    for options in ([], ["--steps", 9]):
        done = lmsmith("resume", "run", *options)
        assert (done.status, done.out) == (2, "")
        assert f"run is being trained by process {process.id} on this machine" in done.err
    process.send(signal.SIGKILL)  # its record stays; its lock is released
    process.wait()
    assert (run / "trainer.json").exists()
    config = run / "config.toml"
    config.write_text(config.read_text().replace("d_model = 16", "d_model = 32"))
    if newest_step(run):
        done = lmsmith("resume", "run")
        assert (done.status, "model.d_model was 16 and is now 32" in done.err) == (2, True), (
            done.err
        )
    config.write_text(config.read_text().replace("d_model = 32", "d_model = 16"))
    done = lmsmith("resume", "run", "--steps", last_step(run) + 50)
    assert done.status == 0, done.err
    assert not (run / "trainer.json").exists()
