"""Requests: sources and settings, their precedence, and starting and resuming runs."""

import io
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny import TEXT, TINY

import lmsmith.train.finish
import lmsmith.train.resume
import lmsmith.train.start
from lmsmith.config import RunConfig
from lmsmith.config.presets import preset
from lmsmith.errors import ConfigError, TrainingError, UsageError
from lmsmith.evaluate.compressors import compressed_bits_per_byte
from lmsmith.train.finish import CLOSING_SECONDS, LEAST_SECONDS
from lmsmith.train.guard import Guard, SpikeError
from lmsmith.train.loop import Training
from lmsmith.train.request import asked
from lmsmith.train.start import resume, train


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(TEXT)


def recipe(text: str, name: str = "r.toml") -> str:
    Path(name).write_text(text)
    return name


RATES = ("learning_rate", "embedding_learning_rate", "muon_learning_rate")


@pytest.mark.parametrize(
    ("in_recipe", "changes", "wanted"),
    [
        ("", {"learning_rate": "0.01"}, (0.0015, 0.01, 0.01)),
        ("learning_rate = 0.01", {}, (0.0015, 0.01, 0.01)),
        ("learning_rate = 0.3", {"learning_rate": 0.01}, (0.0015, 0.01, 0.01)),
        (
            "[optim]\nmuon_learning_rate = 0.04",
            {"learning_rate": 0.02},
            (0.0015, 0.01, 0.02),
        ),  # keeps the recipe's ratios
        ("learning_rate = 0.01", {"optim.learning_rate": 0.5}, (0.5, 0.01, 0.01)),
        ("", {"learning_rate": 0.01, "optim.embedding_learning_rate": 0.7}, (0.0015, 0.7, 0.01)),
        ('preset = "llama"', {"learning_rate": 0.01}, (0.01, 0.0, 0.02)),
        ("", {"learning_rate": 0.006, "optim.name": "adamw"}, (0.006, 0.04, 0.02)),
        (
            "",
            {"learning_rate": 0.04, "model.size": 16},
            (0.003, 0.04, 0.04),
        ),  # this size halves the other rate
    ],
)
def test_one_learning_rate_scales_all_groups(
    in_recipe: str, changes: dict[str, Any], wanted: tuple[float, ...]
) -> None:
    config, given = asked([recipe(in_recipe + "\n"), "book.txt"], changes)
    assert [getattr(config.optim, name) for name in RATES] == pytest.approx(wanted)
    assert "learning_rate" not in given
    assert "optim.muon_learning_rate" in given or config.optim.name == "adamw"
    own = recipe(config.to_toml(), "config.toml")  # reads back the same
    assert asked([own, "book.txt"], {})[0].optim == config.optim


def test_learning_rates_are_logged_and_a_partial_change_is_noted() -> None:
    said = io.StringIO()
    console = Console(file=said, width=1000)
    short = TINY | {"train.steps": 2, "schedule.warmup_steps": 2}
    run, _ = train(
        ["book.txt"], short | {"learning_rate": 0.04}, out=Path("together"), console=console
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["kind"] == "train")
    assert [first[name] for name in RATES] == pytest.approx(
        [0.003, 0.02, 0.02]
    )  # half of the peak, in warm-up
    assert (
        "muon_learning_rate 0.04, learning_rate 0.006, embedding_learning_rate 0.04"
        in said.getvalue()
    )
    assert "alone; unchanged" not in said.getvalue()
    train(["book.txt"], short | {"optim.learning_rate": 0.001}, out=Path("alone"), console=console)
    assert "note     optim.learning_rate: changes only head, biases and gains" in said.getvalue()


def test_without_settings_the_default_preset_is_used() -> None:
    config, given = asked(["book.txt"], {})
    assert config == preset(RunConfig.preset).changed({"data.sources": ("book.txt",)}, where="")
    assert given == set()


def test_the_command_line_overrides_the_recipe_which_overrides_the_preset() -> None:
    name = recipe(
        'preset = "babygpt"\n[model]\ndropout = 0.5\n[train]\nseed = 5\n[data]\nsources = '
        '["a.txt"]\n'
    )
    config, given = asked([name], {"train.seed": "6"})
    assert (config.preset, config.model.d_model, config.model.dropout, config.train.seed) == (
        "babygpt",
        384,
        0.5,
        6,
    )
    assert config.data.sources == ("a.txt",)
    assert given == {"preset", "model.dropout", "train.seed", "data.sources"}
    config, _ = asked([name, "b.txt", "c.txt"], {"preset": "llama"})
    assert (config.preset, config.model.feed_forward, config.model.dropout) == (
        "llama",
        "swiglu",
        0.5,
    )
    assert config.data.sources == ("b.txt", "c.txt")


@pytest.mark.parametrize(
    ("in_recipe", "changes", "wanted"),
    [
        ("", {"train.steps": 5}, {"steps": 5}),
        ("steps = 3", {}, {"steps": 3}),
        ("steps = 3", {"train.minutes": 2.0}, {"minutes": 2.0}),
        ("minutes = 3.0", {"train.tokens": 9}, {"tokens": 9}),
        ("steps = 3\nminutes = 9.0", {}, {"steps": 3}),  # a run's own config
        ("steps = 3\nminutes = 9.0", {"train.steps": 4}, {"steps": 4}),
        ("steps = 3\nminutes = 9.0", {"train.minutes": 4}, {"minutes": 4}),
        ("steps = 3", {"train.steps": "auto"}, {}),
    ],
)
def test_one_length_setting_remains(
    in_recipe: str, changes: dict[str, Any], wanted: dict[str, float]
) -> None:
    config, _ = asked([recipe(f"[train]\n{in_recipe}\n"), "book.txt"], changes)
    found = {name: getattr(config.train, name) for name in ("steps", "minutes", "tokens")}
    assert found == {"steps": 0, "minutes": 0, "tokens": 0} | wanted


@pytest.mark.parametrize("name", ["steps", "minutes", "tokens", "epochs"])
def test_a_length_of_zero_is_refused_on_the_command_line(name: str) -> None:
    """Recipes and run folders of earlier versions may hold zeros, which mean auto."""
    with pytest.raises(ConfigError, match=rf"train\.{name} = 0 in the command line: expected more"):
        asked(["book.txt"], {f"train.{name}": "0"})
    asked([recipe(f"[train]\n{name} = 0\nsteps = 2\n" if name != "steps" else ""), "book.txt"], {})


@pytest.mark.parametrize(
    ("in_recipe", "changes"),
    [
        ("", {"train.steps": 5, "train.minutes": 1}),
        ("steps = 3\ntokens = 5", {}),
        ("minutes = 3.0\ntokens = 5", {}),
        ("seed = 3", {"train.steps": 5, "train.tokens": 1}),
    ],
)
def test_two_lengths_are_refused(in_recipe: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="set the run's length 2 times: set only one"):
        asked([recipe(f"[train]\n{in_recipe}\n"), "book.txt"], changes)


@pytest.mark.parametrize(
    ("in_recipe", "changes", "width", "heads"),
    [
        ("", {"model.d_model": "100"}, 100, None),
        ("", {"model.n_head": 7}, None, 7),
        ("d_model = 100", {"model.n_head": 5}, 100, 5),
        ("n_head = 5", {"model.d_model": 100}, 100, 5),
    ],
)
def test_width_or_heads_may_be_set_alone(
    in_recipe: str, changes: dict[str, Any], width: int | None, heads: int | None
) -> None:
    config, given = asked([recipe(f"[model]\n{in_recipe}\n"), "book.txt"], changes)
    assert width is None or config.model.d_model == width
    assert heads is None or config.model.n_head == heads
    assert {"model.d_model", "model.n_head"} & given == {
        name for name, value in (("model.d_model", width), ("model.n_head", heads)) if value
    }


def test_a_preset_with_a_size_keeps_it() -> None:
    with pytest.raises(ConfigError, match=r"n_head = 12 does not divide model\.d_model = 100"):
        asked(["book.txt"], {"preset": "gpt2", "model.d_model": 100})


def test_model_size_and_precedence() -> None:
    config, given = asked(["book.txt"], {"model.size": "4"})
    assert given == {"model.size"}
    model = config.model
    assert (model.n_layer, model.d_model, model.n_head, model.context_length) == (4, 256, 4, 256)
    assert config.train.batch_size == 16
    config, _ = asked(["book.txt"], {"model.size": 4, "model.n_layer": 2, "preset": "gpt2"})
    assert (config.model.n_layer, config.model.d_model, config.model.positions) == (
        2,
        256,
        "learned",
    )
    own = recipe(
        "[model]\nsize = 6\nn_layer = 3\n"
    )  # as in the config.toml of a run: the size and the settings derived from it
    assert asked([own, "book.txt"], {})[0].model.n_layer == 3
    assert asked([own, "book.txt"], {})[0].model.d_model == 384
    config, _ = asked([own, "book.txt"], {"model.size": 8})
    assert (config.model.n_layer, config.model.d_model, config.model.size) == (8, 512, 8)
    with pytest.raises(
        ConfigError, match=r"model\.size = 'large' in the command line: expected a whole number"
    ):
        asked(["book.txt"], {"model.size": "large"})
    with pytest.raises(ConfigError, match=r"model\.size = -1"):
        asked(["book.txt"], {"model.size": -1})


def test_errors_name_the_place_of_the_mistake() -> None:
    with pytest.raises(UsageError, match=r"a\.toml and b\.toml are 2 recipes"):
        asked(["a.toml", "b.toml"], {})
    with pytest.raises(ConfigError, match=r"cannot read a\.toml"):
        asked(["a.toml"], {})
    with pytest.raises(UsageError, match=r"the recipe r\.toml names no text"):
        asked([recipe("")], {})
    with pytest.raises(
        ConfigError, match=r"unknown setting 'train.step' in r\.toml\. Did you mean 'train.steps'"
    ):
        asked([recipe("[train]\nstep = 1\n"), "book.txt"], {})
    with pytest.raises(ConfigError, match=r"preset = 5 in r\.toml: expected text"):
        asked([recipe("preset = 5\n"), "book.txt"], {})
    with pytest.raises(
        ConfigError, match=r"train\.seed = 'x' in the command line: expected a whole number"
    ):
        asked(["book.txt"], {"train.seed": "x"})


def run_train(changes: dict[str, Any], **options: Any) -> tuple[Path, dict[str, Any], str]:
    said = io.StringIO()
    tiny = {name: value for name, value in TINY.items() if name != "train.steps"}
    console = Console(file=said, width=100)
    run, summary = train(["book.txt"], tiny | changes, out=Path("run"), console=console, **options)
    return run, summary, said.getvalue()


def test_the_summary_has_the_compressors_and_is_written_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, summary, _ = run_train({"train.steps": 3})
    assert json.loads((run / "summary.json").read_text()) == summary
    assert summary["baselines"] == compressed_bits_per_byte(
        (run / "tokens" / "validation.txt").read_bytes()
    )
    # If it is killed while the compressors work, the run does not count as finished.
    (run / "summary.json").unlink()

    def killed(_: bytes) -> dict[str, float]:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(lmsmith.train.finish, "compressed_bits_per_byte", killed)
        with pytest.raises(SystemExit):
            resume(run, console=Console(quiet=True))
    assert not (run / "summary.json").exists()
    assert resume(run, console=Console(quiet=True))["baselines"] == summary["baselines"]


def test_the_summary_of_an_interrupted_run_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run, summary, _ = run_train({"train.steps": 3})
    for finished, wanted in (("signal", 3), ("steps", 77)):
        (run / "summary.json").write_text(json.dumps(summary | {"finished": finished, "steps": 77}))
        assert resume(run, console=Console(quiet=True))["steps"] == wanted


def test_time_is_reserved_for_setup_compressors_and_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deadlines = []

    def go(self: Training) -> dict[str, Any]:
        deadlines.append(self.context.deadline)
        return {"finished": "signal", "steps": 1}

    monkeypatch.setattr(Training, "go", go)
    for module in (lmsmith.train.start, lmsmith.train.resume):
        monkeypatch.setattr(module, "compress_seconds", lambda corpus: 7.0)
    started = time.monotonic() - 20  # the command was given 20 s ago
    run_train({"train.minutes": 2.0}, started=started, reserve_seconds=5.0)
    assert deadlines.pop() == pytest.approx(started + 120 - 7 - 5 - CLOSING_SECONDS)
    # A run that has trained for 50 s has 70 s left, less the closing, from now on.
    monkeypatch.setattr(
        Training, "restore", lambda self, **_: setattr(self.state, "wall_seconds", 50.0) or True
    )
    resume(Path("run"), console=Console(quiet=True))
    left = deadlines.pop() - time.monotonic()
    assert left == pytest.approx(120 - 50 - 7 - CLOSING_SECONDS, abs=5)
    Path("run").rename("other")
    run_train({"train.steps": 3})
    assert deadlines.pop() == math.inf


@pytest.mark.parametrize("late", [0, 1000])
def test_too_few_minutes(late: float) -> None:
    with pytest.raises(
        ConfigError, match=r"leaves no time to train: .* Set --minutes [\d.]+ or more"
    ) as raised:
        run_train({"train.minutes": 0.02}, started=time.monotonic() - late)
    assert not Path("run").exists()
    enough = float(str(raised.value).split("--minutes ")[1].split()[0])
    assert 60 * enough > late + CLOSING_SECONDS + LEAST_SECONDS


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to"),
    ],
)
def test_out_of_memory(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def go(self: Training) -> None:
        raise error  # looked up when it is raised

    monkeypatch.setattr(Training, "go", go)
    with pytest.raises(
        TrainingError, match=r"out of memory\. Set a smaller --train\.micro_batch_size"
    ):
        run_train({"train.steps": 3})
    error = RuntimeError("shapes do not fit")  # other errors are not converted
    with pytest.raises(RuntimeError, match="shapes"):
        resume(Path("run"), console=Console(quiet=True))


def test_the_plan_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    _, summary, said = run_train({"train.steps": 3})
    assert f"text     {len(TEXT):,} characters, vocabulary of {summary['vocab_size']};" in said
    assert f"{summary['n_params']:,} parameters" in said
    assert "training 3 steps of 4 x 16 tokens = 192" in said


def killed_at_five() -> list[float]:
    """Trains ten steps, then removes all after the fifth; returns the losses."""
    settings = {"train.steps": 10, "train.save_every": 5, "train.keep": 9, "train.dtype": "float64"}
    run_train(settings)
    Path("run/summary.json").unlink()
    shutil.rmtree("run/checkpoints/step-00000010")
    return losses()


def losses() -> list[float]:
    lines = map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_settings_that_do_not_change_the_results_may_change_on_resume() -> None:
    wanted = killed_at_five()
    resume(
        Path("run"),
        {"train.micro_batch_size": "1", "train.activation_checkpointing": "yes"},
        console=Console(quiet=True),
    )
    assert losses() == pytest.approx(wanted, rel=1e-12)
    text = Path("run/config.toml").read_text()
    assert "micro_batch_size = 1" in text
    assert "activation_checkpointing = true" in text


def test_a_run_stopped_by_a_spike_resumes_as_its_message_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge = Guard.judge

    def spiky(self: Guard, step: int, loss: float, norm: float) -> None:
        if step == 6:
            raise SpikeError(
                "step 7: a test.", "stop" if self.on_spike == "no" else self.on_spike, loss, norm
            )
        judge(self, step, loss, norm)

    monkeypatch.setattr(Guard, "judge", spiky)
    with pytest.raises(
        TrainingError, match=r"`lmsmith resume run --on-spike skip` resumes without it"
    ):
        run_train({"train.steps": 10})
    summary = resume(Path("run"), {"train.on_spike": "skip"}, console=Console(quiet=True))
    assert (summary["steps"], summary["finished"]) == (10, "steps")
    events = [
        line for line in Path("run/metrics.jsonl").read_text().splitlines() if '"event"' in line
    ]
    assert "It is skipped" in events[-1]


def test_micro_batches_with_a_state_cannot_change_size() -> None:
    shared = {
        name: value
        for name, value in TINY.items()
        if name not in ("model.n_head", "model.ngram_table_size")
    }
    changes = shared | {"preset": "lstm", "train.truncated_bptt": True, "train.steps": 3}
    train(["book.txt"], changes, out=Path("run"), console=Console(quiet=True))
    Path("run/summary.json").unlink()
    with pytest.raises(
        ConfigError, match="run keeps a recurrent state for each of its micro-batches"
    ):
        resume(Path("run"), {"train.micro_batch_size": 2}, console=Console(quiet=True))


def test_a_run_restarted_by_torchrun_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = killed_at_five()
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    _, summary, said = run_train({"train.steps": 10})
    assert "resuming run at step 5 of 10" in said
    assert summary["resumed_from_step"] == 5
    assert losses() == wanted
    Path("other.txt").write_text(TEXT)
    with pytest.raises(
        UsageError, match=r"run holds another run, on book\.txt, .* Choose another --out"
    ):
        train(["other.txt"], {"train.steps": 10}, out=Path("run"), console=Console(quiet=True))
    with pytest.raises(UsageError, match=r"--max-restarts .* Name the run's folder with --out RUN"):
        train(["book.txt"], {}, out=None, console=Console(quiet=True))
