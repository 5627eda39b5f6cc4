"""The runner, with `fake_train.py` in place of `lmsmith train`: what it starts, what it never
repeats, and what survives a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmsmith.errors import ConfigError, DataError, UsageError
from lmsmith.study.engines import Job, Processes, slurm_script
from lmsmith.study.plan import Study, against_itself, read_study
from lmsmith.study.results import Place
from lmsmith.study.run import Studied, Watcher, open_place, run_study
from lmsmith.study.verdicts import levels_of_looks

FAKE = Path(__file__).parent / "fake_train.py"
PROJECT = FAKE.parent.parent.parent


def command(place: Place, job: Job) -> list[str]:
    return [sys.executable, "-S", str(FAKE), str(place.recipe(*job)), str(place.run(*job))]


def study_of(tmp_path: Path, rates: list[float], seeds: int = 2, more: str = "") -> Study:
    (tmp_path / "text.txt").write_text("a text\n" * 50)
    file = tmp_path / "study.toml"
    file.write_text(
        f'question = "Which <rate>?"\nsources = ["text.txt"]\nseeds = {seeds}\n'
        'base = {preset = "llama", "model.n_layer" = 1}\nbudget.tokens = 100_000\n'
        f'{more}[axes]\n"optim.learning_rate" = {rates}\n'
    )
    return read_study(file)


def run(study: Study, out: Path, **options: object) -> Studied:
    return run_study(study, out, engine=Processes(Place(out), 1, 2, command), **options)  # type: ignore[arg-type]


def starts(out: Path) -> list[str]:
    return (out / "starts").read_text().splitlines()


def test_every_run_once(tmp_path: Path) -> None:
    study, out, seen = study_of(tmp_path, [0.001, 0.4]), tmp_path / "out", list[str]()

    class Seen(Watcher):
        def ended(self, result: object) -> None:
            seen.append(str(result))

    started: list[Job] = []

    def noted(place: Place, job: Job) -> list[str]:
        started.append(job)
        return command(place, job)

    engine = Processes(Place(out), 1, 2, noted)
    studied = run_study(study, out, engine=engine, watcher=Seen())
    assert [(r.arm, r.seed, r.outcome) for r in studied.results] == [
        (f"learning_rate={rate}", seed, "finished") for rate in ("0.001", "0.4") for seed in (1, 2)
    ]
    assert len(seen) == len(starts(out)) == 4
    assert [seed for _, seed in started] == [1, 1, 2, 2]  # seed by seed
    (out / "runs" / "learning_rate_0.001-seed-1" / "more").mkdir(parents=True, exist_ok=True)
    before = studied.place.size_of_runs()
    (out / "runs" / "learning_rate_0.001-seed-1" / "more" / "x").write_bytes(bytes(1234))
    assert studied.place.size_of_runs() == before + 1234 > 1234
    (verdict,) = studied.verdicts
    assert verdict.paired.difference == pytest.approx(-0.3 * 0.399 * 1.15)
    found = json.loads((out / "results.json").read_text())
    assert found["verdicts"][0]["in_words"] == str(verdict)
    assert len(found["results"]) == 4
    # A second call runs nothing; more seeds run only what is new.
    again = run(study, out)
    assert again.results == studied.results
    assert len(starts(out)) == 4
    run(study_of(tmp_path, [0.001, 0.4], seeds=3), out)
    assert len(starts(out)) == 6


def test_diverged_and_failed_runs_are_results(tmp_path: Path) -> None:
    study, out = study_of(tmp_path, [0.001, 0.1, 0.5]), tmp_path / "out"
    studied = run(study, out)
    outcomes = {(r.arm, r.outcome) for r in studied.results}
    assert outcomes == {
        ("learning_rate=0.001", "finished"),
        ("learning_rate=0.1", "diverged"),
        ("learning_rate=0.5", "failed"),
    }
    assert studied.results[-1].error == "lmsmith: no text"
    assert not studied.verdicts
    run(study, out)
    assert len(starts(out)) == 6
    (out / "errors" / "learning_rate=0.5-seed-1.txt").unlink()  # repeats that run
    run(study, out)
    assert starts(out)[6:] == ["learning_rate=0.5-seed-1"]


PROGRAM = """
import sys
from pathlib import Path
from lmsmith.study.engines import Processes
from lmsmith.study.plan import read_study
from lmsmith.study.results import Place
from lmsmith.study.run import run_study
sys.path.insert(0, {tests!r})
from test_study_run import command
out = Path({out!r})
run_study(read_study(Path({file!r})), out, engine=Processes(Place(out), 1, 2, command))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere children outlive their parent")
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_stopped_study_continues(tmp_path: Path, number: signal.Signals) -> None:
    """A real kill of the process that runs a study: its runs save, and the next call resumes them
    and repeats none that has ended."""
    study, out = study_of(tmp_path, [0.001, 0.05]), tmp_path / "out"
    program = PROGRAM.format(tests=str(FAKE.parent), out=str(out), file=str(study.path))
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=PROJECT, stderr=subprocess.DEVNULL
    )
    waiting = out / "runs" / "learning_rate=0.05-seed-1"
    until(lambda: (waiting / "started").exists() and len(list(out.rglob("results.json"))) == 1)
    process.send_signal(number)
    assert process.wait(60) != 0
    until(lambda: (waiting / "saved").exists())
    (out / "go").touch()
    studied = run(study, out)
    assert [r.outcome for r in studied.results] == ["finished"] * 4
    names = starts(out)
    assert names.count("learning_rate=0.001-seed-1") == 1
    assert names.count("learning_rate=0.05-seed-1") == 1
    assert names.count("learning_rate=0.05-seed-1 again") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_fork_stops_the_study(tmp_path: Path, number: signal.Signals) -> None:
    """Python ignores an exception in a function that runs around a fork; a signal that arrives
    there stops the study all the same."""
    study, out, me = study_of(tmp_path, [0.001, 0.01]), tmp_path / "out", os.getpid()

    def around_the_fork() -> None:
        if armed and os.getpid() == me and (out / "starts").exists():
            armed.clear()
            os.kill(me, number)

    armed = [True]
    os.register_at_fork(after_in_parent=around_the_fork)  # stays registered, disarmed
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(study, out)
    finally:
        signal.signal(number, before)
        armed.clear()
    assert len(starts(out)) < 4


def until(condition: object) -> None:
    end = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "nothing happened for a minute"
        time.sleep(0.01)


def test_looks_end_a_study_whose_difference_is_clear(tmp_path: Path) -> None:
    study, out = study_of(tmp_path, [0.001, 0.4], seeds=12), tmp_path / "out"
    studied = run(study, out, looks=(4, 8, 12))
    assert studied.early
    assert len(studied.results) == 8
    assert studied.level == levels_of_looks([4, 8, 12])[0]
    with pytest.raises(ConfigError, match="ascending numbers of seeds"):
        run(study, out, looks=(8, 4))
    with pytest.raises(ConfigError, match="ends after 20 seeds"):
        run(study, out, looks=(4, 20))


def test_refused_before_anything_runs(tmp_path: Path) -> None:
    study, out = study_of(tmp_path, [0.001, 0.01]), tmp_path / "out"
    with pytest.raises(ConfigError, match="4 runs, more than --max-runs 3"):
        run(study, out, max_runs=3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="holds no study"):
        run(study, tmp_path / "mine")
    (tmp_path / "text.txt").rename(tmp_path / "other.txt")
    with pytest.raises(DataError, match=r"text.txt.*Did you mean .*other.txt"):
        run(study, out)
    (tmp_path / "other.txt").rename(tmp_path / "text.txt")
    open_place(study, out, threads=1)
    with pytest.raises(UsageError, match=r"train.threads: 1, now 2"):
        open_place(study, out, threads=2)
    other = study_of(tmp_path, [0.001, 0.01], more='metric = "val_loss"\n')
    open_place(other, out, threads=1)  # its runs are the same
    assert not (out / "starts").exists()


def test_an_a_a_study_differs_only_in_seeds(tmp_path: Path) -> None:
    study = against_itself(study_of(tmp_path, [0.001, 0.01], seeds=2))
    out = tmp_path / "out"
    studied = run(study, out)
    assert [r.arm for r in studied.results] == ["A1", "A1", "A2", "A2"]
    recipes = [(out / "recipes" / f"A{i}-seed-1.toml").read_text() for i in (1, 2)]
    assert recipes[0] == recipes[1].replace("seed = 10001", "seed = 1")


def test_the_slurm_script_is_shell_and_runs_what_is_missing(tmp_path: Path) -> None:
    """bash runs each task of the array with `lmsmith` replaced by a program that prints its
    words."""
    study, out = study_of(tmp_path, [0.001, 0.01], seeds=1 + 1), tmp_path / "out"
    place = open_place(study, out, threads=1)
    jobs = [(arm, seed) for seed in study.seeds for arm in study.arms]
    script = slurm_script(place, jobs, threads=1, at_once=2)
    assert "#SBATCH --array=0-3%2" in script
    script = script.replace(f"{sys.executable} -m lmsmith", "echo")
    script = script.replace('rm "$out', 'cat "$out')
    started = place.run(*jobs[1])
    started.mkdir()
    (started / "config.toml").touch()
    printed = [
        subprocess.run(
            ["bash", "-c", script],
            env={**os.environ, "SLURM_ARRAY_TASK_ID": str(i)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for i in (0, 1)
    ]
    assert printed[0] == f"train {place.recipe(*jobs[0])} --out {place.run(*jobs[0])}\n"
    assert printed[1] == f"resume {started}\n"
