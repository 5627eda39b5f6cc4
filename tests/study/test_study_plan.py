"""Study files: the grid of arms, and every mistake named before anything runs."""

import re
from pathlib import Path

import pytest

from lmsmith.errors import ConfigError
from lmsmith.study.announce import detectable, power_sentence
from lmsmith.study.check import config_of
from lmsmith.study.plan import read_study
from lmsmith.study.verdicts import seeds_needed

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


SIZED = GOOD.replace('"model.n_layer" = 2', '"model.n_layer" = 2, "model.d_model" = 64')
BARE = 'sources = ["book.txt"]\nbudget.tokens = 20_000\n'
SPACE = "[search]\ntrials = 4\n[search.space]\n"
ARMS = '[axes]\n"model.norm_placement" = ["pre", "post"]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD, "has no axes and no arms"),
        (GOOD + '[axes]\n"model.norm_place" = ["pre"]', "model.norm_placement"),
        (GOOD + '[axes]\n"model.n_layer" = []', "the axis 'model.n_layer' is .*one or more values"),
        (GOOD + '[axes]\n"model.n_layer" = 3', "expected a list"),
        (
            GOOD + "[axes]\nmodel = [{n_layer = 1}, {n_layer = 2}]",
            "'model' has tables .* in .arms.",
        ),
        (GOOD + '[axes]\n"model.n_layer" = [2, 0]', "arm 'n_layer=0'"),
        (GOOD + '[axes]\n"model.n_layer" = [2, 2]', "have the same settings"),
        (GOOD.replace("seeds = 3", "seeds = 1") + ARMS, "one seed cannot tell"),
        (GOOD.replace("seeds = 3", "seeds = [1, 1]") + ARMS, "different numbers"),
        (GOOD.replace("budget.tokens", "budget.hours") + ARMS, "one of tokens, flops, seconds and"),
        (GOOD.replace("20_000", "-1") + ARMS, "budget.tokens = -1: expected a number above 0"),
        (GOOD.replace("seeds", "seed") + ARMS, "'seed', which no study has. Did you mean 'seeds'"),
        (GOOD + 'baseline = "norm_placement=prE"\n' + ARMS, "is no arm. Did you mean"),
        (GOOD + 'metric = "loss"\n' + ARMS, "metric = 'loss': expected val_bits_per_byte"),
        (GOOD + '[axes]\n"train.steps" = [5, 9]', "sets train.steps, which the study itself sets"),
        (GOOD.replace('sources = ["book.txt"]', "") + ARMS, "names no text"),
        ("seeds = [", "is not TOML"),
        (GOOD.replace("20_000", "9_000") + ARMS, "9,000 tokens, and one step has 8,192"),
        (GOOD.replace("tokens = 20_000", "seconds = 2") + ARMS, "in which no run starts and ends"),
        (GOOD + "deviation = -1\n" + ARMS, "deviation = -1: expected 0 or more"),
        (GOOD + '[arms.A]\n[arms.B.model]\nnorm_placement = "pre"\n', "'A' and 'B' have the same"),
        (BARE + '[arms.A]\n[arms.n-gram]\npreset = "ngram"\n', "counts n-grams"),
        (GOOD + '[arms."a b"]\n[arms.a_b.model]\nnorm_placement = "post"\n', "the same folder"),
        (
            GOOD.replace("tokens = 20_000", "flops = 1e9") + ARMS,
            "its size is not set. Set model.d_m",
        ),
        (
            SIZED.replace("tokens = 20_000", "flops = 1e9") + ARMS,
            "fits it to the text. Set tokenizer",
        ),
        (GOOD + ARMS + '[scaling]\nfit = "line"\n', "scaling.fit = 'line': expected one of power-"),
        (GOOD + ARMS + '[scaling]\nheld_out = "x"\n', "'x' is no arm"),
        (GOOD + ARMS + '[scaling]\nheld_out = "norm_placement=pre"\n', "there are 3 besides"),
        (GOOD + "[search]\ntrials = 1\n", "search.trials = 1: expected 2 or more"),
        (GOOD + "[search]\n", "there is nothing to search"),
        (GOOD + SPACE + "x = 3\n", "expected a list of values, or {low"),
        (GOOD + SPACE + '"model.n_layr" = [1, 2]\n', "model.n_layer"),
        (GOOD + SPACE + '"model.n_layer" = {low = 3, high = 1}\n', "with low < high"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_study(study(tmp_path, text))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_study(tmp_path / "none.toml")


RECIPES = sorted((Path(__file__).parent.parent.parent / "recipes" / "studies").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_standard_studies_are_valid(tmp_path: Path, path: Path) -> None:
    (tmp_path / "text.txt").touch()
    found = read_study(path, [str(tmp_path / "text.txt")])
    assert found.question.endswith("?")
    assert 2 <= found.n_runs <= 40


def test_budgets_in_flops_and_tokens_per_parameter(tmp_path: Path) -> None:
    """Tokens = FLOPs / (6 matrix parameters + attention), counted by hand for this model: 2 layers
    of 4 x 64^2 + 3 x 64 x 192 weights, a head of 256 x 64, and 12 x 256/2 x 64 FLOPs a layer."""
    text = SIZED.replace("base = {", 'base = {tokenizer = "byte", "model.n_head" = 2, ')
    flops = read_study(study(tmp_path, text.replace("tokens = 20_000", "flops = 1e11") + ARMS))
    _, settings = config_of(flops, flops.arms[0], 1)
    matrices = 2 * (4 * 64**2 + 3 * 64 * 192) + 256 * 64
    assert settings["train.tokens"] == int(1e11 / (6 * matrices + 2 * 12 * 128 * 64))
    per = text.replace("tokens = 20_000", "tokens_per_parameter = 3") + ARMS
    found = read_study(study(tmp_path, per))
    _, settings = config_of(found, found.arms[0], 1)
    assert settings["train.tokens"] == 3 * (matrices + 256 * 64 + 5 * 64)  # tables and gains


def test_the_seeds_that_a_difference_needs_are_said_first(tmp_path: Path) -> None:
    known = GOOD + "difference = 0.01\ndeviation = 0.005\n" + ARMS
    assert "a difference of 0.01 needs 5 seeds" in power_sentence(
        read_study(study(tmp_path, known))
    )
    unknown = power_sentence(read_study(study(tmp_path, GOOD + ARMS)))
    assert re.search(r"3 seeds show a difference of 3\.\d times the standard deviation", unknown)
    n, d = seeds_needed(1.0, detectable(6, 3), n_comparisons=3), detectable(6, 3) * 0.98
    assert (n, seeds_needed(1.0, d, n_comparisons=3)) == (6, 7)
