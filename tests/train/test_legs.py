"""Resuming with changes: allowed and refused settings, and longer runs.

The oracles: a run planned longer from the start, an uninterrupted run, and the learning-rate
schedule.
"""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny import TEXT, TINY

import lmsmith.train.loop
import lmsmith.train.resume
from lmsmith.checkpoint import load_checkpoint
from lmsmith.config import CHANGEABLE, LENGTH, RunConfig, ScheduleConfig, settings
from lmsmith.errors import CheckpointError, ConfigError, UsageError
from lmsmith.optim.schedule import learning_rate_share
from lmsmith.train.checks import refuse_early
from lmsmith.train.finish import CLOSING_SECONDS
from lmsmith.train.guard import Guard
from lmsmith.train.legs import schedule_in_words
from lmsmith.train.request import asked
from lmsmith.train.start import resume, train

RUN = Path("run")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(TEXT)


def trained(steps: int, changes: dict[str, Any] | None = None, run: Path = RUN) -> dict[str, Any]:
    asked = TINY | {"train.steps": steps, "schedule.warmup_steps": 3} | (changes or {})
    return train(["book.txt"], asked, out=run, console=Console(quiet=True))[1]


def resumed(changes: dict[str, Any] | None = None, run: Path = RUN) -> tuple[dict[str, Any], str]:
    said = io.StringIO()
    return resume(run, changes, console=Console(file=said, width=100)), said.getvalue()


def lines(kind: str, run: Path = RUN) -> list[dict[str, Any]]:
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["kind"] == kind]


def edit(old: str, new: str) -> None:
    text = (RUN / "config.toml").read_text()
    assert text.count(f"\n{old}\n") == 1, old
    (RUN / "config.toml").write_text(text.replace(f"\n{old}\n", f"\n{new}\n"))


def assert_same_weights(one: Path, other: Path) -> None:
    pair = [load_checkpoint(run) for run in (one, other)]
    assert pair[0].step == pair[1].step
    for group in ("model", "optimizer"):
        tensors = [found.tensors[group] for found in pair]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0]), group


@pytest.mark.parametrize("shape", ["constant", "inverse-sqrt"])
def test_with_an_endless_schedule_an_extended_run_equals_a_longer_one(shape: str) -> None:
    trained(14, {"schedule.shape": shape}, Path("long"))
    trained(8, {"schedule.shape": shape})
    summary, said = resumed({"train.steps": "14"})
    assert (summary["finished"], summary["steps"], summary["resumed_from_step"]) == ("steps", 14, 8)
    assert "14 steps instead of 8" in said
    assert shape in said
    assert_same_weights(RUN, Path("long"))


@pytest.mark.parametrize("shape", ["linear", "cosine", "trapezoid"])
def test_a_schedule_with_an_end_follows_the_new_length(shape: str) -> None:
    summary = trained(8, {"schedule.shape": shape})
    schedule, peak = ScheduleConfig(shape=shape, warmup_steps=3), RunConfig().optim.learning_rate  # type: ignore[arg-type]
    _, said = resumed({"train.tokens": 14 * 4 * 16})
    assert summary["steps"] == 8
    n_planned = [8] * 8 + [14] * 6
    wanted = [peak * learning_rate_share(step, n, schedule) for step, n in enumerate(n_planned)]
    assert [line["learning_rate"] for line in lines("train")] == pytest.approx(wanted)
    share = learning_rate_share(8, 14, schedule)
    assert f"to {share:.0%} of its peak, the value of a 14-step run at step 8, and ends at" in said
    assert said.splitlines()[0].startswith(
        "training 6 more steps of 4 x 16 tokens = 384 tokens: 14 steps instead of 8; "
    )


def test_an_extended_run_that_is_killed_reaches_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained(6, {"model.dropout": 0.1, "train.save_every": 3})
    shutil.copytree(RUN, "uninterrupted")
    wanted, _ = resumed({"train.steps": 15}, Path("uninterrupted"))
    judge, moments = Guard.judge, [6, 8, 13]  # before the leg's first step; within it

    def killed(self: Guard, step: int, loss: float, norm: float) -> None:
        if moments and step == moments[0]:
            moments.pop(0)
            raise SystemExit
        judge(self, step, loss, norm)

    monkeypatch.setattr(Guard, "judge", killed)
    with pytest.raises(SystemExit):
        resumed({"train.steps": 15})
    assert json.loads((RUN / "summary.json").read_text())["finished"] is None
    for _ in range(2):
        with pytest.raises(SystemExit):
            resumed()
    summary, _ = resumed()
    assert_same_weights(RUN, Path("uninterrupted"))
    assert summary["legs"] == wanted["legs"]
    assert [(leg["from_step"], leg["to_step"], leg["steps"]) for leg in summary["legs"]] == [
        (0, 6, 6),
        (6, 15, 15),
    ]
    for kind in ("train", "eval", "event"):
        clock = {"seconds", "tokens_per_second", "mfu"}
        both = [
            [{k: v for k, v in line.items() if k not in clock} for line in lines(kind, run)]
            for run in (RUN, Path("uninterrupted"))
        ]
        assert both[0] == both[1], kind
    assert [line["step"] for line in lines("train")] == list(range(1, 16))


def test_an_extension_killed_before_its_checkpoint_is_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained(6)
    with monkeypatch.context() as patched:
        patched.setattr(
            lmsmith.train.loop.Training,
            "rewrite_checkpoint",
            lambda self: (_ for _ in ()).throw(SystemExit),
        )
        with pytest.raises(SystemExit):
            resumed({"train.steps": 9})
    summary, _ = resumed()
    assert summary["steps"] == 9
    assert len(summary["legs"]) == 2


def test_a_finished_run_stays_finished_unless_its_length_changes() -> None:
    trained(4)
    for _ in range(2):
        summary, said = resumed()
        assert (summary["steps"], len(summary["legs"])) == (4, 1)
        assert (
            "run is finished at step 4; to train further, set a new length: `lmsmith resume run "
            "--steps N`" in said
        )
    edit("steps = 4", "steps = 6")
    assert resumed()[0]["steps"] == 6


def test_minutes_count_from_the_resume_and_continue_after_a_kill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained(4)
    deadlines = []

    def go(self: Any) -> dict[str, Any]:
        deadlines.append(self.context.deadline - self.context.began)
        self.context.wall_seconds_before += 30.0
        self.state.step += 1
        self.hooks.checkpoints.save(self.context, at_once=True)
        raise SystemExit

    monkeypatch.setattr(lmsmith.train.loop.Training, "go", go)
    monkeypatch.setattr(lmsmith.train.resume, "seconds_a_step_of_share", lambda *_: 0.5)
    for _ in range(2):
        with pytest.raises(SystemExit):
            resumed({} if deadlines else {"train.minutes": 2})
    available, setup = 120 - CLOSING_SECONDS, 20.0  # seconds that a busy machine may take to set up
    assert available - setup < deadlines[0] < available + 1
    assert deadlines[1] == pytest.approx(deadlines[0] - 30, abs=setup)
    assert "minutes = 2.0" in (RUN / "config.toml").read_text()
    planned = load_checkpoint(RUN).about["config"]["train.steps"]
    assert 4 + 0.9 * (available - setup) / 0.5 < planned < 4 + 0.9 * (available + 1) / 0.5


@pytest.mark.parametrize("changes", [{"train.steps": 40}, {"train.tokens": 40 * 64}])
def test_a_chosen_evaluation_interval_is_chosen_again_for_the_new_length(
    changes: dict[str, Any],
) -> None:
    trained(20, {"train.eval_every": 0, "train.log_every": 7})
    _, said = resumed(changes)
    assert [line["step"] for line in lines("eval")] == [
        2,
        4,
        6,
        8,
        10,
        12,
        14,
        16,
        18,
        20,
        24,
        28,
        32,
        36,
        40,
    ]
    assert [line["step"] for line in lines("train")] == [1, 7, 14, 20, 21, 28, 35, 40]
    assert "evaluation every 4 steps" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train.steps": 4},
            r"run has already made 4 steps \(256 tokens\), and train\.steps = 4 is its total length",
        ),
        ({"train.tokens": 300}, r"train\.tokens = 300 is its total length"),
        ({"train.epochs": 0.01}, r"train\.epochs = 0\.01 is its total length"),
        ({"train.steps": 9, "train.tokens": 900}, "set the length of run 2 times: set only one"),
        ({"train.steps": 0}, r"train\.steps = 0: expected the new length of run"),
        (
            {"train.minutes": 0.01},
            r"train\.minutes = 0\.01 leaves no time to train: .* Set --minutes \d",
        ),
        (
            {"train.steps": 9, "train.seed": 2},
            r"a run cannot change: train\.seed was 1 and is now 2",
        ),
        ({"train.steps": 9, "model.n_head": 3}, r"n_head = 3 does not divide"),
    ],
)
def test_impossible_changes_are_refused_before_anything_is_written(
    changes: dict[str, Any], message: str
) -> None:
    trained(4)
    before = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=message):
        resumed(changes)
    assert {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()} == before


def unfinished() -> None:
    trained(6, {"train.save_every": 3, "train.keep": 3})
    (RUN / "summary.json").unlink()
    shutil.rmtree("run/checkpoints/step-00000006")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("d_model = 16", "d_model = 32", "model.d_model was 16 and is now 32"),
        ("seed = 1", "seed = 2", "train.seed was 1 and is now 2"),
        ("batch_size = 4", "batch_size = 8", "train.batch_size was 4 and is now 8"),
        ('name = "muon"', 'name = "adamw"', "optim.name was muon and is now adamw"),
        ('documents = "stream"', 'documents = "rows"', "documents was stream and is now rows"),
    ],
)
def test_forbidden_edits_are_refused_by_name(old: str, new: str, message: str) -> None:
    unfinished()
    edit(old, new)
    with pytest.raises(
        ConfigError,
        match=f"run/config.toml differs from what run was trained with, .*{message}. Restore the",
    ):
        resumed()


def test_allowed_edits_are_applied_and_logged() -> None:
    unfinished()
    edit("steps = 6", "steps = 8")
    edit("learning_rate = 0.003", "learning_rate = 0.001")
    edit("save_every = 3", "save_every = 1")
    summary, said = resumed({"optim.clip_norm": 2})
    assert summary["steps"] == 8
    rates = [line["learning_rate"] for line in lines("train")]
    schedule = RunConfig().changed({"schedule.warmup_steps": 3}, where="").schedule
    assert rates[3:] == pytest.approx(
        [0.001 * learning_rate_share(step, 8, schedule) for step in range(3, 8)]
    )
    assert "changed  optim.learning_rate: 0.001 from step 3 on (was 0.003)\n" in said
    assert "note     optim.learning_rate: changes only head, biases and gains" in said
    events = [line["message"] for line in lines("event")]
    assert events[:3] == [
        "optim.learning_rate changed from 0.003 to 0.001",
        "optim.clip_norm changed from 0 to 2",
        "train.save_every changed from 3 to 1",
    ]
    assert summary["legs"][1]["changed"] == {
        "optim.learning_rate": [0.003, 0.001],
        "optim.clip_norm": [0.0, 2.0],
        "train.save_every": [3, 1],
        "train.steps": [6, 8],
    }
    assert "clip_norm = 2.0" in (RUN / "config.toml").read_text()


def test_checkpoints_of_earlier_versions_hold_no_config(caplog: pytest.LogCaptureFixture) -> None:
    unfinished()
    for path in RUN.glob("checkpoints/*/manifest.json"):
        manifest = json.loads(path.read_text())
        del manifest["about"]
        path.write_text(json.dumps(manifest))
    text = (RUN / "config.toml").read_text()
    edit("d_model = 16", "d_model = 32")
    with pytest.raises(
        CheckpointError, match=r"does not belong to this config: .* has shape \(\d+, 16\)"
    ):
        resumed()
    (RUN / "config.toml").write_text(text)
    caplog.clear()
    assert resumed({"train.steps": 7})[0]["steps"] == 7
    assert "whether they were edited cannot be checked" in caplog.text


def test_a_run_that_reached_its_target() -> None:
    summary = trained(9, {"train.stop_at_val_loss": 50, "train.eval_every": 3})
    assert (summary["finished"], summary["steps"]) == ("target", 3)
    with pytest.raises(
        ConfigError,
        match=r"reached its target, train\.stop_at_val_loss = 50, .* --stop-at-val-loss 0",
    ):
        resumed({"train.steps": 12})
    assert resumed()[0]["steps"] == 3
    summary, _ = resumed({"train.stop_at_val_loss": 0})
    assert (summary["finished"], summary["steps"], summary["seconds_to_target"]) == (
        "steps",
        9,
        None,
    )


def test_runs_whose_length_cannot_change() -> None:
    trained(4, {"train.initial_batch_size": 2})
    with pytest.raises(ConfigError, match="the batch size of run grows with its number of steps"):
        resumed({"train.steps": 9})
    train(["book.txt"], {"preset": "ngram"}, out=Path("counted"), console=Console(quiet=True))
    with pytest.raises(UsageError, match="is counted once"):
        resumed({"train.steps": 9}, Path("counted"))


@pytest.mark.parametrize("shape", ["constant", "inverse-sqrt", "linear", "cosine", "trapezoid"])
def test_each_schedule_is_described(shape: str) -> None:
    words = schedule_in_words(ScheduleConfig(shape=shape, final_fraction=0.1), 100, 100, 200)  # type: ignore[arg-type]
    assert words.startswith(f"{shape}: the learning rate ")


def test_epochs_set_a_length() -> None:
    """A resumed run makes the steps of a run that was planned with the epochs from the start."""
    fixed = {"schedule.shape": "constant", "model.ngram_dropout": 0.0}  # depend on the length
    trained(4, fixed)
    full = TINY | fixed | {"schedule.warmup_steps": 3, "train.epochs": 0.5}
    del full["train.steps"]
    planned = train(["book.txt"], full, out=Path("full"), console=Console(quiet=True))[1]
    assert planned["steps"] > 4
    assert resumed({"train.epochs": 0.5})[0]["steps"] == planned["steps"]
    assert_same_weights(RUN, Path("full"))


def test_changeable_names_are_settings() -> None:
    assert {name for name, _ in settings()} >= CHANGEABLE | set(LENGTH)
    assert not CHANGEABLE & set(LENGTH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train.batch_size": 3},
            r"train\.batch_size = 3 cannot be divided evenly among 2 processes",
        ),
        (
            {"train.batch_size": 4, "train.initial_batch_size": 1, "train.steps": 9},
            r"train\.initial_batch_size = 1 cannot be divided",
        ),
        (
            {"train.initial_batch_size": 2, "train.batch_size": 4},
            r"train\.initial_batch_size = 2 .* needs a known length",
        ),
        (
            {"preset": "lstm", "train.truncated_bptt": True},
            "truncated_bptt keeps its states in one process",
        ),
        ({"preset": "lstm", "data.documents": "packed"}, "needs attention"),
        ({"preset": "ngram"}, "counted by one process"),
        (
            {"preset": "gpt2", "train.engine": "reference"},
            "the reference engine runs in one process",
        ),
    ],
)
def test_impossible_settings_for_two_processes_are_refused_before_the_text_is_read(
    changes: dict[str, Any], message: str
) -> None:
    config, given = asked(["nosuch.txt"], changes)
    with pytest.raises(ConfigError, match=message):
        refuse_early(config, 2, given)


def test_chosen_settings_fit_two_processes() -> None:
    for changes in ({}, {"preset": "lstm"}, {"train.batch_tokens": 1000}, {"model.size": 2}):
        refuse_early(*asked(["nosuch.txt"], changes)[:1], 2, changes)


def test_a_command_that_fails_leaves_no_folder() -> None:
    with pytest.raises(ConfigError):
        trained(3, {"model.vocab_size": 5}, Path("new/runs/mine"))
    assert not Path("new").exists()
