"""Runs of reinforcement learning: they learn, resume exactly, and explain what is wrong."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import MACHINE, QUIET, SHORT, make_base
from rich.console import Console

from lmsmith.chat.rl.run import rl, with_defaults
from lmsmith.chat.rl.task import Problem
from lmsmith.chat.rl.tasks import ARITHMETIC
from lmsmith.chat.sft import tune
from lmsmith.checkpoint import load_checkpoint, load_model
from lmsmith.config import REWARDS, RunConfig
from lmsmith.errors import ConfigError, DataError, TrainingError, UsageError
from lmsmith.run_folder import open_run, run_exposure
from lmsmith.train.replica import Replica
from lmsmith.train.start import resume
from lmsmith.train.step import gradient

TINY = MACHINE | {
    "train.batch_size": 8,
    "rl.group_size": 4,
    "rl.eval_problems": 4,
    "rl.rewards": "sevens",
    "train.eval_every": 100,
    "train.keep": 99,
    "optim.learning_rate": 3e-3,
}


OTHERS = ("dr-grpo", "dapo", "reinforce")


def sevens(problem: Problem, answer: str) -> float:
    """The share of the answer that is the character 7."""
    return answer.count("7") / max(1, len(answer))


@pytest.fixture(autouse=True)
def reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REWARDS, "known", dict(REWARDS.known))
    monkeypatch.setattr(REWARDS, "_owners", dict(REWARDS._owners))
    REWARDS.register("sevens", sevens)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs base and sft, which has seen some sums."""
    folder = tmp_path_factory.mktemp("rl")
    make_base(folder)
    with (folder / "sums.jsonl").open("w") as file:
        for number in range(60):
            problem = ARITHMETIC.problem(9, number)
            answer = {"role": "assistant", "content": problem.truth}
            file.write(json.dumps({"messages": [*problem.messages, answer]}) + "\n")
    tune(
        folder / "base",
        [str(folder / "sums.jsonl")],
        SHORT | {"train.steps": 60, "optim.learning_rate": 3e-3},
        out=folder / "sft",
        console=QUIET,
    )
    return folder


def run_on(place: Path, name: str, console: Console = QUIET, **changes: Any) -> Path:
    given = {key.replace("__", "."): value for key, value in changes.items()}
    options = TINY | {"train.steps": 6} | given
    return rl(place / "sft", "arithmetic", options, out=place / name, console=console)[0]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(run).tensors["model"])


def lines(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize(
    "method", ["grpo", *(pytest.param(m, marks=pytest.mark.slow) for m in OTHERS)]
)
def test_every_method_raises_the_reward(place: Path, method: str) -> None:
    run = run_on(
        place,
        method,
        rl__method=method,
        train__steps=40,
        train__batch_size=16,
        train__eval_every=20,
    )
    rewards = [line["reward"] for line in lines(run)]
    assert sum(rewards[-10:]) > 1.2 * sum(rewards[:10])
    evaluated = [line["val_reward"] for line in lines(run, "eval")]
    assert evaluated[-1] >= evaluated[0]
    assert [line["val_loss"] for line in lines(run, "eval")] == [1 - x for x in evaluated]
    assert "What is" in (run / "samples.md").read_text()
    assert "(reward" in (run / "samples.md").read_text()


@pytest.mark.parametrize("lora", [0, 2])
def test_sampler_and_trainer_agree_in_every_step(place: Path, lora: int) -> None:
    """The decoder reads the live weights, and merged sevens with LoRA, after each step."""
    truncation = {"rl.top_k": 20, "rl.top_p": 0.95, "rl.temperature": 1.2}
    run = run_on(place, f"agree-{lora}", **truncation, lora__rank=lora, train__steps=8)
    gaps = [line["sampler_gap"] for line in lines(run)]
    assert len(gaps) == 8
    assert max(gaps) < 1e-5
    assert (run / "adapter").exists() == bool(lora)


def test_later_steps_of_a_rollout_clip_and_have_a_kl_term(place: Path) -> None:
    run = run_on(place, "several", rl__steps_per_rollout=3, rl__kl_weight=0.1, train__steps=9)
    found = lines(run)
    assert found[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert found[-1]["kl"] > 1e-6
    assert ["sampler_gap" in line for line in found] == [True, False, False] * 3
    rewards = [line["reward"] for line in found]
    assert rewards[0] == rewards[1] == rewards[2]
    assert max(line["clip_fraction"] for line in found) > 0
    sft, reference = (load_model(folder)[0] for folder in (place / "sft/model", run / "reference"))
    assert_equal(dict(sft), dict(reference))


def test_micro_batches_give_the_same_gradient(place: Path) -> None:
    run = run_on(place, "micro", train__steps=1, rl__kl_weight=0.1, rl__top_k=30)
    config, corpus = open_run(run)
    found = []
    for rows in (8, 3):
        changed = config.changed({"train.micro_batch_size": rows}, where="the test")
        model = changed.neural.build()
        model.load_state_dict(load_model(place / "sft/model")[0])
        replica = Replica(model.train(), changed)
        batches = replica.objective.batches(corpus)
        replica.objective.start(run, corpus, replica, batches, lambda message: None)
        loss, norm = gradient(replica, batches, 0)
        assert norm > 0
        found.append((loss, norm, replica.metrics))
    assert found[0][:2] == pytest.approx(found[1][:2], rel=1e-5, abs=1e-7)
    assert found[0][2] == pytest.approx(found[1][2], abs=1e-6)


# ---- resuming ------------------------------------------------------------------------------------

KILLER = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from lmsmith.config import REWARDS
from test_rl import sevens, run_on
from pathlib import Path
calls = [0]
def killing(problem, answer):
    calls[0] += 1
    if calls[0] == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return sevens(problem, answer)
REWARDS.register("sevens", killing)
run_on(Path({place!r}), {name!r}, **{changes!r})
"""


@pytest.mark.parametrize("save_every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_killed_in_the_middle_of_a_rollout_resumes_bit_for_bit(
    place: Path, save_every: int
) -> None:
    """Two steps per rollout: the checkpoint of step 5 is between the two steps of a rollout."""
    changes = {"rl.steps_per_rollout": 2, "train.save_every": save_every, "train.steps": 9}
    names = f"whole-{save_every}", f"killed-{save_every}"
    whole, killed = place / names[0], place / names[1]
    run_on(place, names[0], **changes)
    program = KILLER.format(
        tests=str(Path(__file__).parent),
        place=str(place),
        name=names[1],
        changes=changes,
        at=4 + 3 * 8 + 5,  # an evaluation, three rollouts, and a part of the fourth
    )
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert load_checkpoint(killed).step == (5 if save_every == 5 else 6)
    resume(killed, console=QUIET)
    assert_equal(weights(killed), weights(whole))
    kept = ("step", "loss", "grad_norm", "reward", "reward_std", "answer_tokens", "clip_fraction")
    one, other = ([{k: line[k] for k in kept} for line in lines(run)] for run in (killed, whole))
    assert one == other


def test_a_finished_run_can_be_extended(place: Path) -> None:
    run_on(place, "short", train__steps=3)
    run_on(place, "long", train__steps=6)
    with pytest.raises(UsageError, match="own answers by `lmsmith rl`"):
        run_exposure(place / "short")
    resume(place / "short", {"train.steps": 6}, console=QUIET)
    assert [line["reward"] for line in lines(place / "short")] == [
        line["reward"] for line in lines(place / "long")
    ]


# ---- mistakes ------------------------------------------------------------------------------------


def test_a_reward_that_raises_stops_the_run_which_can_be_resumed(place: Path) -> None:
    calls = [0]

    def sometimes(problem: Problem, answer: str) -> float:
        calls[0] += 1
        return 1 / (30 - calls[0])

    REWARDS.register("sometimes", sometimes)
    with pytest.raises(TrainingError, match=r"reward 'sometimes' raised ZeroDivisionError: .* to the "
                       r"prompt 'What is"):  # fmt: skip
        run_on(place, "raises", rl__rewards="sometimes", train__save_every=1)
    resume(place / "raises", console=QUIET)  # it does not raise again
    assert load_checkpoint(place / "raises").step == 6


def test_a_constant_reward_is_reported(place: Path) -> None:
    REWARDS.register("constant", lambda problem, answer: 0.5)
    with (place / "said.txt").open("w") as file:
        console = Console(file=file, width=300)
        run = run_on(place, "constant", console, rl__rewards="constant", train__steps=10)
    said = (place / "said.txt").read_text()
    assert "all 8 answers have the reward 0.5, so there is no gradient" in said
    assert "the reward 0.5 for 10 rollouts in a row" in said
    assert said.count("no gradient") == 2
    assert [line["no_signal_share"] for line in lines(run)] == [1.0] * 10
    assert_equal(weights(run), dict(load_model(place / "sft/model")[0]))


def test_mistakes_are_explained_and_leave_no_run(place: Path, tmp_path: Path) -> None:
    def message(error: type[Exception], run: str = "sft", task: str = "arithmetic",
                **changes: Any) -> str:  # fmt: skip
        given = {key.replace("__", "."): value for key, value in changes.items()}
        with pytest.raises(error) as raised:
            rl(place / run, task, TINY | given, out=tmp_path / "x", console=QUIET)
        assert not (tmp_path / "x").exists()
        return str(raised.value)

    assert "no RL task 'arithmetics'. Did you mean 'arithmetic'" in message(
        ConfigError, task="arithmetics"
    )
    assert "Did you mean 'exact'" in message(ConfigError, rl__rewards="exactt")
    assert "base has no chat template" in message(UsageError, run="base")
    assert "8 answers per step are not a multiple of rl.group_size = 3. Set it to 9" in message(
        ConfigError, rl__group_size=3
    )
    assert "rl.group_size = 1: expected at least 2" in message(ConfigError, rl__group_size=1)
    assert "leave room for the prompt" in message(ConfigError, rl__max_tokens=64)
    assert "and the model's context is 64" in message(DataError, rl__max_tokens=60).replace(
        "but the", "and the"
    )
    assert "rl.temperature = 0.0: expected above 0" in message(ConfigError, rl__temperature=0.0)
    assert "the task arithmetic reads no file" in message(ConfigError, rl__data="x.jsonl")
    assert "train.objective = 'cross-entropy'" in message(
        ConfigError, train__objective="cross-entropy"
    )


def test_defaults_are_those_of_the_documentation() -> None:
    config = RunConfig()
    assert dataclasses.asdict(config.rl)["method"] == "grpo"
    found = with_defaults(Path("run"), "arithmetic", {"learning_rate": 1e-4}, "here")
    assert found["optim.learning_rate"] == 1e-4
    assert "learning_rate" not in found
    assert config.train.objective == "cross-entropy"
