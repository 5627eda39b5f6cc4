"""Fine-tuning another run's weights (`--from`): they are the start, and that run is not needed
later.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny import TEXT, TINY

import lmsmith
from lmsmith.checkpoint import load_model, save_model
from lmsmith.cli import run
from lmsmith.config.presets import preset
from lmsmith.errors import ConfigError, TokenizerError, UsageError
from lmsmith.run_folder import load_for_use, score_validation
from lmsmith.train.request import asked
from lmsmith.train.start import resume, train

QUIET = Console(quiet=True)
OTHER = TEXT.replace("The cat", "Our dog").replace("saw", "bit")
LENGTH = {"train.steps": 10, "train.eval_every": 5, "train.save_every": 5, "train.keep": 9}
MACHINE = {name: value for name, value in TINY.items() if name.startswith("train.")}


@pytest.fixture
def _base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run named base, and another text."""
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(TEXT)
    Path("other.txt").write_text(OTHER)
    train(["book.txt"], TINY | {"tokenizer": "byte"}, out=Path("base"), console=QUIET)


pytestmark = pytest.mark.usefixtures("_base")


def on(name: str = "run", **changes: Any) -> dict[str, Any]:
    settings = MACHINE | LENGTH | {"train.init_from": "base"} | changes
    return train(["other.txt"], settings, out=Path(name), console=QUIET)[1]


def weights(run: str) -> dict[str, torch.Tensor]:
    return dict(load_for_use(Path(run))[0].state_dict())  # type: ignore[attr-defined]


def test_the_starting_weights_are_scored_first_and_stay_if_nothing_is_better() -> None:
    base = load_for_use(Path("base"))[0]
    on()
    first = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])
    assert (first["kind"], first["step"]) == ("eval", 0)
    assert first["val_loss"] == pytest.approx(
        score_validation(Path("run"), base, stride=None).nats_per_token, rel=1e-6
    )
    assert first["val_loss"] > json.loads(Path("run/summary.json").read_text())["best_val_loss"]
    summary = on(
        "worse",
        **{
            "optim.learning_rate": 900.0,
            "optim.muon_learning_rate": 900.0,
            "schedule.warmup_steps": 0,
        },
    )
    assert (summary["best_step"], summary["best_val_loss"]) == (0, first["val_loss"])
    for name, weight in weights("base").items():
        assert torch.equal(weights("worse")[name], weight), name


@pytest.mark.parametrize("left", [0, 5])
def test_resuming_does_not_need_the_other_run(left: int) -> None:
    """Before and after its first checkpoint, the weights equal those of an uninterrupted run."""
    on("alone")
    on()
    if not left:  # as before the first save
        shutil.rmtree("run/model")
        shutil.copytree("base/model", "run/model")
    else:  # damaged, but the checkpoint has everything
        Path("run/model/model.safetensors").write_bytes(b"")
    shutil.rmtree("base")
    Path("run/summary.json").unlink()
    for checkpoint in Path("run/checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > left:
            shutil.rmtree(checkpoint)
    assert resume(Path("run"), console=QUIET)["resumed_from_step"] == (left or None)
    for name, weight in weights("alone").items():
        assert torch.equal(weights("run")[name], weight), name


def test_begin_and_end_ids_of_an_imported_model_stay() -> None:
    place = Path("base/model/config.json")
    content = json.loads(place.read_text())
    content["config"] |= {"begin": 3, "ends": [7, 9]}
    place.write_text(json.dumps(content))
    on()
    kept = json.loads(Path("run/model/config.json").read_text())["config"]
    assert kept["ends"] == [7, 9]
    assert kept["begin"] == 3
    assert lmsmith.load("run").writer.begin == 3


def test_model_and_tokenizer_come_from_the_other_run_and_rates_are_a_tenth() -> None:
    settings = (
        MACHINE
        | LENGTH
        | {"train.init_from": "base", "model.dropout": 0.25, "optim.muon_learning_rate": 0.01}
    )
    config, given = asked(["other.txt"], settings)
    assert (config.model.d_model, config.model.vocab_size, config.model.dropout) == (16, 256, 0.25)
    assert {"model.d_model", "model.context_length"} <= given
    assert config.optim.learning_rate == pytest.approx(0.1 * preset("modern").optim.learning_rate)
    assert config.optim.muon_learning_rate == 0.01
    on()
    again, _ = asked(["run/config.toml"], {})  # repeats the same model settings
    assert (again.model.d_model, again.train.init_from) == (16, "base")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.d_model": 32},
            r"model\.d_model = 32, but base, which this run starts from, has 16\. Leave it out",
        ),
        (
            {"tokenizer": "char"},
            "tokenizer = 'char', but base, .* brings its own tokenizer. Leave it out",
        ),
        ({"train.init_from": "counts"}, "counts is an n-gram model"),
    ],
)
def test_settings_that_cannot_change(changes: dict[str, Any], message: str) -> None:
    if "train.init_from" in changes:
        train(["book.txt"], {"preset": "ngram"}, out=Path("counts"), console=QUIET)
    with pytest.raises(ConfigError, match=message):
        on(**changes)
    assert not Path("run").exists()


def test_an_extended_run_keeps_the_end_ids_of_an_imported_model() -> None:
    config = Path("base/model/config.json")
    content = json.loads(config.read_text())
    content["config"]["ends"] = [3, 5]
    save_model(Path("base/model"), load_model(Path("base/model"))[0], content["config"])
    on(**{"train.steps": 3})
    resume(Path("run"), {"train.steps": 5}, console=QUIET)
    found = json.loads(Path("run/model/config.json").read_text())["config"]
    assert found["ends"] == [3, 5]


def test_no_run() -> None:
    with pytest.raises(UsageError, match="nowhere is not a run"):
        on(**{"train.init_from": "nowhere"})
    Path("base/model/tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match="base has no tokenizer"):
        on()


def test_weights_that_reach_the_target_are_not_trained(capsys: pytest.CaptureFixture[str]) -> None:
    machine = [
        word
        for name in ("threads", "matmul")
        for word in (f"--train.{name}", str(MACHINE[f"train.{name}"]))
    ]
    words = [
        "train",
        "other.txt",
        "--from",
        "base",
        "--steps",
        "9",
        "--stop-at-val-loss",
        "9",
        "--out",
        "run",
    ]
    assert run([*words, *machine], started=time.monotonic()) == 0
    assert "at step 0; 0.0 s of training; target reached after 0.0 s" in capsys.readouterr().out
