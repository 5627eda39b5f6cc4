"""Study files: the grid of arms, and every mistake named before anything runs."""

from pathlib import Path

import pytest

from lmsmith.errors import ConfigError
from lmsmith.study.plan import read_study

GOOD = """
question = "Does pre-norm train better?"
sources = ["book.txt"]
seeds = 3
base = {preset = "llama", "model.n_layer" = 2}
budget.tokens = 20_000
"""


def study(tmp_path: Path, text: str) -> Path:
    (tmp_path / "study.toml").write_text(text, encoding="utf-8")
    return tmp_path / "study.toml"


def test_a_grid(tmp_path: Path) -> None:
    axes = '[axes]\n"model.norm_placement" = ["pre", "post"]\noptim.learning_rate = [1e-3, 0.01]\n'
    found = read_study(study(tmp_path, GOOD + axes))
    assert [arm.name for arm in found.arms] == [
        "norm_placement=pre learning_rate=0.001",
        "norm_placement=pre learning_rate=0.01",
        "norm_placement=post learning_rate=0.001",
        "norm_placement=post learning_rate=0.01",
    ]
    assert found.arms[2].settings == {"model.norm_placement": "post", "optim.learning_rate": 1e-3}
    assert (found.seeds, found.n_runs) == ((1, 2, 3), 12)
    assert (found.budget, found.amount) == ("tokens", 20_000)
    settings = found.settings_of(found.arms[3], 2)
    assert settings["train.seed"] == 2
    assert settings["model.n_layer"] == 2


def test_named_arms_and_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('preset = "gpt2"\n[model]\nn_layer = 3\n')
    text = """
sources = ["book.txt"]
base = "base.toml"
seeds = [4, 9]
baseline = "AdamW"
budget.seconds = 30
[arms.AdamW]
[arms.SGD]
"optim.name" = "sgd"
"""
    found = read_study(study(tmp_path, text))
    assert [arm.name for arm in found.arms] == ["AdamW", "SGD"]
    assert found.base["model.n_layer"] == 3
    assert (found.seeds, found.baseline) == ((4, 9), "AdamW")


ARMS = '[axes]\n"model.norm_placement" = ["pre", "post"]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD, "has no axes and no arms"),
        (GOOD + '[axes]\n"model.norm_place" = ["pre"]', "model.norm_placement"),
        (GOOD + '[axes]\n"model.n_layer" = []', "the axis 'model.n_layer' is .*one or more values"),
        (GOOD + '[axes]\n"model.n_layer" = 3', "expected a list"),
        (GOOD + '[axes]\n"model.n_layer" = [2, 0]', "arm 'n_layer=0'"),
        (GOOD + '[axes]\n"model.n_layer" = [2, 2]', "have the same settings"),
        (GOOD.replace("seeds = 3", "seeds = 1") + ARMS, "one seed cannot tell"),
        (GOOD.replace("seeds = 3", "seeds = [1, 1]") + ARMS, "different numbers"),
        (GOOD.replace("budget.tokens", "budget.hours") + ARMS, "one of tokens, flops and seconds"),
        (GOOD.replace("20_000", "-1") + ARMS, "budget.tokens = -1: expected a number above 0"),
        (GOOD.replace("seeds", "seed") + ARMS, "'seed', which no study has. Did you mean 'seeds'"),
        (GOOD + 'baseline = "norm_placement=prE"\n' + ARMS, "is no arm. Did you mean"),
        (GOOD + 'metric = "loss"\n' + ARMS, "metric = 'loss': expected val_bits_per_byte"),
        (GOOD + '[axes]\n"train.steps" = [5, 9]', "sets train.steps, which the study itself sets"),
        (GOOD.replace('sources = ["book.txt"]', "") + ARMS, "names no text"),
        ("seeds = [", "is not TOML"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_study(study(tmp_path, text))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_study(tmp_path / "none.toml")
