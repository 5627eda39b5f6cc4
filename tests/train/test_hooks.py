"""The user's hooks: when they run, what survives a kill, and what happens if one fails."""

import json
import math
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny import TEXT, TINY

import lmsmith.train.loop
from lmsmith.checkpoint import available, load_checkpoint
from lmsmith.errors import TrainingError, UsageError
from lmsmith.train.hooks import Context, Hook
from lmsmith.train.loop import Training
from lmsmith.train.start import resume, train
from lmsmith.train.stop import Stopped

Make = Callable[..., Training]


class Average(Hook):
    """A running mean of the weights, and other state that a hook may keep."""

    name = "average"

    def __init__(self) -> None:
        self.n, self.least, self.steps = 0, math.inf, list[int]()
        self.mean: dict[str, torch.Tensor] = {}

    def after_step(self, context: Context) -> None:
        self.n += 1
        self.steps.append(context.step)
        self.least = min(self.least, context.state.val_loss)
        for name, weight in context.replica.weights(copy=True).items():
            self.mean.setdefault(name, torch.zeros_like(weight)).lerp_(weight, 1 / self.n)

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n, "steps": self.steps, "least": self.least, **self.mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean = {name: value for name, value in state.items() if torch.is_tensor(value)}
        self.n, self.steps, self.least = state["n"], list(state["steps"]), state["least"]


class Failing(Hook):
    name = "failing"

    def __init__(self, method: str, step: int = 0) -> None:
        self.method, self.step, self.seen = method, step, 0

    def _fail(self, method: str, context: Context) -> None:
        if method == self.method and context.step >= self.step:
            raise ValueError("no such column\nin the table")

    def on_start(self, context: Context) -> None:
        self._fail("on_start", context)

    def after_step(self, context: Context) -> None:
        self._fail("after_step", context)
        self.seen += 1

    def on_end(self, context: Context) -> None:
        self._fail("on_end", context)

    def state_dict(self) -> dict[str, Any]:
        if self.method == "state_dict":
            raise ValueError("no such column")
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = state["seen"]


class Calls(Hook):
    """Records its calls."""

    def __init__(self, every: int = 1, at_end: bool = False) -> None:
        self.every, self.at_end, self.calls = every, at_end, list[Any]()

    def on_start(self, context: Context) -> None:
        self.calls.append("start")

    def after_step(self, context: Context) -> None:
        self.calls.append(context.step)

    def on_end(self, context: Context) -> None:
        self.calls.append(context.finished)


def same(one: Average, other: Average) -> bool:
    scalars = (one.n, one.least, one.steps) == (other.n, other.least, other.steps)
    return scalars and all(torch.equal(one.mean[name], other.mean[name]) for name in one.mean)


def events(run: Path) -> list[str]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["message"] for line in lines if line["kind"] == "event"]


@pytest.mark.parametrize(
    ("every", "at_end", "wanted"),
    [
        (1, False, [*range(1, 8)]),
        (3, False, [3, 6]),
        (3, True, [3, 6, 7]),
        (0, True, [7]),
        (0, False, []),
    ],
)
def test_when_a_hook_is_called(training: Make, every: int, at_end: bool, wanted: list[int]) -> None:
    hook = Calls(every, at_end)
    training({"train.steps": 7}, hooks=[hook]).go()
    assert hook.calls == ["start", *wanted, "steps"]


def test_a_hook_changes_nothing(training: Make) -> None:
    with_hook = training(run="one", hooks=[Average()])
    without = training(run="other")
    with_hook.go(), without.go()
    weights = without.context.replica.weights(copy=False)
    for name, weight in with_hook.context.replica.weights(copy=False).items():
        assert torch.equal(weight, weights[name]), name
    assert "hooks" not in load_checkpoint(without.context.run).state


def test_a_new_hook_in_an_extended_run_starts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first checkpoint of a leg is written before the hook has started."""

    class Late(Calls):
        name = "late"

        def on_start(self, context: Context) -> None:
            self.norm = 1.0

        def state_dict(self) -> dict[str, Any]:
            return {"norm": self.norm}

        def load_state_dict(self, state: Mapping[str, Any]) -> None:
            self.norm = state["norm"]

    (tmp_path / "book.txt").write_text(TEXT)
    run, console = tmp_path / "run", Console(quiet=True)
    train([str(tmp_path / "book.txt")], TINY | {"train.steps": 4}, out=run, console=console)
    with monkeypatch.context() as patched:
        patched.setattr(Training, "go", lambda self: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):  # killed before the leg's first step
            resume(run, {"train.steps": 6}, console=console, hooks=[Late()])
    assert "hooks" not in load_checkpoint(run).state
    hook = Late()
    assert resume(run, console=console, hooks=[hook])["steps"] == 6
    assert hook.calls == [5, 6, "steps"]
    assert load_checkpoint(run).state["hooks"]["late"]["values"] == {"norm": 1.0}


@pytest.mark.parametrize("where", ["train_step", "evaluation"])
@pytest.mark.parametrize("call", [2, 4])
def test_a_hook_survives_a_stop_anywhere(
    training: Make, monkeypatch: pytest.MonkeyPatch, where: str, call: int
) -> None:
    """If a signal comes between a step and the hook's call, the resumed run makes the call."""
    changes = {"train.steps": 15, "train.save_every": 4, "train.eval_every": 3}
    wanted, found, again = Average(), Average(), Average()
    training(changes, run="oracle", hooks=[wanted]).go()
    first = training(changes, hooks=[found])
    owner: Any = lmsmith.train.loop if where == "train_step" else first.hooks.evaluate
    name = "train_step" if where == "train_step" else "score"
    original, n_calls = getattr(owner, name), 0

    def signalled(*arguments: Any, **options: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == call:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, signalled)
        assert first.go()["finished"] == "signal"
    second = training(changes, hooks=[again])
    assert second.restore()
    assert second.go()["finished"] == "steps"
    assert same(again, wanted)
    assert wanted.steps == list(range(1, 16))


def test_a_killed_run_resumes_with_the_hook_state_of_the_checkpoint(training: Make) -> None:
    changes = {"train.steps": 12, "train.save_every": 5, "train.keep": 9}
    wanted, again = Average(), Average()
    run = training(changes, hooks=[wanted])
    run.go()
    for step in available(run.context.run)[1:]:
        shutil.rmtree(run.context.run / f"checkpoints/step-{step:08d}")
    assert training(changes, hooks=[again]).restore()
    assert (again.n, again.steps) == (5, [1, 2, 3, 4, 5])
    resumed = training(changes, hooks=[again])
    assert resumed.restore()
    resumed.go()
    assert same(again, wanted)


def test_a_rewind_restores_hooks(training: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient = lmsmith.train.step.gradient
    monkeypatch.setattr("lmsmith.train.guard.LEAST", 4)

    def spiking(replica: Any, batches: Any, step: int) -> tuple[float, float]:
        loss, norm = gradient(replica, batches, step)
        return loss, norm * (1000 if step == 6 else 1)

    monkeypatch.setattr(lmsmith.train.step, "gradient", spiking)
    changes = {"train.steps": 9, "train.save_every": 4, "train.on_spike": "rewind"}
    hook = Average()
    training(changes, hooks=[hook]).go()
    assert hook.steps == [1, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(("method", "step"), [("on_start", 0), ("after_step", 7), ("on_end", 9)])
def test_a_hook_that_raises_ends_the_run_after_a_checkpoint(
    training: Make, method: str, step: int
) -> None:
    changes = {"train.steps": 9, "train.eval_every": 3}
    before, after = Average(), Calls()
    run = training(changes, hooks=[before, Failing(method, step), after])
    words = (
        rf"hook 'failing' raised ValueError \(no such column\) in {method} at step {step}\. Step"
    )
    with pytest.raises(TrainingError, match=words) as caught:
        run.go()
    assert isinstance(caught.value.__cause__, ValueError)
    assert load_checkpoint(run.context.run).step == step
    # The corrected and resumed run makes the failed call and the later ones.
    mended, average, calls = Failing("none"), Average(), Calls()
    again = training(changes, hooks=[average, mended, calls])
    assert again.restore()
    assert again.go()["steps"] == 9
    assert mended.seen == 9
    assert average.steps == list(range(1, 10))
    assert calls.calls[1:-1] == ([] if method == "on_end" else list(range(max(step, 1), 10)))


def test_a_state_dict_that_raises_is_named(training: Make) -> None:
    with pytest.raises(TrainingError, match=r"hook 'failing' raised ValueError .* in state_dict"):
        training({"train.steps": 3}, hooks=[Failing("state_dict")]).go()


def test_a_state_that_json_cannot_hold_is_named(training: Make) -> None:
    class Odd(Hook):
        def state_dict(self) -> dict[str, Any]:
            return {"when": object()}

    with pytest.raises(
        TrainingError, match=r"hook 'Odd' holds a object under 'when'.*Expected: tensors"
    ):
        training({"train.steps": 3}, hooks=[Odd()]).go()


def test_a_hook_may_save_the_models_own_weights(training: Make) -> None:
    class Own(Hook):
        def on_start(self, context: Context) -> None:
            self.context = context

        def state_dict(self) -> dict[str, Any]:
            return dict(self.context.model.named_parameters())

    run = training({"train.steps": 3}, hooks=[Own()])
    run.go()
    found = load_checkpoint(run.context.run).tensors
    assert all(
        torch.equal(found["hook_Own"][name], weight) for name, weight in found["model"].items()
    )


def test_a_hook_can_stop_a_run(training: Make) -> None:
    class Enough(Hook):
        every = 4

        def after_step(self, context: Context) -> None:
            context.request_stop("enough")

    run = training(hooks=[Enough()])
    summary = run.go()
    assert (summary["finished"], summary["stop_reason"], summary["steps"]) == (
        "requested",
        "enough",
        4,
    )
    assert events(run.context.run) == ["stopped by a hook: enough"]
    assert available(run.context.run) == [4]


def test_names(training: Make) -> None:
    class Odd(Hook):
        name = "a/b"

    assert training(hooks=[Calls()]).hooks.names == ("Calls",)
    for hooks, words in (
        ([Average(), Average()], r"'average' is taken by another hook"),
        ([Average, Calls()], r"holds the class Average; expected instances"),
        ([print], r"holds <built-in function print>; expected instances"),
        ([Odd()], r"is named 'a/b'"),
    ):
        with pytest.raises(UsageError, match=words):
            training(hooks=hooks)
    evaluate = Calls()
    evaluate.name = "evaluate"
    with pytest.raises(UsageError, match="'evaluate' is taken by a built-in hook"):
        training(hooks=[evaluate])


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(TEXT, encoding="utf-8")
    return TINY | {"train.steps": 8, "train.save_every": 4, "train.keep": 9}


def test_a_run_whose_hook_is_missing_is_refused_by_name(book: dict[str, Any]) -> None:
    quiet = Console(quiet=True)
    run, _ = train(["book.txt"], book, out=Path("run"), console=quiet, hooks=[Average()])
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints/step-00000008")
    shutil.copytree(run, "other")
    shutil.copytree(run, "early")
    shutil.rmtree("early/checkpoints")
    words = r"with the hook average, which is missing.*from test_hooks import Average.*"
    words += r"hooks=\[Average\(\.\.\.\)\].*`lmsmith resume {} --without-hook average`"
    for place in ("run", "early"):
        with pytest.raises(UsageError, match=words.format(place)):
            resume(Path(place), {"train.keep": 3}, console=quiet)
        assert "keep = 9" in Path(place, "config.toml").read_text(encoding="utf-8")
    with pytest.raises(UsageError, match=r"run has no hook 'mean' to drop: it has average"):
        resume(run, console=quiet, without_hooks=["mean"])
    again = Average()
    assert resume(run, console=quiet, hooks=[again])["steps"] == 8
    assert again.n == 8
    for place in ("other", "early"):
        assert resume(Path(place), console=quiet, without_hooks=["average"])["steps"] == 8
        assert "the hook average and its state are dropped" in events(Path(place))
        assert "hooks" not in load_checkpoint(Path(place)).state


def test_the_command_line_can_drop_a_hook(book: dict[str, Any], capsys: Any) -> None:
    from lmsmith.cli import run as command

    run, _ = train(
        ["book.txt"], book, out=Path("run"), console=Console(quiet=True), hooks=[Average()]
    )
    (run / "summary.json").unlink()
    assert command(["resume", "run"], started=0.0) == 2
    assert "--without-hook average" in capsys.readouterr().err.replace("\n", " ")
    assert command(["resume", "run", "--without-hook", "average"], started=0.0) == 0
    assert "the hook average and its state are dropped" in capsys.readouterr().out


def test_a_hook_added_on_resume_starts_there(book: dict[str, Any]) -> None:
    quiet, hook = Console(quiet=True), Average()
    run, _ = train(["book.txt"], book, out=Path("run"), console=quiet)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints/step-00000008")
    resume(run, console=quiet, hooks=[hook])
    assert hook.steps == [5, 6, 7, 8]
    assert "the hook average is new" in events(run)


def test_an_ngram_model_has_no_steps_for_hooks(book: dict[str, Any]) -> None:
    with pytest.raises(
        UsageError, match=r"'average' runs between training steps, and an n-gram model"
    ):
        train(
            ["book.txt"], {"preset": "ngram"}, out=Path("run"), console=Console(), hooks=[Average()]
        )
    assert not Path("run").exists()


def test_a_second_interrupt_during_the_save_stops_at_once(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one ends an evaluation; the second does not wait for the checkpoint."""
    run = training({"train.eval_every": 3})
    score, save = run.hooks.evaluate.score, run.hooks.checkpoints.on_end

    def interrupted(when: Callable[..., Any]) -> Callable[..., Any]:
        def call(context: Context) -> Any:
            signal.raise_signal(signal.SIGINT)
            return when(context)

        return call

    monkeypatch.setattr(run.hooks.evaluate, "score", interrupted(score))
    monkeypatch.setattr(run.hooks.checkpoints, "on_end", interrupted(save))
    with pytest.raises(Stopped):
        run.go()
    assert available(run.context.run) == []
